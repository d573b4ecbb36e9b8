"""Every TensorRT name the engines touch exists from 10.3 to 11.4 and in TensorRT-RTX.

The sources are read, not run: `trt.X.Y` is looked up as written, a variable's attributes are those
of the TensorRT class that its name stands for throughout the engines (VARIABLES), those of a call's
result the ones of what the method returns (RETURNS), and methods of a class made from one of
TensorRT's override that one's.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = sorted((ROOT / "engines").rglob("*.py"))
API = {
    file.stem: json.loads(file.read_text()) for file in (ROOT / "tests/data/trt-api").glob("*.json")
}
RTX = "tensorrt_rtx-1.7.1"

VARIABLES: dict[str, tuple[str, ...]] = {
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "config": ("IBuilderConfig",),
    "profile": ("IOptimizationProfile",),
    "layer": ("ILayer", "ITopKLayer", "IMatrixMultiplyLayer", "IConvolutionLayer"),
    "product": ("ILayer",),
    "narrow": ("ITensor",),
    "output": ("ITensor",),
    "engine": ("ICudaEngine",),
    "context": ("IExecutionContext",),
    "runtime_config": ("IRuntimeConfig",),
    "_kernels": ("IRuntimeCache",),
    "_runtime": ("Runtime",),
    "timings": ("ITimingCache",),
}
"""What a variable of this name is, in the sources that speak TensorRT."""

RETURNS = {"get_input": "ITensor", "get_output": "ITensor", "engine": "ICudaEngine"}
"""What a method returns whose result is used at once."""

ONLY_RTX = {
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_execution_context_allocation_strategy",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
"""Names used where the flavour was found to be TensorRT-RTX."""

GUARDED = {"BuilderFlag.REQUIRE_USER_ALLOCATION", "IExecutionContext.is_stream_capturable"}
"""Optional names, each behind a hasattr."""


def speaks_tensorrt(tree: ast.Module) -> bool:
    words = ("trt", "tensorrt", "timings", "runtime_config")
    return any(isinstance(node, ast.Name) and node.id in words for node in ast.walk(tree))


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` of an attribute chain that starts at a variable."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def touched(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """TensorRT names in a source, each with the alternatives it may be."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _overridden(node)
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
            kind = RETURNS.get(node.value.func.attr)
            if kind is not None:
                yield (f"{kind}.{node.attr}",)
        if (chain := dotted(node)) is None:
            continue
        parts = chain.replace("tensorrt.module", "trt").split(".")
        if len(parts) < 2:
            continue
        if parts[0] == "trt":
            yield (".".join(parts[1:3]),)
        owner, member = parts[-2:]
        if owner in VARIABLES and not member.startswith("__"):
            yield tuple(f"{kind}.{member}" for kind in VARIABLES[owner])


def _overridden(made: ast.ClassDef) -> Iterator[tuple[str, ...]]:
    """The methods of a class made from one of TensorRT's, as that one's."""
    for base in filter(None, map(dotted, made.bases)):
        if base.startswith("trt."):
            methods = (one.name for one in made.body if isinstance(one, ast.FunctionDef))
            for name in methods:
                if not name.startswith("__"):
                    yield (f"{base.removeprefix('trt.')}.{name}",)


def exists(api: dict[str, list[str]], name: str) -> bool:
    kind, _, member = name.partition(".")
    return kind in api and (not member or member in api[kind])


SOURCES = {
    str(file.relative_to(ROOT / "engines")): tree
    for file in ENGINES
    if speaks_tensorrt(tree := ast.parse(file.read_text()))
}
NAMES = sorted({names for tree in SOURCES.values() for names in touched(tree)})


def test_the_names_are_found_where_they_are_used() -> None:
    assert {"build/compile.py", "tensorrt/engine.py"} <= set(SOURCES)
    found = {name for names in NAMES for name in names}
    assert {
        "LayerType.TOPK",
        "ITopKLayer.k",
        "IBuilderConfig.set_compute_capability",
        "IProgressMonitor",
        "IProgressMonitor.step_complete",
        "ILogger.log",
        "ITensor.name",
        "ITimingCache.combine",
        "INetworkDefinition.add_cast",
        "ICudaEngine.device_memory_size_v2",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_device_memory",
        "Runtime.deserialize_cuda_engine",
    } <= found
    assert len(API) == 8


@pytest.mark.parametrize("version", sorted(API))
def test_every_name_exists_in_every_version(version: str) -> None:
    missing = [names for names in NAMES if not any(exists(API[version], name) for name in names)]
    optional = GUARDED | (set() if version == RTX else ONLY_RTX)
    assert {name for names in missing for name in names} <= optional


def test_every_optional_name_is_guarded_and_exists_somewhere() -> None:
    guards = {
        f"{VARIABLES.get(owner, (owner,))[0]}.{node.args[1].value!s}"
        for tree in SOURCES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and dotted(node.func) == "hasattr"
        and isinstance(node.args[1], ast.Constant)
        for owner in [(dotted(node.args[0]) or "").split(".")[-1]]
    }
    assert guards >= GUARDED
    for name in GUARDED | ONLY_RTX:
        assert any(exists(api, name) for api in API.values()), name
        assert not all(exists(api, name) for api in API.values()), name


def test_no_version_number_of_an_enumeration_is_written_down() -> None:
    # STRONGLY_TYPED is 1 in TensorRT 10 and 0 in 11: Polygraphy asks the enumeration.
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (dotted(node.func) or "").endswith("create_network"):
                pytest.fail(f"{name} creates a network itself")
