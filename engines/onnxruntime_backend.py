"""ONNX Runtime as a backend: CPU by default, CUDA by option.

A tower is some fifty small sessions; with a spinning thread pool each they slow one another down
up to 2.5 times (docs/log.md). So sessions either share the process's pool, which only the owner
of the process may decide (`share_threads`: from then on every session in it must use that pool),
or they have pools of their own that sleep instead of spin, up to 18% slower. In host memory they
share one arena in either case: with an arena each, every session keeps its largest attention map,
5 GB in a tower of SigLIP-so400m. Inputs and outputs are bound, so that tensors stay where they are
and big outputs are written into buffers that live on.

On CUDA every session has an arena of its own in device memory. It has not run on a GPU.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

from stc.bundles.bundle import Bundle
from stc.contracts import HEAD, TEXT_EMBED
from stc.engines.engine import Engine, Tensor, is_closed
from stc.errors import EngineError, first_line, guarded

Device = Literal["cpu", "cuda"]

PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

CUDA_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
"""By default float32 is multiplied in TF32, with ten bits of mantissa, where parity asks for 1e-4;
and every session's arena grows to the next power of two."""

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"

_INSTALL_CUDA = (
    "pip uninstall onnxruntime, then pip install --force-reinstall onnxruntime-gpu, which share a "
    "module, and the CUDA and cuDNN it names"
)


class OnnxRuntimeEngine:
    """A session on one graph; see `stc.engines.engine.Engine`.

    The graph is a file, or its bytes with the folder that its weights lie in.
    """

    def __init__(
        self,
        name: str,
        graph: Path | bytes,
        device: Device,
        *,
        weights: Path | None = None,
        prepack: bool = True,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails is raised as well
        # By default ONNX Runtime looks at the bytes itself for what format they have.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if weights is not None:
            options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights))
        if not prepack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.use_env_allocators", "1")
        if _threads_shared:
            options.use_per_session_threads = False
        else:
            options.intra_op_num_threads = usable_cores()
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[str | tuple[str, dict[str, str]]] = [PROVIDERS["cpu"]]
        if device == "cuda":
            providers.insert(0, (PROVIDERS["cuda"], CUDA_OPTIONS))
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions share no narrower base
            raise EngineError(
                name,
                f"ONNX Runtime cannot load it ({first_line(error)})",
                fix=f"export again, or with onnxruntime newer than {onnxruntime.__version__}",
            ) from error
        # A provider that cannot be used is left out without an error.
        if (found := self._session.get_providers()[0]) != PROVIDERS[device]:
            raise EngineError(name, f"runs on {found}", PROVIDERS[device], _INSTALL_CUDA)
        self.name = name
        self._device = device
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        wanted = dict.fromkeys(self._outputs) if outputs is None else outputs
        binding = self._session.io_binding()
        try:
            for name, tensor in inputs.items():
                binding.bind_ortvalue_input(name, tensor)
            for name, tensor in wanted.items():
                if tensor is None:
                    binding.bind_output(name, self._device)
                else:
                    binding.bind_ortvalue_output(name, tensor)
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise EngineError(
                self.name,
                f"ONNX Runtime failed ({first_line(error)})",
                fix="see that memory is free, or export again",
            ) from error
        return dict(zip(wanted, binding.get_outputs(), strict=True))


class OnnxRuntimeBackend:
    """Loads a bundle's graphs with ONNX Runtime; see `stc.engines.engine.Backend`.

    Tensors are OrtValues. Graphs are those of the bundle's table for ONNX Runtime and `weights`.
    Raises EngineError when `device` needs a provider that the installed ONNX Runtime lacks.
    """

    def __init__(
        self, bundle: Bundle, device: Device = "cpu", *, weights: str | None = None
    ) -> None:
        available = onnxruntime.get_available_providers()
        if PROVIDERS[device] not in available:
            raise EngineError(
                f"device {device}",
                f"onnxruntime {onnxruntime.__version__} has {', '.join(available)}",
                PROVIDERS[device],
                _INSTALL_CUDA,
            )
        _share_arena()
        self.name = f"onnxruntime-{device}"
        self._closed = False
        self._bundle = bundle
        self._device = device
        self._weights = weights
        with guarded(f"device {device}", "cannot be used", _INSTALL_CUDA, EngineError):
            onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], np.float32, device)

    def load(self, graph: str) -> Engine:
        file = self._bundle.graph(graph, self.name, self._weights)
        # A row at a time the head is as fast from the mapped file, which both graphs share: no
        # copy of the vocabulary's gigabytes in another layout.
        prepack = not (file.portable and graph in (TEXT_EMBED, HEAD))
        weights = file.path.parent
        try:
            engine = OnnxRuntimeEngine(
                graph, file.content, self._device, weights=weights, prepack=prepack
            )
        except EngineError as error:
            got = file.files.named(error.got)
            raise EngineError(graph, got, error.expected, error.fix) from error
        file.check_unchanged()
        return engine

    def to_device(self, array: NDArray[np.generic]) -> Tensor:
        # On the CPU an OrtValue may alias the array it was made from.
        owned = array.copy() if self._device == "cpu" else np.ascontiguousarray(array)
        with self._held(owned.shape):
            return onnxruntime.OrtValue.ortvalue_from_numpy(owned, self._device)

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        with self._held(tensor.shape()):
            return np.array(tensor.numpy())

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Tensor:
        with self._held(shape):
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                list(shape), np.dtype(dtype).type, self._device
            )

    def write_rows(
        self, buffer: Tensor, start: int, rows: Tensor, first: int = 0, count: int | None = None
    ) -> None:
        taken = rows.shape()[1] - first if count is None else count
        if self._device == "cpu":
            # numpy() of a tensor on the CPU is a view of it.
            buffer.numpy()[:, start : start + taken] = rows.numpy()[:, first : first + taken]
            return
        # ONNX Runtime offers no partial copy on a GPU: the buffer goes through the host.
        with self._held(buffer.shape()):
            whole = buffer.numpy()
            whole[:, start : start + taken] = rows.numpy()[:, first : first + taken]
            buffer.update_inplace(whole)

    def read_rows(self, tensor: Tensor, start: int, count: int) -> NDArray[Any]:
        with self._held(tensor.shape()):
            return np.array(tensor.numpy()[..., start : start + count, :])

    def _held(self, shape: Sequence[int]) -> AbstractContextManager[None]:
        """What the body does with a tensor of `shape` succeeds, or raises EngineError."""
        got, fix = f"cannot be held or copied by {self.name}", "free memory, or use a smaller model"
        return guarded(f"tensor {list(shape)}", got, fix, EngineError)

    def close(self) -> None:
        """No session computes any more. What it held goes when nobody holds it any more."""
        self._closed = True

    def refuse_closed(self) -> None:
        if self._closed:
            raise is_closed(self.name)


@functools.cache
def _share_arena() -> None:
    """The process has an arena for the sessions that ask for it, as this module's do."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(memory, None)


_threads_shared = False


def share_threads() -> None:
    """All later sessions of this process share one pool with a thread per usable core.

    For programs that own their process. Sessions made before keep their own pools; a shared pool
    that something else in the process made before stays as it is, and is used.
    """
    global _threads_shared
    if _threads_shared:
        return
    try:
        onnxruntime.set_global_thread_pool_sizes(usable_cores(), 1)
    except Exception as error:
        # From then on ONNX Runtime takes no session with a pool of its own.
        if "already been created" not in str(error):
            raise
    _threads_shared = True


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))
