"""Dense frames through a bundle equal transformers' own video features.

The checkpoint is written by `save_pretrained`, with the weights transformers starts from, and
read back by the exporter; the answer is LlavaOnevisionModel.get_video_features, without the
newline it appends to a video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlavaOnevisionForConditionalGeneration

from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.models.reference import TorchVision
from stc.method.difference import difference
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.preprocess import Preprocessor
from stc.settings import PRESETS, Settings
from tests.vision_cases import Exported, moving_frames

RELATIVE_L2 = 1e-5
FRAMES = moving_frames(3)


@pytest.fixture(scope="module")
def features(
    checkpoints: tuple[Path, Path], checkpoint_bundle: Exported
) -> NDArray[np.floating[Any]]:
    """transformers' tokens [frames, n, D] of FRAMES."""
    spec = checkpoint_bundle.weights.spec
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(checkpoints[0]).model.eval()
    assert model.config.vision_feature_layer == -1
    assert model.config.vision_feature_select_strategy == "full"
    assert model.dtype == torch.float32
    pixels = torch.from_numpy(np.stack([Preprocessor(spec)(frame.rgb) for frame in FRAMES]))
    with torch.inference_mode():
        pooled = model.get_video_features(pixels[None]).pooler_output
    count = len(FRAMES) * spec.pooled
    # A row that older versions of transformers append elsewhere.
    assert pooled.shape in {(1, count, spec.language_width), (1, count + 1, spec.language_width)}
    assert torch.equal(pooled[0, count:], model.image_newline[None][: pooled.shape[1] - count])
    tokens: NDArray[np.floating[Any]] = (
        pooled[0, :count].reshape(len(FRAMES), spec.pooled, -1).numpy()
    )
    return tokens


def test_dense_tokens_equal_transformers(
    checkpoint_bundle: Exported, features: NDArray[Any]
) -> None:
    session = StreamSession(checkpoint_bundle.onnxruntime(), PRESETS["off"])
    for frame, expected in zip(FRAMES, features, strict=True):
        report = session.push(frame)
        assert report.kind == "reference"
        assert difference(expected, report.tokens).relative_l2 <= RELATIVE_L2


def test_reuse_of_every_token_equals_transformers(
    checkpoint_bundle: Exported, features: NDArray[Any]
) -> None:
    every_token = Settings(reference_interval=3, recompute_ratio=1.0, budget=0)
    session = StreamSession(checkpoint_bundle.onnxruntime(), every_token)
    kinds = []
    for frame, expected in zip(FRAMES, features, strict=True):
        report = session.push(frame)
        kinds.append(report.kind)
        assert difference(expected, report.tokens).relative_l2 <= RELATIVE_L2
    assert kinds == ["reference", "reuse", "reuse"]


def test_the_pytorch_side_of_parity_equals_transformers(
    checkpoint_bundle: Exported, features: NDArray[Any]
) -> None:
    spec, vision = checkpoint_bundle.weights.spec, TorchVision(checkpoint_bundle.weights)
    for frame, expected in zip(FRAMES, features, strict=True):
        pixels = Preprocessor(spec)(frame.rgb).astype(np.float32)
        for hidden in (vision.dense(pixels), vision.reference(pixels).hidden):
            assert difference(expected, vision.project(hidden)).relative_l2 <= RELATIVE_L2


def test_other_weights_give_other_tokens(
    checkpoints: tuple[Path, Path], features: NDArray[Any]
) -> None:
    other = open_checkpoint(str(checkpoints[1]))
    vision = TorchVision(other)
    pixels = Preprocessor(other.spec)(FRAMES[0].rgb).astype(np.float32)
    tokens = vision.project(vision.dense(pixels))
    assert difference(features[0], tokens).relative_l2 > 0.1
