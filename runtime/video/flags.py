"""The flags of `stc-run` that say what is streamed, and the source they open."""

from __future__ import annotations

import argparse
import math

from stc.errors import SettingsError
from stc.runtime.video.open import open_video
from stc.runtime.video.source.frame import LAST_INDEX
from stc.runtime.video.source.source import (
    RTSP_TRANSPORTS,
    Dialling,
    Reconnection,
    RtspTransport,
    VideoSource,
)
from stc.shell.ranges import number_flag, real, whole_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a source; open it with `open_source`."""
    parser.add_argument(
        "--video",
        required=True,
        metavar="SOURCE",
        help="file, /dev/videoN, or an address: file, http(s), rtsp, rtmp, rtp, tcp, udp, srt",
    )
    parser.add_argument(
        "--fps", type=number_flag, metavar="F", help="frames sampled per second, default all"
    )
    parser.add_argument(
        "--frames",
        type=whole_flag(1, LAST_INDEX),
        metavar="N",
        help="stop after N frames, default none",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="the http(s) address is a camera: late frames are dropped",
    )
    parser.add_argument(
        "--give-up-s",
        type=number_flag,
        metavar="S",
        help=f"wait for a lost live source, default {Reconnection.give_up_s:g}; inf: for ever",
    )
    parser.add_argument(
        "--rtsp-transport",
        choices=RTSP_TRANSPORTS,
        help="what the camera sends over, default auto: TCP, and UDP if it refuses",
    )
    parser.add_argument(
        "--probe-s",
        type=number_flag,
        metavar="S",
        help="look at S seconds of a live address before its first frame, default 0.5",
    )


def open_source(flags: argparse.Namespace) -> VideoSource:
    """The source the flags name, opened.

    Raises SettingsError and VideoError as `open_named`.
    """
    names = ("fps", "live", "give_up_s", "rtsp_transport", "probe_s")
    return open_named(flags.video, **{name: getattr(flags, name) for name in names})


def open_named(
    video: str,
    *,
    fps: float | None,
    live: bool,
    give_up_s: float | None,
    rtsp_transport: RtspTransport | None,
    probe_s: float | None,
) -> VideoSource:
    """The source `video`, opened as the flags of these names say.

    Raises SettingsError for a value out of range or without effect, VideoError as `open_video`.
    """
    reconnection = None
    if give_up_s is not None:
        real("--give-up-s", give_up_s, "more than 0 seconds", above=0, most=math.inf)
        reconnection = Reconnection(give_up_s=give_up_s)
    dialling = Dialling(rtsp_transport=rtsp_transport, probe_s=probe_s)
    source = open_video(video, fps=fps, reconnection=reconnection, live=live, dialling=dialling)
    if reconnection is not None and not source.is_live:
        source.close()
        raise SettingsError("--give-up-s", "requires a live --video: a file is not lost")
    return source
