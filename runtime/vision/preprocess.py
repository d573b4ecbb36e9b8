"""Preprocessing: a picture into the pixel values a vision tower was trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stc.errors import VideoError
from stc.manifest import VisionSpec
from stc.runtime.video.decoding.libraries import require_pillow
from stc.shell.ranges import shown

_LEVELS = 256


class Preprocessor:
    """Turns pictures into pixel values, as Hugging Face's processors do for a video frame.

    Resized to the input's height and width whatever the aspect (bicubic, antialiased, rounded to 8
    bits), then (level * rescale_factor - mean) / std for each channel. Equal to the bit, in
    float32, to transformers' Pillow-backed processors; its torchvision-backed ones round 0.4% of
    the resized levels differently, by 1 of 255.

    dtype: float32, or float16 for networks in half precision (rounded once, at the end).

    Raises VideoError when Pillow is not installed.
    """

    def __init__(self, spec: VisionSpec, *, dtype: DTypeLike = np.float32) -> None:
        require_pillow()
        self._shape = spec.pixel_shape
        self._values = _values_of_levels(spec).astype(dtype)

    def __call__(
        self, rgb: NDArray[np.uint8], *, out: NDArray[np.floating] | None = None
    ) -> NDArray[np.floating]:
        """Pixel values [3, Hpx, Wpx] of `rgb`, uint8 [height_px, width_px, 3].

        out: an array of that shape and of the dtype, which is filled and returned; None for a
        new, C-contiguous one. Handing in the same one each time spares the page faults of fresh
        memory, which can cost as much as the rest of the work.

        Raises VideoError when `rgb` has another dtype or shape, or no pixels.
        """
        from PIL import Image

        _check(rgb)
        _, height_px, width_px = self._shape
        size = (width_px, height_px)
        levels = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))
        pixel_values = np.empty(self._shape, self._values.dtype) if out is None else out
        for channel in range(3):
            # A table look-up is exact in both dtypes and needs no pass per operation; "clip"
            # lets numpy write straight into the output, levels being always in range.
            np.take(
                self._values[channel],
                levels[:, :, channel],
                out=pixel_values[channel],
                mode="clip",
            )
        return pixel_values


def _values_of_levels(spec: VisionSpec) -> NDArray[np.float32]:
    """float32 [3, 256]: the pixel value of each 8-bit level, by channel.

    Rescaled in float64 and rounded before normalising, as transformers does.
    """
    rescaled = (np.arange(_LEVELS, dtype=np.float64) * spec.rescale_factor).astype(np.float32)
    mean = np.asarray(spec.image_mean, np.float32)[:, None]
    std = np.asarray(spec.image_std, np.float32)[:, None]
    values: NDArray[np.float32] = (rescaled - mean) / std
    return values


def _check(rgb: object) -> None:
    if not isinstance(rgb, np.ndarray):
        got = f"got {shown(rgb)} of type {type(rgb).__name__}"
    elif rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        got = f"{rgb.dtype} [{', '.join(map(str, rgb.shape))}]"
    else:
        return
    raise VideoError("picture", got, "uint8 [height_px, width_px, 3] with at least one pixel")
