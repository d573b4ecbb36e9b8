"""A graph as TensorRT engines, called like any other engine.

A call binds addresses and enqueues; nothing waits. Every engine has a context per profile whose
shapes never change, and all contexts work in one scratch memory, one after another on one stream.
Addresses are bound anew in every call: sessions share engines, and a context remembers the last
caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stc.contracts import COUNT
from stc.engines.gpu.tensor import DeviceTensor
from stc.engines.library.plan import Sizes, free_symbols, shape_at
from stc.engines.tensorrt.shared import Scratch, Shared
from stc.errors import EngineError
from stc.manifest import GraphEntry, PortEntry

SizesKey = tuple[tuple[str, int], ...]
"""Sizes, to look things up by."""


class EngineFile:
    """An engine on disk, loaded by `load` when it is first needed.

    profiles: the sizes it was built for. Files may share sizes: each holds the weights anew.
    """

    def __init__(self, name: str, load: Callable[[], Any], profiles: tuple[Sizes, ...]) -> None:
        self.name = name
        self.profiles = profiles
        self._load = load
        self._engine: Any = None

    @property
    def loaded(self) -> bool:
        """Whether its weights are on the device."""
        return self._engine is not None

    def engine(self) -> Any:
        """The loaded engine. Raises EngineError."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine


@dataclass
class Variant:
    """One profile of one engine, in use: `shapes` of its ports, and the context that runs it."""

    file: EngineFile
    sizes: Sizes
    shapes: dict[str, tuple[int, ...]]
    context: Any
    scratch: Scratch | None = None


class TensorRtEngine:
    """The engines of one graph; see `stc.engines.engine.Engine`. Tensors are DeviceTensors."""

    def __init__(
        self, name: str, graph: GraphEntry, files: list[EngineFile], shared: Shared
    ) -> None:
        self.name = name
        self._inputs = [port for port in graph.inputs if port.name != COUNT]
        self._outputs = list(graph.outputs)
        self._baked = any(port.name == COUNT for port in graph.inputs)
        self._symbols = free_symbols(graph.outputs if self._baked else graph.inputs)
        self.files = files
        self._variants: dict[SizesKey, Variant] = {}
        self._shared = shared
        self._device = shared.device

    def prepare(self, wanted: list[Sizes], flags: str) -> None:
        """The engines of the sizes `wanted` are loaded, from as few files as hold them.

        Raises EngineError when one cannot be loaded, or there is none of a size: `flags` of
        stc-build would have it built.
        """
        for sizes in wanted:
            holding = self._holding(sizes, flags)
            if not any(file.loaded for file in holding):
                max(holding, key=lambda file: sum(one in file.profiles for one in wanted)).engine()

    def __call__(
        self,
        inputs: Mapping[str, DeviceTensor],
        outputs: Mapping[str, DeviceTensor | None] | None = None,
    ) -> dict[str, DeviceTensor]:
        self._shared.log.last = ""  # what is told from here on is of this call
        wanted = dict.fromkeys(port.name for port in self._outputs) if outputs is None else outputs
        variant = self._variant(self._sizes(inputs))
        self._scratch(variant)
        results = {}
        for port in self._inputs:
            self._bind(variant, port, inputs[port.name])
        reading = {inputs[port.name].address for port in self._inputs}
        for port in self._outputs:
            shape = shape_at(port.shape, variant.sizes)
            if port.name not in wanted:
                tensor = self._shared.sinks.of(port.name, shape, port.dtype)
            else:
                given = wanted[port.name]
                tensor = DeviceTensor(self._device, shape, port.dtype) if given is None else given
                results[port.name] = tensor
            if tensor.address in reading:
                got = f"output {port.name} is one of its inputs"
                raise EngineError(self.name, got, "a tensor of its own")
            self._bind(variant, port, tensor)
        self._enqueue(variant)
        return {name: results[name] for name in wanted}

    def _sizes(self, inputs: Mapping[str, DeviceTensor]) -> Sizes:
        """The sizes of the free axes that `inputs` ask for."""
        expected = [port.name for port in self._inputs] + [COUNT] * self._baked
        if set(inputs) != set(expected):
            raise EngineError(self.name, f"inputs {sorted(inputs)}", str(sorted(expected)))
        sizes: Sizes = {}
        if self._baked:
            count = inputs[COUNT].constant
            if count is None:
                raise EngineError(self.name, f"{COUNT} did not come from the host", "a constant")
            sizes = {self._symbols[0]: count}
        for port in self._inputs:
            shape = inputs[port.name].shape
            if len(shape) != len(port.shape):
                raise EngineError(self.name, f"{port.name} has shape {shape}", str(port.shape))
            sizes |= {
                symbol: size
                for symbol, size in zip(port.shape, shape, strict=True)
                if isinstance(symbol, str)
            }
        return sizes

    def _holding(self, sizes: Sizes, flags: str = "") -> list[EngineFile]:
        """The files with an engine of `sizes`. Raises EngineError when there is none."""
        found = [file for file in self.files if sizes in file.profiles]
        if not found:
            had = ", ".join(_told(one) for file in self.files for one in file.profiles)
            fix = f"build it with: {self._shared.rebuild} {flags}"
            raise EngineError(self.name, f"no engine for {_told(sizes)}", had, fix)
        return found

    def _variant(self, sizes: Sizes) -> Variant:
        """The engine of `sizes` with its context, from a file that is loaded already if any is."""
        variant = self._variants.get(_key(sizes))
        if variant is None:
            file = max(self._holding(sizes), key=lambda one: one.loaded)
            variant = self._variants[_key(sizes)] = self._made(file, sizes)
        return variant

    def _made(self, file: EngineFile, sizes: Sizes) -> Variant:
        """A context at its profile and shapes."""
        context, refusal = self._new_context(file.engine()), self._shared.refusal
        # Where several are not known good, one holds all sizes of the file.
        several = self._shared.tensorrt.several_profiles
        profile = file.profiles.index(sizes) if several else 0
        if not context.set_optimization_profile_async(profile, int(self._device.stream)):
            raise refusal(self.name, f"refused profile {profile}")
        ports = (*self._inputs, *self._outputs)
        shapes = {port.name: shape_at(port.shape, sizes) for port in ports}
        for port in self._inputs:
            if not context.set_input_shape(port.name, shapes[port.name]):
                raise refusal(self.name, f"refused shape {shapes[port.name]} of {port.name}")
        if missing := context.infer_shapes():
            raise refusal(self.name, f"does not know the shapes of {', '.join(missing)}")
        return Variant(file, sizes, shapes, context)

    def _new_context(self, engine: Any) -> Any:
        trt = self._shared.tensorrt.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._shared.tensorrt.flavour == "tensorrt-rtx":
            # Kernels for these very shapes before the first run: compiled later, behind its back,
            # they would come too late for a capture.
            runtime_config = engine.create_runtime_config()
            runtime_config.set_execution_context_allocation_strategy(strategy)
            runtime_config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            self._shared.kernels.attach(runtime_config)
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise self._shared.refusal(self.name, "made no context", "free device memory")
        return context

    def _scratch(self, variant: Variant) -> None:
        engine = variant.file.engine()
        scratch = self._shared.workspace.at_least(int(engine.device_memory_size_v2))
        self._device.uses(scratch[0])
        if variant.scratch != scratch:
            variant.context.set_device_memory(*scratch)
            variant.scratch = scratch

    def _bind(self, variant: Variant, port: PortEntry, tensor: DeviceTensor) -> None:
        if tensor.closed or tensor.device is not self._device:
            got = f"{port.name} is closed or of another device"
            raise EngineError(self.name, got, "a tensor of this backend that is open")
        expected = variant.shapes[port.name]
        if tensor.shape != expected or tensor.dtype != np.dtype(port.dtype):
            got = f"{port.name} is {tensor.dtype} {tensor.shape}"
            raise EngineError(self.name, got, f"{port.dtype} {expected}")
        self._device.uses(tensor.memory)
        if not variant.context.set_tensor_address(port.name, tensor.address):
            raise self._shared.refusal(self.name, f"refused the address of {port.name}")

    def _enqueue(self, variant: Variant) -> None:
        context, stream = variant.context, int(self._device.stream)
        asked = self._device.capturing and hasattr(context, "is_stream_capturable")
        if asked and not context.is_stream_capturable(stream):
            raise self._shared.refusal(self.name, "cannot have it captured", "")
        if not context.execute_async_v3(stream):
            raise self._shared.refusal(self.name, "did not enqueue it")

    def close(self) -> None:
        """Its contexts and engines are gone."""
        self._variants.clear()
        self.files.clear()


def engine_ports(trt: Any, engine: Any) -> Iterator[tuple[str, bool, str, bool]]:
    """Name, whether input, dtype and whether on the device, of every tensor of `engine`."""
    dtypes = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.INT64: "int64",
    }
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        yield (
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            dtypes.get(engine.get_tensor_dtype(name), "another type"),
            engine.get_tensor_location(name) == trt.TensorLocation.DEVICE,
        )


def _key(sizes: Sizes) -> SizesKey:
    return tuple(sorted(sizes.items()))


def _told(sizes: Sizes) -> str:
    return " ".join(f"{symbol}={size}" for symbol, size in sizes.items())
