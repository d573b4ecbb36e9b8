"""A bundle appears whole or not at all, and nothing else of the user's is ever lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.writer import BundleWriter
from stc.errors import BundleError
from tests.tiny_bundle import FILES, tiny_manifest, write_bundle, write_files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a bundle is to stand, in a folder with nothing else."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "tiny"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refusal(path: Path, *, force: bool = False) -> str:
    """The one line with which writing to `path` is refused; the folder stays as it was."""
    before = snapshot(path.parent)
    with pytest.raises(BundleError) as caught:
        write_bundle(path, force=force, salt=b"new")
    assert snapshot(path.parent) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_finished_bundle_stands_at_its_place_alone(place: Path) -> None:
    write_bundle(place)
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
    assert set(snapshot(place)) == {*FILES, "manifest.json"}
    Bundle.open(place)


def test_until_the_end_nothing_stands_at_its_place(place: Path) -> None:
    with BundleWriter(place) as writer:
        write_files(writer.root)
        writer.finish(tiny_manifest(writer.root))
        assert not place.exists()
        assert writer.root.parent == place.parent
        assert writer.root.name.startswith(".")
    assert place.is_dir()


def test_missing_parents_are_made(tmp_path: Path) -> None:
    Bundle.open(write_bundle(tmp_path / "a" / "b" / "tiny"))


def test_empty_directory_is_taken(place: Path) -> None:
    place.mkdir()
    Bundle.open(write_bundle(place))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
@pytest.mark.parametrize("standing", [False, True])
@pytest.mark.parametrize("finished", [False, True])
def test_exception_leaves_everything_as_it_was(
    place: Path, kind: type[BaseException], standing: bool, finished: bool
) -> None:
    if standing:
        write_bundle(place)
    before = snapshot(place.parent)
    with pytest.raises(kind), BundleWriter(place, force=True) as writer:
        write_files(writer.root, b"new")
        if finished:
            writer.finish(tiny_manifest(writer.root))
        raise kind
    assert snapshot(place.parent) == before
    assert [path.name for path in place.parent.iterdir()] == ["tiny"] * standing


def cannot_exchange(_one: Path, _other: Path) -> bool:
    """Stands for `stc.bundles.writer.exchange` where directories cannot change places at once."""
    return False


@pytest.mark.parametrize("moves", [1, 2, 3, 4])
def test_interrupt_while_replacing_leaves_the_old_bundle(
    place: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    write_bundle(place)
    monkeypatch.setattr("stc.bundles.writer.exchange", cannot_exchange)
    before = snapshot(place.parent)
    rename, calls = Path.rename, []

    def interrupted(source: Path, target: Path) -> Path:
        calls.append(source)
        if len(calls) == moves:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(place, force=True, salt=b"new")
    assert snapshot(place.parent) == before


def test_body_that_forgets_to_finish_publishes_nothing(place: Path) -> None:
    with pytest.raises(RuntimeError, match="finish"), BundleWriter(place) as writer:
        write_files(writer.root)
    assert list(place.parent.iterdir()) == []


def test_bundle_in_place_is_kept_without_force(place: Path) -> None:
    write_bundle(place)
    assert "exists and is not empty; replace it with --force" in refusal(place)


def test_bundle_in_place_is_replaced_with_force(place: Path) -> None:
    write_bundle(place)
    engines = place / "engines" / "sm89"
    engines.mkdir(parents=True)
    (engines / "old.engine").write_bytes(b"of the old graphs")
    (engines / "engines.json").write_text('{"engines": {"old.engine": {}}}')
    write_bundle(place, force=True, salt=b"new")
    Bundle.open(place)
    assert snapshot(place)["config.json"] == FILES["config.json"] + b"new"
    assert set(snapshot(place.parent)) == {f"tiny/{name}" for name in [*FILES, "manifest.json"]}


def test_damaged_bundle_is_replaced_with_force(place: Path) -> None:
    write_bundle(place)
    (place / "config.json").write_bytes(b"altered")
    (place / "graphs" / "embed.onnx").unlink()
    Bundle.open(write_bundle(place, force=True))


@pytest.mark.parametrize("name", ["photo.jpg", "manifest.json", "graphs/chart.svg"])
def test_force_does_not_delete_files_that_are_no_bundles(place: Path, name: str) -> None:
    (place / name).parent.mkdir(parents=True)
    (place / name).write_bytes(b"the user's own")
    line = refusal(place, force=True)
    assert "holds files and is no bundle, --force would delete them" in line


def test_file_at_the_place_is_refused(place: Path) -> None:
    place.write_bytes(b"the user's own")
    assert "is a file" in refusal(place, force=True)


def test_files_that_appear_meanwhile_are_not_replaced(place: Path) -> None:
    refused = pytest.raises(BundleError, match="exists and is not empty")
    with refused, BundleWriter(place) as writer:
        write_files(writer.root)
        writer.finish(tiny_manifest(writer.root))
        place.mkdir()
        (place / "photo.jpg").write_bytes(b"the user's own")
    assert snapshot(place.parent) == {"tiny/photo.jpg": b"the user's own"}


def test_link_is_kept_and_its_target_replaced(place: Path, tmp_path: Path) -> None:
    target = write_bundle(tmp_path / "target")
    place.symlink_to(target)
    write_bundle(place, force=True, salt=b"new")
    assert place.is_symlink()
    assert snapshot(target)["config.json"] == FILES["config.json"] + b"new"


def test_mount_point_is_refused_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place)
    assert (
        f"is a mount point, which cannot be replaced as a whole; choose a directory in it: {place}"
        in (refusal(place))
    )


def test_parent_that_is_a_file_is_one_line(place: Path) -> None:
    place.write_bytes(b"")
    assert f"{place} is a file; choose another --output" in refusal(place / "below")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOLCK])
def test_place_that_cannot_be_written_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    reason = os.strerror(number)

    def refuse(path: Path, **options: bool) -> None:
        raise OSError(number, reason, str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BundleError) as caught:
        write_bundle(place)
    assert str(caught.value).startswith(f"{place}: cannot be written ({reason}); ")
    assert list(place.parent.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device to write to")
def test_full_disk_in_the_body_is_one_line_and_leaves_nothing(place: Path) -> None:
    with pytest.raises(BundleError) as caught, BundleWriter(place) as writer:
        write_files(writer.root)
        (writer.root / "more.bin").symlink_to("/dev/full")
        (writer.root / "more.bin").write_bytes(b"more")
    assert str(caught.value) == (
        f"{place}: cannot be written (No space left on device); "
        "free space there, or choose another --output"
    )
    assert list(place.parent.iterdir()) == []


def test_failure_to_rename_is_one_line_and_leaves_the_old_bundle(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(place)
    rename = Path.rename

    def refuse(source: Path, target: Path) -> Path:
        if source.name.endswith(".stc-partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert "cannot be written (Input/output error)" in refusal(place, force=True)


def test_error_of_the_bodys_own_sources_passes_unchanged(place: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), BundleWriter(place):
        (tmp_path / "checkpoint").read_bytes()


def test_every_byte_is_on_disk_before_the_bundle_appears(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    missing: list[Path] = []
    fsync, rename = os.fsync, Path.rename

    def record(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def check(source: Path, target: Path) -> Path:
        missing.extend(
            path for path in [source, *source.rglob("*")] if path.stat().st_ino not in synced
        )
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", check)
    write_bundle(place)
    assert missing == []
    assert place.parent.stat().st_ino in synced


def test_second_writer_of_the_same_place_waits_for_none(place: Path) -> None:
    with BundleWriter(place) as writer:
        write_files(writer.root)
        assert "another stc-export is writing it" in refusal(place)
        writer.finish(tiny_manifest(writer.root))
    Bundle.open(place)


def kill_when_ready(program: str) -> None:
    """Run `program` in a process and kill it once it says that it is ready."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def test_what_a_killed_writer_leaves_is_no_bundle_and_is_cleared_by_the_next(place: Path) -> None:
    kill_when_ready(f"""
import time
from pathlib import Path
from stc.bundles.writer import BundleWriter
from tests.tiny_bundle import tiny_manifest, write_files
with BundleWriter(Path({str(place)!r})) as writer:
    write_files(writer.root, b"killed")
    writer.finish(tiny_manifest(writer.root))
    (writer.root / "not of the bundle").write_bytes(b"")
    print("ready", flush=True)
    time.sleep(60)
""")
    (leftover,) = place.parent.iterdir()
    assert leftover.name.startswith(".")
    with pytest.raises(BundleError, match="what an interrupted export left behind"):
        Bundle.open(leftover)

    write_bundle(place)
    assert set(snapshot(place.parent)) == {f"tiny/{name}" for name in [*FILES, "manifest.json"]}
    Bundle.open(place)


def test_bundle_that_a_killed_writer_moved_aside_comes_back(place: Path) -> None:
    write_bundle(place)
    before = snapshot(place)
    place.rename(place.with_name(".tiny.stc-replaced"))
    with pytest.raises(BundleError, match="exists and is not empty"):
        write_bundle(place)
    assert snapshot(place.parent) == {f"tiny/{name}": content for name, content in before.items()}


def test_bundle_moved_aside_and_replaced_is_cleared(place: Path) -> None:
    write_bundle(place)
    place.rename(place.with_name(".tiny.stc-replaced"))
    write_bundle(place.with_name("new")).rename(place)
    write_bundle(place, force=True)
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
