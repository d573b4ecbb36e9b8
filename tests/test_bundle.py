"""A bundle is opened and used only when it is whole; otherwise one line says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from stc.bundles.bundle import Bundle, file_entry
from stc.bundles.files import sha256
from stc.errors import BundleError
from stc.manifest import FileEntry, VisionSpec
from tests.graph_files import graph_file
from tests.tiny_bundle import FILES, SPEC, write_bundle

MADE_BY = "stc-export --model demo --precision fp32 --vision-only --preset off"
EXPORT_AGAIN = f"export again with: {MADE_BY} --output"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "tiny")


def use(path: Path) -> None:
    """Every file of the bundle at `path` was compared with its digest."""
    files = Bundle.open(path).files
    files.check_unchanged(files.sizes)


def refusal(path: Path) -> str:
    """The one line with which opening `path`, or using its files, is refused."""
    with pytest.raises(BundleError) as caught:
        use(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """`change` the bundle's manifest, parsed, in place."""
    file = bundle / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_whole_bundle_opens_with_its_manifest_and_graphs(bundle: Path) -> None:
    opened = Bundle.open(str(bundle))
    assert opened.root == bundle
    assert opened.manifest.vision == SPEC
    assert graph_file(opened, "embed").read_bytes() == FILES["graphs/embed.onnx"]
    assert opened.manifest.default_settings.budget == 0


def test_moved_bundle_opens(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    shutil.move(bundle, moved)
    use(moved)


def test_bundle_opens_through_a_link(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(bundle)
    assert graph_file(Bundle.open(link), "embed").is_file()


def test_bundle_opens_by_a_relative_path(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert graph_file(Bundle.open("."), "embed").is_file()


def test_unknown_graph_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has no graph 'keys_07'"):
        Bundle.open(bundle).graph("keys_07")


@pytest.mark.parametrize("path", FILES)
def test_missing_file_is_named_with_the_fix(bundle: Path, path: str) -> None:
    (bundle / path).unlink()
    line = refusal(bundle)
    size = len(FILES[path])
    assert line == (
        f"{bundle / path}: is missing, expected {size} bytes; copy the bundle again, or "
        f"{EXPORT_AGAIN} {bundle} --force"
    )


@pytest.mark.parametrize("path", FILES)
def test_truncated_file_is_named_with_both_sizes(bundle: Path, path: str) -> None:
    content = FILES[path]
    (bundle / path).write_bytes(content[:-2])
    expected = f"{path}: is truncated, {len(content) - 2} bytes, expected {len(content)} bytes; "
    assert expected in refusal(bundle)
    assert EXPORT_AGAIN in refusal(bundle)


@pytest.mark.parametrize("path", FILES)
def test_file_with_more_bytes_is_named_with_both_sizes(bundle: Path, path: str) -> None:
    content = FILES[path]
    (bundle / path).write_bytes(content + b"x")
    expected = f"{path}: is too long, {len(content) + 1} bytes, expected {len(content)} bytes; "
    assert expected in refusal(bundle)


@pytest.mark.parametrize("path", FILES)
def test_file_with_one_other_bit_is_named_with_both_hashes(bundle: Path, path: str) -> None:
    content = bytearray(FILES[path])
    old = sha256(bundle / path)
    content[-1] ^= 1
    (bundle / path).write_bytes(content)
    new = sha256(bundle / path)
    line = refusal(bundle)
    assert f"{path}: was altered, sha256 {new[:12]}, expected {old[:12]}; " in line
    assert EXPORT_AGAIN in line


def test_directory_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").mkdir()
    assert "config.json: is not a plain file" in refusal(bundle)


def test_pipe_in_place_of_a_file_is_refused_and_not_waited_on(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    os.mkfifo(bundle / "config.json")
    assert "config.json: is not a plain file" in refusal(bundle)


def test_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    shutil.move(bundle / "graphs" / "weights.bin", outside)
    (bundle / "graphs" / "weights.bin").symlink_to(outside)
    assert f"leads to {outside}, expected a file inside the bundle" in refusal(bundle)


def test_folder_linked_from_outside_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.move(bundle / "graphs", tmp_path / "graphs")
    (bundle / "graphs").symlink_to(tmp_path / "graphs")
    assert "expected a file inside the bundle" in refusal(bundle)


def test_link_to_itself_is_refused(bundle: Path) -> None:
    (bundle / "config.json").unlink()
    (bundle / "config.json").symlink_to("config.json")
    assert "config.json" in refusal(bundle)


def test_link_inside_the_bundle_is_followed(bundle: Path) -> None:
    (bundle / "config.json").rename(bundle / "other.json")
    (bundle / "config.json").symlink_to("other.json")
    use(bundle)


@pytest.mark.parametrize(
    "path",
    ["../config.json", "/etc/hostname", "graphs/../../x", "a\\b", "C:x", "", ".", "a//b", "a\0b"],
)
def test_path_that_leaves_the_bundle_is_refused(bundle: Path, path: str) -> None:
    def change(document: dict[str, Any]) -> None:
        document["graphs"]["embed"]["file"]["path"] = path

    edit(bundle, change)
    line = refusal(bundle)
    assert f"graphs.embed.file.path: path {path!r} is no path inside the bundle" in line
    assert EXPORT_AGAIN in line


def test_file_listed_twice_otherwise_is_refused(bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["files"].insert(0, {**document["files"][0], "sha256": "0" * 64})

    edit(bundle, change)
    assert "weights.bin: is listed twice, with different digests; " in refusal(bundle)


def test_newer_schema_is_refused_before_anything_else(bundle: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document.update(schema_version=3, vision="of another kind", unheard_of=1)

    edit(bundle, change)
    (bundle / "config.json").unlink()
    line = refusal(bundle)
    assert "has schema version 3, expected 2 by stc " in line
    assert f"; upgrade stc, or {EXPORT_AGAIN} {bundle} --force" in line


def test_newer_schema_without_a_known_provenance_is_refused_too(bundle: Path) -> None:
    edit(bundle, lambda document: document.update(schema_version=9, provenance=[]))
    assert "upgrade stc, or export again with: stc-export --model MODEL" in refusal(bundle)


@pytest.mark.parametrize("version", [0, -1, "2", None, 2.5])
def test_schema_version_that_never_was_is_refused(bundle: Path, version: object) -> None:
    edit(bundle, lambda document: document.update(schema_version=version))
    assert "manifest.json: schema_version: " in refusal(bundle)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[" * 10_000, b"\0", b"not json"]
)
def test_manifest_that_is_not_json_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    line = refusal(bundle)
    assert "manifest.json: is not JSON (" in line
    assert "export again with: stc-export" in line


@pytest.mark.parametrize("content", [b"[]", b"1", b'"text"', b"null", b"{}"])
def test_json_that_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "export again with: stc-export --model MODEL" in refusal(bundle)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("vision.width", -1),
        ("vision.heads", "two"),
        ("vision.layer_norm_eps", float("inf")),
        ("vision.image_std", [0.5, 0.0, 0.5]),
        ("vision.unheard_of", 1),
        ("provenance.precision", "int3"),
        ("graphs.embed.file.sha256", "0" * 63),
        ("graphs.embed.file.size_bytes", -1),
        ("files", None),
    ],
)
def test_invalid_field_is_named(bundle: Path, place: str, value: object) -> None:
    def change(document: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        for parent in parents:
            document = document[parent]
        document[last] = value

    edit(bundle, change)
    assert f"manifest.json: {place}" in refusal(bundle)


def test_first_of_several_mistakes_is_told_and_the_rest_counted(bundle: Path) -> None:
    edit(bundle, lambda document: document["vision"].update(width=0, heads=0, blocks=0))
    line = refusal(bundle)
    assert "vision.width: input should be greater than 0 (and 2 more); export again" in line


def test_default_settings_out_of_range_are_refused(bundle: Path) -> None:
    edit(bundle, lambda document: document["settings"].update(recompute_ratio=1.5))
    assert "default settings: --recompute-ratio: got 1.5" in refusal(bundle)


def test_missing_directory_is_refused(tmp_path: Path) -> None:
    line = refusal(tmp_path / "none")
    assert f"{tmp_path / 'none'}: no such directory" in line
    assert "make one with: stc-export" in line


def test_directory_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "is not a bundle, it has no manifest.json" in refusal(tmp_path)


def test_file_in_place_of_a_bundle_is_refused(bundle: Path) -> None:
    assert "is a file, expected a bundle's directory" in refusal(bundle / "manifest.json")


def test_unreadable_file_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bundle / "graphs" / "weights.bin"
    original = Path.open

    def refuse(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
        if path.name == weights.name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, mode, buffering)

    monkeypatch.setattr(Path, "open", refuse)
    assert f"{weights}: cannot be read (Permission denied)" in refusal(bundle)


def test_ctrl_c_does_not_wait_for_a_whole_file(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[bytes] = []

    class Slow:
        def update(self, chunk: memoryview) -> None:
            if not hashed:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            hashed.append(bytes(chunk))
            time.sleep(0.05)

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr("stc.bundles.files.CHUNK_BYTES", 1)
    monkeypatch.setattr("stc.bundles.files.hashlib.sha256", Slow)
    with pytest.raises(KeyboardInterrupt):
        use(bundle)
    assert len(hashed) < len(FILES["graphs/embed.onnx"])


def test_file_entry_states_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_entry(tmp_path, "abc") == FileEntry(path="abc", sha256=digest, size_bytes=3)


def test_hash_reads_beyond_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "abc").write_bytes(b"abc" * 5)
    whole = sha256(tmp_path / "abc")
    monkeypatch.setattr("stc.bundles.files.CHUNK_BYTES", 4)
    assert sha256(tmp_path / "abc") == whole


GRID = SPEC.grid.model_dump()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("heads", 3, "no multiple of 3 heads"),
        ("image_width", 19, "5 x 5 patches of 4 px, image of 20 x 19 px"),
        ("patch_size", 5, "5 x 5 patches of 5 px, image of 20 x 20 px"),
        (
            "grid",
            {**GRID, "rows": 6},
            "6 x 5 patches of 4 px, image of 20 x 20 px",
        ),
        ("grid", {**GRID, "pooled_columns": 6}, "3 x 6 tokens pooled from 5 x 5"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionSpec.model_validate({**SPEC.model_dump(), field: value})
