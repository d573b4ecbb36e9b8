"""A network address: what libav is given of it, and what a user may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

RTSP_SCHEMES = ("rtsp", "rtsps")
LIVE_SCHEMES = (*RTSP_SCHEMES, "rtmp", "rtmps", "rtp", "tcp", "udp", "srt")
HTTP_SCHEMES = ("http", "https")

LONGEST_ADDRESS = 4095
"""Characters; libav cuts off what is behind them."""

# Elsewhere libav takes a user name and a password as they are written.
_UNESCAPING = (*RTSP_SCHEMES, *HTTP_SCHEMES)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HOST = re.compile(r"(\[[^\]/@]+\]|[^\s/?#@:\[\]]*)(:\d+)?(?=[/?#]|$)")
_PORT = re.compile(r"(?:\[[^\]/?#@]+\]|[^/?#@:\[\]]*):([^/?#]+)")
_ESCAPED = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# All that a user name or a password may hold unescaped, and the mark of what is escaped.
_PLAIN = "!$&'()*+,;=-._~%"
_USUAL_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_SECRET = re.compile(r"(?i)((?:pass|pwd|token|secret|api_?key|signature)\w*=)[^&;/\s]+")


@dataclass(frozen=True)
class Address:
    """An address in parts. scheme: in small letters. url: as libav reads it.

    host: None where there is none. port: the scheme's usual one where none is given, 0 where no
    port can have that number.
    """

    scheme: str
    url: str
    host: str | None
    port: int | None

    @classmethod
    def of(cls, source: str) -> Address:
        """The parts of `source`, of which `scheme_of` is not None.

        User name and password may hold any character; one that is followed by two hexadecimal
        digits has to be escaped if it is a `%`.
        """
        start = _SCHEME.match(source)
        if start is None:
            raise ValueError("no address")
        scheme, rest = start[1].lower(), source[start.end() :]
        at = _end_of_credentials(rest)
        place = rest if at is None else rest[at + 1 :]
        try:
            host = urlsplit(f"{scheme}://{place}").hostname
        except ValueError:
            host = None
        given = _PORT.match(place)
        port = _USUAL_PORTS.get(scheme) if given is None else _port_of(given[1])
        if at is not None and scheme in _UNESCAPING:
            rest = ":".join(map(_escaped, rest[:at].split(":", 1))) + "@" + place
        return cls(scheme, f"{scheme}://{rest}", host, port)


def scheme_of(source: str) -> str | None:
    """The scheme of an address, in small letters; None of anything else."""
    start = _SCHEME.match(source)
    return None if start is None else start[1].lower()


def without_credentials(source: str) -> str:
    """`source` fit for an error line: `rtsp://user:password@host/` shows as `rtsp://***@host/`.

    A password may hold `/` and `@`. Where it cannot be told from a port and a path, too much is
    hidden: `http://host:80/a@b` shows as `http://***@b`. So are passwords among the parameters.
    A file's address holds none.
    """
    scheme = scheme_of(source)
    if scheme == "file":
        return source
    start, mark, rest = source.partition("://")
    at = rest.rfind("@")
    if ":" not in rest[: max(at, 0)]:
        at = rest.partition("/")[0].rfind("@")
    shown = source if at < 0 else f"{start}{mark}***{rest[at:]}"
    return shown if scheme is None else _SECRET.sub(r"\1***", shown)


def _port_of(digits: str) -> int:
    number = int(digits) if digits.isascii() and digits.isdecimal() else 0
    return number if number < 1 << 16 else 0


def _escaped(part: str) -> str:
    raw = _ESCAPED.sub(b"%25", part.encode(errors="surrogateescape"))
    return quote(raw, safe=_PLAIN)


def _end_of_credentials(rest: str) -> int | None:
    """Where the `@` behind user and password stands in `rest`, an address without its scheme.

    Of the places that leave a host behind them, the one whose host looks most like one; among
    equals the standard's, which ends the host at the first `/`, `?` or `#`.
    """
    standard = re.split(r"[/?#]", rest, maxsplit=1)[0].rfind("@")
    places = [at for at, letter in enumerate(rest) if letter == "@"]
    if ":" not in rest[: max(places, default=0)]:
        # A name without a password holds none of the characters that end a host.
        return standard if standard >= 0 else None
    likely = {at: _likeness(rest[at + 1 :]) for at in (-1, *places)}
    best = max(likely.values())
    at = standard if likely[standard] == best else max(p for p in likely if likely[p] == best)
    return at if at >= 0 else None


def _likeness(rest: str) -> int:
    """How much `rest` looks as if a host stood at its front: -1 for not at all."""
    found = _HOST.match(rest)
    if found is None:
        return -1
    host = found[1]
    is_number = host.startswith("[") or re.fullmatch(r"\d+(\.\d+){3}", host) is not None
    is_name = "." in host or host.lower() == "localhost"
    return (2 if is_number else int(is_name)) + (found[2] is not None)
