"""An opener: connects to a network address as often as it is called. Imports PyAV."""

from __future__ import annotations

import time
from contextlib import suppress

import av
import av.error
from av.container import InputContainer
from av.error import FFmpegError

from stc.errors import VideoError
from stc.runtime.video.causes import cause_of, connected, without_video
from stc.runtime.video.source.address import RTSP_SCHEMES, Address
from stc.runtime.video.source.source import RtspTransport

TIMEOUTS_S = (10.0, 10.0)
"""How long a server may stay silent when asked for a stream, and between two packets."""
PROBE_S = 0.5
"""How much of a live stream libav looks at before its first frame; enough for one that is well."""
_WHOLE_PROBE_S = 5.0
"""What libav takes by itself; how much more it looks at when it did not find what it needs."""

# Sound is not even asked for.
_VIDEO = {"allowed_media_types": "video"}
_TCP = {**_VIDEO, "rtsp_transport": "tcp"}
_UDP = {**_VIDEO, "rtsp_transport": "udp+udp_multicast"}
# TCP loses nothing on the way, so it is asked for first. Some servers say that they send over UDP
# only, and libav goes on from there; others say something else, or nothing.
_TCP_THEN_UDP = {**_VIDEO, "rtsp_transport": "tcp+udp+udp_multicast", "rtsp_flags": "prefer_tcp"}
_TRANSPORTS = {"auto": (_TCP_THEN_UDP, _UDP), "tcp": (_TCP,), "udp": (_UDP,)}
_NOT_FOR_TRANSPORT = (
    av.error.ConnectionRefusedError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPForbiddenError,
    av.error.HTTPNotFoundError,
    av.error.ExitError,
    av.error.TimeoutError,
)
"""Errors that another transport would not change."""


class NetworkOpener:
    """Opens the live source at `address`, known to the user as `name`, as often as it is called.

    A call returns the container, which is the caller's to close. It raises FFmpegError when
    nothing could be opened, the first call VideoError that says why; VideoError when what was
    opened holds no video that can be decoded.
    """

    def __init__(
        self, address: Address, name: str, transport: RtspTransport | None, probe_s: float | None
    ) -> None:
        self._address = address
        self._name = name
        self._probe_s = probe_s or PROBE_S
        self._asked_transport = transport
        self._transports: tuple[dict[str, str], ...] = ({},)
        if address.scheme in RTSP_SCHEMES:
            self._transports = _TRANSPORTS[transport or "auto"]
        if address.scheme == "rtsps":
            self._transports = _TRANSPORTS["tcp"]
        self._called = False

    def __call__(self) -> InputContainer:
        start_s = time.monotonic()
        is_first, self._called = not self._called, True
        try:
            container = self._open(start_s)
        except FFmpegError as error:
            if not is_first:
                raise
            address, transport = self._address, self._asked_transport
            silent_s = _silent_s(start_s)
            raise cause_of(address, self._name, error, silent_s, transport) from error
        if container.format.name == "tty":  # libav plays plain text as terminal recordings
            told = "text, not a video", "name the address of the stream itself"
        elif not container.streams.video:
            kinds = {stream.type for stream in container.streams}
            # Many cameras have room for one viewer, and this looks once more.
            container.close()
            told = without_video(self._address, kinds)
        elif all(stream.codec_context is None for stream in container.streams.video):
            told = "no decoder for its video codec", "set the camera to H.264 or H.265"
        else:
            return container
        container.close()
        raise VideoError(self._name, told[0], fix=told[1])

    def _open(self, start_s: float) -> InputContainer:
        container = self._dial()
        is_whole = self._probe_s >= _WHOLE_PROBE_S
        if is_whole or _has_size(container) or _silent_s(start_s) is not None:
            return container
        # It takes longer to tell, and so it will when it is lost and opened again.
        container.close()
        self._probe_s = _WHOLE_PROBE_S
        return self._dial()

    def _dial(self) -> InputContainer:
        options = {"analyzeduration": str(round(self._probe_s * 1e6))}
        if self._probe_s < _WHOLE_PROBE_S:
            # Three frames tell the rate; libav takes twenty, which are seconds of a slow camera.
            options["fpsprobesize"] = "3"
        start_s = time.monotonic()
        first, *others = ({**options, **transport} for transport in self._transports)
        try:
            return connected(self._address, first, TIMEOUTS_S)
        except _NOT_FOR_TRANSPORT:
            raise
        except FFmpegError:
            if _silent_s(start_s) is not None:
                raise
            for other in others:
                with suppress(FFmpegError):
                    return connected(self._address, other, TIMEOUTS_S)
            # What a server says to the usual transport tells most.
            raise


def open_remote(address: Address, name: str) -> InputContainer:
    """The file at `address`, opened, the caller's to close; VideoError says why it is not."""
    start_s = time.monotonic()
    try:
        return av.open(address.url, "r", timeout=TIMEOUTS_S)
    except FFmpegError as error:
        raise cause_of(address, name, error, _silent_s(start_s)) from error


def _silent_s(start_s: float) -> float | None:
    """How long a server has been silent that was asked at `start_s`; None while it may be."""
    waited_s = time.monotonic() - start_s
    return waited_s if waited_s >= TIMEOUTS_S[0] else None


def _has_size(container: InputContainer) -> bool:
    """Whether libav knows enough of some video stream to decode it."""
    return any(
        stream.codec_context is not None and stream.codec_context.width > 0
        for stream in container.streams.video
    )
