"""The flags of `stc-run` that say what is streamed, and the source they open."""

from __future__ import annotations

import argparse

from stc.runtime.video.open import open_video
from stc.runtime.video.source.frame import LAST_INDEX
from stc.runtime.video.source.source import (
    RTSP_TRANSPORTS,
    Reconnection,
    VideoSource,
)
from stc.shell.flags import number_flag, whole_flag


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
    """The source the flags name, opened; raises as `open_video`."""
    names = ("fps", "live", "give_up_s", "rtsp_transport", "probe_s")
    return open_video(flags.video, **{name: getattr(flags, name) for name in names})
