"""A checkpoint that is misread: the oracle is the model transformers loads from the same files.

A misreading is staged by two directories: this package reads the one, transformers the other, which
differs by what was missed. Both of this package's sides are then wrong alike.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.utils import logging

from stc.contracts import language_graphs
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import CheckpointError, ExportError
from stc.export import bundle_export
from stc.export import command as export_command
from stc.export import weights as export_weights
from stc.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from stc.export.checkpoint.pretrained import Pretrained
from stc.export.graphs.vision import GraphWriter
from stc.export.graphs.written_graphs import WrittenGraphs
from stc.export.whole_model import check_whole_model
from stc.manifest import GRAPHS, LANGUAGE_WEIGHTS, WEIGHTS
from stc.method.graphs import vision_graphs
from stc.runtime.commands import parity as parity_command
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.whole import WHERE, compare_whole_answer, compare_whole_vision
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from tests.language_cases import LanguageCase, language_case
from tests.tiny_checkpoint import LAYOUTS, Layout, change_json, tiny_model, write_checkpoint
from tests.vision_cases import Exported, moving_frames

CONFIG, GENERATION = "config.json", "generation_config.json"
PREPROCESSOR = "preprocessor_config.json"
DECODER = "language_model.model.layers"
TOWER = "vision_tower.encoder.layers"
QUERY, OUT = f"{TOWER}.1.self_attn.q_proj", f"{TOWER}.1.self_attn.out_proj"

Change = Callable[[Path], None]
Tensors = dict[str, Tensor]


def says(file: str, **values: object) -> Change:
    """The checkpoint's `file` says `values`."""
    return lambda directory: change_json(directory / file, **values)


def stores(change: Callable[[Tensors], None]) -> Change:
    """The checkpoint's weights are what `change` makes of them."""

    def changed(directory: Path) -> None:
        from safetensors.torch import save_file

        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})

    return changed


def own_head(tensors: Tensors) -> None:
    table = tensors["language_model.model.embed_tokens.weight"]
    random = torch.Generator().manual_seed(3)
    tensors["language_model.lm_head.weight"] = 0.3 * torch.randn(table.shape, generator=random)


def swapped(first: str, second: str) -> Callable[[Tensors], None]:
    """Tensors whose names contain `first` change places with those that have `second` there."""

    def swap(tensors: Tensors) -> None:
        for name in [name for name in tensors if first in name]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return swap


def transposed(name: str) -> Callable[[Tensors], None]:
    """The square matrix `name` is turned over."""
    return lambda tensors: tensors.update({name: tensors[name].T})


MISREADINGS: dict[str, tuple[Change, str]] = {
    "a head of its own, though the flag says tied": (stores(own_head), "logits"),
    "rope base": (says(CONFIG, text_config__rope_parameters__rope_theta=500.0), "logits"),
    "rms eps": (says(CONFIG, text_config__rms_norm_eps=1e-5), "logits"),
    "layer norm eps": (says(CONFIG, vision_config__layer_norm_eps=1e-3), "tokens"),
    "activation": (says(CONFIG, vision_config__hidden_act="gelu"), "tokens"),
    "activation of the projector": (
        says(CONFIG, projector_hidden_act="gelu_pytorch_tanh"),
        "tokens",
    ),
    "feature layer": (says(CONFIG, vision_feature_layer=-2), "tokens"),
    "order of the decoder's layers": (stores(swapped(f"{DECODER}.0.", f"{DECODER}.1.")), "logits"),
    "order of the tower's layers": (stores(swapped(f"{TOWER}.0.", f"{TOWER}.1.")), "tokens"),
    "gate for up": (stores(swapped(".gate_proj.", ".up_proj.")), "logits"),
    "query for output": (stores(swapped(f"{QUERY}.weight", f"{OUT}.weight")), "tokens"),
    "a projector turned over": (
        stores(transposed("multi_modal_projector.linear_2.weight")),
        "tokens",
    ),
    "pixel mean": (says(PREPROCESSOR, image_mean=[0.5, 0.48, 0.5]), "pixel values"),
    "pixel spread": (says(PREPROCESSOR, image_std=[0.5, 0.5, 0.52]), "pixel values"),
    "pixel scale": (says(PREPROCESSOR, rescale_factor=1 / 256), "pixel values"),
    "stop tokens": (says(GENERATION, eos_token_id=[5, 6]), "stop tokens"),
}
"""What is missed when a checkpoint is read, and what is then seen to differ first."""


def misread(read: Path, loaded: Path) -> Checkpoint:
    """What this package makes of `read`, for what transformers loads from `loaded`."""
    return replace(open_checkpoint(str(read)), directory=loaded)


@pytest.fixture(scope="module")
def case() -> LanguageCase:
    return language_case()


@pytest.fixture
def changed(case: LanguageCase, tmp_path: Path) -> Path:
    """A copy of the case's checkpoint to change."""
    return Path(shutil.copytree(case.checkpoint, tmp_path / "changed"))


def exported_compares(case: LanguageCase, whole: Pretrained) -> str:
    """What the comparison at export says of the case's graphs; nothing when they are equal."""
    manifest = case.bundle.manifest
    assert manifest.language is not None
    contracts = vision_graphs(manifest.vision.blocks) | language_graphs(manifest.language.blocks)
    graphs = WrittenGraphs(case.bundle.root / GRAPHS, manifest.provenance.precision, contracts)
    try:
        check_whole_model(graphs, manifest.vision, manifest.language, whole)
    except ExportError as error:
        return str(error)
    return ""


def parity_compares(case: LanguageCase, whole: Pretrained) -> ParityReport:
    """The rows of the comparison by stc-parity."""
    manifest = case.bundle.manifest
    report = ParityReport(manifest.provenance.precision)
    tower = VisionTower(OnnxRuntimeBackend(case.bundle), manifest.vision, report.precision)
    frames: list[Frame] = moving_frames(2)
    tokens = compare_whole_vision(tower, frames, whole, report)
    model, prompt = case.language(), case.prompt()
    compare_whole_answer(model, prompt, tokens, whole, report)
    assert {where for where, _ in report.rows} == {WHERE}
    return report


@pytest.mark.parametrize("missed", MISREADINGS)
def test_what_is_misread_on_both_sides_is_found_by_the_whole_model(
    missed: str, case: LanguageCase, changed: Path
) -> None:
    """Merged fine-tunes and converted checkpoints that differ from the published ones in one place:
    export refuses, parity fails, and both say what differs."""
    change, differs = MISREADINGS[missed]
    change(changed)
    whole = Pretrained(misread(case.checkpoint, changed))
    line = exported_compares(case, whole)
    assert differs in line.partition(": differ from transformers' ")[0]
    assert "expected" in line
    assert "; " in line
    report = parity_compares(case, whole)
    failed = {tensor for (_, tensor), row in report.rows.items() if not row.passed}
    assert any(differs.replace("pixel values", "pixel_values") in tensor for tensor in failed)


def test_a_checkpoint_that_is_read_right_passes_with_room_to_spare(case: LanguageCase) -> None:
    """The published checkpoints: equal to transformers far below the limits."""
    whole = Pretrained(open_checkpoint(str(case.checkpoint)))
    assert exported_compares(case, whole) == ""
    report = parity_compares(case, whole)
    assert report.passed
    for tensor in ("tokens", "logits"):
        row = report.rows[WHERE, tensor]
        assert row.relative_l2 < 0.2 * row.limit


def test_the_row_that_newer_transformers_append_to_a_video_is_left_out(
    case: LanguageCase, changed: Path
) -> None:
    """`image_newline`: a stream of frames has none, whichever transformers is installed."""
    stores(lambda tensors: tensors.update(image_newline=tensors["image_newline"] * 9))(changed)
    whole = Pretrained(misread(case.checkpoint, changed))
    pixels = whole.pixel_values(moving_frames(1)[0].rgb)
    spec = case.bundle.manifest.vision
    assert whole.visual_tokens(pixels).shape == (spec.pooled, spec.language_width)
    assert exported_compares(case, whole) == ""
    assert parity_compares(case, whole).passed


def test_half_precision_is_compared_by_its_own_rounding(changed: Path) -> None:
    """A float16 bundle of a right checkpoint passes; one of a misread checkpoint does not."""
    half = language_case(precision="fp16", int4=128)
    whole = Pretrained(open_checkpoint(str(half.checkpoint)))
    assert exported_compares(half, whole) == ""
    assert parity_compares(half, whole).passed
    MISREADINGS["gate for up"][0](changed)
    line = exported_compares(half, Pretrained(misread(half.checkpoint, changed)))
    assert "logits after the prompt: differ" in line


def test_an_export_that_misreads_leaves_nothing(
    changed: Path, case: LanguageCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A merged fine-tune stores a head of its own and keeps `tie_word_embeddings: true`: all tokens
    of its answers differ where the flag is believed."""
    stores(own_head)(changed)
    monkeypatch.setattr(
        export_weights, "open_checkpoint", lambda path: misread(case.checkpoint, Path(path))
    )
    healthy, stored = case.bundle.root, [WEIGHTS, LANGUAGE_WEIGHTS]

    def written(writer: GraphWriter, *_: object) -> None:
        """What an export of the directory that is read writes, taken from its bundle."""
        shutil.copytree(healthy / GRAPHS, writer.folder, dirs_exist_ok=True)
        for name in stored:
            shutil.copyfile(healthy / name, writer.folder.parent / name)

    monkeypatch.setattr(bundle_export, "write_graphs", written)
    monkeypatch.setattr(bundle_export, "_write_language", lambda *_: stored[1:])
    output = tmp_path / "bundle"
    arguments = ["--model", "llava-ov", "--checkpoint", str(changed), "--output", str(output)]
    assert export_command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: whole model: logits after the prompt: differ")
    assert "token 1 of the answer" in line
    assert not output.exists()


@pytest.mark.parametrize("missed", ["a head of its own, though the flag says tied", "pixel mean"])
def test_parity_fails_on_a_bundle_whose_checkpoint_was_misread(
    missed: str,
    changed: Path,
    case: LanguageCase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same bundle was called equal to PyTorch, because PyTorch was given what was misread."""
    MISREADINGS[missed][0](changed)
    monkeypatch.setattr(
        export_weights, "open_checkpoint", lambda path: misread(case.checkpoint, Path(path))
    )
    flags = ["--checkpoint", str(changed), "--frames", "2", "--json", "-"]
    assert parity_command.main([str(case.bundle.root), *flags]) == 1
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["where"] for row in document["rows"] if not row["passed"]} == {WHERE}
    assert "compared with transformers'" in document["whole_model"]


def test_weights_in_no_checkpoint_are_told_to_be_uncompared(
    exported: Callable[[str], Exported],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--random-weights: there is no file that could be misread, and parity says so."""
    from contextlib import nullcontext

    made = exported("so400m heads")
    monkeypatch.setattr(export_weights, "open_weights", lambda *_: nullcontext(made.weights))
    flags = ["--checkpoint", "made up", "--frames", "2", "--json", "-"]
    assert parity_command.main([str(made.bundle.root), *flags]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "random, in no checkpoint" in document["whole_model"]
    assert WHERE not in {row["where"] for row in document["rows"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_stay_as_they_are_stored_and_are_computed_in_float32(
    dtype: torch.dtype, case: LanguageCase, changed: Path
) -> None:
    """A checkpoint of 7B in bfloat16: half the memory, and the answer of float32."""
    stores(lambda t: t.update({name: tensor.to(dtype) for name, tensor in t.items()}))(changed)
    whole = Pretrained(open_checkpoint(str(changed)))
    loaded: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
        changed, dtype=torch.float32
    )
    pixels = whole.pixel_values(moving_frames(1)[0].rgb)
    with torch.inference_mode():
        features = loaded.get_video_features(torch.from_numpy(pixels)[None, None])
        tokens = features.pooler_output[0, : case.bundle.manifest.vision.pooled]
        ids = torch.tensor([7, 8, 9])
        hidden = torch.cat([loaded.get_input_embeddings()(ids), tokens])
        logits = loaded(inputs_embeds=hidden[None]).logits[0, -1]
        expected = loaded.generate(
            inputs_embeds=hidden[None],
            attention_mask=torch.ones(1, len(hidden), dtype=torch.long),
            max_new_tokens=5,
            do_sample=False,
        )[0].tolist()
    got = np.concatenate([whole.embed(ids.numpy()), whole.visual_tokens(pixels)])
    np.testing.assert_allclose(got, hidden.numpy(), atol=1e-6)
    answer, rows = whole.answer(got, 5)
    assert answer == expected
    np.testing.assert_allclose(rows[0], logits.numpy(), atol=1e-5)
    model: Any = whole._model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_checkpoint_is_loaded_without_a_word(
    layout: Layout, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names that transformers 4.x and 5.x write: nothing is missing, and stderr stays clean."""
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path, tiny_model(), layout)))
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    assert Pretrained(checkpoint).missing == ()
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)


def test_a_stop_token_that_transformers_never_asks_for_is_no_difference(
    case: LanguageCase, changed: Path
) -> None:
    """generation_config.json is silent: transformers never stops, the token of config.json does."""
    says(GENERATION, eos_token_id=None)(changed)
    whole = Pretrained(misread(case.checkpoint, changed))
    assert whole.stop_token_ids == ()
    assert case.bundle.manifest.language.stop_token_ids  # type: ignore[union-attr]
    assert exported_compares(case, whole) == ""
    assert parity_compares(case, whole).passed


def test_an_attention_that_needs_a_gpu_is_not_asked_for(changed: Path) -> None:
    """A fine-tune whose configuration asks for FlashAttention is compared on a CPU all the same."""
    says(CONFIG, _attn_implementation="flash_attention_2")(changed)
    assert Pretrained(open_checkpoint(str(changed))).missing == ()


def test_a_checkpoint_that_transformers_cannot_load_is_one_line(
    case: LanguageCase, tmp_path: Path
) -> None:
    """A directory that went away since it was opened."""
    with pytest.raises(CheckpointError, match="transformers cannot load it") as caught:
        Pretrained(misread(case.checkpoint, tmp_path))
    assert "\n" not in str(caught.value)


def test_stop_tokens_and_prompt_are_transformers(case: LanguageCase) -> None:
    """What ends an answer, and the ids of a question, by transformers' own readers."""
    whole = Pretrained(open_checkpoint(str(case.checkpoint)))
    spec, prompt = case.bundle.manifest.language, case.prompt()
    assert spec is not None
    assert whole.stop_token_ids == spec.stop_token_ids
    ids: NDArray[np.int64] = whole.prompt_ids("What is in the video?")
    after = prompt.after("What is in the video?")
    assert ids.tolist() == [*prompt.before, spec.video_token_id, *after]
