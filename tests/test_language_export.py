"""The language side of a bundle: whose tensors it reads, what it writes, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from stc import contracts
from stc.errors import CheckpointError, ExportError
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.companions import read_companions
from stc.export.decoders.qwen2.decoder import Decoder
from stc.export.decoders.qwen2.modules import Attend
from stc.export.decoders.qwen2.spec import described_language
from stc.export.decoders.qwen2.torch_language import TorchLanguage
from stc.export.decoders.qwen2.weights import EMBED, HEAD, language_shapes, whole_table
from stc.export.graphs.check import GraphCheck
from stc.export.made_up.synthetic import random_checkpoint
from stc.manifest import GRAPHS, LANGUAGE_WEIGHTS, WEIGHTS
from tests.graph_files import graph_file
from tests.kept_tokens import WIDTH
from tests.language_cases import BLOCKS, language_case
from tests.tiny_checkpoint import (
    LAYOUTS,
    Layout,
    change_json,
    change_tensor,
    tiny_model,
    write_checkpoint,
)

DECODER = "model.language_model."


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def pristine(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), model)


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_decoder_tensor_is_transformers(layout: Layout, model: Any, tmp_path: Path) -> None:
    weights = open_checkpoint(str(write_checkpoint(tmp_path, model, layout))).language()
    state = model.state_dict()
    expected = {name for name in state if name.startswith((DECODER, "lm_head"))}
    for name in language_shapes(weights.spec):
        assert torch.equal(weights.tensor(name), state[DECODER + name]), name
        expected.remove(DECODER + name)
    assert torch.equal(whole_table(weights, EMBED), state[DECODER + EMBED])
    assert torch.equal(whole_table(weights, HEAD), state[HEAD])
    assert expected == {DECODER + EMBED, HEAD}


@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_read_in_slices(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = language_case(tied=tied)
    monkeypatch.setattr("stc.export.decoders.qwen2.weights.ROWS", 100)
    weights = open_checkpoint(str(case.checkpoint)).language()
    state = case.model.state_dict()
    for name, full in ((EMBED, DECODER + EMBED), (HEAD, HEAD)):
        parts = list(weights.table(name))
        assert {len(part) for part in parts[:-1]} == {100}
        assert torch.equal(torch.cat(parts), state[full])
    assert torch.equal(state[HEAD], state[DECODER + EMBED]) == tied


def test_the_spec_is_the_configuration() -> None:
    spec = described_language(read_companions(language_case().checkpoint))
    config = language_case().model.config
    text = config.text_config
    assert (spec.width, spec.blocks, spec.vocabulary) == (WIDTH, BLOCKS, text.vocab_size)
    assert (spec.query_heads, spec.key_heads, spec.head_width) == (4, 2, 8)
    assert spec.rotary_base == text.rope_parameters["rope_theta"]
    assert spec.tied_head
    assert spec.video_token_id == config.video_token_index
    assert spec.stop_token_ids == (text.eos_token_id,)


def test_transformers_4_configurations_are_read(directory: Path) -> None:
    change_json(
        directory / "config.json",
        text_config__rope_parameters=None,
        text_config__rope_theta=1e6,
    )
    change_json(directory / "generation_config.json", eos_token_id=[3, 4])
    spec = described_language(read_companions(directory))
    assert (spec.rotary_base, spec.stop_token_ids) == (1e6, (3, 4))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"text_config__use_sliding_window": True}, "use_sliding_window is True, expected False"),
        ({"text_config__hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"text_config__model_type": "llama"}, "model_type is 'llama', expected 'qwen2'"),
        (
            {
                "text_config__rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 1.0,
                    "factor": 2.0,
                }
            },
            "rope type is 'linear', expected 'default'",
        ),
        ({"text_config__num_key_value_heads": 3}, "2 query heads, 3 key heads"),
    ],
)
def test_decoders_of_another_kind_are_refused(
    directory: Path, changes: dict[str, object], told: str
) -> None:
    change_json(directory / "config.json", **changes)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(directory)).language()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", None, "a tensor is missing"),
        ("language_model.lm_head.weight", None, "lm_head.weight"),
        ("language_model.model.norm.weight", torch.ones(7), "shape [7], expected [20]"),
    ],
)
def test_incomplete_decoders_are_refused_before_any_work(
    directory: Path, name: str, tensor: torch.Tensor | None, told: str
) -> None:
    change_tensor(directory, name, tensor)
    open_checkpoint(str(directory))  # the tower is whole
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(directory)).language()
    assert told in str(caught.value)


def test_nan_in_a_decoder_is_refused(directory: Path) -> None:
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    change_tensor(directory, name, torch.full((32, 20), torch.nan))
    weights = open_checkpoint(str(directory)).language()
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        Decoder(weights).attend(0)


@pytest.mark.parametrize("tied", [True, False])
def test_language_weights_have_their_own_file_and_are_stored_once(tied: bool) -> None:
    case = language_case(tied=tied)
    root, manifest = case.bundle.root, case.bundle.manifest
    spec = manifest.language
    assert spec is not None
    tensors = list(language_shapes(spec).values())
    tensors += [(spec.vocabulary, spec.width)] * (1 if tied else 2)
    size_bytes = sum(4 * int(np.prod(shape)) for shape in tensors)
    stored = (root / LANGUAGE_WEIGHTS).stat().st_size
    assert size_bytes <= stored < size_bytes + 4096 * len(tensors)
    assert {file.path for file in manifest.files} >= {WEIGHTS, LANGUAGE_WEIGHTS}
    for name in contracts.language_graphs(spec.blocks):
        graph = onnx.load(root / GRAPHS / f"{name}.onnx", load_external_data=False)
        locations = {
            entry.value
            for initializer in graph.graph.initializer
            for entry in initializer.external_data
            if entry.key == "location"
        }
        assert locations == {"language.bin"}


def test_language_graphs_keep_their_contract() -> None:
    bundle = language_case().bundle
    spec = bundle.manifest.language
    assert spec is not None
    for name, contract in contracts.language_graphs(spec.blocks).items():
        entry = bundle.manifest.graphs[name]
        session = onnxruntime.InferenceSession(
            graph_file(bundle, name), providers=["CPUExecutionProvider"]
        )
        for ports, entries, values in (
            (contract.inputs, entry.inputs, session.get_inputs()),
            (contract.outputs, entry.outputs, session.get_outputs()),
        ):
            assert [port.name for port in ports] == [value.name for value in values]
            assert [tuple(value.shape) for value in values] == [one.shape for one in entries]


@pytest.mark.parametrize(("m", "rows"), [(1, 1), (1, 7), (5, 5), (3, 40)])
def test_one_graph_serves_every_chunk_and_context(m: int, rows: int) -> None:
    case = language_case()
    decoder = Decoder(open_checkpoint(str(case.checkpoint)).language())
    attend = decoder.attend(1)
    generator = torch.Generator().manual_seed(5)
    positions = torch.arange(rows - m, rows)
    inputs = (
        torch.randn(m, WIDTH, generator=generator),
        torch.randn(4, m, 8, generator=generator),
        torch.randn(2, rows, 8, generator=generator),
        torch.randn(2, rows, 8, generator=generator),
        positions,
        torch.randperm(rows, generator=generator),
    )
    path = graph_file(case.bundle, contracts.attend_graph(1))
    GraphCheck(path, contracts.ATTEND_CONTRACT, "fp32").compare(attend, inputs)


def test_the_graph_check_sees_a_wrong_rotary_base() -> None:
    case = language_case()
    weights = open_checkpoint(str(case.checkpoint)).language()
    attend = Decoder(weights).attend(0)
    other = Attend(weights.spec.model_copy(update={"rotary_base": 500.0}), torch.float32)
    other.load_state_dict(attend.state_dict())
    generator = torch.Generator().manual_seed(5)
    inputs = (
        torch.randn(3, WIDTH, generator=generator),
        torch.randn(4, 3, 8, generator=generator),
        torch.randn(2, 9, 8, generator=generator),
        torch.randn(2, 9, 8, generator=generator),
        torch.arange(6, 9),
        torch.arange(9),
    )
    path = graph_file(case.bundle, contracts.attend_graph(0))
    check = GraphCheck(path, contracts.ATTEND_CONTRACT, "fp32")
    check.compare(attend, inputs)
    with pytest.raises(ExportError, match="attend_00: hidden_out: differs from torch"):
        check.compare(other, inputs)


def test_rows_that_a_query_must_not_see_change_nothing() -> None:
    """Empty rows and later positions, whatever finite numbers they hold."""
    case = language_case()
    attend = Decoder(open_checkpoint(str(case.checkpoint)).language()).attend(0)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(2, WIDTH, generator=generator)
    query = torch.randn(4, 2, 8, generator=generator)
    keys, values = (torch.randn(2, 6, 8, generator=generator) for _ in range(2))
    positions = torch.tensor([3, 4])
    seen = attend(hidden, query, keys[:, :5], values[:, :5], positions, torch.arange(5))
    wild = torch.full((2, 3, 8), 1e4)
    longer = attend(
        hidden,
        query,
        torch.cat([keys[:, :5], wild], 1),
        torch.cat([values[:, :5], wild], 1),
        positions,
        torch.tensor([0, 1, 2, 3, 4, -1, 5, -1]),
    )
    assert torch.allclose(seen, longer, atol=1e-6)


def test_a_half_precision_bundle_keeps_positions_norms_and_logits_in_float32() -> None:
    case = language_case(precision="fp16", int4=128)
    entries = case.bundle.manifest.graphs
    dtypes = {port.name: port.dtype for port in entries[contracts.attend_graph(0)].inputs}
    assert dtypes["keys"] == "float16"
    assert dtypes["key_positions"] == "int64"
    assert entries[contracts.HEAD].outputs[0].dtype == "float32"


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_products_of_large_keys_stay_within_half_precision(scale: float) -> None:
    case, name = language_case(precision="fp16", int4=128), contracts.attend_graph(0)
    weights = open_checkpoint(str(case.checkpoint)).language()
    assert weights is not None
    spec, m, rows = weights.spec, 6, 300
    random = torch.Generator().manual_seed(0)
    heads, width = (spec.query_heads, spec.key_heads), spec.head_width
    inputs = (
        torch.randn(m, spec.width, generator=random),
        torch.randn(heads[0], m, width, generator=random) * scale,
        torch.randn(heads[1], rows, width, generator=random) * scale,
        torch.randn(heads[1], rows, width, generator=random),
        torch.arange(rows - m, rows),
        torch.arange(rows),
    )
    check = GraphCheck(
        graph_file(case.bundle, name), contracts.language_graphs(1)[name], "fp16", limit=1e-2
    )
    check.compare(Decoder(weights).attend(0), inputs)


def test_random_weights_have_the_geometry_of_the_published_models() -> None:
    small, large = (random_checkpoint(size).language() for size in ("llava-ov-0.5b", "llava-ov-7b"))
    assert small is not None
    assert large is not None
    assert (small.spec.width, small.spec.blocks, small.spec.tied_head) == (896, 24, True)
    assert (large.spec.width, large.spec.blocks, large.spec.tied_head) == (3584, 28, False)
    part = next(iter(small.table(EMBED)))
    assert torch.equal(part, next(iter(small.table(HEAD))))
    assert part.shape[1] == 896


def test_transformers_own_decoder_is_what_parity_compares_with() -> None:
    case = language_case(tied=False)
    language = TorchLanguage(open_checkpoint(str(case.checkpoint)).language())
    ids = np.arange(9)
    with torch.inference_mode():
        expected = case.model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
    assert np.allclose(language.logits(language.embed(ids)), expected.numpy(), atol=1e-5)
    language.prefill(language.embed(ids[:6]))
    language.prefill(language.embed(ids[2:5]))
    language.forget(6)
    language.prefill(language.embed(ids[6:8]))
    assert np.allclose(language.decode(8), expected.numpy(), atol=1e-5)
