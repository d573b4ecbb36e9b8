"""Checkpoints by hub id: what is downloaded, and what is said when nothing can be."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub.constants
import pytest

from stc.errors import CheckpointError
from stc.export import command
from stc.export.checkpoint import checkpoint
from stc.export.checkpoint.checkpoint import open_checkpoint
from stc.export.weights import open_weights
from tests.tiny_checkpoint import refusal, tiny_model, write_checkpoint

HUB_ID = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_model())


def test_a_path_that_is_neither_directory_nor_hub_id_is_refused(tmp_path: Path) -> None:
    for text in (str(tmp_path / "no"), "no-such-directory", "../a/b", "a/b/c", "a/..", ""):
        assert "no such directory" in refusal(text)


def test_a_file_is_refused_where_a_directory_is_expected(pristine: Path) -> None:
    assert "config.json: a file" in refusal(pristine / "config.json")


def test_a_downloaded_checkpoint_bears_its_hub_id(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[str]] = {}

    def snapshot(hub_id: str, allow_patterns: list[str]) -> str:
        asked[hub_id] = allow_patterns
        return str(pristine)

    monkeypatch.setattr(checkpoint, "snapshot_download", snapshot)
    assert open_checkpoint(HUB_ID).name == HUB_ID
    assert open_checkpoint(str(pristine)).name == pristine.name
    offered = {
        "config.json": True,
        "model-00001-of-00004.safetensors": True,
        "model.safetensors.index.json": True,
        "merges.txt": True,
        "chat_template.jinja": True,
        "pytorch_model.bin": False,
        "onnx/vision_encoder.onnx": False,
        "model.msgpack": False,
    }
    taken = {name: any(fnmatch(name, glob) for glob in asked[HUB_ID]) for name in offered}
    assert taken == offered


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot on this machine, and a client that would go out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "store"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("empty_store")
def test_a_hub_out_of_reach_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://localhost:9")
    line = refusal(HUB_ID)
    assert line.startswith(f"{HUB_ID}: no such directory, and localhost could not be reached")
    assert line.endswith("download the checkpoint on a connected machine and pass its directory")


@pytest.fixture
def answering_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub on this machine that answers every request with the status and header set here."""
    answer: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    host = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", host)
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("empty_store")
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", "gated on 127.0.0.1"),
        (404, "RepoNotFound", "no such model on 127.0.0.1"),
        (404, "RevisionNotFound", "download from 127.0.0.1 failed"),
        (503, "", "127.0.0.1 could not be reached"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    status: int, code: str, expected: str, answering_hub: dict[str, Any]
) -> None:
    answering_hub.update(status=status, code=code)
    assert expected in refusal(HUB_ID)


@pytest.mark.parametrize("terminal", [True, False])
def test_downloads_show_their_progress_on_a_terminal_alone(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "")  # so that what it was comes back
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    flags = ["--model", "llava-ov", "--checkpoint", str(tmp_path / "missing")]
    assert command.main(flags) == 2
    assert ("HF_HUB_DISABLE_PROGRESS_BARS" in os.environ) is not terminal


def test_random_weights_that_do_not_exist_are_named() -> None:
    with pytest.raises(CheckpointError) as caught, open_weights("random", "llava-ov-13b, seed 0"):
        pass
    assert str(caught.value) == (
        "llava-ov-13b, seed 0: no such random weights, expected llava-ov-0.5b or llava-ov-7b; "
        "export again with: stc-export --model llava-ov --random-weights"
    )
