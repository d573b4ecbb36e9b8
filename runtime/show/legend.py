"""The legend under an overlay: what the marks mean, and what this frame cost.

Knows nothing of video files nor of where the marks are.
"""

from __future__ import annotations

from collections import deque

from PIL import Image, ImageDraw, ImageFont

from stc.runtime.report import FrameReport
from stc.runtime.show.marks import FILL, RECOMPUTED_RGB, dot_mark

LEAST_WIDTH = 29
"""Width a legend needs, in letter sizes."""

_GROUND_RGB = (18, 22, 26)
_TEXT_RGB = (240, 243, 246)
_FAINT_RGB = (160, 168, 176)
_REUSE_RGB = (128, 137, 146)
_BARS = 80


class Legend:
    """Draws bars of `width_px` x `height_px` about frames of T = `tokens`, n = `pooled` tokens.

    `text_px` is the size of the letters. A legend remembers the time of the last frames for its
    chart, so draw each frame once, in order.
    """

    def __init__(self, width_px: int, text_px: int, tokens: int, pooled: int) -> None:
        self.width_px = width_px
        self.height_px = 4 * text_px
        self._counts = (f"/{tokens}", f"/{pooled}")
        self._unit = text_px
        self._font = ImageFont.load_default(text_px)
        self._small = ImageFont.load_default(0.78 * text_px)
        self._large = ImageFont.load_default(1.5 * text_px)
        self._top = 1.2 * text_px  # the middle of either line
        self._low = 2.85 * text_px
        self._past: deque[tuple[float, bool]] = deque(maxlen=_BARS)
        self._background = Image.new("RGB", (width_px, self.height_px), _GROUND_RGB)
        self._recomputed_x, self._kept_x, self._time_x = self._draw_key()

    def draw(self, report: FrameReport) -> Image.Image:
        """The bar (RGB) of `report`: kind, number, time, token counts and milliseconds."""
        bar = self._background.copy()
        draw = ImageDraw.Draw(bar)
        reference = report.kind == "reference"
        self._past.append((report.total_ms, reference))
        self._draw_kind(draw, report)
        counts = (len(report.recomputed), len(report.kept))
        columns = (self._recomputed_x, self._kept_x)
        for x, count, of in zip(columns, counts, self._counts, strict=True):
            draw.text((x, self._low), f"{count}{of}", _TEXT_RGB, self._font, anchor="lm")
        ms = f"{report.total_ms:.3g}" if report.total_ms < 1000 else f"{report.total_ms:.0f}"
        right = self._time_x + 3.6 * self._unit
        draw.text((right, self._top), ms, _TEXT_RGB, self._large, anchor="rm")
        self._draw_chart(draw, right + self._unit)
        return bar

    def _draw_key(self) -> tuple[float, float, float]:
        """Draws what no frame changes; where the two counts and the time go (x, px)."""
        draw = ImageDraw.Draw(self._background)
        unit = self._unit
        x = float(unit)
        swatch = (x, self._low - unit / 2, x + unit, self._low + unit / 2)
        fill = tuple(
            (FILL * mark + (255 - FILL) * ground) // 255
            for mark, ground in zip(RECOMPUTED_RGB, _GROUND_RGB, strict=True)
        )
        draw.rectangle(swatch, fill=fill, outline=RECOMPUTED_RGB, width=max(2, unit // 8))
        recomputed_x = self._label(draw, x + 1.5 * unit, "recomputed")
        x = recomputed_x + self._font.getlength("00000" + self._counts[0])
        dot, alpha = dot_mark(0.42 * unit)
        corner = (round(x), round(self._low - dot.height / 2))
        self._background.paste(dot, corner, mask=alpha)
        kept_x = self._label(draw, x + 1.3 * unit, "kept")
        time_x = kept_x + self._font.getlength("0000" + self._counts[1])
        right = time_x + 3.6 * unit
        draw.text((right, self._low), "ms / frame", _FAINT_RGB, self._small, anchor="rm")
        return recomputed_x, kept_x, time_x

    def _label(self, draw: ImageDraw.ImageDraw, x: float, text: str) -> float:
        draw.text((x, self._low), text, _FAINT_RGB, self._font, anchor="lm")
        return x + self._font.getlength(text + " ")

    def _draw_kind(self, draw: ImageDraw.ImageDraw, report: FrameReport) -> None:
        """A pill, filled for a reference frame and outlined for a reuse frame, then the number."""
        reference = report.kind == "reference"
        unit = self._unit
        right = 2 * unit + self._small.getlength("REFERENCE")
        pill = (unit, self._top - 0.65 * unit, right, self._top + 0.65 * unit)
        line, fill, ink = (
            (RECOMPUTED_RGB, RECOMPUTED_RGB, _GROUND_RGB)
            if reference
            else (_REUSE_RGB, _GROUND_RGB, _TEXT_RGB)
        )
        draw.rounded_rectangle(pill, 0.3 * unit, fill=fill, outline=line, width=max(1, unit // 12))
        middle = ((unit + right) / 2, self._top)
        draw.text(middle, report.kind.upper(), ink, self._small, anchor="mm")
        number = f"frame {report.index}"
        x = right + 0.7 * unit
        draw.text((x, self._top), number, _TEXT_RGB, self._font, anchor="lm")
        x += self._font.getlength(number + "  ")
        draw.text((x, self._top), f"{report.time_s:.1f} s", _FAINT_RGB, self._font, anchor="lm")

    def _draw_chart(self, draw: ImageDraw.ImageDraw, left: float) -> None:
        """One bar per past frame, the newest at the right; reference frames coloured."""
        pitch = max(3, round(self._unit / 4))
        right = self.width_px - self._unit
        base = self.height_px - 0.6 * self._unit
        highest = max(ms for ms, _ in self._past)
        scale = (base - 0.6 * self._unit) / highest if highest else 0.0
        for age, (ms, reference) in enumerate(reversed(self._past)):
            x = right - age * pitch
            if x - pitch < left:
                break
            colour = RECOMPUTED_RGB if reference else _REUSE_RGB
            top = base - max(1.0, ms * scale)
            draw.rectangle((x - pitch + 1, top, x - 1, base), fill=colour)
