"""Which engines a bundle needs: one per graph and set of sizes.

A graph's free axes (M of `update`, m and S of the language model) get one static profile per size;
where the flavour is known good with several profiles one engine holds them all and its weights
once. `mlp`, which both kinds of frame run, is one engine everywhere: where several profiles are
not known good, of one profile from its least M to T. The `count` of `select` and `prune` is baked
in: one engine per count.

Knows nothing of TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from stc.contracts import COUNT, TEXT_EMBED
from stc.manifest import Manifest, PortEntry
from stc.method.graphs import takes_any_frame
from stc.settings import KEEP_ALL, PRESETS, Settings, scaled

Sizes = dict[str, int]
"""Sizes of free axes by their symbol."""

CHUNKS = (16, 64)
"""Tokens of one language call; what is shorter is padded. Not 1: an engine that holds it beside
larger ones holds its weights twice, in two layouts (docs/log.md), while a product with up to 16
rows takes as long as reading the weights does."""
CONTEXTS = (1024, 4096)
"""Rows of the language model's buffers; unused ones have position -1."""


@dataclass(frozen=True)
class EngineSpec:
    """One engine: `profiles` are the sizes it runs at, `baked` the value of its count, if any."""

    graph: str
    profiles: tuple[Sizes, ...]
    baked: int | None = None

    @property
    def stem(self) -> str:
        """Its file's name without what says how it was built: `mlp_00-M49-M196`."""
        sizes = [f"{symbol}{size}" for profile in self.profiles for symbol, size in profile.items()]
        return "-".join([self.graph, *sizes])


@dataclass(frozen=True)
class Buckets:
    """The sizes engines are built for.

    recomputed: values of M on reuse frames; kept: values of k. Both ascending, each once.
    """

    recomputed: tuple[int, ...]
    kept: tuple[int, ...]


def choose_buckets(
    manifest: Manifest, ratios: tuple[float, ...], budgets: tuple[int, ...] | None
) -> Buckets:
    """The M of every recompute ratio in `ratios` and the k of every budget.

    `budgets` None means the bundle's own and those of every preset: an engine of `prune` is tiny.
    Raises SettingsError for a ratio or budget out of range.
    """
    default, vision = manifest.default_settings, manifest.vision
    wanted = [Settings(recompute_ratio=ratio).recomputed(vision.tokens) for ratio in ratios]
    if budgets is None:
        presets = [scaled(preset, vision.pooled) for preset in PRESETS.values()]
        # A preset that keeps all prunes nothing.
        budgets = (default.budget, *(one.budget for one in presets if one.budget != KEEP_ALL))
    kept = [Settings(budget=budget).kept(vision.pooled) for budget in budgets]
    return Buckets(tuple(sorted(set(wanted))), tuple(sorted(set(kept))))


def plan_engines(
    manifest: Manifest, buckets: Buckets, *, several_profiles: bool
) -> list[EngineSpec]:
    """Every engine of the bundle, in running order of its graphs."""
    language = manifest.language
    counts = {"M": buckets.recomputed, "k": buckets.kept}
    free = {"M": buckets.recomputed}
    if language is not None:
        chunks: tuple[int, ...] = CHUNKS
        contexts: tuple[int, ...] = CONTEXTS
        if not several_profiles:
            # Every size is an engine with weights of its own.
            chunks, contexts = (CHUNKS[0], CHUNKS[-1]), CONTEXTS[-1:]
        free["m"] = chunks
        free["S"] = tuple(sorted({min(rows, language.max_positions) for rows in contexts}))
    specs = []
    for name, graph in manifest.graphs.items():
        if name == TEXT_EMBED:  # looked up by the host, where the table lies
            continue
        if any(port.name == COUNT for port in graph.inputs):
            symbol = free_symbols(graph.outputs)[0]
            specs += [EngineSpec(name, ({symbol: size},), size) for size in counts[symbol]]
            continue
        symbols = free_symbols(graph.inputs)
        sizes = product(*(free[symbol] for symbol in symbols))
        profiles = [dict(zip(symbols, chosen, strict=True)) for chosen in sizes]
        if shared := takes_any_frame(name):
            whole = {"M": manifest.vision.tokens}
            profiles += [whole] * (whole not in profiles)
        groups = [profiles] if several_profiles or shared else [[profile] for profile in profiles]
        specs += [EngineSpec(name, tuple(group)) for group in groups]
    return specs


def context_rows(window: int | None) -> int:
    """The least of CONTEXTS that holds a window of `window` tokens, a question and its answer."""
    fitting = (rows for rows in CONTEXTS if window is not None and window <= window_of(rows))
    return next(fitting, CONTEXTS[-1])


def window_of(rows: int) -> int:
    """Tokens of a window in a context of `rows`, but for those of a call: the rest is for
    a question and its answer."""
    return (rows - CHUNKS[-1]) * 3 // 4


def shape_at(shape: tuple[int | str, ...], sizes: Sizes) -> tuple[int, ...]:
    """`shape` of a port of the manifest with its free axes at `sizes`."""
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in shape)


def free_symbols(ports: tuple[PortEntry, ...]) -> list[str]:
    """The symbols of the free axes of `ports`, in order, each once."""
    axes = (axis for port in ports for axis in port.shape)
    return list(dict.fromkeys(axis for axis in axes if isinstance(axis, str)))
