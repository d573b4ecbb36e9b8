"""Traces of graphs, kept on disk: most of the tests' time would be torch's exporter otherwise.

A trace holds no weights, so it is known by the structure of its module, the shapes of its example,
the contract, the sources that say what is computed, and the libraries' versions. The files may be
deleted at any time, and processes may write them at once.

Run as a program, it is `stc-export` whose traces are kept in the folder that is its first argument.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from stc.contracts import Contract
from stc.export.graphs import trace as graph
from stc.export.graphs.trace import FreeAxis

LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir")

Traced = Callable[[nn.Module, Contract, tuple[Tensor, ...], tuple[FreeAxis, ...]], onnx.ModelProto]


class UnknownStructureError(Exception):
    """A module holds what `described` cannot tell from another."""


@dataclass
class TraceCache:
    """`traced`, which is asked only for what does not stand in `folder` yet."""

    folder: Path
    traced: Traced
    traces: int = 0

    def __call__(
        self,
        module: nn.Module,
        contract: Contract,
        example: tuple[Tensor, ...],
        free: tuple[FreeAxis, ...],
    ) -> onnx.ModelProto:
        try:
            path = self.folder / f"{key(module, contract, example, free)}.onnx"
        except UnknownStructureError:
            return self.traced(module, contract, example, free)
        if path.exists():
            kept = onnx.ModelProto()
            kept.ParseFromString(path.read_bytes())
            return kept
        self.traces += 1
        model = self.traced(module, contract, example, free)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(model.SerializeToString())
        part.replace(path)
        return model


def key(
    module: nn.Module,
    contract: Contract,
    example: tuple[Tensor, ...],
    free: tuple[FreeAxis, ...],
) -> str:
    """What a trace is known by. Raises UnknownStructureError."""
    shapes = [(tuple(tensor.shape), tensor.dtype) for tensor in example]
    same = [[first is second for first in example] for second in example]
    read = {symbol for port in contract.inputs for symbol in port.shape}
    axes = [axis for axis in free if axis.symbol in read]
    told = (*described(module), contract, shapes, same, axes, libraries(), sources())
    return hashlib.sha256(repr(told).encode()).hexdigest()


def described(value: Any) -> Iterator[str]:
    """All of `value` that a trace may hang on, parameters as their shapes and dtypes."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, torch.dtype):
        yield repr(value)
    elif isinstance(value, nn.Parameter):
        yield f"parameter {tuple(value.shape)} {value.dtype}"
    elif isinstance(value, Tensor):
        digest = hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
        yield f"tensor {tuple(value.shape)} {value.dtype} {digest}"
    elif isinstance(value, (FunctionType, BuiltinFunctionType)):
        if "<" in value.__qualname__:  # a closure may hold anything
            raise UnknownStructureError(value.__qualname__)
        yield f"{value.__module__}.{value.__qualname__} {source(value.__module__)}"
    elif isinstance(value, nn.Module):
        yield f"{kind.__module__}.{kind.__qualname__} {source(kind.__module__)}"
        if "<" in kind.__qualname__:
            raise UnknownStructureError(kind.__qualname__)
        yield from described(vars(value))
    elif isinstance(value, dict):
        yield f"dict {len(value)}"
        for name, item in value.items():
            yield repr(name)
            yield from described(item)
    elif isinstance(value, set):
        yield f"set {sorted(value)}"
    elif isinstance(value, (list, tuple)):
        yield f"{kind.__qualname__} {len(value)}"
        for item in value:
            yield from described(item)
    else:
        raise UnknownStructureError(f"{kind.__module__}.{kind.__qualname__}")


@cache
def source(module: str) -> str:
    """The digest of a module's source file; of the libraries the version is enough."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or "site-packages" in file:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@cache
def sources() -> str:
    """The digest of all that is exported from, and of the constants and names it takes."""
    digest = hashlib.sha256()
    root = Path(graph.__file__).resolve().parents[2]
    for file in sorted([*root.glob("export/**/*.py"), *root.glob("stc/**/*.py")]):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def libraries() -> tuple[str, ...]:
    """Their versions, and Python's."""
    return (sys.version, *(f"{name} {version(name)}" for name in LIBRARIES))


def _export(folder: Path, *arguments: str) -> int:
    from stc.export import command
    from tests.collected_once import collect_once

    collect_once()
    setattr(graph, "_traced", TraceCache(folder, graph._traced))  # noqa: B010
    return command.main(arguments)


if __name__ == "__main__":
    sys.exit(_export(Path(sys.argv[1]), *sys.argv[2:]))
