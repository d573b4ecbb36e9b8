"""GStreamer's RTSP server with a few streams; run by a Python that has PyGObject.

Prints its port. Pictures are 320 x 240 at 25 a second, made while somebody looks.
"""

import sys

import gi  # type: ignore[import-not-found]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import (  # type: ignore[import-not-found]  # noqa: E402
    GLib,
    Gst,
    GstRtsp,
    GstRtspServer,
)

_PICTURES = "videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 ! "
_H264 = _PICTURES + "x264enc tune=zerolatency key-int-max={} ! rtph264pay name=pay0 pt=96 {}"
_SOUND = "audiotestsrc is-live=true ! alawenc ! rtppcmapay pt=8 name=pay"
_STREAMS = {
    "/h264": _H264.format(25, "config-interval=1"),
    "/long": _H264.format(250, "config-interval=-1"),
    "/vp8": _PICTURES + "vp8enc deadline=1 keyframe-max-dist=25 ! rtpvp8pay name=pay0 pt=96",
    "/both": f"{_H264.format(25, 'config-interval=1')} {_SOUND}1",
    "/udp": _H264.format(25, "config-interval=1"),
    "/sound": f"{_SOUND}0",
}


def main() -> None:
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    for path, launch in _STREAMS.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(f"( {launch} )")
        factory.set_shared(True)
        if path == "/udp":
            factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP)
        server.get_mount_points().add_factory(path, factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    # Ends with the one who started it.
    GLib.io_add_watch(sys.stdin, GLib.IO_HUP, lambda *_: sys.exit(0))
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
