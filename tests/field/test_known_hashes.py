"""A file is hashed when it is first used, and known from then on."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stc.bundles import files as bundle_files
from stc.bundles.bundle import Bundle
from stc.bundles.files import FileIdentity, KnownHashes
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import BundleError
from stc.manifest import LANGUAGE_WEIGHTS, WEIGHTS
from stc.runtime.commands import doctor as doctor_command
from stc.runtime.commands import run as run_command
from tests.as_user import CLIP
from tests.tiny_bundle import FILES, write_bundle

Run = Callable[..., subprocess.CompletedProcess[str]]
ALTERED = FILES[WEIGHTS][:-1] + b"\0"
SETTLED_S = 0.03


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's hashes are remembered, those of files older than a hundredth second."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bundle_files, "RECENT_NS", 10_000_000)
    return tmp_path / "cache" / "stc" / "known-hashes"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed, as they are; small ones that are read are not among."""
    names: list[str] = []
    whole = bundle_files.sha256

    def counted(file: Path) -> str:
        names.append(file.name)
        return whole(file)

    monkeypatch.setattr(bundle_files, "sha256", counted)
    return names


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return settled(write_bundle(tmp_path / "tiny"))


def settled(path: Path) -> Path:
    """`path`, not touched for a while."""
    time.sleep(SETTLED_S)
    return path


def use(place: Path) -> None:
    """The weights of the bundle at `place` are used."""
    Bundle.open(place).files.check_unchanged([WEIGHTS])


def refused(place: Path) -> None:
    with pytest.raises(BundleError, match=r"weights\.bin: was altered"):
        use(place)


def lie(place: Path) -> None:
    """The weights are altered, and remembered as what the manifest says."""
    (place / WEIGHTS).write_bytes(ALTERED)
    identity = FileIdentity.of(settled(place / WEIGHTS).stat())
    entry = next(file for file in Bundle.open(place).manifest.files if file.path == WEIGHTS)
    KnownHashes().remember(place / WEIGHTS, identity, entry.sha256, time.time_ns())


def test_a_file_is_hashed_when_it_is_used_and_not_again(
    place: Path, hashed: list[str], cache: Path
) -> None:
    """The second start of a stream hashes nothing; only the user reads what is remembered."""
    Bundle.open(place)
    assert hashed == []
    for _ in range(3):
        use(place)
    assert hashed == ["weights.bin"]
    assert cache.stat().st_mode & 0o777 == 0o600
    assert list(cache.parent.iterdir()) == [cache]


def test_a_stream_without_questions_does_not_hash_the_language_side(
    demo_bundle: Path, hashed: list[str], run_main: Run
) -> None:
    """Language weights of gigabytes are hashed by the first run that asks something."""
    arguments = [demo_bundle, "--video", CLIP, "--frames", 2]
    assert run_main(run_command.main, *arguments).returncode == 0
    assert set(hashed) == {Path(WEIGHTS).name}
    hashed.clear()
    assert run_main(run_command.main, *arguments, "--ask", "What?").returncode == 0
    assert set(hashed) == {Path(LANGUAGE_WEIGHTS).name}


def in_place(file: Path) -> None:
    """Other bytes, the size and the time of change as they were."""
    before = file.stat()
    file.write_bytes(ALTERED)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def renamed_over(file: Path) -> None:
    """Another file in its place, as old and as long."""
    other = file.with_name("other")
    other.write_bytes(ALTERED)
    shutil.copystat(file, other)
    other.replace(file)


@pytest.mark.parametrize("change", [in_place, renamed_over])
def test_what_is_altered_after_it_was_remembered_is_refused(
    place: Path, change: Callable[[Path], None]
) -> None:
    """Times put back, or another file moved there: seen by the change time or the inode."""
    use(place)
    change(place / WEIGHTS)
    refused(settled(place))
    refused(place)


def test_what_is_remembered_is_of_one_path(place: Path, hashed: list[str]) -> None:
    """A bundle that was moved is hashed where it is now, and the names of links do not count."""
    use(place)
    moved = place.rename(place.with_name("moved"))
    use(moved)
    assert len(hashed) == 2
    (place.parent / "link").symlink_to(moved)
    use(place.parent / "link")
    assert len(hashed) == 2


def test_any_name_can_be_remembered(tmp_path: Path, hashed: list[str]) -> None:
    """Line ends, quotes and bytes that are no UTF-8 in a folder's name."""
    place = settled(write_bundle(tmp_path / "one\nand 'two' \"\udcff"))
    use(place)
    use(place)
    assert len(hashed) == 1


def test_a_file_just_changed_is_not_remembered(
    tmp_path: Path, hashed: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where change times are coarse a second change may not show: hashed until it is settled."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    place = write_bundle(tmp_path / "tiny")
    use(place)
    assert not cache.exists()
    in_the_future = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr("stc.bundles.files.time.time_ns", lambda: in_the_future)
    use(place)
    assert not cache.exists()
    monkeypatch.undo()


def forbidden(cache: Path) -> None:
    cache.chmod(0o620)


def open_to_all(cache: Path) -> None:
    cache.chmod(0o602)


def foreign(cache: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away; other tests need it not")
    os.chown(cache, 12345, 12345)


def linked(cache: Path) -> None:
    cache.rename(cache.with_name("elsewhere"))
    cache.symlink_to("elsewhere")


def folder(cache: Path) -> None:
    cache.unlink()
    cache.mkdir()


def pipe(cache: Path) -> None:
    cache.unlink()
    os.mkfifo(cache, 0o600)


def noise(cache: Path) -> None:
    cache.write_bytes(bytes(range(256)) * 1000)


def cut(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-1])


def huge(cache: Path) -> None:
    cache.write_bytes(b"x" * bundle_files.MAX_KNOWN_BYTES + b"\n" + cache.read_bytes())


@pytest.mark.parametrize(
    "spoil", [forbidden, open_to_all, foreign, linked, folder, pipe, noise, cut, huge]
)
def test_a_cache_that_anybody_may_have_written_is_not_believed(
    place: Path, cache: Path, spoil: Callable[[Path], None]
) -> None:
    """A lie is believed from the user's own file alone; from any other the weights are hashed."""
    lie(place)
    use(place)
    spoil(cache)
    refused(place)


@pytest.mark.parametrize("spoil", [open_to_all, foreign, linked, noise, cut])
def test_a_spoilt_cache_is_replaced(
    place: Path, cache: Path, hashed: list[str], spoil: Callable[[Path], None]
) -> None:
    """Damage costs hashing once."""
    use(place)
    spoil(cache)
    use(place)
    use(place)
    assert len(hashed) == 2


@pytest.mark.parametrize("base", ["/proc", "/dev/null", "/dev/full/there"])
def test_without_a_place_for_the_cache_files_are_hashed(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """A folder that cannot be made or written: no error, nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    use(place)
    use(place)
    assert len(hashed) == 2


def test_on_a_full_disk_files_are_hashed(
    place: Path, hashed: list[str], full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space for the cache: no error, and no half-written file is left."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(full_disk))
    (full_disk / "stc").mkdir()
    with pytest.raises(OSError, match="No space"), (full_disk / "filling").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    use(place)
    use(place)
    assert len(hashed) == 2
    assert list((full_disk / "stc").iterdir()) == []


def test_a_user_without_a_home_can_use_a_bundle(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user that is in no list, without HOME: hashed every time."""

    def unlisted(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unlisted)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    use(place)
    use(place)
    assert len(hashed) == 2


@pytest.mark.parametrize("base", ["", "relative"])
def test_the_cache_is_in_the_home_by_default(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    """XDG_CACHE_HOME unset, empty or relative, which the standard has ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    use(place)
    assert (tmp_path / ".cache" / "stc" / "known-hashes").is_file()


def test_the_oldest_entries_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bundles are used, the cache stays small."""
    monkeypatch.setattr(bundle_files, "MAX_KNOWN_FILES", 3)
    identity, known = FileIdentity(1, 2, 3, 4, 5), KnownHashes()
    paths = [Path(f"/file{number}") for number in range(5)]
    for path in (*paths[:3], paths[0], *paths[3:]):
        known.remember(path, identity, "0" * 64, time.time_ns())
    held = [path.name for path in paths if known.holds(path, identity, "0" * 64)]
    assert held == ["file0", "file3", "file4"]
    assert len(cache.read_bytes().splitlines()) == 3


REMEMBERING = """
import sys
from pathlib import Path
from stc.bundles.files import FileIdentity, KnownHashes
for number in range(40):
    path = Path(f"/{sys.argv[1]}/{number}")
    KnownHashes().remember(path, FileIdentity(1, 2, 3, 4, 5), "0" * 64, 10**18)
"""


def test_two_processes_may_remember_at_once(cache: Path) -> None:
    """Whoever reads meanwhile finds whole lines; what one adds last is there."""
    command = [sys.executable, "-c", REMEMBERING]
    writers = [subprocess.Popen([*command, name]) for name in ("one", "other")]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        lines = cache.read_bytes().splitlines() if cache.exists() else []
        assert all(line.endswith(b" 1 2 3 4 5 " + b"0" * 64) for line in lines)
        seen = max(seen, len(lines))
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen > 1
    last = [Path(f"/{name}/39") for name in ("one", "other")]
    assert any(KnownHashes().holds(path, FileIdentity(1, 2, 3, 4, 5), "0" * 64) for path in last)
    assert list(cache.parent.iterdir()) == [cache]


def test_the_doctor_hashes_whatever_is_remembered(place: Path, run_main: Run) -> None:
    """Bytes that changed unseen, on a failing disk: found by --verify, and refused from then on."""
    lie(place)
    use(place)
    assert "was altered" not in run_main(doctor_command.main, place).stdout
    done = run_main(doctor_command.main, "--verify", place)
    assert done.returncode == 1
    assert f"to fix    bundle: {place / WEIGHTS}: was altered" in done.stdout
    refused(place)


def test_the_doctor_names_every_file_that_is_wrong(place: Path, run_main: Run) -> None:
    """Altered, cut short and gone: one finding each, with its fix."""
    (place / WEIGHTS).write_bytes(ALTERED)
    (place / "config.json").write_bytes(b"")
    (place / "graphs/embed.onnx").unlink()
    done = run_main(doctor_command.main, "--verify", place)
    assert done.returncode == 1
    assert f"{place / WEIGHTS}: was altered" in done.stdout
    assert f"{place / 'config.json'}: is truncated" in done.stdout
    assert f"{place / 'graphs/embed.onnx'}: is missing" in done.stdout
    assert done.stdout.count("fix: copy the bundle again") == 3


def test_the_doctor_says_that_all_files_are_right(place: Path, run_main: Run) -> None:
    """It remembers what it hashed; without a bundle there is nothing to verify."""
    done = run_main(doctor_command.main, "--verify", place)
    assert f"ok        bundle: demo, fp32, {len(FILES)} files as their digests say" in done.stdout
    done = run_main(doctor_command.main, "--verify")
    assert done.returncode == 2
    assert done.stderr == "error: --verify: no bundle, expected stc-doctor --verify BUNDLE\n"


def test_graphs_load_with_remembered_weights(demo_bundle: Path, hashed: list[str]) -> None:
    """ONNX Runtime gets the weights that were hashed by an earlier process."""
    names = [name for name in Bundle.open(demo_bundle).manifest.graphs if "attend" not in name]
    for _ in range(2):
        backend = OnnxRuntimeBackend(Bundle.open(demo_bundle))
        for name in names:
            backend.load(name)
    assert sorted(hashed) == sorted({Path(WEIGHTS).name, Path(LANGUAGE_WEIGHTS).name})
