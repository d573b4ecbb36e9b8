"""Which of a container's video streams is read. Imports PyAV; see `stc.runtime.video.open`."""

from __future__ import annotations

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from stc.errors import VideoError

_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
"""Pictures beside a film or music: covers, and those of chapters."""
_BESIDE = (
    Disposition.comment
    | Disposition.hearing_impaired
    | Disposition.visual_impaired
    | Disposition.still_image
    | Disposition.dependent
)
"""Streams that accompany the main one."""
_KINDS = {"video": "a cover picture"}


def choose_stream(container: InputContainer, name: str) -> tuple[VideoStream, str | None]:
    """The video stream a viewer would see, and one line about the choice, None without one.

    Of those that can be decoded and are no mere covers: one whose size is known, that is no
    accompaniment, marked as the default, the largest, the first; the earlier counts for more.

    Raises VideoError when there is none.
    """
    if len(container.streams) == 0:
        raise VideoError(
            name,
            "holds no streams; it was cut off, or never finished",
            fix="copy or record it again",
        )
    streams = [s for s in container.streams.video if not s.disposition & _NO_VIDEO]
    if not streams:
        kinds = sorted({_KINDS.get(stream.type, stream.type) for stream in container.streams})
        raise VideoError(
            name, f"has no video, only {' and '.join(kinds)}", "a video stream", "name another file"
        )
    # PyAV knows no codec context, nor the size in it, where libav has no decoder.
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(
            name,
            "no decoder for its video codec",
            "one PyAV has",
            "write it again: ffmpeg -c:v libx264",
        )
    chosen = max(decodable, key=_rank)
    if len(streams) == 1:
        return chosen, None
    size = f"{chosen.codec_context.width}x{chosen.codec_context.height}"
    return chosen, f"{name}: {len(streams)} video streams; number {chosen.index}, {size}, is read"


def _rank(stream: VideoStream) -> tuple[bool, bool, bool, int]:
    area_px = stream.codec_context.width * stream.codec_context.height
    kind = stream.disposition
    return area_px > 0, not kind & _BESIDE, bool(kind & Disposition.default), area_px
