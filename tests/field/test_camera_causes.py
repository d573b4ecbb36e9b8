"""Network cameras that cannot be read: the true cause, and the way out of it; no password."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stc.errors import VideoError
from stc.runtime.video import causes as video_causes
from stc.runtime.video import network as video_network
from stc.runtime.video.open import open_video
from stc.runtime.video.source.address import Address, without_credentials
from tests.clips import number_of, numbered_clip
from tests.rtsp_camera import RtspCamera
from tests.stream_server import pieces, silence, tcp_server, web_camera

PASSWORDS = [
    "se/cret",
    "se@cret",
    "se:cret",
    "se#cret",
    "se?cret",
    "se%cret",
    "100%",
    "se cret",
    "sécret",
    "пароль",
    "p@s/s:w#o?r%d",
    "/@:#?%",
    "1234/5",
    "a@b/c@d",
    "[x]",
    "s&e=c+r;e,t!$'()*",
]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return numbered_clip(tmp_path)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are given up after half a second."""
    monkeypatch.setattr(video_network, "TIMEOUTS_S", (0.5, 0.5))


def refusal(source: str, **how: object) -> str:
    with pytest.raises(VideoError) as raised:
        list(open_video(source, **how))  # type: ignore[arg-type]
    line = str(raised.value)
    assert "\n" not in line
    assert "; " in line
    return line


# Credentials.


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_of_any_characters_opens_an_rtsp_camera(clip: Path, password: str) -> None:
    """Written into the address as it is, and checked by digest as cameras do."""
    with (
        RtspCamera(clip, user=("viewer", password)) as camera,
        open_video(f"rtsp://viewer:{password}@127.0.0.1:{camera.port}/street") as video,
    ):
        assert number_of(next(video).rgb) in range(20)
        assert password not in video.name


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_of_any_characters_opens_a_web_camera(password: str) -> None:
    """The same by HTTP's basic way, where the camera shows M-JPEG."""
    with (
        web_camera(user=("viewer", password)) as host,
        open_video(f"http://viewer:{password}@{host}/video", live=True) as video,
    ):
        assert number_of(next(video).rgb) in range(20)


def test_a_password_that_is_escaped_already_is_not_escaped_again(clip: Path) -> None:
    """As a standard writes `@`: %40."""
    with RtspCamera(clip, user=("viewer", "p@ss")) as camera:
        address = f"rtsp://viewer:p%40ss@127.0.0.1:{camera.port}/street"
        with open_video(address) as video:
            assert number_of(next(video).rgb) in range(20)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_refused_password_is_in_no_message(clip: Path, scheme: str) -> None:
    """401: the line names the cause and hides what the user typed."""
    password = "p@s/s:w#o?r%d"
    with (
        RtspCamera(clip, user=("viewer", "other")) as camera,
        web_camera(user=("viewer", "other")) as host,
    ):
        place = {"rtsp": f"127.0.0.1:{camera.port}/street", "http": f"{host}/video"}[scheme]
        line = refusal(f"{scheme}://viewer:{password}@{place}")
    assert line.startswith(f"{scheme}://***@{place}: user name or password refused")
    assert "viewer" not in line
    assert not re.search(r"s:w|w#o|o\?r|w%23", line)


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["10.0.0.7:554", "[::1]:8554", "192.168.1.2"]),
)
def test_any_password_reaches_libav_and_no_message(name: str, password: str, host: str) -> None:
    """Whatever a user name and a password are made of, in front of a host told by number."""
    name = name.replace(":", "").replace("%", "").replace("@", "") or "viewer"
    password = password.replace("%", "")
    source = f"rtsp://{name}:{password}@{host}/street"
    address = Address.of(source)
    credentials, _, rest = address.url.removeprefix("rtsp://").rpartition("@")
    assert rest == f"{host}/street"
    assert tuple(map(unquote, credentials.split(":", 1))) == (name, password)
    assert re.fullmatch(r"[!-~]+", address.url)
    assert without_credentials(source) == f"rtsp://***@{host}/street"


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("rtsp://host:554/a@b", "rtsp://host:554/a@b"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("http://h/a@b.mp4?at=12:30", "http://h/a@b.mp4?at=12:30"),
        ("rtsp://viewer:secret@host:554/a@b", "rtsp://viewer:secret@host:554/a@b"),
        ("rtsp://token@h/a@b", "rtsp://token@h/a@b"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234"),
        ("rtmp://viewer:p@ss@10.0.0.7/live", "rtmp://viewer:p@ss@10.0.0.7/live"),
        ("RTSP://Host/Street", "rtsp://Host/Street"),
        ("HTTP://h/A%20b", "http://h/A%20b"),
    ],
)
def test_an_address_libav_can_read_is_left_as_it_is(source: str, url: str) -> None:
    """A path may hold an `@`, too."""
    assert Address.of(source).url == url


def test_a_password_among_the_parameters_is_not_shown() -> None:
    """As some cameras' addresses have it."""
    shown = without_credentials("rtsp://10.0.0.7/live?user=viewer&password=secret&channel=1")
    assert shown == "rtsp://10.0.0.7/live?user=viewer&password=***&channel=1"


# Causes.


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_server_that_stays_silent_is_told_apart(scheme: str) -> None:
    """A camera that hangs, or a port that speaks something else."""
    with tcp_server(silence) as port:
        line = refusal(f"{scheme}://127.0.0.1:{port}/street")
    assert "takes the connection and stays silent for" in line
    assert f"check that {scheme} is spoken at this port" in line


@pytest.mark.usefixtures("hasty")
def test_a_camera_without_pictures_is_told_apart(clip: Path) -> None:
    """It answers every request, and its encoder has stopped."""
    with RtspCamera(clip, manner="mute") as camera:
        line = refusal(camera.address, give_up_s=2.0)
    assert "no frame for 2 s (the source answers and sends no picture); restart the camera" in line


def test_a_camera_of_sound_alone_is_told_apart(clip: Path) -> None:
    """The picture is switched off in the camera's settings."""
    with RtspCamera(clip, manner="sound") as camera:
        line = refusal(camera.address)
    assert "has no video, only audio; switch the camera's video on" in line


def test_a_codec_nobody_reads_is_told_apart(clip: Path) -> None:
    """A maker's own codec."""
    with RtspCamera(clip, manner="unknown codec") as camera:
        line = refusal(camera.address)
    assert "no decoder for its video codec; set the camera to H.264" in line


def test_a_wrong_path_is_told_apart(clip: Path) -> None:
    """404: the camera is there, and this stream of it is not."""
    with RtspCamera(clip) as camera:
        line = refusal(camera.address.replace("/street", "/alley"))
    assert "404" in line
    assert "check the path" in line


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https", "tcp", "rtmp"])
def test_a_host_nobody_knows_is_told_apart(scheme: str) -> None:
    """A typing error in the name."""
    line = refusal(f"{scheme}://viewer:secret@no-such-host.invalid:554/street")
    assert line == (
        f"{scheme}://***@no-such-host.invalid:554/street: host unknown; "
        "check the name, or write the IP address in its place"
    )


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_port_where_nothing_listens_is_told_apart(scheme: str) -> None:
    """The camera is off, or has another port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "connection refused; check that the camera or server is on" in refusal(
        f"{scheme}://127.0.0.1:{port}/street"
    )


@pytest.mark.usefixtures("hasty")
def test_datagrams_that_do_not_come_are_told_apart() -> None:
    """Nothing sends to this port."""
    assert "nothing came; check the port" in refusal("udp://127.0.0.1:47913")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("login", "a web page, not a video; name the address of the stream itself"),
        ("notes", "text, not a video; name the address of the stream itself"),
        ("json", "text, not a video; name the address of the stream itself"),
        ("empty", "sends no content; check the address"),
        ("busy", "the server failed"),
        *((str(status), "refused by the server (") for status in (400, 402, 405, 410, 418, 451)),
        ("closed", "refused by the server (server returned 403 forbidden"),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_what_a_web_server_sends_instead_is_told_apart(path: str, told: str, live: bool) -> None:
    """The page for browsers in place of the stream, and its errors."""
    with web_camera() as host:
        assert told in refusal(f"http://viewer:secret@{host}/{path}", live=live)


def test_a_server_without_rtsp_is_told_apart() -> None:
    """The port of the camera's web page."""
    with web_camera() as host:
        assert "does not speak RTSP there; check the port" in refusal(f"rtsp://{host}/street")


@pytest.mark.parametrize("scheme", ["rtsps", "https"])
def test_a_server_without_tls_is_told_apart(scheme: str) -> None:
    """An encrypted address of a camera that encrypts nothing."""
    with web_camera() as host:
        line = refusal(f"{scheme}://{host}/video")
    assert f"does not speak TLS there; check the port, or try {scheme[:-1]}://" in line


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("tls") / "camera.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=camera"]
    try:
        subprocess.run(
            [*make, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    with path.open("ab") as file:
        file.write(Path(f"{path}.crt").read_bytes())
    yield str(path)


def test_a_server_of_tls_alone_is_told_apart(certificate: str) -> None:
    """A plain address of a camera that encrypts everything, and the right one."""
    with web_camera(certificate=certificate) as host:
        assert "speaks TLS there; try https://" in refusal(f"http://{host}/video")
        with open_video(f"https://{host}/video", live=True) as video:
            assert number_of(next(video).rgb) in range(20)


def test_noise_on_a_socket_is_told_apart() -> None:
    """Something that is no stream is sent to whoever connects."""
    with tcp_server(pieces(bytes(range(256)) * 40, 0.01)) as port:
        assert "not a video that libav knows; check the address" in refusal(
            f"tcp://127.0.0.1:{port}"
        )


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("stays_s", [0.0, 1.0])
@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"hello", "text, not a video; name the address"),
        (b"220 mail ready\r\n", "text, not a video; name the address"),
        (b"\x05\x00\xff\xfe", "not a video that libav knows; check the address"),
    ],
)
def test_a_server_that_says_little_is_not_told_as_silent(
    said: bytes, told: str, stays_s: float
) -> None:
    """A port of something else, which greets and then hangs up or listens."""

    def say(viewer: socket.socket, off: threading.Event) -> None:
        viewer.sendall(said)
        off.wait(stays_s)

    with tcp_server(say) as port:
        line = refusal(f"tcp://127.0.0.1:{port}")
    assert told in line
    assert "silent" not in line


def test_a_server_that_hangs_up_is_told_apart() -> None:
    """It takes the connection and ends it at once."""
    with tcp_server(lambda viewer, off: None) as port:
        assert "sends no content; check the address" in refusal(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "9" * 40, "55x4", "-1"])
@pytest.mark.parametrize("scheme", ["rtsp", "udp", "http", "tcp"])
def test_a_port_there_is_none_of_is_refused_at_once(scheme: str, port: str) -> None:
    """A typing error in the port."""
    line = refusal(f"{scheme}://127.0.0.1:{port}/x")
    assert ": no such port, expected 1 to 65535; correct what stands behind the host" in line


@pytest.mark.parametrize(
    ("source", "port"),
    [
        ("rtsp://h/x", 554),
        ("rtsp://h:/x", 554),
        ("rtsp://viewer:99999@h/x", 554),
        ("rtsp://viewer:99999@h:8554/x", 8554),
        ("http://[::1]:8080/a:b", 8080),
        ("http://h/a:99999", 80),
        ("udp://@:1234", 1234),
        ("udp://@239.0.0.1", None),
    ],
)
def test_a_port_is_what_stands_behind_the_host(source: str, port: int | None) -> None:
    """And no part of a password or a path."""
    assert Address.of(source).port == port


def test_an_address_longer_than_libav_reads_is_refused() -> None:
    """Something else was pasted; whatever it is, it is refused at once."""
    for source in ("http" + "://" * 20_000, "x://" + "pass" * 20_000, f"rtsp://{'a:@' * 9_000}"):
        told = f"--video: an address of {len(source)} characters, expected 4095 at most"
        assert refusal(source).startswith(told)


def test_the_name_of_an_address_takes_no_time() -> None:
    """The most addresses in one that a command can be given."""
    source = "://" * 40_000
    assert without_credentials(source) == source
    assert without_credentials(f"{source}b@c") == "://***@c"


def test_looking_for_a_cause_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that turns silent at the second connection does not hold the error up."""
    monkeypatch.setattr(video_causes, "_LOOK_TIMEOUT_S", 0.3)
    said = threading.Event()

    def once(viewer: socket.socket, off: threading.Event) -> None:
        if not said.is_set():
            said.set()
            viewer.recv(4096)
            viewer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000))
            return
        off.wait(1.0)

    with tcp_server(once) as port:
        assert "127.0.0.1" in refusal(f"http://127.0.0.1:{port}/clip.mp4")
