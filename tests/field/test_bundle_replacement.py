"""`--force` takes a bundle's own files and no others; readers see the old bundle or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stc.bundles import files as bundle_files
from stc.bundles.bundle import Bundle
from stc.bundles.files import real_place
from stc.bundles.pinned_folder import PinnedFolder
from stc.bundles.writer import BundleWriter
from stc.errors import BundleError
from tests.field.resigned import edit_manifest
from tests.test_bundle_writer import snapshot
from tests.tiny_bundle import FILES, tiny_manifest, write_bundle, write_files

OWN = {*FILES, "manifest.json"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a bundle stands, in a folder with nothing else."""
    folder = tmp_path / "out"
    folder.mkdir()
    return write_bundle(folder / "tiny")


@pytest.fixture(params=["exchange", "two renames"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways a bundle is replaced: as the system can, and as it can where that fails."""
    if request.param == "two renames":
        monkeypatch.setattr("stc.bundles.writer.exchange", lambda *_: False, raising=False)


def refusal(path: Path) -> str:
    """The line with which replacing `path` by force is refused; everything stays as it was."""
    before = snapshot(path.parent)
    with pytest.raises(BundleError) as caught:
        write_bundle(path, force=True, salt=b"new")
    assert snapshot(path.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".hidden",
        "graphs/notes.txt",
        "graphs/keys_07.onnx",
        "holiday/photo.jpg",
        "engines/notes.txt",
        "engines/old.engine",
        "engines/sm89/my.engine",
        "engines/sm89/deeper/engines.json",
        "other/engines/sm89/engines.json",
        "engines.json",
        "timings.cache",
    ],
)
def test_a_file_of_the_users_in_a_bundle_is_named_and_kept(place: Path, name: str) -> None:
    """notes.txt beside manifest.json: --force says so and deletes nothing at all."""
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("the user's own")
    line = refusal(place)
    assert name.split("/")[-1] in line or name.split("/")[0] in line
    assert "is not the bundle's" in line
    assert "move it away" in line


@pytest.mark.parametrize("name", ["photos", "graphs/photos", "engines/sm89", "engines", "graphs"])
def test_a_folder_that_is_a_link_is_named_and_kept(place: Path, tmp_path: Path, name: str) -> None:
    """A linked folder is the user's, whatever it is called; what it leads to stays untouched."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.engine").write_bytes(b"kept")
    if name == "graphs":
        shutil.rmtree(place / "graphs")
    (place / name).parent.mkdir(exist_ok=True)
    (place / name).symlink_to(elsewhere)
    assert f"holds {name}, " in refusal(place)
    assert (elsewhere / "kept.engine").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        "{}",
        "{",
        '{"name": "my web page", "icons": []}',
        '{"graphs": {}}',
        '{"graphs": {"a": {"file": "notes.txt"}}}',
        '{"graphs": {"a": {"file": {"path": "../x", "sha256": "'
        + "0" * 64
        + '", "size_bytes": 1}}}}',
        "[" * 10_000,
    ],
)
def test_a_folder_with_a_manifest_of_something_else_is_no_bundle(
    place: Path, manifest: str
) -> None:
    """Any web page has a manifest.json, and graphs/ is a common name: not enough to delete."""
    (place / "manifest.json").write_text(manifest)
    assert "holds files and is no bundle, --force would delete them" in refusal(place)


@pytest.mark.parametrize("schema", [0, 1, 99])
def test_a_bundle_of_another_stc_is_replaced(place: Path, schema: int) -> None:
    """`export again with --force` is what a bundle of another schema is refused with: it works."""
    edit_manifest(
        place, lambda made: made.update(schema_version=schema, unheard_of=1, settings=None)
    )
    with pytest.raises(BundleError):
        Bundle.open(place)
    write_bundle(place, force=True, salt=b"new")
    assert set(snapshot(place)) == OWN


@pytest.mark.parametrize("path", sorted(FILES))
@pytest.mark.parametrize("damage", ["missing", "altered", "linked"])
def test_a_bundle_that_is_damaged_is_replaced(place: Path, path: str, damage: str) -> None:
    """A file lost, altered or linked since: the bundle is refused, and exporting again fixes it."""
    (place / path).unlink()
    if damage == "altered":
        (place / path).write_bytes(b"altered")
    elif damage == "linked":
        (place / path).symlink_to("/etc/hostname")
    write_bundle(place, force=True, salt=b"new")
    assert list(Bundle.open(place).files.mismatches()) == []
    assert set(snapshot(place.parent)) == {f"tiny/{name}" for name in OWN}


def test_engines_go_with_the_bundle_they_were_built_from(place: Path) -> None:
    """What stc-build made is named by its list, and replaced with the graphs."""
    engines = place / "engines" / "sm89+sm120"
    engines.mkdir(parents=True)
    made = {"engines": {"a.tensorrt.engine": {}}, "unfinished": ["b.tensorrt.engine"]}
    (engines / "engines.json").write_text(json.dumps(made))
    for name in (
        "a.tensorrt.engine",
        "b.tensorrt.engine",
        ".a.tensorrt.engine.123.part",
        "timings.cache",
        "kernels.rtxcache",
        ".kernels.rtxcache.7.part",
        ".lock",
    ):
        (engines / name).write_bytes(b"made")
    write_bundle(place, force=True, salt=b"new")
    assert set(snapshot(place.parent)) == {f"tiny/{name}" for name in OWN}


@pytest.mark.parametrize("name", [".tiny.stc-partial", ".tiny.stc-replaced"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_the_users_under_a_name_of_ours_is_kept(
    place: Path, tmp_path: Path, name: str, linked: bool
) -> None:
    """Where the exporter would work lies a folder it did not make, or a link to one."""
    folder = tmp_path / "elsewhere" if linked else place.with_name(name)
    folder.mkdir()
    (folder / "notes.txt").write_text("the user's own")
    if linked:
        place.with_name(name).symlink_to(folder)
    if name.endswith("partial"):
        with pytest.raises(BundleError, match=r"stc-partial is in the way .*; move it away"):
            write_bundle(place, force=True, salt=b"new")
    else:
        write_bundle(place, force=True, salt=b"new")
    assert (folder / "notes.txt").read_text() == "the user's own"
    Bundle.open(place)


def test_a_lock_that_is_a_link_is_not_written_through(place: Path, tmp_path: Path) -> None:
    """A leftover's lock leads to a file elsewhere: that file is not emptied."""
    outside = tmp_path / "outside"
    outside.write_text("kept")
    partial = place.with_name(".tiny.stc-partial")
    partial.mkdir()
    (partial / ".lock").symlink_to(outside)
    with pytest.raises(BundleError):
        write_bundle(place, force=True)
    assert outside.read_text() == "kept"


def test_who_has_a_bundle_open_goes_on_with_it(place: Path, either_way: None) -> None:
    """A stream that starts while the bundle is replaced reads the old one to its end."""
    opened = Bundle.open(place)
    write_bundle(place, force=True, salt=b"new")
    assert opened.read("config.json") == FILES["config.json"]
    opened.files.check_unchanged(FILES)
    assert Bundle.open(place).read("config.json") == FILES["config.json"] + b"new"


def test_a_bundle_that_is_replaced_during_a_look_is_not_mixed_up_with_the_new_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, either_way: None
) -> None:
    """Another bundle takes the name between two steps of looking at a file of the old one."""
    opened = Bundle.open(place)

    def replaced(folder: PinnedFolder, path: str) -> Path | None:
        found = real_place(folder, path)
        write_bundle(place, force=True, salt=b"new")
        return found

    monkeypatch.setattr(bundle_files, "real_place", replaced)
    assert opened.read("config.json") == FILES["config.json"]


def test_what_was_replaced_while_open_is_deleted_by_a_later_export(
    place: Path, either_way: None
) -> None:
    """Old bundles that somebody had open do not pile up."""
    opened = [Bundle.open(place)]
    for salt in (b"1", b"2"):
        write_bundle(place, force=True, salt=salt)
        opened.append(Bundle.open(place))
    assert opened[0].read("config.json") == FILES["config.json"]
    assert opened[1].read("config.json") == FILES["config.json"] + b"1"
    assert len(list(place.parent.iterdir())) == 3
    opened.clear()
    write_bundle(place, force=True)
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_a_bundle_that_is_replaced_where_nothing_can_be_locked_is_told_so(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without locks the old bundle may go: the reader is told to start again."""

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("stc.bundles.pinned_folder.fcntl.flock", unsupported)
    opened = Bundle.open(place)
    monkeypatch.undo()
    write_bundle(place, force=True, salt=b"new")
    with pytest.raises(BundleError) as caught:
        opened.read("config.json")
    assert str(caught.value) == (
        f"{place}: was replaced while it was in use; run the command again"
    )


READING = """
import sys
from pathlib import Path
from stc.bundles.bundle import Bundle
while not Path(sys.argv[2]).exists():
    bundle = Bundle.open(sys.argv[1])
    names = [entry.path for entry in bundle.manifest.files]
    {len(bundle.companions()["config.json"])}
    for name in names:
        bundle.read(name)
    print(len(bundle.read("config.json")), flush=True)
"""


def test_readers_see_the_old_bundle_or_the_new_one(
    place: Path, tmp_path: Path, either_way: None
) -> None:
    """Readers in a loop while the bundle is exported again and again: none ever fails."""
    end = tmp_path / "end"
    command = [sys.executable, "-c", READING, str(place), str(end)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as reader:  # type: ignore[call-overload]
        assert reader.stdout.readline()
        for number in range(12):
            write_bundle(place, force=True, salt=b"new" * (number % 2))
        end.touch()
        seen, said = reader.communicate()
    assert reader.returncode == 0, said
    sizes = {len(FILES["config.json"]), len(FILES["config.json"]) + 3}
    assert {int(line) for line in seen.split()} <= sizes


def test_a_bundle_lost_between_two_renames_is_told_with_its_recovery(place: Path) -> None:
    """An export killed where directories cannot be exchanged: `mv` brings the old one back."""
    before = snapshot(place)
    place.rename(place.with_name(".tiny.stc-replaced"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(place)
    line = str(caught.value)
    assert line.startswith(f"{place}: no such directory, expected a bundle; ")
    command = line.partition("with: ")[2]
    assert command == f"mv {place.with_name('.tiny.stc-replaced')} {place}"
    subprocess.run(command, shell=True, check=True)
    Bundle.open(place)
    assert snapshot(place) == before


def test_a_bundle_that_is_gone_for_a_moment_is_waited_for(place: Path) -> None:
    """A reader that comes between the two renames opens what is there a moment later."""
    aside = place.with_name(".tiny.stc-replaced")
    place.rename(aside)
    back = threading.Timer(0.05, aside.rename, [place])
    back.start()
    Bundle.open(place)
    back.join()


KILLED = """
import os, sys
from stc.bundles import writer as bundle_writer
from tests.tiny_bundle import write_bundle
kept = bundle_writer.exchange
def killed(one, other):
    if sys.argv[2] == "after":
        assert kept(one, other)
    os.kill(os.getpid(), 9)
bundle_writer.exchange = killed
write_bundle(sys.argv[1], force=True, salt=b"new")
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_bundle_is_there_whenever_its_replacement_is_killed(place: Path, when: str) -> None:
    """Killed at the exchange itself: the old bundle or the new one, and the next export clears."""
    command = [sys.executable, "-c", KILLED, str(place), when]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    salt = b"new" if when == "after" else b""
    assert Bundle.open(place).read("config.json") == FILES["config.json"] + salt
    write_bundle(place, force=True)
    assert set(snapshot(place.parent)) == {f"tiny/{name}" for name in OWN}
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_what_cannot_be_deleted_is_told_and_the_new_bundle_stands(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines built by root in a user's bundle: the export is done, the leftover is named."""
    unlink = os.unlink

    def refuse(path: object, **options: object) -> None:
        if str(path).endswith("weights.bin"):
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: refuse(path))
    with pytest.raises(BundleError, match=r"is written, but what it replaced cannot be deleted"):
        write_bundle(place, force=True, salt=b"new")
    monkeypatch.undo()
    assert Bundle.open(place).read("config.json") == FILES["config.json"] + b"new"


def test_a_writer_that_is_done_leaves_the_next_ones_work_alone(place: Path) -> None:
    """A second export may start the moment the first has published."""
    with BundleWriter(place, force=True) as writer:
        write_files(writer.root, b"new")
        writer.finish(tiny_manifest(writer.root))
    assert not writer.root.exists()
    with BundleWriter(place, force=True) as second:
        write_files(second.root)
        second.finish(tiny_manifest(second.root))
    assert Bundle.open(place).read("config.json") == FILES["config.json"]
