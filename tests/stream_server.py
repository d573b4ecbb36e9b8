"""Servers on this machine: bytes over TCP, and a camera's pages over HTTP, TLS or not."""

from __future__ import annotations

import base64
import io
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

from PIL import Image

from tests.clips import numbered

Say = Callable[[socket.socket, threading.Event], None]


@contextmanager
def tcp_server(say: Say) -> Iterator[int]:
    """Its port; `say` talks to each viewer, and is told when to leave off."""
    off = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def serve() -> None:
            while not off.is_set():
                try:
                    viewer, _ = listener.accept()
                except TimeoutError:
                    continue
                with viewer:
                    viewer.settimeout(5.0)
                    try:
                        say(viewer, off)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            off.set()
            thread.join()


def pieces(content: bytes, seconds: float) -> Say:
    """`content` sent over `seconds`, and then the connection is closed."""

    def say(viewer: socket.socket, off: threading.Event) -> None:
        step = max(1, len(content) // 40)
        for at in range(0, len(content), step):
            viewer.sendall(content[at : at + step])
            if off.wait(seconds / 40):
                return

    return say


def silence(viewer: socket.socket, off: threading.Event) -> None:
    """Nothing is said, and the connection is kept."""
    off.wait()


@contextmanager
def web_camera(
    *, user: tuple[str, str] | None = None, certificate: str | None = None
) -> Iterator[str]:
    """Host and port of a camera's web server: `/video` is M-JPEG, `/stall` stops after a while,
    `/busy` fails, `/closed` is forbidden, `/418` and its like are refused with that status,
    `/notes` and `/json` are text, `/empty` is nothing, and all else a page for browsers.

    user: the name and password it asks for. certificate: a PEM file with key; it speaks TLS then.
    """
    off = threading.Event()
    known = None if user is None else base64.b64encode(":".join(user).encode()).decode()

    class Camera(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keeps requests off the terminal."""

        def do_GET(self) -> None:
            if known is not None and self.headers.get("Authorization") != f"Basic {known}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
            elif self.path in ("/video", "/stall"):
                self._send_pictures(30 if self.path == "/stall" else None)
            elif self.path in ("/busy", "/closed"):
                self.send_error({"/busy": 503, "/closed": 403}[self.path])
            elif self.path[1:].isdecimal():
                self.send_error(int(self.path[1:]))
            elif self.path == "/empty":
                self._send("video/mp4", b"")
            elif self.path == "/json":
                self._send("application/json", '{"Fehler": "ungültig"}'.encode() * 3)
            elif self.path == "/notes":
                self._send("text/plain", b"the camera in the yard\n" * 40)
            else:
                self._send("text/html", b"<!DOCTYPE html><html><body>Log in</body></html>" * 20)

        def _send(self, kind: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(content)

        def _send_pictures(self, most: int | None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
            self.end_headers()
            try:
                for number in count():
                    if number == most:
                        off.wait()
                    if off.wait(0.01):
                        return
                    jpeg = _jpeg(number % 20)
                    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(b"--picture\r\n" + head.encode() + jpeg + b"\r\n")
            except OSError:
                return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        off.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _jpeg(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(numbered(number)).save(content, "jpeg")
    return content.getvalue()
