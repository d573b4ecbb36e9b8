"""A graph as TensorRT engines, called like any other engine.

A call binds addresses and enqueues; nothing waits. Every engine has a context per profile whose
shapes never change, and all contexts work in one scratch memory, one after another on one stream.
Addresses are bound anew in every call: sessions share engines, and a context remembers the last
caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stc.contracts import COUNT
from stc.engines.device import Device
from stc.engines.device_tensor import DeviceTensor
from stc.engines.flavour import TensorRt
from stc.engines.plan import Sizes, free_symbols, shape_at
from stc.errors import EngineError
from stc.manifest import GraphEntry, PortEntry

Scratch = tuple[int, int]
"""Address and size of the scratch memory contexts work in."""


class Workspace:
    """Scratch memory for every context of a device, as large as the largest asks for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address = 0
        self.size_bytes = 0

    def at_least(self, size_bytes: int) -> Scratch:
        """The memory, grown to `size_bytes` first; growing moves it."""
        if size_bytes > self.size_bytes or not self._address:
            address = self._device.allocate(size_bytes)
            if self._address:
                self._device.free(self._address)
            self._address, self.size_bytes = address, size_bytes
        return self._address, self.size_bytes


class Sinks:
    """Memory for outputs that nobody wants; TensorRT writes them all the same.

    One per output name and shape, for all engines. Two outputs of one engine never share one: an
    engine may read back what it wrote.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tensors: dict[tuple[str, tuple[int, ...], str], DeviceTensor] = {}

    def of(self, name: str, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """The tensor that takes output `name`."""
        key = (name, shape, dtype)
        if key not in self._tensors:
            self._tensors[key] = DeviceTensor(self._device, shape, dtype)
        return self._tensors[key]


class EngineFile:
    """An engine on disk, loaded by `load` when it is first needed."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._engine: Any = None

    def engine(self) -> Any:
        """The loaded engine. Raises EngineError."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine


@dataclass
class Variant:
    """One profile of one engine: `sizes` of its free axes, `context` once it was first used."""

    file: EngineFile
    profile: int
    sizes: Sizes
    context: Any = None
    scratch: Scratch | None = None
    known_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class TensorRtEngine:
    """The engines of one graph; see `stc.engines.engine.Engine`. Tensors are DeviceTensors."""

    def __init__(
        self,
        name: str,
        graph: GraphEntry,
        variants: list[Variant],
        tensorrt: TensorRt,
        device: Device,
        workspace: Workspace,
        sinks: Sinks,
    ) -> None:
        self.name = name
        self._inputs = [port for port in graph.inputs if port.name != COUNT]
        self._outputs = list(graph.outputs)
        self._baked = any(port.name == COUNT for port in graph.inputs)
        self._symbols = free_symbols(graph.outputs if self._baked else graph.inputs)
        self._variants = {_key(variant.sizes): variant for variant in variants}
        self._tensorrt = tensorrt
        self._device = device
        self._workspace = workspace
        self._sinks = sinks

    def __call__(
        self,
        inputs: Mapping[str, DeviceTensor],
        outputs: Mapping[str, DeviceTensor | None] | None = None,
    ) -> dict[str, DeviceTensor]:
        wanted = dict.fromkeys(port.name for port in self._outputs) if outputs is None else outputs
        variant = self._variant(inputs)
        if variant.context is None:
            self._prepare(variant)
        self._scratch(variant)
        results = {}
        for port in self._inputs:
            self._bind(variant, port, inputs[port.name])
        reading = {inputs[port.name].address for port in self._inputs}
        for port in self._outputs:
            shape = shape_at(port.shape, variant.sizes)
            if port.name not in wanted:
                tensor = self._sinks.of(port.name, shape, port.dtype)
            else:
                given = wanted[port.name]
                tensor = DeviceTensor(self._device, shape, port.dtype) if given is None else given
                results[port.name] = tensor
            if tensor.address in reading:
                raise EngineError(self.name, f"output {port.name} is one of its inputs")
            self._bind(variant, port, tensor)
        self._enqueue(variant)
        return {name: results[name] for name in wanted}

    def _variant(self, inputs: Mapping[str, DeviceTensor]) -> Variant:
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
            for symbol, size in zip(port.shape, inputs[port.name].shape, strict=True):
                if isinstance(symbol, str):
                    sizes[symbol] = size
        variant = self._variants.get(_key(sizes))
        if variant is None:
            had = ", ".join(_told(known.sizes) for known in self._variants.values())
            raise EngineError(
                self.name,
                f"no engine for {_told(sizes)}",
                had,
                "build one with: stc-build BUNDLE --target T --recompute-ratio R --budget K",
            )
        return variant

    def _prepare(self, variant: Variant) -> None:
        """The variant has a context at its profile and shapes."""
        context = self._new_context(variant.file.engine())
        stream = int(self._device.stream)
        if not context.set_optimization_profile_async(variant.profile, stream):
            raise EngineError(self.name, f"TensorRT refused profile {variant.profile}")
        for port in self._inputs:
            shape = shape_at(port.shape, variant.sizes)
            variant.known_shapes[port.name] = shape
            if not context.set_input_shape(port.name, shape):
                raise EngineError(self.name, f"TensorRT refused shape {shape} of {port.name}")
        for port in self._outputs:
            variant.known_shapes[port.name] = shape_at(port.shape, variant.sizes)
        if missing := context.infer_shapes():
            raise EngineError(self.name, f"shapes of {', '.join(missing)} are not known")
        variant.context = context

    def _new_context(self, engine: Any) -> Any:
        trt = self._tensorrt.module
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._tensorrt.flavour == "tensorrt-rtx":
            # Kernels for these very shapes before the first run: compiled later, behind its back,
            # they would come too late for a capture.
            runtime_config = engine.create_runtime_config()
            runtime_config.set_execution_context_allocation_strategy(strategy)
            runtime_config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(self.name, "TensorRT made no context", "", "free device memory")
        return context

    def _scratch(self, variant: Variant) -> None:
        engine = variant.file.engine()
        scratch = self._workspace.at_least(int(engine.device_memory_size_v2))
        self._device.uses(scratch[0])
        if variant.scratch != scratch:
            variant.context.set_device_memory(*scratch)
            variant.scratch = scratch

    def _bind(self, variant: Variant, port: PortEntry, tensor: DeviceTensor) -> None:
        if tensor.closed or tensor.device is not self._device:
            raise EngineError(self.name, f"{port.name} is closed or of another device")
        expected = variant.known_shapes[port.name]
        if tensor.shape != expected or tensor.dtype != np.dtype(port.dtype):
            got = f"{port.name} is {tensor.dtype} {tensor.shape}"
            raise EngineError(self.name, got, f"{port.dtype} {expected}")
        self._device.uses(tensor.address)
        if not variant.context.set_tensor_address(port.name, tensor.address):
            raise EngineError(self.name, f"TensorRT refused the address of {port.name}")

    def _enqueue(self, variant: Variant) -> None:
        context, stream = variant.context, int(self._device.stream)
        asked = self._device.capturing and hasattr(context, "is_stream_capturable")
        if asked and not context.is_stream_capturable(stream):
            raise EngineError(self.name, "TensorRT cannot have it captured")
        if not context.execute_async_v3(stream):
            raise EngineError(self.name, "TensorRT did not enqueue it")

    def close(self) -> None:
        """Its contexts and engines are gone."""
        self._variants.clear()


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


def _key(sizes: Sizes) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))


def _told(sizes: Sizes) -> str:
    return " ".join(f"{symbol}={size}" for symbol, size in sizes.items())
