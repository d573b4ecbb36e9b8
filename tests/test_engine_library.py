"""The engines of a bundle on disk: whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stc.bundles.contents import LIST
from stc.engines.library.library import Acceptance, Chain, EngineEntry, EngineLibrary, Stamp
from stc.errors import EngineError
from stc.manifest import FileEntry

CONTENT = memoryview(b"engine" * 100)
STAMP = Stamp(
    graph="embed",
    graph_sha256="1" * 64,
    weights_sha256="2" * 64,
    flavour="tensorrt-rtx",
    version="1.7.1",
    targets=("sm86",),
    precision="fp16",
    profiles=({"M": 3},),
    baked=None,
)


def filled(folder: Path) -> tuple[EngineLibrary, EngineEntry]:
    library = EngineLibrary(folder / "engines" / "sm86")
    entry = EngineEntry(stamp=STAMP, file=library.store("embed.engine", CONTENT), build_s=1.0)
    library.write({"embed.engine": entry})
    return library, entry


def test_a_stored_engine_is_read_back_with_its_stamp(tmp_path: Path) -> None:
    library, entry = filled(tmp_path)
    assert EngineLibrary(library.folder).entries() == {"embed.engine": entry}
    assert library.whole(entry)
    assert library.read(entry) == CONTENT


def test_no_engine_is_rebuilt_on_a_rung_that_is_less_exact() -> None:
    """Products of float32 are in TF32 on none of the rungs above it."""
    file = FileEntry(path="update.engine", sha256="0" * 64, size_bytes=1)
    for precision, rungs in (
        ("fp16", ["unfused", "tf32", "float32", None]),
        ("fp32", ["unfused", "float32", None]),
    ):
        stamp = STAMP.model_copy(update={"graph": "update_00", "precision": precision})
        entry = EngineEntry(stamp=stamp, file=file, build_s=1.0)
        found: list[str | None] = []
        while not found or found[-1] is not None:
            found.append(entry.next_attention)
            entry = entry.model_copy(update={"attention": found[-1]})
        assert found == rungs
    assert EngineEntry(stamp=STAMP, file=file, build_s=1.0).next_attention is None


def test_a_library_never_built_is_empty(tmp_path: Path) -> None:
    assert EngineLibrary(tmp_path / "nothing").entries() == {}


@pytest.mark.parametrize("damage", [b"", b"engine", b"\x00" * 600])
def test_a_damaged_engine_is_refused(tmp_path: Path, damage: bytes) -> None:
    library, entry = filled(tmp_path)
    (library.folder / "embed.engine").write_bytes(damage)
    with pytest.raises(EngineError, match=r"embed\.engine: was altered or cut short.*stc-build"):
        library.read(entry)


def test_a_missing_or_short_engine_is_not_whole(tmp_path: Path) -> None:
    library, entry = filled(tmp_path)
    (library.folder / "embed.engine").write_bytes(b"short")
    assert not library.whole(entry)
    (library.folder / "embed.engine").unlink()
    assert not library.whole(entry)
    with pytest.raises(EngineError, match="cannot be read"):
        library.read(entry)


def test_what_was_compared_on_a_device_is_known_there_and_not_on_another(tmp_path: Path) -> None:
    library, entry = filled(tmp_path)
    judged = Acceptance(passed=False, min_cosine=0.5, outputs={}, device="GPU")
    chain = Chain(cosine=0.9, device="GPU")
    library.write(
        {"embed.engine": entry.model_copy(update={"acceptance": judged})}, {"tensorrt": chain}
    )
    entry = library.entries()["embed.engine"]
    assert (entry.accepted_on("GPU"), entry.accepted_on("another")) == (judged, None)
    assert library.listed().chain_on("tensorrt", "GPU") == chain
    assert library.listed().chain_on("tensorrt", "another") is None
    assert library.listed().chain_on("tensorrt-rtx", "GPU") is None


@pytest.mark.parametrize(
    "text", ["", "{", *(f'{{"schema_version": {one}, "engines": {{}}}}' for one in (1, 3)), "[]"]
)
def test_an_unreadable_list_is_one_line(tmp_path: Path, text: str) -> None:
    library, _ = filled(tmp_path)
    (library.folder / LIST).write_text(text)
    with pytest.raises(EngineError, match=f"{LIST}: cannot be read.*delete.*stc-build") as caught:
        library.entries()
    assert "\n" not in str(caught.value)


def test_an_engine_that_cannot_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = EngineLibrary(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EngineError, match=r"cannot be written \(No space"):
        library.store("embed.engine", CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_only_one_build_writes_a_library(tmp_path: Path) -> None:
    library = EngineLibrary(tmp_path)
    with (
        library.locked(),
        pytest.raises(EngineError, match="another stc-build is writing it"),
        EngineLibrary(tmp_path).locked(),
    ):
        pytest.fail("locked twice")
    with library.locked():
        pass


def test_writing_clears_what_a_killed_build_left_half_written(tmp_path: Path) -> None:
    library, entry = filled(tmp_path)
    leftover = library.folder / ".embed.engine.0123abcd.stc-part"
    leftover.write_bytes(b"half")
    library.write({"embed.engine": entry})
    assert not leftover.exists()
    assert (library.folder / "embed.engine").exists()


def test_sweeping_removes_what_a_killed_build_never_finished_and_no_others(tmp_path: Path) -> None:
    library, entry = filled(tmp_path)
    for name in ("stray.engine", "unfinished.engine"):
        (library.folder / name).write_bytes(b"stray")
    library.write({"embed.engine": entry}, unfinished={"embed.engine", "unfinished.engine"})
    library.sweep()
    found = {file.name for file in library.folder.glob("*.engine")}
    assert found == {"embed.engine", "stray.engine"}
