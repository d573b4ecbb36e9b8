"""The flags of `stc-run` that say what is streamed, and the source they open."""

from __future__ import annotations

import argparse

from stc.errors import SettingsError
from stc.flags import MOST_COUNTED, number, whole
from stc.runtime.video import open_video
from stc.runtime.video_source import Reconnection, VideoSource


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a source; open it with `open_source`."""
    parser.add_argument(
        "--video",
        required=True,
        metavar="SOURCE",
        help="file, /dev/videoN, or an address: file, http(s), rtsp, rtmp, rtp, tcp, udp, srt",
    )
    parser.add_argument(
        "--fps", type=number, metavar="F", help="frames sampled per second, default all"
    )
    parser.add_argument(
        "--frames",
        type=whole(1, MOST_COUNTED),
        metavar="N",
        help="stop after N frames, default none",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="the http(s) address is a camera: the newest frame wins, none is waited for",
    )
    parser.add_argument(
        "--give-up-s",
        type=number,
        metavar="S",
        help=f"wait for a lost live source, default {Reconnection.give_up_s:g}; inf: for ever",
    )


def open_source(flags: argparse.Namespace) -> VideoSource:
    """The source the flags name, opened.

    Raises SettingsError for a flag out of range or without effect, VideoError as `open_video`.
    """
    give_up_s = flags.give_up_s
    reconnection = None
    if give_up_s is not None:
        if not give_up_s > 0:
            raise SettingsError("--give-up-s", f"got {give_up_s}", "more than 0 seconds")
        reconnection = Reconnection(give_up_s=give_up_s)
    source = open_video(flags.video, fps=flags.fps, reconnection=reconnection, live=flags.live)
    if reconnection is not None and not source.is_live:
        source.close()
        raise SettingsError("--give-up-s", "given", "a live --video, a file is not lost")
    return source
