"""One graph becomes one engine, the same way for TensorRT 10.3 to 11 and TensorRT-RTX.

Strongly typed: precision is what the graph says. Static shapes, no auxiliary streams, no TF32 but
where attention asks for it.
Parsing and building go through Polygraphy's loaders; the configuration is made here, since
Polygraphy's own asks for a timing cache, which in TensorRT-RTX asks for a GPU, and takes no notice
of a refused compute capability.

Polygraphy knows one flavour per process: this module belongs to a builder's process of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from stc import optional
from stc.engines.build.attention import change_attention
from stc.engines.library.library import LADDER, Attention, replace_file
from stc.engines.library.plan import EngineSpec, shape_at
from stc.engines.library.targets import Target, TensorRt
from stc.errors import EngineError
from stc.manifest import GraphEntry

Report = Callable[[str, int, int], None]
"""Called with a phase of the builder, the steps done of it and its steps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to build one engine.

    path: the graph's file; graph: its entry in the manifest.
    workspace_bytes: most scratch memory a layer may ask for; None leaves it to TensorRT.
    timing_cache: file of timings kept between builds; TensorRT-RTX times nothing and needs none.
    detailed: the list of layers is wanted, not the engine: TensorRT prints it.
    """

    spec: EngineSpec
    path: Path
    graph: GraphEntry
    targets: tuple[Target, ...]
    workspace_bytes: int | None = None
    timing_cache: Path | None = None
    attention: Attention = LADDER[0]
    detailed: bool = False


def compile_engine(
    tensorrt: TensorRt, recipe: Recipe, report: Report, watcher: Watcher | None = None
) -> memoryview:
    """The serialized engine of `recipe`; `watcher` sees its network and hears what TensorRT says.

    Raises EngineError naming the graph and what TensorRT said.
    """
    loaders = _polygraphy(tensorrt)
    if watcher is not None:
        _let_all_be_heard()
    trt = tensorrt.module
    name = recipe.spec.graph
    said = _Said()
    heard: list[logging.Handler] = [said] if watcher is None else [said, watcher]
    logger = logging.getLogger("Polygraphy")
    for handler in heard:
        logger.addHandler(handler)
    kept: dict[str, Any] = {}

    def configure(builder: Any, network: Any) -> Any:
        kept["config"] = build_config(tensorrt, builder, network, recipe, report)
        return kept["config"]

    try:
        parsed = loaders.NetworkFromOnnxPath(str(recipe.path), strongly_typed=True)()
        network = parsed[1]
        if watcher is not None:
            watcher.see(network)
        if recipe.spec.baked is not None:
            _bake(trt, network, recipe)
        change_attention(trt, network, recipe.attention)
        engine = loaders.EngineBytesFromNetwork(parsed, config=configure)()
    except EngineError:
        raise
    except Exception as error:  # Polygraphy's and pybind's exceptions share no narrower base
        reason = said.last or str(error)
        got = f"{tensorrt.flavour} {tensorrt.version} cannot build it ({reason})"
        fix = f"use another version of {tensorrt.flavour}, or run with --backend onnxruntime"
        if "factory function returned nullptr" in str(error):
            fix = tensorrt.wheel_fix
        raise EngineError(name, got, "", fix) from error
    finally:
        for handler in heard:
            logger.removeHandler(handler)
    if recipe.timing_cache is not None and not recipe.detailed:
        save_timings(kept["config"], recipe.timing_cache)
    return memoryview(engine)


def _polygraphy(tensorrt: TensorRt) -> Any:
    """Polygraphy's loaders, bound to the flavour, silent but for errors."""
    fix = f"install it with: pip install 'stc[{tensorrt.flavour}]'"

    def load(module: str) -> Any:
        return optional.load(module, "polygraphy", subject="polygraphy", fix=fix)

    load("polygraphy")
    settings = load("polygraphy.config")
    settings.USE_TENSORRT_RTX = tensorrt.flavour == "tensorrt-rtx"
    log = load("polygraphy.logger").G_LOGGER
    log.use_python_logging_system = True
    log.module_severity = log.ERROR
    log.colors = False
    logger = logging.getLogger("Polygraphy")
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    return load("polygraphy.backend.trt")


def _let_all_be_heard() -> None:
    """What handlers are told is all that TensorRT says, until `_polygraphy` is called again."""
    log = import_module("polygraphy.logger").G_LOGGER
    log.module_severity = log.EXTRA_VERBOSE
    logging.getLogger("Polygraphy").setLevel(1)


class Watcher(logging.Handler):
    """Keeps the `messages` of one build, all of them."""

    def __init__(self) -> None:
        super().__init__(1)
        self.messages: list[str] = []

    def see(self, network: Any) -> None:
        """`network` was parsed and nothing is built of it yet: shapes may still be set."""

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _Said(logging.Handler):
    """Keeps the first thing that went wrong; what follows it are consequences."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = self.last or " ".join(record.getMessage().split())


def build_config(
    tensorrt: TensorRt, builder: Any, network: Any, recipe: Recipe, report: Report
) -> Any:
    """How `builder` is to build `network`. Raises EngineError when it cannot be asked that."""
    trt = tensorrt.module
    config = builder.create_builder_config()
    config.max_aux_streams = 0
    if recipe.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.attention != "tf32":
        config.clear_flag(trt.BuilderFlag.TF32)
    config.progress_monitor = _monitor(trt, report)
    if recipe.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_bytes)
    if tensorrt.flavour == "tensorrt-rtx":
        _set_capabilities(tensorrt, config, recipe)
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
            # Without it a context may allocate while it runs, and no CUDA graph can hold that.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    elif recipe.timing_cache is not None and not use_timings(config, recipe.timing_cache):
        report("timings of another TensorRT or device: timing anew", 0, 1)
    _add_profiles(builder, network, config, recipe, several=tensorrt.several_profiles)
    return config


def _set_capabilities(tensorrt: TensorRt, config: Any, recipe: Recipe) -> None:
    known = tensorrt.module.ComputeCapability
    config.num_compute_capabilities = len(recipe.targets)
    for index, target in enumerate(recipe.targets):
        capability = getattr(known, target.sm, None)
        # A capability that this version refuses makes the call return False, nothing else.
        if capability is None or not config.set_compute_capability(capability, index):
            raise EngineError(
                f"target {target.name}",
                f"compute capability {target.sm} is not one of tensorrt-rtx {tensorrt.version}",
                "",
                "upgrade it with: pip install --upgrade tensorrt-rtx",
            )


def _add_profiles(
    builder: Any, network: Any, config: Any, recipe: Recipe, *, several: bool
) -> None:
    """One static profile for each set of sizes; without `several`, one from the least to the most,
    tuned for the least."""
    inputs = {network.get_input(index).name for index in range(network.num_inputs)}
    free = [
        port
        for port in recipe.graph.inputs
        if port.name in inputs and any(isinstance(axis, str) for axis in port.shape)
    ]
    if not free:
        return
    sizes = recipe.spec.profiles
    ranges = [(one, one) for one in sizes] if several else [(sizes[0], sizes[-1])]
    for least, most in ranges:
        profile = builder.create_optimization_profile()
        for port in free:
            low, high = shape_at(port.shape, least), shape_at(port.shape, most)
            profile.set_shape(port.name, low, low, high)
        if config.add_optimization_profile(profile) < 0:
            got = f"TensorRT refused the sizes {least} to {most}"
            raise EngineError(recipe.spec.graph, got, "", "export the bundle again")


def _bake(trt: Any, network: Any, recipe: Recipe) -> None:
    """The graph's last two TopK, which rank and then sort, take the baked count."""
    spec = recipe.spec
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in [layer for layer in layers if layer.type == trt.LayerType.TOPK][-2:]:
        layer.__class__ = trt.ITopKLayer  # the bindings hand every layer out as ILayer
        layer.k = spec.baked
    ports = {port.name: port for port in recipe.graph.outputs}
    for index in range(network.num_outputs):
        output = network.get_output(index)
        expected = shape_at(ports[output.name].shape, spec.profiles[0])
        if tuple(output.shape) != expected:
            got = f"{output.name} has shape {tuple(output.shape)} at count {spec.baked}"
            fix = "this version takes no count: use another, and report it with this line"
            raise EngineError(spec.graph, got, str(expected), fix)


def _monitor(trt: Any, report: Report) -> Any:
    """The builder's own phases, handed to `report`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self._steps[phase_name])
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            del self._steps[phase_name]

    return Monitor()


def use_timings(config: Any, file: Path) -> bool:
    """`config` starts from the timings in `file`, if there are any.

    False when they are of another TensorRT or device: then everything is timed anew.
    """
    timings = config.create_timing_cache(_stored(file))
    if config.set_timing_cache(timings, ignore_mismatch=False):
        return True
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return False


def save_timings(config: Any, file: Path) -> None:
    """`file` has the timings of `config` as well as those that other builders wrote meanwhile."""
    timings = config.get_timing_cache()
    if timings is None:
        return
    if others := _stored(file):
        # Another version's are not taken over: the call returns False, and they are replaced.
        timings.combine(config.create_timing_cache(others), ignore_mismatch=False)
    replace_file(file, memoryview(timings.serialize()))


def _stored(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
