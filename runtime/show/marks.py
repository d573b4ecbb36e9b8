"""Token marks: which tokens were recomputed and which were kept, drawn over a picture.

Knows nothing of video files nor of legends. Colours are Okabe and Ito's, told apart with every
kind of colour blindness; the two marks also differ in form.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stc.manifest import Grid
from stc.runtime.report import FrameReport

RECOMPUTED_RGB = (255, 176, 0)
KEPT_RGB = (86, 180, 233)

FILL = 84
"""Opacity, of 255, of a recomputed token's cell."""

_EDGE = 255
_TINT = 26
_SUPERSAMPLING = 4


class TokenMarks:
    """Draws a report's marks on pictures of `width_px` x `height_px`.

    `covered` are the shares of a picture's height and width under the patches of `grid`: the patch
    convolution leaves out what does not fill a patch (378 of 384 px for so400m). Prefix tokens lie
    nowhere and have no mark.
    """

    def __init__(
        self, width_px: int, height_px: int, grid: Grid, covered: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        down, across = covered
        self._prefix_tokens = grid.prefix_tokens
        self._columns = _cell_sizes(width_px, grid.columns, across)
        self._rows = _cell_sizes(height_px, grid.rows, down)
        self._pooled_columns = _cell_sizes(width_px, grid.pooled_columns, across)
        self._pooled_rows = _cell_sizes(height_px, grid.pooled_rows, down)
        self._line_px = max(2, round(min(width_px, height_px) / 300))
        self._dots, self._dots_alpha = self._dot_layer(width_px, height_px)

    def draw(self, picture: Image.Image, report: FrameReport) -> None:
        """`picture` (RGB, of the size given at construction) carries the marks of `report`.

        Recomputed tokens of a reuse frame are filled cells with a contour round each group; a
        reference frame, which recomputes all, gets a border and a light tint. Kept tokens are
        ringed dots in the middle of their cells.
        """
        if report.kind == "reference":
            alpha = np.full((picture.height, picture.width), _TINT, np.uint8)
            alpha[~_eroded(np.ones_like(alpha, dtype=bool), 2 * self._line_px)] = _EDGE
        else:
            patches = report.recomputed - self._prefix_tokens
            cells = _spread(patches, self._rows, self._columns)
            contour = cells & ~_eroded(cells, self._line_px)
            alpha = np.where(contour, np.uint8(_EDGE), cells * np.uint8(FILL))
        picture.paste(RECOMPUTED_RGB, mask=Image.fromarray(alpha))
        kept = _spread(report.kept, self._pooled_rows, self._pooled_columns)
        picture.paste(self._dots, mask=Image.fromarray(self._dots_alpha * kept))

    def _dot_layer(self, width_px: int, height_px: int) -> tuple[Image.Image, NDArray[np.uint8]]:
        """All n dots, as colours and opacities of the whole picture."""
        cell_px = min(self._pooled_columns[0], self._pooled_rows[0])
        radius_px = max(2.5, 0.17 * cell_px)
        colours = Image.new("RGB", (width_px, height_px))
        alpha = Image.new("L", (width_px, height_px))
        dot, dot_alpha = dot_mark(radius_px)
        tops = np.cumsum(self._pooled_rows) - self._pooled_rows / 2
        lefts = np.cumsum(self._pooled_columns) - self._pooled_columns / 2
        for top in tops[:-1]:
            for left in lefts[:-1]:
                corner = (round(left - dot.width / 2), round(top - dot.height / 2))
                colours.paste(dot, corner)
                alpha.paste(dot_alpha, corner)
        return colours, np.asarray(alpha)


def dot_mark(radius_px: float) -> tuple[Image.Image, Image.Image]:
    """The mark of a kept token: its colours (RGB) and opacities (L).

    A filled dot, a white ring and a dark rim, so that it stands out on any ground.
    """
    size = int(np.ceil(2 * radius_px)) + 1
    big = size * _SUPERSAMPLING
    centre = big / 2
    colours = Image.new("RGB", (big, big), (0, 0, 0))
    alpha = Image.new("L", (big, big))
    ImageDraw.Draw(alpha).circle((centre, centre), radius_px * _SUPERSAMPLING, fill=255)
    draw = ImageDraw.Draw(colours)
    rim_px = max(1.0, 0.16 * radius_px)
    draw.circle((centre, centre), (radius_px - rim_px) * _SUPERSAMPLING, fill=(255, 255, 255))
    draw.circle((centre, centre), (radius_px - 2.3 * rim_px) * _SUPERSAMPLING, fill=KEPT_RGB)
    return (
        colours.resize((size, size), Image.Resampling.BOX),
        alpha.resize((size, size), Image.Resampling.BOX),
    )


def marked(indices: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.bool_]:
    """Bool [rows, columns]: True at the cells `indices`; those below 0 lie nowhere."""
    cells = np.zeros(rows * columns, dtype=bool)
    cells[indices[indices >= 0]] = True
    return cells.reshape(rows, columns)


def _cell_sizes(length_px: int, side: int, covered: float) -> NDArray[np.int64]:
    """Pixels of each of the `side` cells along one axis, then of the rest under no token."""
    # A pixel belongs to the cell its middle lies in.
    edges = np.ceil(np.linspace(0.0, covered * length_px, side + 1) - 0.5).astype(np.int64)
    return np.diff(edges, append=length_px)


def _spread(
    indices: NDArray[np.int64], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Bool [height_px, width_px]: True under the cells of `indices`."""
    cells = np.pad(marked(indices, len(rows) - 1, len(columns) - 1), (0, 1))
    return np.repeat(np.repeat(cells, columns, axis=1), rows, axis=0)


def _eroded(mask: NDArray[np.bool_], margin_px: int) -> NDArray[np.bool_]:
    """`mask` without its outermost `margin_px`; the picture's border counts as outside."""
    padded = np.pad(mask, margin_px)
    height, width = mask.shape
    across, down = slice(margin_px, margin_px + width), slice(margin_px, margin_px + height)
    inner: NDArray[np.bool_] = mask.copy()
    for offset in (0, 2 * margin_px):
        np.logical_and(inner, padded[offset : offset + height, across], out=inner)
        np.logical_and(inner, padded[down, offset : offset + width], out=inner)
    return inner
