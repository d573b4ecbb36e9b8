"""What frames and a call of the decoder cost by the compiler's lists: for stc-build --plan.

Frames are those of the bundle's own settings, with a ratio and a budget that were built for, on the
first board of each target; stc-plan tells more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stc.bundles.bundle import Bundle
from stc.contracts import language_graphs
from stc.engines.build.builders import BuildProgress
from stc.engines.build.listing import (
    Compiler,
    EngineCall,
    Layers,
    engine_call,
    engines_to_list,
    list_engines,
)
from stc.engines.build.roofline import Factors, Roofline, cost_of
from stc.engines.library.boards import BOARDS
from stc.engines.library.plan import EngineSpec
from stc.method.family import stream_programs
from stc.settings import Settings


def cost_lines(
    bundle: Bundle,
    specs: Sequence[EngineSpec],
    settings: Settings,
    compilers: Sequence[Compiler],
    progress: Callable[[int], BuildProgress],
) -> Iterator[str]:
    """A line for every target and stage of a stream of `settings`, which `specs` have engines for.

    `progress` is told how many engines are to be compiled. Raises as `list_engines`.
    """
    stages = _stages(bundle, specs, settings)
    calls = [call for some in stages.values() for call in some]
    with progress(engines_to_list(bundle, calls, specs, compilers)) as shown:
        listed = list_engines(bundle, calls, specs, compilers, shown)
    kept = settings.kept(bundle.manifest.vision.pooled)
    told = f"ratio {settings.recompute_ratio:g}, {kept} tokens kept"
    for compiler in compilers:
        yield f"{compiler.target.name}: layers listed by {compiler.told}; {told}"
        for name, some in stages.items():
            yield f"  {name}: {_told(compiler, listed[compiler.target.name], some)}"


def _stages(
    bundle: Bundle, specs: Sequence[EngineSpec], settings: Settings
) -> dict[str, list[EngineCall]]:
    manifest = bundle.manifest
    settings = replace(settings, reference_interval=2)
    programs = stream_programs(manifest.vision, manifest.provenance.precision, settings)
    stages = {
        f"{program.name} frame": [engine_call(call.graph, call.sizes) for call in program.calls]
        for program in reversed(programs)
    }
    if manifest.language is not None:
        graphs = language_graphs(manifest.language.blocks)
        smallest: dict[str, EngineCall] = {}
        for spec in specs:
            if spec.graph in graphs:
                calls_of = [engine_call(spec.graph, sizes) for sizes in spec.profiles]
                known = smallest.setdefault(spec.graph, min(calls_of))
                smallest[spec.graph] = min(known, *calls_of)
        calls = list(smallest.values())
        sizes = dict(next(sizes for _, sizes in calls if len(sizes) > 1))
        told = " ".join(f"{symbol}={size}" for symbol, size in sizes.items())
        stages[f"decoder, {told}"] = calls
    return stages


def _told(compiler: Compiler, layers: Layers, calls: Sequence[EngineCall]) -> str:
    runs = [layers[call] for call in calls]
    cost = cost_of(runs)
    line = f"{cost.kernels} kernels, {cost.bytes / 1e6:,.1f} MB moved, "
    line += f"{cost.weight_bytes / 1e6:,.1f} MB of it weights"
    if cost.attentions:
        line += f", {cost.fused} of {cost.attentions} attentions fused"
    board = next((one for one in BOARDS if one.target == compiler.target.name), None)
    if board is not None:
        ms = Roofline(runs, board).ms(Factors())
        line += f"; about {ms:.3g} ms of a {board.name}, estimated and not measured"
    return line
