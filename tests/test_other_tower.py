"""A tower that the product knows nothing of, by the real export and the real runtime: no square, a
class token, one matrix for queries, keys and values."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stc.bundles.bundle import Bundle
from stc.export.graphs.torch_graphs import TorchGraphs
from stc.export.models.llava_onevision import VisionModel
from stc.export.models.reference import TorchVision
from stc.method.graphs import EMBED, TOKENS, vision_graphs
from stc.runtime.commands import run as run_command
from stc.runtime.parity.report import ParityReport
from stc.runtime.parity.sides import TowerStream
from stc.runtime.parity.vision import compare_graphs, compare_streams
from stc.runtime.show.marks import KEPT_RGB, TokenMarks
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import SCORINGS, SELECTIONS, Scoring, Selection, Settings
from tests.frame_reports import frame_report
from tests.once import Once
from tests.oracle.backend import OracleBackend
from tests.other_tower import SPEC, OtherWeights, oracle_weights
from tests.trace_cache import TraceCache
from tests.vision_cases import DATA, Exported, export, moving_frames

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = OtherWeights()
SETTINGS = Settings(reference_interval=3, recompute_ratio=0.3, budget=5)
GREY = 110


@pytest.fixture
def case(once: Once, kept_traces: TraceCache) -> Exported:
    made = once("other", lambda root: export(WEIGHTS, root / "bundle"))
    return Exported(WEIGHTS, Bundle.open(made / "bundle"))


def test_its_bundle_says_how_its_tokens_lie(case: Exported) -> None:
    spec, graphs = case.bundle.manifest.vision, case.bundle.manifest.graphs
    assert spec == SPEC
    assert (spec.tokens, spec.pooled) == (1 + 5 * 7, 3 * 4)
    assert graphs[EMBED].inputs[0].shape == (3, 43, 56)
    assert graphs[EMBED].outputs[0].shape == (36, 24)
    assert graphs["project"].outputs[0].shape == (12, 20)
    document = json.loads((case.bundle.root / "manifest.json").read_text())
    assert document["vision"]["grid"] == {
        "rows": 5,
        "columns": 7,
        "prefix_tokens": 1,
        "pooled_rows": 3,
        "pooled_columns": 4,
    }


def test_frames_are_resized_to_its_height_and_width() -> None:
    rgb = moving_frames(1)[0].rgb
    expected = np.asarray(Image.fromarray(rgb).resize((56, 43), Image.Resampling.BICUBIC)) / 255
    got = Preprocessor(SPEC)(rgb)
    assert got.shape == (3, 43, 56)
    np.testing.assert_allclose(
        got.transpose(1, 2, 0), (expected - SPEC.image_mean) / SPEC.image_std, atol=1e-5
    )


def test_every_graph_and_every_stream_equals_its_own_layers(case: Exported) -> None:
    tower, report = case.onnxruntime(), ParityReport("fp32")
    frames = [Preprocessor(SPEC)(frame.rgb).astype(np.float32) for frame in moving_frames(5)]
    graphs = TorchGraphs(vision_graphs(SPEC.blocks), VisionModel(WEIGHTS).module)
    compare_graphs(tower, graphs, (frames[0], frames[1]), SETTINGS, report)
    compare_streams(tower, TorchVision(WEIGHTS), frames, SETTINGS, report)
    assert report.passed, [row for row in report.rows.values() if not row.passed]
    compared = {where for where, _ in report.rows}
    assert compared == vision_graphs(SPEC.blocks).keys() | {"dense", *SELECTIONS}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("pruner", SCORINGS)
def test_a_stream_equals_the_oracle(selection: Selection, pruner: Scoring, case: Exported) -> None:
    settings = replace(SETTINGS, selection=selection, pruner=pruner)
    oracle = VisionTower(OracleBackend(*oracle_weights(WEIGHTS)), SPEC, "fp32")
    sessions = [StreamSession(tower, settings) for tower in (case.onnxruntime(), oracle)]
    random = np.random.default_rng(0)
    for index in range(7):
        # All of the picture changes: patches that stand still would score alike.
        rgb = random.integers(0, 256, (50, 70, 3), np.uint8)
        frame = Frame(index=index, time_s=float(index), rgb=rgb)
        got, expected = (session.push(frame) for session in sessions)
        assert len(got.recomputed) == (36 if got.kind == "reference" else 10)
        np.testing.assert_array_equal(got.recomputed, expected.recomputed)
        assert len(got.kept) == 5
        np.testing.assert_array_equal(got.kept, expected.kept)
        np.testing.assert_allclose(got.tokens, expected.tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("ratio", [0.01, 0.3])
def test_a_class_token_is_always_recomputed(
    ratio: float, selection: Selection, case: Exported
) -> None:
    stream = TowerStream(case.onnxruntime(), Settings(recompute_ratio=ratio))
    first, second = (Preprocessor(SPEC)(frame.rgb) for frame in moving_frames(2))
    stream.reference(first.astype(np.float32))
    frame = stream.reuse(second.astype(np.float32), 0, selection)
    assert len(frame.indices) == SPEC.blocks
    for indices in frame.indices:
        assert indices[0] == 0
        assert len(indices) == (1 if ratio == 0.01 else 10)


def test_a_class_token_reaches_no_pooled_token_but_through_the_others() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(SPEC.tokens, SPEC.width)).astype(np.float32)
    other = hidden.copy()
    other[0] += 1
    graphs = TorchGraphs(vision_graphs(SPEC.blocks), VisionModel(WEIGHTS).module)
    first, second = (graphs.run("project", {"hidden": rows})[TOKENS] for rows in (hidden, other))
    np.testing.assert_array_equal(first, second)
    other[1] += 1
    assert (graphs.run("project", {"hidden": other})[TOKENS] != first).any()


def test_marks_lie_on_the_patches_and_none_for_the_class_token() -> None:
    """A picture of ten times the input: cells of 80 px, of which the last 30 rows are none."""
    picture = Image.new("RGB", (560, 430), (GREY, GREY, GREY))
    report = frame_report(1, recomputed=np.array([0, 1, 9, 35]), kept=np.array([3, 8]))
    TokenMarks(560, 430, SPEC.grid, SPEC.covered).draw(picture, report)
    drawn = np.asarray(picture)
    marked = np.zeros((430, 560), dtype=bool)
    for row, column in ((0, 0), (1, 1), (4, 6)):
        marked[80 * row : 80 * (row + 1), 80 * column : 80 * (column + 1)] = True
    dots = np.zeros_like(marked)
    for row in range(3):
        for column in range(4):
            y, x = round((row + 0.5) * 400 / 3), round((column + 0.5) * 140)
            kept = (row, column) in ((0, 3), (2, 0))
            assert np.array_equal(drawn[y, x], KEPT_RGB) == kept
            dots[y - 30 : y + 30, x - 30 : x + 30] |= kept
    changed = (drawn != GREY).any(axis=-1)
    assert changed[marked].all()
    assert not changed[~marked & ~dots].any()


def test_stc_run_streams_prunes_and_draws(
    case: Exported,
    tmp_path: Path,
    run_main: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    overlay, document = tmp_path / "overlay.mp4", tmp_path / "report.json"
    done = run_main(
        run_command.main,
        *(case.bundle.root, "--video", DATA / "street.mp4", "--fps", 1),
        *("--reference-interval", 3, "--recompute-ratio", 0.3, "--budget", 5),
        *("--overlay", overlay, "--json", document),
    )
    assert done.returncode == 0, done.stderr
    assert "reuse  recomputed 10/36  kept 5/12" in done.stderr
    summary = json.loads(document.read_text())["summary"]
    with av.open(overlay) as container:
        assert len(list(container.decode(video=0))) == summary["frames"] == 40


# Who may know of a square.

SQUARE = r"image_size|(spec|vision|grid)\.side\b|pooled_side|side ?\*\* ?2|\*\* ?0\.5\)|q_proj"
PARTS = ("export/towers/siglip/", "export/models/llava_onevision.py", "export/decoders/")
HUGGING_FACE = {
    "export/companions.py": "bounds of what config.json says",
    "export/demo/checkpoint.py": "a SigLIP of its own",
    "export/demo/training/draws/windows.py": "scenes are square, as are windows of them",
    "export/demo/training/stages.py": "a head of Qwen2's, told where to look",
    "export/demo/training/train.py": "positions of that SigLIP",
    "stc/bundles/bundle.py": "manifests of schema 1 had a square",
    "export/made_up/synthetic.py": "SigLIP's weights, made up",
}
"""Files that name a field or tensor of Hugging Face's SigLIP, or a square of their own."""


def test_nothing_but_siglip_and_its_model_knows_of_a_square_or_of_its_matrices() -> None:
    naming = {
        str(file.relative_to(ROOT))
        for folder in ("stc", "export", "engines", "runtime")
        for file in (ROOT / folder).rglob("*.py")
        if re.search(SQUARE, file.read_text())
    }
    others = {name for name in naming if not name.startswith(PARTS)}
    assert others == HUGGING_FACE.keys()
