"""What libav's errors mean to someone who wants to watch a video."""

from __future__ import annotations

import av.error

from stc.errors import VideoError

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
