"""From a checkpoint's files to pixel values: as Hugging Face's processor prepares a frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.companions import PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR
from stc.export.made_up.synthetic import preprocessing
from stc.runtime.vision.preprocess import Preprocessor
from tests.tiny_checkpoint import tiny_model, write_checkpoint

CLIP: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_model())


@pytest.mark.parametrize("file", [PREPROCESSOR, VIDEO_PREPROCESSOR, PROCESSOR])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        CLIP,
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, **CLIP},
        {"do_normalize": False},
        {"do_rescale": False, "do_normalize": False},
    ],
    ids=["siglip", "clip", "factor", "not rescaled", "not normalised", "neither"],
)
def test_pixels_are_those_of_the_processor_that_reads_the_same_file(
    checkpoint: Path, file: str, changes: dict[str, Any]
) -> None:
    fields = preprocessing(16) | changes
    for name in (VIDEO_PREPROCESSOR, PROCESSOR):
        (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / PREPROCESSOR).write_text(json.dumps(preprocessing(16)))
    nested = {"video_processor": fields} if file == PROCESSOR else fields
    (checkpoint / file).write_text(json.dumps(nested))

    rgb = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    processor = SiglipImageProcessorPil.from_dict(fields)
    prepared = processor(images=rgb, return_tensors="np", input_data_format="channels_last")
    got = Preprocessor(open_checkpoint(str(checkpoint)).spec)(rgb)
    np.testing.assert_allclose(got, prepared["pixel_values"][0], rtol=1e-6, atol=1e-6)
