"""Finished scenes survive whatever ends a run, and are never mixed with those of another one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stc.errors import SettingsError
from stc.runtime.evaluate.store import file_name, open_store
from tests.own_process import ROOT

HEADER = {"bundle": "b", "settings": {"ratio": 0.25, "shape": (1, 2)}}
ENDLESS = """
import sys
from itertools import count
from pathlib import Path
from stc.runtime.evaluate.store import open_store

with open_store(Path(sys.argv[1])) as store:
    file = store.open("m", {"bundle": "b"})
    for number in count():
        file.add({"scene": str(number), "value": "x" * 5000})
        print(number, flush=True)
"""


def records(root: Path, method: str = "m", **options: bool) -> dict[str, object]:
    with open_store(root) as store:
        return dict(store.open(method, HEADER, **options).records)


def test_scenes_are_there_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "new" / "folder") as store:
        file = store.open("m", HEADER)
        file.add({"scene": "a", "value": 1.5})
        file.add({"scene": "b", "value": None})
    assert records(tmp_path / "new" / "folder") == {
        "a": {"scene": "a", "value": 1.5},
        "b": {"scene": "b", "value": None},
    }


@pytest.mark.parametrize("torn", [b'{"sce', b'{"scene":"c"}', b"\x00\x00", b"12\n", b"[]\n"])
def test_a_torn_last_line_is_dropped(torn: bytes, tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.open("m", HEADER).add({"scene": "a"})
    path = tmp_path / "scenes" / "m.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert set(records(tmp_path)) == {"a"}
    assert path.read_bytes() == whole
    with open_store(tmp_path) as store:
        store.open("m", HEADER).add({"scene": "b"})
    assert set(records(tmp_path)) == {"a", "b"}


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    assert records(tmp_path) == {}
    path = tmp_path / "scenes" / "m.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert records(tmp_path) == {}
    assert json.loads(path.read_text())["bundle"] == "b"


def test_a_run_killed_at_any_moment_keeps_what_it_told(tmp_path: Path) -> None:
    for _ in range(2):
        running = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert running.stdout is not None
        told = [running.stdout.readline().strip() for _ in range(20)]
        running.send_signal(signal.SIGKILL)
        told += running.stdout.read().split()
        running.wait()
        running.stdout.close()
        with open_store(tmp_path) as store:
            kept = store.open("m", {"bundle": "b"}).records
        assert set(told) <= set(kept)
        assert all(len(record["value"]) == 5000 for record in kept.values())


def test_another_header_is_refused_and_forced(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.open("m", HEADER).add({"scene": "a"})
        before = (tmp_path / "scenes" / "m.jsonl").read_bytes()
        with pytest.raises(SettingsError) as caught:
            store.open("m", {**HEADER, "bundle": "c"})
        told = f"{tmp_path}/scenes/m.jsonl: was measured with another bundle; name another --output"
        assert str(caught.value).startswith(told)
        assert (tmp_path / "scenes" / "m.jsonl").read_bytes() == before
        assert store.open("m", {**HEADER, "bundle": "c"}, force=True).records == {}
        assert set(records_of(tmp_path)) == {"schema", "method", "bundle", "settings"}


def records_of(root: Path) -> dict[str, object]:
    header: dict[str, object] = json.loads((root / "scenes" / "m.jsonl").read_text())
    return header


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        open_store(tmp_path),
        pytest.raises(SettingsError, match="another run writes it; wait for it"),
        open_store(tmp_path),
    ):
        pass
    with open_store(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SettingsError, match="cannot be written"),
        open_store(tmp_path / "file" / "x"),
    ):
        pass


def test_log_probabilities_of_dense_are_kept(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((3, 7), np.float32)
    with open_store(tmp_path) as store:
        store.keep_dense("s", rows)
        np.testing.assert_array_equal(store.dense("s"), rows)
        with pytest.raises(SettingsError, match=r"cannot be read .* start over with --force"):
            store.dense("t")
        (tmp_path / "dense" / "s.npy").write_bytes(b"\x93NUMPY")
        with pytest.raises(SettingsError, match="cannot be read"):
            store.dense("s")


def test_no_two_methods_share_a_file() -> None:
    names = ["off", "Off", "cacher:a=1", "cacher:a_1", "cacher_a=1", "../off", "a" * 300, "a" * 301]
    files = [file_name(name) for name in names]
    assert files[0] == "off"
    assert len(set(files)) == len(names)
    assert all("/" not in name and len(name) < 128 and name[0] != "." for name in files)
