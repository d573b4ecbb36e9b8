"""Opening a video: files, cameras and streams by the name a user gives, and the flags for it.

Needs no PyAV to be imported; only `open_video` does.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from stc.errors import SettingsError, VideoError
from stc.runtime.video.clock import FrameSampler
from stc.runtime.video.decoding.declared_size import is_cut_off
from stc.runtime.video.decoding.libraries import require_av
from stc.runtime.video.source.address import (
    HTTP_SCHEMES,
    LIVE_SCHEMES,
    LONGEST_ADDRESS,
    RTSP_SCHEMES,
    Address,
    scheme_of,
    without_credentials,
)
from stc.runtime.video.source.source import (
    GIVE_UP_S,
    LAST_INDEX,
    RTSP_TRANSPORTS,
    Crop,
    RtspTransport,
    VideoSource,
    awaited,
)
from stc.shell.ranges import number_flag, one_of, real, shown, whole_flag

if TYPE_CHECKING:
    from av.container import InputContainer

LONGEST_PROBE_S = 60.0
FILE_SCHEMES = (*HTTP_SCHEMES, "file")

_CAMERA = re.compile(r"/dev/(video\d+|v4l/.+)")


def open_video(
    source: str,
    *,
    fps: float | None = None,
    live: bool = False,
    give_up_s: float | None = None,
    rtsp_transport: RtspTransport | None = None,
    probe_s: float | None = None,
    crop: Sequence[int] | None = None,
) -> VideoSource:
    """`source` opened; close it, or use it in a `with`.

    source: a path, file:// or http(s):// address, read to its end without dropping a frame; or
        /dev/videoN (V4L2) or an rtsp, rtmp, rtp, tcp, udp or srt address, which are live: the
        newest frame wins.
    fps: frames sampled per second by presentation time: for each k/fps the first frame not
        earlier; None for every frame.
    live: an http(s):// address is a camera, and live as those above.
    give_up_s: how long a lost live source is waited for, which may be infinite; None for GIVE_UP_S.
    rtsp_transport: what an RTSP camera sends over; auto, as None, tries TCP, then UDP.
    probe_s: seconds of a live stream that libav looks at before its first frame, None for PROBE_S.
        Where they tell no size of the picture, it looks again for the 5 s it takes by itself.
    crop: x, y, width and height in px of the part of every picture that frames show, None for all.

    User name and password in an address may hold any character.

    Raises SettingsError for a value out of range, or that this source has no use for; VideoError
    when PyAV is not installed, or the source cannot be opened or has no video.
    """
    # Checked before anything is opened, so that a wrong value leaves nothing to close.
    part = None if crop is None else _crop(crop)
    opened = _opened(source, fps, live, give_up_s, rtsp_transport, probe_s)
    opened.crop = part
    return opened


def _crop(sides: Sequence[int]) -> Crop:
    if len(sides) != 4:
        raise SettingsError("--crop", f"got {shown(sides)}", "x, y, width and height in px")
    return Crop(*sides)


def _opened(
    source: str,
    fps: float | None,
    live: bool,
    give_up_s: float | None,
    rtsp_transport: RtspTransport | None,
    probe_s: float | None,
) -> VideoSource:
    FrameSampler(fps, 0.0)
    if give_up_s is not None:
        give_up_s = real("--give-up-s", give_up_s, "more than 0 seconds", above=0, most=math.inf)
    if probe_s is not None:
        expected = f"more than 0, at most {LONGEST_PROBE_S:g} seconds"
        probe_s = real("--probe-s", probe_s, expected, above=0, most=LONGEST_PROBE_S)
    if not source:
        raise VideoError("--video", "got nothing", "a file, /dev/videoN or an rtsp:// address")
    require_av()
    scheme = scheme_of(source)
    if scheme is not None and len(source) > LONGEST_ADDRESS:
        got = f"an address of {len(source)} characters"
        raise VideoError("--video", got, f"{LONGEST_ADDRESS} at most", "shorten it")
    if live and scheme not in HTTP_SCHEMES:
        raise SettingsError("--live", "requires an http:// or https:// --video", fix="leave it out")
    if scheme is None:
        live = _is_camera(source)
    elif scheme in LIVE_SCHEMES:
        live = True
    elif scheme not in FILE_SCHEMES:
        raise VideoError(
            without_credentials(source),
            f"unknown address {scheme}://",
            f"a file, /dev/videoN or one of {', '.join((*LIVE_SCHEMES, *FILE_SCHEMES))}",
        )
    if scheme not in (None, "file") and Address.of(source).port == 0:
        fix = "correct what stands behind the host, or escape the password in front of it"
        raise VideoError(without_credentials(source), "no such port", "1 to 65535", fix)
    _check_transport(rtsp_transport, scheme)
    if probe_s is not None and (scheme is None or not live):
        raise SettingsError("--probe-s", "requires a live address as --video", fix="leave it out")
    if give_up_s is not None and not live:
        raise SettingsError("--give-up-s", "requires a live --video: a file is not lost")
    if live:
        from stc.runtime.video.live import LiveVideo

        opener = _opener(source, scheme, rtsp_transport, probe_s)
        return LiveVideo(opener, source, fps=fps, give_up_s=give_up_s or GIVE_UP_S)
    if scheme in HTTP_SCHEMES:
        return _open_remote(source, fps)
    return _open_file(local_path(source), fps)


def local_path(source: str) -> str:
    """The path that a file:// address means; any other `source` as it is."""
    if source.lower().startswith("file://"):
        return url2pathname(urlsplit(source).path)
    return source


def _check_transport(transport: RtspTransport | None, scheme: str | None) -> None:
    if transport is None:
        return
    one_of("--rtsp-transport", transport, RTSP_TRANSPORTS)
    if scheme not in RTSP_SCHEMES:
        raise SettingsError("--rtsp-transport", "requires an rtsp:// --video", fix="leave it out")
    if transport == "udp" and scheme == "rtsps":
        raise SettingsError("--rtsp-transport", "got udp", "tcp, which carries rtsps://")


def _opener(
    source: str, scheme: str | None, transport: RtspTransport | None, probe_s: float | None
) -> Callable[[], InputContainer]:
    """What opens the live `source`, again when it was lost."""
    import av

    from stc.runtime.video.network import NetworkOpener

    if scheme is not None:
        name = without_credentials(source)
        return NetworkOpener(Address.of(source), name, transport, probe_s)
    _check_camera(source)
    return lambda: av.open(source, "r", format="v4l2")


def _open_file(path: str, fps: float | None) -> VideoSource:
    """Raises VideoError, which tells a file that was cut off from one that is no video."""
    try:
        return _read_file(path, fps)
    except VideoError as error:
        if not is_cut_off(path):
            raise
        raise VideoError(
            without_credentials(path),
            "cut off, and what is left cannot be read",
            fix="copy or record it again",
        ) from error


def _read_file(path: str, fps: float | None) -> VideoSource:
    import av
    from av.error import FFmpegError

    from stc.runtime.video.causes import unreadable
    from stc.runtime.video.file import VideoFile

    _check_path(path)
    # The prefix keeps libav from reading "12:30.mp4" as an address of scheme 12.
    opener: Callable[[], InputContainer] = partial(av.open, f"file:{path}", "r")
    # A pipe or a device may let whoever opens it wait for ever.
    waits = not Path(path).is_file()
    try:
        container = awaited(opener) if waits else opener()
    except FFmpegError as error:
        raise unreadable(without_credentials(path), error) from error
    return VideoFile(container, path, fps=fps, waits=waits)


def _open_remote(source: str, fps: float | None) -> VideoSource:
    from stc.runtime.video.file import VideoFile
    from stc.runtime.video.network import open_remote

    container = awaited(partial(open_remote, Address.of(source), without_credentials(source)))
    return VideoFile(container, source, fps=fps, waits=True)


def _check_path(path: str) -> None:
    """Raises VideoError when `path` cannot be a video, in better words than libav's."""
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        fix = f"a camera is: --video /dev/video{path}" if path.isdecimal() else "check the path"
        raise VideoError(path, "no such file", fix=fix) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise VideoError(path, f"cannot be opened ({why})", "a video file") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "a folder", "a video file", "name a file inside it")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoError(path, "an empty file", "a video", "copy or record it again")


def _is_camera(path: str) -> bool:
    """Whether `path` is a camera, or a link to one such as udev rules make."""
    if "\0" in path:
        return False
    places = (path, os.path.realpath(path))
    return any(_CAMERA.fullmatch(place) is not None for place in places)


def _check_camera(path: str) -> None:
    if not Path(path).exists():
        found = sorted(str(device) for device in Path("/dev").glob("video*"))
        fix = f"cameras here: {', '.join(found)}" if found else "no camera is connected here"
        raise VideoError(path, "no such device", fix=fix)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a source; open it with `open_source`."""
    add = parser.add_argument
    addresses = "file, http(s), rtsp, rtmp, rtp, tcp, udp, srt"
    source = f"file, /dev/videoN, or an address: {addresses}"
    add("--video", required=True, metavar="SOURCE", help=source)
    add("--fps", type=number_flag, metavar="F", help="frames sampled per second, default all")
    part = "look at this part of every picture, in px of the source, default all of it"
    add("--crop", type=crop_flag, metavar="X,Y,W,H", help=part)
    most = whole_flag(1, LAST_INDEX)
    add("--frames", type=most, metavar="N", help="stop after N frames, default none")
    live = "the http(s) address is a camera: late frames are dropped"
    add("--live", action="store_true", help=live)
    lost = f"wait for a lost live source, default {GIVE_UP_S:g}; inf: for ever"
    add("--give-up-s", type=number_flag, metavar="S", help=lost)
    over = "what the camera sends over, default auto: TCP, and UDP if it refuses"
    add("--rtsp-transport", choices=RTSP_TRANSPORTS, help=over)
    probed = "look at S seconds of a live address before its first frame, default 0.5"
    add("--probe-s", type=number_flag, metavar="S", help=probed)


def crop_flag(text: str) -> list[int]:
    """The value of --crop: four whole numbers with commas between them."""
    return [whole_flag()(side) for side in text.split(",")]


def open_source(flags: argparse.Namespace) -> VideoSource:
    """The source the flags name, opened; raises as `open_video`."""
    names = ("fps", "live", "give_up_s", "rtsp_transport", "probe_s", "crop")
    return open_video(flags.video, **{name: getattr(flags, name) for name in names})
