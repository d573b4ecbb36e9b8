"""STC settings: one frozen value, its presets, and the flags that set it.

Knows nothing of models, graphs or devices: what depends on a model's token counts is asked of
`Settings.recomputed` and `Settings.kept`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from stc.errors import SettingsError
from stc.shell.ranges import (
    MAX_COUNT,
    flag_of,
    number_flag,
    one_of,
    real,
    shown,
    whole_fields,
    whole_flag,
)

Selection = Literal["shared", "layerwise"]
Scoring = Literal["dual-anchor", "gaussian", "gaussian-fixed"]

SELECTIONS: tuple[Selection, ...] = get_args(Selection)
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)

KEEP_ALL = 0
"""Budget that keeps every token: nothing is pruned."""

LONGEST_WINDOW = 10_000
"""Frames in the longest anchor window: its means are summed anew for every frame."""

_WHOLE = {
    "reference_interval": (1, MAX_COUNT),
    "budget": (KEEP_ALL, MAX_COUNT),
    "anchor_window": (1, LONGEST_WINDOW),
}
"""Fields of Settings that are whole numbers, with the least and the most."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a stream is compressed; the defaults are the paper's, PRESETS[DEFAULT_PRESET].

    reference_interval: a frame is a reference frame when frame_index % reference_interval == 0;
        1 makes every frame a reference (dense).
    recompute_ratio: share of the T tokens recomputed on a reuse frame, in (0, 1].
    selection: `layerwise`, every block selects by its own keys (paper), or `shared`, block 0
        selects for all blocks.
    budget: tokens kept of each frame's n; 0 keeps all.
    pruner: scoring of the kept tokens: the paper's `dual-anchor`, the released code's `gaussian`,
        or `gaussian-fixed`, which remembers all channels (see `stc.method.pruner`).
    anchor_window: frames in dual-anchor's temporal anchor (W; the paper gives no value).

    Raises SettingsError naming the flag.
    """

    reference_interval: int = 2
    recompute_ratio: float = 0.25
    selection: Selection = "layerwise"
    budget: int = 58
    pruner: Scoring = "dual-anchor"
    anchor_window: int = 32

    def __post_init__(self) -> None:
        whole_fields(self, _WHOLE)
        ratio = real("--recompute-ratio", self.recompute_ratio, "0 < R <= 1", above=0.0, most=1.0)
        object.__setattr__(self, "recompute_ratio", ratio)
        one_of("--selection", self.selection, SELECTIONS)
        one_of("--pruner", self.pruner, SCORINGS)

    def recomputed(self, tokens: int) -> int:
        """M, the tokens recomputed on a reuse frame of `tokens` = T tokens: max(1, int(T*r))."""
        return max(1, int(tokens * self.recompute_ratio))

    def kept(self, pooled: int) -> int:
        """k, the tokens kept of `pooled` = n tokens per frame.

        Raises SettingsError when the budget exceeds n.
        """
        if self.budget > pooled:
            raise SettingsError(
                "--budget",
                f"got {self.budget}",
                f"at most {pooled}, this model's tokens per frame",
                f"use --budget {pooled} or --budget 0 to keep all",
            )
        return self.budget or pooled

    def is_reference(self, frame_index: int) -> bool:
        """Whether the schedule makes frame `frame_index` (from 0) a reference frame."""
        return frame_index % self.reference_interval == 0


PRESETS: dict[str, Settings] = {
    "cacher": Settings(reference_interval=4, budget=KEEP_ALL),
    "pruner": Settings(reference_interval=1, recompute_ratio=1.0, budget=49),
    "paper": Settings(),
    "released": Settings(budget=60, pruner="gaussian"),
    "off": Settings(reference_interval=1, recompute_ratio=1.0, budget=KEEP_ALL),
}
"""Settings of the paper's section 4.1 and of its released code, by name; budgets are stated for
a model of PRESET_POOLED tokens per frame, see `scaled`."""

PRESET_POOLED = 196

DEFAULT_PRESET = "paper"


def scaled(preset: Settings, pooled: int) -> Settings:
    """`preset` for a model of `pooled` = n tokens per frame: the same share of them is kept."""
    if preset.budget == KEEP_ALL:
        return preset
    return replace(preset, budget=max(1, preset.budget * pooled // PRESET_POOLED))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--preset` and one flag per field of `Settings`; read them with `from_flags`.

    Flags default to None, so that only what the user wrote overrides the preset. Of them `--help`
    shows `--preset` alone, `--help-settings` all.
    """
    _add_flags(parser, every=False)
    parser.add_argument(
        "--help-settings",
        action=_HelpSettings,
        nargs=0,
        help="show what the presets are and the flags that override one value each, and exit",
    )


class _HelpSettings(argparse.Action):
    """Prints the flags of `Settings` and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        alone = argparse.ArgumentParser(prog=parser.prog, add_help=False, usage=argparse.SUPPRESS)
        _add_flags(alone, every=True)
        alone.print_help()
        parser.exit()


def _add_flags(parser: argparse.ArgumentParser, *, every: bool) -> None:
    """Those flags, their help shown for `every` one or for `--preset` alone."""
    group = parser.add_argument_group(
        "STC settings",
        "Default: those the bundle was exported with, which are those of --preset "
        f"{DEFAULT_PRESET} if nothing else was said.",
    )
    presets = "; ".join(f"{name}: {_contents(preset)}" for name, preset in PRESETS.items())
    told = f"all of the flags below. {presets}" if every else "how frames are compressed"
    group.add_argument("--preset", metavar="|".join(PRESETS), help=told)

    def add(
        flag: str, metavar: str, help_text: str, type_: Callable[[str], Any] | None = None
    ) -> None:
        shown_text = help_text if every else argparse.SUPPRESS
        typed: dict[str, Any] = {} if type_ is None else {"type": type_}
        group.add_argument(flag, metavar=metavar, help=shown_text, **typed)

    add(
        "--reference-interval",
        "N",
        "every Nth frame is a reference frame, which computes all tokens; 1: every frame",
        whole_flag(),
    )
    add(
        "--recompute-ratio",
        "R",
        "share of the tokens recomputed on reuse frames, 0 < R <= 1",
        number_flag,
    )
    add(
        "--selection",
        "|".join(SELECTIONS),
        "who selects those tokens: the first block for all, or each block for itself",
    )
    add("--budget", "K", "tokens kept per frame, 0: all", whole_flag())
    add(
        "--pruner",
        "|".join(SCORINGS),
        "what chooses the tokens kept: the paper's, the released code's, or that fixed",
    )
    add("--anchor-window", "W", "frames dual-anchor looks back, 1 or more", whole_flag())


def flags_of(chosen: Settings, pooled: int) -> list[str]:
    """The fewest words that make `chosen` where the default preset is what `from_flags` starts
    from: none for that, the name of a preset for another.

    `pooled` is the model's n.
    """
    ways = []
    for name in (DEFAULT_PRESET, *PRESETS):
        named = [] if name == DEFAULT_PRESET else ["--preset", name]
        preset, more = vars(scaled(PRESETS[name], pooled)), []
        for field, value in vars(chosen).items():
            if value != preset[field]:
                more += [flag_of(field), str(value)]
        ways.append((len(named) + len(more), len(more), named + more))
    return min(ways)[-1]


def _contents(preset: Settings) -> str:
    if preset.reference_interval == 1:
        frames = "every frame dense"
    else:
        frames = f"interval {preset.reference_interval}, ratio {preset.recompute_ratio:g}"
    kept = f"keeps {preset.budget} of {PRESET_POOLED} by {preset.pruner}"
    return f"{frames}, {kept if preset.budget else 'keeps all'}"


def from_flags(flags: argparse.Namespace, default: Settings, pooled: int) -> Settings:
    """The settings a user asked for: `--preset`, else `default`, with the given flags on top.

    `pooled` is the model's n. Raises SettingsError as `choose`.
    """
    given = {field.name: getattr(flags, field.name) for field in fields(Settings)}
    return choose(default if flags.preset is None else flags.preset, pooled, **given)


def choose(base: Settings | str, pooled: int, **given: Any) -> Settings:
    """`base`, settings or a preset's name, with the fields that are `given` and not None on top.

    `pooled` is the model's n, to which a preset's budget is scaled.
    Raises SettingsError for an unknown preset, a value outside its range or a budget over n.
    """
    if not isinstance(base, Settings):
        if not isinstance(base, str) or base not in PRESETS:
            raise SettingsError("--preset", f"got {shown(base)}", f"one of {', '.join(PRESETS)}")
        base = scaled(PRESETS[base], pooled)
    chosen = replace(base, **{name: one for name, one in given.items() if one is not None})
    chosen.kept(pooled)
    return chosen
