"""Settings: presets as published, ranges, and every flag at its field."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc.errors import SettingsError
from stc.manifest import DefaultSettings
from stc.settings import (
    DEFAULT_PRESET,
    PRESETS,
    Settings,
    add_flags,
    flags_of,
    from_flags,
    scaled,
)

POOLED = 196
PAPER = PRESETS["paper"]

CHANGED: dict[str, tuple[str, object]] = {
    "reference_interval": ("7", 7),
    "recompute_ratio": ("0.125", 0.125),
    "selection": ("shared", "shared"),
    "budget": ("33", 33),
    "pruner": ("gaussian-fixed", "gaussian-fixed"),
    "anchor_window": ("5", 5),
}
"""Per field a value that neither `cacher` nor `released` has: as written on the command line and
as it arrives."""


def read(*words: str, default: Settings = PAPER, pooled: int = POOLED) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return from_flags(parser.parse_args(words), default, pooled)


@pytest.mark.parametrize(
    ("name", "interval", "ratio", "selection", "kept", "pruner"),
    [
        ("cacher", 4, 0.25, "layerwise", 196, None),
        ("pruner", 1, None, None, 49, "dual-anchor"),
        ("paper", 2, 0.25, "layerwise", 58, "dual-anchor"),
        ("released", 2, 0.25, "layerwise", 60, "gaussian"),
        ("off", 1, None, None, 196, None),
    ],
)
def test_presets_are_those_of_the_paper_and_the_released_code(
    name: str, interval: int, ratio: float | None, selection: str | None, kept: int, pruner: Any
) -> None:
    preset = PRESETS[name]
    assert preset.reference_interval == interval
    assert preset.kept(POOLED) == kept
    # Where every frame is a reference, or every token kept, the rest has no effect.
    assert preset.recompute_ratio == (1.0 if ratio is None else ratio)
    assert selection is None or preset.selection == selection
    assert pruner is None or preset.pruner == pruner
    assert preset.anchor_window == 32


def test_there_are_five_presets_and_paper_is_the_default() -> None:
    assert set(PRESETS) == {"cacher", "pruner", "paper", "released", "off"}
    assert DEFAULT_PRESET == "paper"


@pytest.mark.parametrize("name", PRESETS)
def test_preset_keeps_the_same_share_of_a_smaller_model(name: str) -> None:
    preset = PRESETS[name]
    assert scaled(preset, POOLED) == preset
    for pooled in (1, 9, 49, 100):
        share = preset.kept(POOLED) / POOLED
        assert abs(scaled(preset, pooled).kept(pooled) - share * pooled) < 1
        assert asdict(scaled(preset, pooled)) == {
            **asdict(preset),
            "budget": scaled(preset, pooled).budget,
        }


@pytest.mark.parametrize(
    ("tokens", "ratio", "expected"),
    [
        (729, 0.25, 182),
        (729, 0.06, 43),
        (729, 0.5, 364),
        (729, 1.0, 729),
        (729, 0.001, 1),
        (25, 0.25, 6),
        (36, 0.5, 18),
        (3, 0.25, 1),
        (1, 1e-9, 1),
    ],
)
def test_recomputed_tokens_are_the_whole_part_of_the_share(
    tokens: int, ratio: float, expected: int
) -> None:
    assert Settings(recompute_ratio=ratio).recomputed(tokens) == expected


@given(st.integers(1, 10_000), st.floats(1e-9, 1.0))
def test_recomputed_tokens_are_between_one_and_all(tokens: int, ratio: float) -> None:
    assert 1 <= Settings(recompute_ratio=ratio).recomputed(tokens) <= tokens


@pytest.mark.parametrize(("budget", "expected"), [(0, 196), (1, 1), (58, 58), (196, 196)])
def test_kept_tokens_are_the_budget_and_all_for_0(budget: int, expected: int) -> None:
    assert Settings(budget=budget).kept(POOLED) == expected


def test_budget_over_the_models_tokens_is_refused_with_a_fix() -> None:
    with pytest.raises(SettingsError, match="--budget: got 197, expected at most 196") as caught:
        Settings(budget=197).kept(POOLED)
    assert str(caught.value).endswith("use --budget 196 or --budget 0 to keep all")
    with pytest.raises(SettingsError, match="at most 9"):
        read("--budget", "10", pooled=9)


@pytest.mark.parametrize(
    ("interval", "references"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (9, [0])]
)
def test_reference_frames_are_the_multiples_of_the_interval(
    interval: int, references: list[int]
) -> None:
    settings = Settings(reference_interval=interval)
    assert [index for index in range(6) if settings.is_reference(index)] == references


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reference_interval", 0),
        ("reference_interval", -1),
        ("recompute_ratio", 0.0),
        ("recompute_ratio", -0.1),
        ("recompute_ratio", 1.0001),
        ("recompute_ratio", float("nan")),
        ("recompute_ratio", float("inf")),
        ("selection", "Shared"),
        ("selection", ""),
        ("budget", -1),
        ("pruner", "dual_anchor"),
        ("anchor_window", 0),
    ],
)
def test_value_out_of_range_is_refused_naming_flag_and_value(field: str, value: Any) -> None:
    flag = f"--{field.replace('_', '-')}"
    with pytest.raises(SettingsError) as caught:
        Settings(**{field: value})
    line = str(caught.value)
    assert line.startswith(f"{flag}: got {value!r}, expected ")
    assert "\n" not in line
    with pytest.raises(SettingsError, match=flag):
        read(flag, str(value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reference_interval", 1),
        ("recompute_ratio", 1.0),
        ("recompute_ratio", 1e-6),
        ("budget", 0),
        ("anchor_window", 1),
    ],
)
def test_ends_of_the_ranges_are_allowed(field: str, value: Any) -> None:
    assert getattr(Settings(**{field: value}), field) == value


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        PAPER.budget = 1  # type: ignore[misc]


def test_every_field_has_a_flag_that_is_tested() -> None:
    names = [field.name for field in fields(Settings)]
    assert list(CHANGED) == names
    assert list(DefaultSettings.model_fields) == names


@pytest.mark.parametrize("field", CHANGED)
@pytest.mark.parametrize("preset", [(), ("--preset", "released")])
def test_flag_arrives_at_its_field_and_at_no_other(field: str, preset: tuple[str, ...]) -> None:
    word, value = CHANGED[field]
    base = PRESETS[preset[1]] if preset else PRESETS["cacher"]
    assert getattr(base, field) != value
    chosen = read(*preset, f"--{field.replace('_', '-')}", word, default=PRESETS["cacher"])
    assert asdict(chosen) == {**asdict(base), field: value}


def test_all_flags_arrive_together() -> None:
    words = [
        word
        for field, (written, _) in CHANGED.items()
        for word in (f"--{field.replace('_', '-')}", written)
    ]
    assert asdict(read(*words)) == {field: value for field, (_, value) in CHANGED.items()}


def test_without_flags_the_default_stays() -> None:
    default = Settings(reference_interval=9, budget=3)
    assert read(default=default) == default


@pytest.mark.parametrize("name", PRESETS)
def test_preset_replaces_the_default(name: str) -> None:
    default = Settings(reference_interval=9, budget=3, anchor_window=2)
    assert read("--preset", name, default=default) == PRESETS[name]
    assert read("--preset", name, pooled=49) == scaled(PRESETS[name], 49)


@pytest.mark.parametrize("pooled", [196, 49])
@pytest.mark.parametrize(
    "words",
    [
        [],
        *(["--preset", name] for name in PRESETS if name != DEFAULT_PRESET),
        ["--reference-interval", "3"],
        ["--recompute-ratio", "1e-300"],
        ["--budget", "2", "--anchor-window", "9"],
        ["--selection", "shared", "--pruner", "gaussian-fixed"],
        ["--preset", "cacher", "--recompute-ratio", "0.5"],
        ["--preset", "released", "--selection", "shared"],
        ["--preset", "off", "--anchor-window", "7"],
    ],
)
def test_settings_are_made_anew_by_the_fewest_flags(words: list[str], pooled: int) -> None:
    chosen = read(*words, default=scaled(PRESETS["paper"], pooled), pooled=pooled)
    assert flags_of(chosen, pooled) == words


def test_budget_flag_is_not_scaled() -> None:
    assert read("--preset", "paper", "--budget", "20", pooled=49).budget == 20


def test_unknown_preset_is_one_line_that_names_them_all() -> None:
    with pytest.raises(SettingsError) as caught:
        read("--preset", "fast")
    expected = "--preset: got 'fast', expected one of cacher, pruner, paper, released, off"
    assert str(caught.value) == expected
