"""`whole_file`: there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from stc.runtime.output import whole_file


def test_the_file_appears_only_when_the_body_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with whole_file(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_an_interrupted_body_leaves_what_was_there(
    tmp_path: Path, interruption: type[BaseException]
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(interruption), whole_file(path) as file:
        file.write(b"half")
        raise interruption
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing_at_the_file_it_names(tmp_path: Path) -> None:
    path, link = tmp_path / "a.bin", tmp_path / "link"
    path.write_bytes(b"old")
    link.symlink_to(path)
    with whole_file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_device_is_written_and_not_replaced() -> None:
    with whole_file(Path("/dev/null")) as file:
        file.write(b"gone")
    assert Path("/dev/null").is_char_device()


def test_a_folder_is_refused_before_the_body_runs(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), whole_file(tmp_path):
        pytest.fail("the body ran")
    assert list(tmp_path.iterdir()) == []
