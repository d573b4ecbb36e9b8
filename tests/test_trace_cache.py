"""Tests of the tests' trace cache: it changes no byte, and tells apart what differs.

That processes agree on keys is seen by `tests.test_export_graphs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from stc.contracts import ATTEND_CONTRACT, Contract
from stc.export.decoders.qwen2.modules import Attend
from stc.export.graphs import trace as graph
from stc.export.graphs.trace import FreeAxis, trace
from stc.export.layers import Norm
from stc.export.towers.siglip.tower import Keys, Mlp, Update
from stc.method.graphs import KEYS_CONTRACT
from tests import trace_cache
from tests.language_cases import language_case
from tests.trace_cache import TraceCache, UnknownStructureError, key
from tests.vision_cases import made_up_spec

SPEC = made_up_spec()
EXAMPLE = (torch.zeros(SPEC.tokens, SPEC.width),)


def keys_module(**fields: Any) -> Keys:
    return Keys(made_up_spec(**fields), torch.float32)


def key_of(module: nn.Module, *, contract: Contract = KEYS_CONTRACT, **others: Any) -> str:
    return key(module, contract, others.get("example", EXAMPLE), others.get("free", ()))


def test_a_kept_trace_has_every_byte_of_a_fresh_one(
    kept_traces: TraceCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced() -> bytes:
        return bytes(trace(keys_module(), KEYS_CONTRACT, EXAMPLE).SerializeToString())

    monkeypatch.setattr(graph, "_traced", kept_traces.traced)
    fresh = traced()
    kept = TraceCache(tmp_path, kept_traces.traced)
    monkeypatch.setattr(graph, "_traced", kept)
    assert traced() == fresh
    assert traced() == fresh
    assert kept.traces == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".onnx"]


def test_weights_are_no_part_of_a_key() -> None:
    first, second = keys_module(), keys_module()
    for parameter in second.parameters():
        parameter.data.fill_(3.0)
    assert key_of(first) == key_of(second)


@pytest.mark.parametrize(
    "fields",
    [{"width": 32}, {"layer_norm_eps": 1e-3}],
    ids=["width", "epsilon"],
)
def test_another_structure_has_another_key(fields: dict[str, Any]) -> None:
    assert key_of(keys_module(**fields)) != key_of(keys_module())


@pytest.mark.parametrize(
    "others",
    [
        {"contract": ATTEND_CONTRACT},
        {"example": (EXAMPLE[0][:5],)},
        {"example": (EXAMPLE[0].half(),)},
        {"free": (FreeAxis("T", 20),)},
        {"free": (FreeAxis("T", 21),)},
    ],
    ids=["contract", "shape", "dtype", "free", "bound"],
)
def test_another_call_has_another_key(others: dict[str, Any]) -> None:
    known = {key_of(keys_module()), key_of(keys_module(), free=(FreeAxis("T", 19),))}
    assert key_of(keys_module(), **others) not in known


def other_dtype(module: Update) -> None:
    module.half()


def other_scale(module: Update) -> None:
    module.scale *= 2


def other_class(module: Update) -> None:
    module.norm1.__class__ = type("Norm", (Norm,), {"__module__": __name__})


@pytest.mark.parametrize("change", [other_dtype, other_scale, other_class])
def test_a_changed_module_has_another_key(change: Callable[[Update], None]) -> None:
    module = Update(SPEC, torch.float32)
    changed = copy.deepcopy(module)
    change(changed)
    assert key_of(changed) != key_of(module)


def test_another_activation_has_another_key() -> None:
    module = Mlp(SPEC, torch.float32)
    changed = copy.deepcopy(module)
    changed.activation = functional.relu
    assert key_of(changed) != key_of(module)


def test_a_buffer_counts_with_its_values() -> None:
    spec = language_case().bundle.manifest.language
    assert spec is not None
    other = spec.model_copy(update={"rotary_base": 2 * spec.rotary_base})
    assert key_of(Attend(spec, torch.float32)) != key_of(Attend(other, torch.float32))


@pytest.mark.parametrize("said", ["sources", "libraries"])
def test_another_source_or_library_has_another_key(
    said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key_of(keys_module())
    monkeypatch.setattr(trace_cache, said, lambda: "another")
    assert key_of(keys_module()) != before


def test_every_source_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in ("export/graphs", "stc/method"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(graph, "__file__", str(tmp_path / "export/graphs/trace.py"))
    digests = set()
    for name, text in (
        ("export/graphs/trace.py", "a"),
        ("export/graphs/trace.py", "b"),
        ("stc/method/pruner.py", ""),
    ):
        (tmp_path / name).write_text(text)
        digests.add(trace_cache.sources.__wrapped__())
    assert len(digests) == 3


def test_a_module_with_a_closure_is_never_kept(tmp_path: Path) -> None:
    module = Mlp(SPEC, torch.float32)
    module.activation = lambda x: x
    with pytest.raises(UnknownStructureError):
        key_of(module)
    kept = TraceCache(tmp_path, lambda *_: onnx.ModelProto(producer_name="traced"))
    assert kept(module, KEYS_CONTRACT, EXAMPLE, ()).producer_name == "traced"
    assert list(tmp_path.iterdir()) == []
