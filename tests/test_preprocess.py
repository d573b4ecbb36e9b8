"""Preprocessing equals Hugging Face's Pillow-backed processor, to the bit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from stc.errors import VideoError
from stc.manifest import VisionSpec
from stc.runtime.video.open import open_video
from stc.runtime.vision.preprocess import Preprocessor
from tests.squares import square

STREET = Path(__file__).parent / "data" / "street.mp4"

SIGLIP = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]


def spec(
    image_size: int, normalisation: Normalisation = SIGLIP, rescale_factor: float = 1 / 255
) -> VisionSpec:
    mean, std = normalisation
    return VisionSpec(
        **square(image_size, patch_size=14),
        width=8,
        heads=2,
        mlp_width=16,
        blocks=1,
        activation="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        language_width=8,
        projector_activation="gelu",
        image_mean=mean,
        image_std=std,
        rescale_factor=rescale_factor,
    )


def by_transformers(rgb: NDArray[np.uint8], spec: VisionSpec) -> NDArray[np.float32]:
    processor = SiglipImageProcessorPil(
        size={"height": spec.image_height, "width": spec.image_width},
        image_mean=list(spec.image_mean),
        image_std=list(spec.image_std),
        rescale_factor=spec.rescale_factor,
    )
    answer = processor(images=rgb, return_tensors="np", input_data_format="channels_last")
    values: NDArray[np.float32] = answer["pixel_values"][0]
    return values


def noise(height_px: int, width_px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)


def test_frames_of_a_video_equal_the_processor_of_hugging_face() -> None:
    preprocess = Preprocessor(spec(384))
    with open_video(str(STREET), fps=0.1) as video:
        for frame in video:
            expected = by_transformers(frame.rgb, spec(384))
            got = preprocess(frame.rgb)
            assert got.dtype == expected.dtype == np.float32
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("normalisation", [SIGLIP, CLIP], ids=["siglip", "clip"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 400), (3, 2), (37, 53), (56, 56), (57, 55), (480, 640), (999, 7)],
    ids=str,
)
def test_any_size_equals_the_processor_of_hugging_face(
    shape: tuple[int, int], normalisation: Normalisation
) -> None:
    rgb = noise(*shape)
    expected = by_transformers(rgb, spec(56, normalisation))
    np.testing.assert_array_equal(Preprocessor(spec(56, normalisation))(rgb), expected)


@pytest.mark.parametrize("level", [0, 1, 127, 128, 254, 255])
def test_flat_greys_keep_their_level(level: int) -> None:
    rgb = np.full((30, 50, 3), level, np.uint8)
    pixel_values = Preprocessor(spec(42))(rgb)
    np.testing.assert_array_equal(pixel_values, by_transformers(rgb, spec(42)))
    np.testing.assert_allclose(pixel_values, level / 127.5 - 1, atol=1e-6)


def test_channels_keep_their_place_and_their_own_normalisation() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[:, :] = (255, 0, 51)
    pixel_values = Preprocessor(spec(14, ((0.5, 0.25, 0.0), (0.5, 1.0, 2.0))))(rgb)
    np.testing.assert_allclose(pixel_values[:, 0, 0], [1.0, -0.25, 0.1], atol=1e-6)


def test_the_rescale_factor_is_used() -> None:
    rgb = noise(20, 20)
    halved = spec(28, rescale_factor=1 / 127.5)
    np.testing.assert_array_equal(Preprocessor(halved)(rgb), by_transformers(rgb, halved))


def test_half_precision_is_the_single_precision_rounded() -> None:
    rgb = noise(40, 60)
    half = Preprocessor(spec(56, CLIP), dtype=np.float16)(rgb)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, Preprocessor(spec(56, CLIP))(rgb).astype(np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pixel_values_are_contiguous_and_the_callers_own(dtype: type[np.floating]) -> None:
    preprocess = Preprocessor(spec(28), dtype=dtype)
    first = preprocess(noise(20, 20))
    kept = first.copy()
    second = preprocess(np.zeros((20, 20, 3), np.uint8))
    assert first.shape == second.shape == (3, 28, 28)
    assert first.flags.c_contiguous
    assert first.flags.writeable
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_buffer_handed_in_is_filled_and_returned(dtype: type[np.floating]) -> None:
    preprocess = Preprocessor(spec(28), dtype=dtype)
    buffer = np.full((3, 28, 28), np.nan, dtype)
    for picture in (noise(20, 20), noise(33, 90)):
        assert preprocess(picture, out=buffer) is buffer
        np.testing.assert_array_equal(buffer, preprocess(picture))


def test_pictures_in_any_memory_order_are_read_right() -> None:
    rgb = noise(40, 60)
    preprocess = Preprocessor(spec(28))
    for view in (rgb[::-1], rgb[:, ::-1], rgb[::2, 1::3], rgb.transpose(1, 0, 2), rgb[..., ::-1]):
        np.testing.assert_array_equal(preprocess(view), preprocess(view.copy()))


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 [4, 4, 3]"),
        (np.zeros((4, 4), np.uint8), "uint8 [4, 4]"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 [4, 4, 4]"),
        (np.zeros((3, 4, 4), np.uint8), "uint8 [3, 4, 4]"),
        (np.zeros((1, 4, 4, 3), np.uint8), "uint8 [1, 4, 4, 3]"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 [0, 4, 3]"),
    ],
)
def test_what_is_no_picture_is_refused(picture: NDArray[np.uint8], got: str) -> None:
    with pytest.raises(VideoError) as raised:
        Preprocessor(spec(28))(picture)
    assert str(raised.value) == (
        f"picture: {got}, expected uint8 [height_px, width_px, 3] with at least one pixel"
    )


def test_without_pillow_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(VideoError, match=r"^Pillow: .*pip install 'stc\[video\]'$"):
        Preprocessor(spec(28))
