"""Why a video could not be opened or read, for someone who wants to watch it. Imports PyAV.

libav's errors say little of a network address: what is wrong there is found by looking once more.
"""

from __future__ import annotations

import codecs
import errno
import socket
import ssl
import time
from collections.abc import Set

import av
import av.error
from av.container import InputContainer
from av.error import FFmpegError

from stc.errors import VideoError
from stc.runtime.video.source.address import HTTP_SCHEMES, RTSP_SCHEMES, Address
from stc.runtime.video.source.source import RtspTransport

_LOOK_TIMEOUT_S = 3.0
_BUSY_TRIES, _BUSY_WAIT_S = 3, 0.2
_AS_IT_IS = (*HTTP_SCHEMES, "tcp")
_START_BYTES = 1024
_DATAGRAMS = ("udp", "rtp", "srt")
_TLS_OF = {"http": "https", "rtsp": "rtsps", "rtmp": "rtmps"}
_PLAIN_OF = {tls: plain for plain, tls in _TLS_OF.items()}
# libav's words for what may have a hundred reasons; its other errors name theirs.
_VAGUE = (
    av.error.ExitError,
    av.error.TimeoutError,
    av.error.OSError,
    av.error.InvalidDataError,
    av.error.EOFError,
    av.error.ConnectionResetError,
    av.error.HTTPOtherClientError,
)
_MENDS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        av.error.ConnectionRefusedError,
        "connection refused",
        "check that the camera or server is on, and its address and port",
    ),
    (
        av.error.HTTPUnauthorizedError,
        "user name or password refused",
        "write them into the address: SCHEME://USER:PASSWORD@HOST/.., with %25 for a %",
    ),
    (
        av.error.HTTPNotFoundError,
        "refused by the server",
        "check the path, what stands behind the host; a camera's manual has it",
    ),
    (
        av.error.HTTPForbiddenError,
        "refused by the server",
        "check what this user may see, and who else may be watching",
    ),
    (av.error.HTTPClientError, "refused by the server", "check the address"),
    (av.error.HTTPServerError, "the server failed", "see its log, or restart the camera"),
    (
        av.error.PermissionError,
        "permission denied",
        "check who may read it; cameras belong to the group video",
    ),
    (
        av.error.ProtocolNotFoundError,
        "this build of PyAV cannot read such addresses",
        "use rtsp, tcp, udp or http",
    ),
    (av.error.ExitError, "no answer in time", "check its address, and that it is sending"),
    (av.error.TimeoutError, "no answer in time", "check its address, and that it is sending"),
    (
        av.error.InvalidDataError,
        "not a video, or damaged from the start",
        "play it with ffplay, or write it again with ffmpeg",
    ),
    (
        av.error.EOFError,
        "ends before its first frame",
        "play it with ffplay, or write it again with ffmpeg",
    ),
)


def connected(
    address: Address, options: dict[str, str], timeout: float | tuple[float, float]
) -> InputContainer:
    """`address` opened, the caller's to close. Raises FFmpegError.

    Some servers are not done with one viewer when the next one comes: they are asked again.
    """
    for _ in range(_BUSY_TRIES):
        try:
            return av.open(address.url, "r", options=options, timeout=timeout)
        except av.error.HTTPServerError:
            time.sleep(_BUSY_WAIT_S)
    return av.open(address.url, "r", options=options, timeout=timeout)


def cause_of(
    address: Address,
    name: str,
    error: FFmpegError,
    silent_s: float | None,
    transport: RtspTransport | None = None,
) -> VideoError:
    """The VideoError that says why `address`, shown as `name`, failed with `error`.

    silent_s: how long nothing came before it was given up; None when it failed at once.
    transport: what the user asked of an RTSP server. Connects once or twice more to find out, for
    a few seconds each at most.
    """
    told = None
    if isinstance(error, _VAGUE):
        told = _looked_at(address, error, transport, silent_s)
    return unreadable(name, error) if told is None else VideoError(name, told[0], fix=told[1])


def _looked_at(
    address: Address,
    error: FFmpegError,
    transport: RtspTransport | None,
    silent_s: float | None,
) -> tuple[str, str] | None:
    """What was found, and how to fix it; None when nothing was."""
    if address.host is not None and not _resolves(address.host):
        return "host unknown", "check the name, or write the IP address in its place"
    if address.scheme in _DATAGRAMS:
        return "nothing came", "check the port, and that something sends there"
    start = _start(address)
    if silent_s is not None and not start:
        if not _connects(address):
            return "no answer in time", "check the address, and that the camera or server is on"
        return (
            f"takes the connection and stays silent for {silent_s:.0f} s",
            f"check that {address.scheme} is spoken at this port, or restart the camera",
        )
    plain, tls = _PLAIN_OF.get(address.scheme), _TLS_OF.get(address.scheme)
    if plain is not None and not _speaks_tls(address):
        return "does not speak TLS there", f"check the port, or try {plain}://"
    if address.scheme in RTSP_SCHEMES and (kinds := _kinds(address)) is not None:
        return _not_served(address, kinds, transport)
    if tls is not None and _speaks_tls(address):
        return "speaks TLS there", f"try {tls}://"
    if isinstance(error, av.error.HTTPClientError) and address.scheme in HTTP_SCHEMES:
        return None
    if start is not None and (told := _told_by(start)) is not None:
        return told
    if address.scheme in RTSP_SCHEMES:
        return "does not speak RTSP there", "check the port; most cameras take 554"
    return "not a video that libav knows", "check the address, and play it with ffplay"


def without_video(address: Address, kinds: Set[str]) -> tuple[str, str]:
    """What to say of a live source that holds `kinds` of streams, none of them video, and the fix.

    Of RTSP, where only video was asked for, it is asked what else there is.
    """
    if not kinds and address.scheme in RTSP_SCHEMES:
        kinds = _kinds(address) or set()
    only = f", only {' and '.join(sorted(kinds))}" if kinds else ""
    fix = "switch the camera's video on, or name another of its streams"
    return f"has no video{only}", fix


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (socket.gaierror, UnicodeError):
        return False
    return True


def _connects(address: Address) -> bool:
    try:
        with socket.create_connection((address.host, address.port or 0), _LOOK_TIMEOUT_S):
            return True
    except OSError:
        return False


def _speaks_tls(address: Address) -> bool:
    """Whether a TLS handshake gets through; like libav, this asks for no valid certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address.host, address.port or 0), _LOOK_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=address.host),
        ):
            return True
    except OSError:
        return False


def _start(address: Address) -> bytes | None:
    """What a server sends first, where it sends a file or a stream as it is.

    Empty when it ends before; None when it does not come, or the server is asked in another way.
    """
    if address.scheme not in _AS_IT_IS:
        return None
    try:
        with av.open(address.url, "r", format="data", timeout=_LOOK_TIMEOUT_S) as container:
            return bytes(next(container.demux()))[:_START_BYTES]
    except (av.error.EOFError, StopIteration):
        return b""
    except FFmpegError as error:
        # So libav tells the end of a page whose length the server did not announce.
        return b"" if error.errno == errno.EIO else None


def _told_by(start: bytes) -> tuple[str, str] | None:
    """What a server sends instead of a video, of which these are the first bytes."""
    if not start:
        return "sends no content", "check the address, and that the source is on"
    if b"<html" in start.lower() or b"<!doctype" in start.lower():
        fix = "name the address of the stream itself, which the camera's manual has"
        return "a web page, not a video", fix
    if _is_text(start):
        return "text, not a video", "name the address of the stream itself"
    return None


def _is_text(start: bytes) -> bool:
    try:
        # The last character may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\n\r\f\ufeff\x1b" for letter in text)


def _not_served(
    address: Address, kinds: set[str], transport: RtspTransport | None
) -> tuple[str, str] | None:
    """Why an RTSP server that describes `kinds` of streams could not be read."""
    if "video" not in kinds:
        return without_video(address, kinds) if kinds else None
    if transport in (None, "auto"):
        return None
    return f"does not send over {transport}", "leave out --rtsp-transport"


def _kinds(address: Address) -> set[str] | None:
    """The kinds of streams an RTSP server describes, empty when it refuses; None for no RTSP."""
    options = {"analyzeduration": "1", "fpsprobesize": "0"}
    try:
        with connected(address, options, _LOOK_TIMEOUT_S) as container:
            return {stream.type for stream in container.streams}
    except av.error.InvalidDataError:
        return None
    except FFmpegError:
        return set()


def reason(error: Exception) -> str:
    """`error` in few words, without the address, which may hold a password."""
    return _meaning(error)[0]


def unreadable(name: str, error: av.error.FFmpegError) -> VideoError:
    """The VideoError that says in one line why source `name` could not be opened."""
    words, fix = _meaning(error)
    libav = _words_of_libav(error)
    return VideoError(name, words if words == libav else f"{words} ({libav})", fix=fix)


def _meaning(error: Exception) -> tuple[str, str]:
    """What happened, and how to fix it."""
    for kind, words, fix in _MENDS:
        if isinstance(error, kind):
            return words, fix
    return _words_of_libav(error), "check that the address is right and the source is on"


def _words_of_libav(error: Exception) -> str:
    words = error.strerror if isinstance(error, av.error.FFmpegError) else None
    return (words or str(error) or type(error).__name__).lower()
