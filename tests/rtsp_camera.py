"""An RTSP camera on this machine: one clip over and over, as MPEG-4 in RTP inside RTSP's TCP."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import TracebackType

import av

_PACE_S = 0.005
_TICKS_PER_S = 90_000


class RtspCamera:
    """Serves `clip` (MPEG-4 in MP4) at `address`, to one viewer at a time, while entered.

    requests: request lines received. `hang_up` ends the connection of the present viewer.
    """

    def __init__(self, clip: Path, *, rate: int = 25) -> None:
        with av.open(str(clip)) as container:
            stream = container.streams.video[0]
            self._config = bytes(stream.codec_context.extradata or b"").hex()
            self._packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        self._rate = rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._off = threading.Event()
        self._hang_up = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.address = f"rtsp://viewer:secret@127.0.0.1:{self._listener.getsockname()[1]}/street"
        self.requests: list[str] = []

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
            with viewer:
                viewer.settimeout(2.0)
                self._hang_up.clear()
                try:
                    self._answer(viewer)
                except (ConnectionError, TimeoutError):
                    continue

    def _answer(self, viewer: socket.socket) -> None:
        for request in _requests(viewer):
            self.requests.append(request.splitlines()[0])
            method = request.split()[0]
            sequence = next(
                line.split(":")[1].strip()
                for line in request.splitlines()
                if line.lower().startswith("cseq:")
            )
            extra, body = self._reply(method)
            viewer.sendall(
                f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\nSession: 1\r\n{extra}"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            if method == "PLAY":
                self._play(viewer)
                return

    def _reply(self, method: str) -> tuple[str, str]:
        if method == "OPTIONS":
            return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", ""
        if method == "SETUP":
            return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
        if method != "DESCRIBE":
            return "", ""
        description = (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=street\r\nt=0 0\r\n"
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\n"
            f"a=fmtp:96 profile-level-id=1;config={self._config}\r\n"
            f"a=framerate:{self._rate}\r\na=control:track1\r\n"
        )
        return "Content-Type: application/sdp\r\n", description

    def _play(self, viewer: socket.socket) -> None:
        for number in count():
            if self._off.wait(_PACE_S) or self._hang_up.is_set():
                return
            packet = self._packets[number % len(self._packets)]
            stamp = number * _TICKS_PER_S // self._rate
            rtp = struct.pack(">BBHII", 0x80, 0x80 | 96, number & 0xFFFF, stamp, 7) + packet
            viewer.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)


def _requests(viewer: socket.socket) -> Iterator[str]:
    received = b""
    while True:
        while b"\r\n\r\n" not in received:
            chunk = viewer.recv(4096)
            if not chunk:
                return
            received += chunk
        request, received = received.split(b"\r\n\r\n", 1)
        yield request.decode()
