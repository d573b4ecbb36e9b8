"""What stc-build writes and deletes lies in the bundle, and is what its list names."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stc.bundles.bundle import Bundle
from stc.engines.build import build as building
from stc.engines.build.build import plan_build, run_build
from stc.engines.build.builders import BuildProgress, Job, Outcome
from stc.engines.library.library import EngineLibrary, libraries_of, library_of
from stc.engines.library.plan import EngineSpec
from stc.engines.library.targets import TARGETS, TensorRt
from stc.engines.tensorrt.shared import KernelCache
from stc.errors import BundleError, EngineError, StcError
from tests.field.resigned import edit_manifest
from tests.tiny_bundle import write_bundle

SM89 = (TARGETS["sm89"],)
SPECS = [EngineSpec("embed", ({},)), EngineSpec("project", ({},))]
TENSORRT = TensorRt("tensorrt", cast(Any, SimpleNamespace(__version__="10.3.0")))
NAMES = {f"{spec.graph}.tensorrt.engine" for spec in SPECS}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of the user's outside the bundle; everything in it must stay as it is."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("trained.engine", "engines.json", ".lock", "timings.cache", ".a.engine.1.part"):
        (folder / name).write_text("the user's own")
    yield folder
    assert {file.read_text() for file in folder.iterdir()} == {"the user's own"}
    assert len(list(folder.iterdir())) == 5


def build(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: Callable[[], object] = lambda: None,
    fails_after: int = 99,
    answer: Callable[[Job], Outcome] | None = None,
) -> set[str]:
    """Engines of SPECS were built by a mock; the names of all files there are then."""

    class Builders:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Builders:
            return self

        def __exit__(self, *_: object) -> None: ...

        def outcomes(self, jobs: deque[Job]) -> Iterator[tuple[Job, Outcome]]:
            for number, job in enumerate(jobs):
                if answer is not None:
                    yield job, answer(job)
                file = job.library.store(job.name, memoryview(b"engine of " + job.name.encode()))
                if number == fails_after:  # killed before the list was told
                    raise KeyboardInterrupt
                during()
                yield job, Outcome(file, "", 0.0, 0)

    monkeypatch.setattr(building, "Builders", Builders)
    bundle = Bundle.open(place)
    plan = plan_build(bundle, SPECS, TENSORRT, SM89)
    observer = cast(BuildProgress, SimpleNamespace(built=lambda _: None))
    run_build(bundle, plan, "tensorrt", SM89, observer, workers=1)
    return {file.name for file in (place / "engines" / "sm89").iterdir()}


def test_a_build_writes_its_engines_its_list_and_its_lock(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ordinary build, and that it finds its engines again."""
    assert build(place, monkeypatch) == {*NAMES, "engines.json", ".lock"}
    library = library_of(Bundle.open(place), "sm89")
    assert [library.read(entry) for entry in library.entries().values()] == [
        b"engine of " + name.encode() for name in sorted(NAMES)
    ]


@pytest.mark.parametrize("link", ["engines", "engines/sm89"])
def test_a_linked_folder_is_neither_written_nor_swept(
    place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """BUNDLE/engines leads to a folder of another project: one line, nothing there is touched."""
    (place / link).parent.mkdir(exist_ok=True)
    (place / link).symlink_to(elsewhere)
    with pytest.raises(
        EngineError, match=rf"{link}: is a link to {elsewhere}, .*rm {place}/{link}"
    ):
        build(place, monkeypatch)


@pytest.mark.parametrize("link", ["engines", "engines/sm89"])
def test_a_link_that_leads_nowhere_is_not_made_a_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    """A dangling link: what it names is not created."""
    (place / link).parent.mkdir(exist_ok=True)
    (place / link).symlink_to(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="is a link to"):
        build(place, monkeypatch)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["engines.json", ".lock", "timings.cache", *sorted(NAMES)])
def test_a_linked_file_is_not_written_through(
    place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One file of the folder is a link out: refused, or replaced by a file of its own."""
    folder = place / "engines" / "sm89"
    folder.mkdir(parents=True)
    (folder / name).symlink_to(elsewhere / "trained.engine")
    with pytest.raises(EngineError, match=f"{name}: is a link to"):
        build(place, monkeypatch)


def test_engines_of_the_users_are_not_swept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that trtexec wrote beside ours, and a half-written file of another program."""
    build(place, monkeypatch)
    folder = place / "engines" / "sm89"
    for name in ("yolo.engine", ".yolo.engine.7.part", ".engines.json.swp"):
        (folder / name).write_text("the user's own")
    edit_manifest(place, lambda made: made["files"][0].update(path="graphs/weights.bin"))
    again = build(place, monkeypatch)
    assert {"yolo.engine", ".yolo.engine.7.part", ".engines.json.swp"} <= again


def test_what_a_killed_build_left_is_gone_after_the_next(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between an engine and the list: its name was on the list before, so it is swept."""
    with pytest.raises(KeyboardInterrupt):
        build(place, monkeypatch, fails_after=1)
    folder = place / "engines" / "sm89"
    part = folder / f".{sorted(NAMES)[1]}.00004242.stc-part"
    part.write_bytes(b"half")
    document = json.loads((folder / "engines.json").read_text())
    assert set(document["engines"]) | set(document["unfinished"]) == NAMES
    assert build(place, monkeypatch) == {*NAMES, "engines.json", ".lock"}
    assert json.loads((folder / "engines.json").read_text())["unfinished"] == []


@pytest.mark.parametrize(
    "name", ["../../../elsewhere/trained.engine", "/etc/x.engine", "a/b.engine", "engines.json", ""]
)
@pytest.mark.parametrize("field", ["engines", "unfinished"])
def test_a_list_that_names_files_elsewhere_is_refused(
    place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str
) -> None:
    """A list made by somebody else must not say what is deleted where."""
    build(place, monkeypatch)
    file = place / "engines" / "sm89" / "engines.json"
    document = json.loads(file.read_text())
    if field == "engines":
        document["engines"][name] = document["engines"].pop(sorted(NAMES)[0])
    else:
        document["unfinished"] = [name]
    file.write_text(json.dumps(document))
    with pytest.raises(EngineError, match=r"engines\.json: cannot be read"):
        build(place, monkeypatch)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_linked_engine_is_not_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Readers too: an engine that is a link is refused, also where the bytes would be right."""
    build(place, monkeypatch)
    file = place / "engines" / "sm89" / name
    file.rename(tmp_path / name)
    file.symlink_to(tmp_path / name)
    library = library_of(Bundle.open(place), "sm89")
    with pytest.raises(EngineError, match="is a link to"):
        library.read(library.entries()[name])


def test_engines_behind_a_link_are_not_found(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of all engines moved out of the bundle and linked: refused by what reads it."""
    build(place, monkeypatch)
    (place / "engines").rename(tmp_path / "moved")
    (place / "engines").symlink_to(tmp_path / "moved")
    for library in libraries_of(Bundle.open(place)):
        with pytest.raises(EngineError, match="is a link to"):
            library.entries()


def test_kernels_are_not_kept_through_a_link(elsewhere: Path, tmp_path: Path) -> None:
    """The cache of compiled kernels leads out of the bundle: neither read nor written."""
    library = EngineLibrary(tmp_path / "engines" / "sm89")
    library.folder.mkdir(parents=True)
    (library.folder / "kernels.rtxcache").symlink_to(elsewhere / "trained.engine")
    with pytest.raises(EngineError, match=r"kernels\.rtxcache: is a link to"):
        KernelCache(library.file("kernels.rtxcache"))


def test_a_pipe_in_place_of_a_list_is_not_waited_on(place: Path) -> None:
    """Something that is no file: one line, at once."""
    folder = place / "engines" / "sm89"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "engines.json")
    with pytest.raises(EngineError, match=r"engines\.json: is no file"):
        library_of(Bundle.open(place), "sm89").entries()


def test_a_graph_altered_while_it_is_built_from_is_not_listed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler reads the file by itself: what it read is looked at again."""
    graph = place / "graphs" / "embed.onnx"
    with pytest.raises(BundleError, match=r"embed\.onnx: "):
        build(place, monkeypatch, during=lambda: graph.write_bytes(graph.read_bytes() + b"x"))
    assert library_of(Bundle.open(_restored(place)), "sm89").entries() == {}


def test_engines_of_a_replaced_bundle_do_not_land_in_the_new_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported anew while stc-build works: one line, and the new bundle has no stale engines."""
    with pytest.raises(StcError, match="was replaced while it was in use; run the command again"):
        build(place, monkeypatch, during=lambda: write_bundle(place, force=True, salt=b"new"))
    assert not (place / "engines").exists()


@pytest.mark.parametrize("name", ["a.engine", "b" * 300 + ".engine"], ids=["folder", "long"])
def test_an_unfinished_engine_that_cannot_be_deleted_is_named(place: Path, name: str) -> None:
    """A list names a folder, or no file there can be: one line about it, as the user knows it."""
    library = library_of(Bundle.open(place), "sm89")
    library.write({}, unfinished=[name])
    if name == "a.engine":
        (library.folder / name).mkdir()
    with pytest.raises(EngineError) as caught:
        library.sweep()
    line = str(caught.value)
    assert line.startswith(f"{library.folder / name}: cannot be deleted (")
    assert "/proc/" not in line
    assert "\n" not in line


def test_an_engine_that_cannot_be_stored_is_an_error_of_its_folder(place: Path) -> None:
    """A folder stands where an engine belongs."""
    library = library_of(Bundle.open(place), "sm89")
    (library.folder / "a.engine").mkdir(parents=True)
    with pytest.raises(EngineError) as caught:
        library.store("a.engine", memoryview(b"engine"))
    assert str(caught.value).startswith(f"{library.folder}: cannot be written (Is a directory)")
    assert "/proc/" not in str(caught.value)


def test_an_engine_that_cannot_be_looked_at_is_named(place: Path) -> None:
    """A list names a file that no file system has: an error of it, not of the system's call."""
    library = library_of(Bundle.open(place), "sm89")
    file = library.store("a.engine", memoryview(b"engine"))
    name = "b" * 300 + ".engine"
    entry = cast(Any, SimpleNamespace(file=file.model_copy(update={"path": name})))
    with pytest.raises(EngineError, match=r"cannot be read \(File name too long") as caught:
        library.whole(entry)
    assert str(caught.value).startswith(str(library.folder / name))


def test_what_a_builder_says_names_the_bundle_as_the_user_does(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that TensorRT cannot read: the path is the bundle's, not of the open directory."""

    def fails(job: Job) -> Outcome:
        return Outcome(None, f"cannot open {job.recipe.path}", 0.0, 0)

    with pytest.raises(EngineError) as caught:
        build(place, monkeypatch, answer=fails)
    assert f"cannot open {place}/graphs/embed.onnx" in str(caught.value)


def _restored(place: Path) -> Path:
    graph = place / "graphs" / "embed.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    return place
