"""The canvas of an overlay: a frame with its marks, and the legend below it."""

from __future__ import annotations

from PIL import Image

from stc.manifest import Grid
from stc.runtime.report import FrameReport
from stc.runtime.show.legend import LEAST_WIDTH, Legend
from stc.runtime.show.marks import TokenMarks
from stc.runtime.video.source.source import Frame

_LEAST_PX = 480  # of the shorter side: below it the marks and letters cannot be told apart
_MAX_PX = 1280  # of the longer side: above it encoding outlasts a device's vision tower
_GROUND_RGB = (0, 0, 0)


class Canvas:
    """Draws frames of one stream, all on pictures of the same even size.

    `frame` is the stream's first: it sets the size for all, scaled up where it is small. `grid` and
    `covered` are those of `TokenMarks`.
    """

    def __init__(self, frame: Frame, grid: Grid, covered: tuple[float, float]) -> None:
        height, width = frame.rgb.shape[:2]
        scale = min(max(1.0, _LEAST_PX / min(width, height)), _MAX_PX / max(width, height))
        self._picture_px = (max(1, round(scale * width)), max(1, round(scale * height)))
        text_px = min(36, max(16, round(min(self._picture_px) / 30)))
        self.width_px = _even(max(self._picture_px[0], LEAST_WIDTH * text_px))
        self._left = (self.width_px - self._picture_px[0]) // 2
        self._marks = TokenMarks(*self._picture_px, grid, covered)
        pooled = grid.pooled_rows * grid.pooled_columns
        self._legend = Legend(self.width_px, text_px, grid.prefix_tokens + grid.patches, pooled)
        self.height_px = _even(self._picture_px[1] + self._legend.height_px)

    def draw(self, frame: Frame, report: FrameReport) -> Image.Image:
        """An RGB picture of width_px x height_px; a frame of another size is stretched to fit."""
        picture = Image.fromarray(frame.rgb)
        if picture.size != self._picture_px:
            picture = picture.resize(self._picture_px, Image.Resampling.BICUBIC)
        self._marks.draw(picture, report)
        canvas = Image.new("RGB", (self.width_px, self.height_px), _GROUND_RGB)
        canvas.paste(picture, (self._left, 0))
        canvas.paste(self._legend.draw(report), (0, self.height_px - self._legend.height_px))
        return canvas


def _even(length_px: int) -> int:
    """H.264 with halved chroma needs even sides."""
    return length_px + length_px % 2
