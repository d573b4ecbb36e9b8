"""An RTSP camera on this machine: one clip over and over, in RTP over RTSP's TCP or over UDP."""

from __future__ import annotations

import re
import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from hashlib import md5
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import av

Manner = Literal["streams", "silent", "mute", "sound", "unknown codec"]
"""Silent says nothing at all; mute describes itself and sends no picture."""

_PACE_S = 0.005
_TICKS_PER_S = 90_000
_REALM = "camera"
_NONCE = "0a4f113b"
_STATES = {
    200: "OK",
    400: "Bad Request",
    500: "Internal Server Error",
    401: "Unauthorized",
    404: "Not Found",
    461: "Unsupported Transport",
    503: "Service Unavailable",
}


class RtspCamera:
    """Serves `clip` (MPEG-4 or H.264 in MP4) at `address`, to one viewer at a time, while entered.

    burst: frames sent at once when a viewer comes, what a server kept since the last key frame.
    frames: after so many it hangs up; None for never. transports: what it agrees to send over.
    user: (name, password) it asks for, by digest; `address` has another pair, which a camera that
        asks for none ignores. told: whether its description holds the codec's parameters.
    refusal: its answer to another transport; None to hang up.
    busy: times it says 503 before it describes itself, not done with the viewer before.
    first: the frame of the clip it begins with, in the midst of a group of pictures for one.
    requests: request lines received. viewers: how many came. sent: frames sent to all.
    asked: the transports that viewers asked for, one after the other.
    `hang_up` ends the connection of the present viewer.
    """

    def __init__(
        self,
        clip: Path,
        *,
        rate: int = 25,
        pace_s: float = _PACE_S,
        burst: int = 0,
        frames: int | None = None,
        transports: Sequence[str] = ("tcp", "udp"),
        manner: Manner = "streams",
        user: tuple[str, str] | None = None,
        told: bool = True,
        first: int = 0,
        refusal: int | None = 461,
        busy: int = 0,
    ) -> None:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            self._codec = stream.codec_context.name
            self._config = bytes(stream.codec_context.extradata or b"").hex()
            self._packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        if self._codec == "h264":
            self._packets = _with_parameters(self._packets, bytes.fromhex(self._config))
        self._rate = rate
        self._pace_s = pace_s
        self._burst = burst
        self._frames = frames
        self._transports = transports
        self._manner = manner
        self._user = user
        self._told = told
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._off = threading.Event()
        self._hang_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.port = self._listener.getsockname()[1]
        self.address = f"rtsp://viewer:secret@127.0.0.1:{self.port}/street"
        self._first = first
        self._refusal = refusal
        self._busy = busy
        self.requests: list[str] = []
        self.asked: list[str] = []
        self.viewers = 0
        self.sent = 0

    def hang_up(self) -> None:
        self._hang_up.set()

    def __enter__(self) -> RtspCamera:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._off.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._off.is_set():
            try:
                viewer, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.viewers += 1
            with viewer:
                viewer.settimeout(0.05)
                self._hang_up.clear()
                try:
                    self._answer(viewer)
                except OSError:
                    continue

    def _answer(self, viewer: socket.socket) -> None:
        ports = (0, 0)
        for request in self._requests(viewer):
            self.requests.append(request.splitlines()[0])
            if self._manner == "silent":
                continue
            method, uri = request.split()[:2]
            state, extra, body = self._reply(method, uri, request)
            asked = re.search(r"client_port=(\d+)-(\d+)", request)
            if method == "SETUP" and state == 200 and asked is not None:
                ports = (int(asked[1]), int(asked[2]))
            _send(viewer, request, state, extra, body)
            if method == "TEARDOWN":
                return
            if method == "PLAY":
                self._play(viewer, ports)
                return

    def _reply(self, method: str, uri: str, request: str) -> tuple[int, str, str]:
        if method == "OPTIONS":
            return 200, "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""
        if not self._knows(method, request):
            return 401, f'WWW-Authenticate: Digest realm="{_REALM}", nonce="{_NONCE}"\r\n', ""
        if method == "DESCRIBE":
            self._busy -= 1
            if self._busy >= 0:
                return 503, "", ""
            if not re.search(r"/street/?$", uri):
                return 404, "", ""
            return 200, "Content-Type: application/sdp\r\n", self._description()
        if method == "SETUP":
            asked = re.search(r"client_port=(\d+)-(\d+)", request)
            self.asked.append("multicast" if "multicast" in request else "udp" if asked else "tcp")
            if self.asked[-1] == "tcp" and "tcp" in self._transports:
                return 200, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
            if asked is not None and "udp" in self._transports:
                transport = f"RTP/AVP;unicast;{asked[0]};server_port=0-0"
                return 200, f"Transport: {transport}\r\n", ""
            if self._refusal is None:
                raise ConnectionError("hung up")
            return self._refusal, "", ""
        return 200, "", ""

    def _knows(self, method: str, request: str) -> bool:
        """Whether `request` comes from the user, by RFC 2069."""
        if self._user is None:
            return True
        parts = dict(re.findall(r'(\w+)="([^"]*)"', request.partition("Digest ")[2]))
        name, password = self._user
        if parts.get("username") != name:
            return False
        secret = md5(f"{name}:{_REALM}:{password}".encode()).hexdigest()
        what = md5(f"{method}:{parts['uri']}".encode()).hexdigest()
        return bool(parts["response"] == md5(f"{secret}:{_NONCE}:{what}".encode()).hexdigest())

    def _description(self) -> str:
        head = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=street\r\nt=0 0\r\n"
        if self._manner == "sound":
            return head + "m=audio 0 RTP/AVP 8\r\na=control:track1\r\n"
        name = {"mpeg4": "MP4V-ES", "h264": "H264"}[self._codec]
        if self._manner == "unknown codec":
            name = "X-UNHEARD-OF"
        told = ""
        if self._told and self._codec == "mpeg4":
            told = f"a=fmtp:96 profile-level-id=1;config={self._config}\r\n"
        elif self._codec == "h264":
            told = "a=fmtp:96 packetization-mode=1\r\n"
        return (
            f"{head}m=video 0 RTP/AVP 96\r\na=rtpmap:96 {name}/90000\r\n{told}"
            f"a=framerate:{self._rate}\r\na=control:track1\r\n"
        )

    def _play(self, viewer: socket.socket, ports: tuple[int, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for number in count():
                if self._hang_up.is_set() or number == self._frames or self._left(viewer, number):
                    return
                if self._manner not in ("mute", "sound"):
                    self._send_frame(viewer, datagrams, ports[0], number)
                    self.sent += 1

    def _left(self, viewer: socket.socket, number: int) -> bool:
        """Whether the viewer went away, or the camera was switched off, by the next frame."""
        if number >= self._burst and self._off.wait(self._pace_s):
            return True
        if not select.select([viewer], [], [], 0)[0]:
            return False
        request = viewer.recv(4096).decode(errors="replace")
        if not request or request.startswith("TEARDOWN"):
            return True
        if not request.startswith("$"):
            _send(viewer, request, 200)
        return False

    def _send_frame(
        self, viewer: socket.socket, datagrams: socket.socket, port: int, number: int
    ) -> None:
        stamp = number * _TICKS_PER_S // self._rate
        units = [self._packets[(number + self._first) % len(self._packets)]]
        if self._codec == "h264":
            units = list(_units(units[0]))
        for place, unit in enumerate(units):
            last = 0x80 if place == len(units) - 1 else 0
            order = (number * len(units) + place) & 0xFFFF
            rtp = struct.pack(">BBHII", 0x80, last | 96, order, stamp & 0xFFFFFFFF, 7) + unit
            if port:
                datagrams.sendto(rtp, ("127.0.0.1", port))
            else:
                viewer.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)

    def _requests(self, viewer: socket.socket) -> Iterator[str]:
        received = b""
        while not self._off.is_set():
            while b"\r\n\r\n" in received:
                request, received = received.split(b"\r\n\r\n", 1)
                yield request.decode()
            try:
                chunk = viewer.recv(4096)
            except TimeoutError:
                continue
            if not chunk:
                return
            received += chunk


def address_of(camera: RtspCamera, name: str, password: str) -> str:
    """The address of `camera` with `name` and `password`, written as a standard has it."""
    user = f"{quote(name, safe='')}:{quote(password, safe='')}"
    return f"rtsp://{user}@127.0.0.1:{camera.port}/street"


def _send(viewer: socket.socket, request: str, state: int, extra: str = "", body: str = "") -> None:
    sequence = re.search(r"(?im)^cseq:\s*(\d+)", request)
    viewer.sendall(
        f"RTSP/1.0 {state} {_STATES[state]}\r\nCSeq: {sequence[1] if sequence else 0}\r\n"
        f"Session: 1\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )


def _units(picture: bytes) -> Iterator[bytes]:
    """The NAL units of a picture whose units have four bytes of length in front."""
    at = 0
    while at < len(picture):
        size = int.from_bytes(picture[at : at + 4], "big")
        yield picture[at + 4 : at + 4 + size]
        at += 4 + size


def _with_parameters(pictures: list[bytes], avcc: bytes) -> list[bytes]:
    """`pictures` with the parameter sets of `avcc` in front of every key frame."""
    size = int.from_bytes(avcc[6:8], "big")
    sequence = avcc[8 : 8 + size]
    at = 8 + size + 1
    length = int.from_bytes(avcc[at : at + 2], "big")
    sets = [sequence, avcc[at + 2 : at + 2 + length]]
    front = b"".join(len(one).to_bytes(4, "big") + one for one in sets)
    is_key = [any(unit[0] & 31 == 5 for unit in _units(picture)) for picture in pictures]
    return [front + one if key else one for one, key in zip(pictures, is_key, strict=True)]
