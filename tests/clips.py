"""Small video files for tests: numbered grey pictures, and damage done to them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stc.runtime.video.open import open_video
from stc.runtime.video.source.source import Frame

Picture = NDArray[np.uint8]

_STEP = 10
_DARKEST = 20


def numbered(number: int, *, width: int = 64, height: int = 48) -> Picture:
    """Picture `number` (0 to 22): one grey, told apart from its neighbours by `number_of`."""
    return np.full((height, width, 3), _DARKEST + _STEP * number, np.uint8)


def number_of(picture: Picture) -> int:
    """Which `numbered` picture this is, after lossy coding."""
    return round((float(picture.mean()) - _DARKEST) / _STEP)


def write_clip(
    path: Path,
    pictures: Iterable[Picture],
    *,
    rate: int = 10,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """`pictures` as a video at `path`; stamps in units of 1/rate, every 5th a key frame."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = 5
        stream.codec_context.time_base = Fraction(1, rate)
        for index, picture in enumerate(pictures):
            if index == 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index if stamps is None else stamps[index]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbered_clip(
    folder: Path,
    count: int = 20,
    name: str = "clip.mp4",
    **how: Any,
) -> Path:
    """The first `count` numbered pictures as a video in `folder`; see `write_clip` for `how`."""
    return write_clip(folder / name, (numbered(k) for k in range(count)), **how)


def read_frames(source: Path | str, fps: float | None = None) -> list[Frame]:
    """Every frame `open_video` gives."""
    with open_video(str(source), fps=fps) as video:
        return list(video)


def numbers_of(frames: list[Frame]) -> list[int]:
    """Which `numbered` pictures the frames are."""
    return [number_of(frame.rgb) for frame in frames]


def write_sound(path: Path, codec: str) -> Path:
    """A tenth of a second of silence at `path`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def add_cover(path: Path) -> Path:
    """The AAC file given a cover picture (an ID3 tag with a PNG), in place."""
    png = io.BytesIO()
    Image.fromarray(numbered(5)).save(png, "png")
    picture = b"\0image/png\0\3\0" + png.getvalue()
    entry = b"APIC" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    size = bytes(len(entry) >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + entry + path.read_bytes())
    return path


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Place and size in bytes of each video packet of the file."""
    with av.open(str(path)) as container:
        found = [(p.pos, p.size) for p in container.demux(container.streams.video[0]) if p.size]
    assert all(place is not None and place > 0 for place, _ in found)
    return [(place, size) for place, size in found if place is not None]


def damage(path: Path, broken: Iterable[int]) -> Path:
    """The packets numbered `broken` overwritten with zeros, in place."""
    content = bytearray(path.read_bytes())
    places = packets_of(path)
    for number in broken:
        place, size = places[number]
        content[place : place + size] = bytes(size)
    path.write_bytes(content)
    return path


def turn(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """The MP4's display matrix (a b c d) set, in place."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    for number, place in zip(matrix, (0, 4, 12, 16), strict=True):
        content[at + place : at + place + 4] = round(number * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    return path
