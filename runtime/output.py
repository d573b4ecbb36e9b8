"""Where a command writes: files that appear whole, never onto what it reads; or stdout."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from stc.bundles.part_file import replacing
from stc.errors import SettingsError
from stc.runtime.video.open import local_path

Document = dict[str, Any]
STDOUT = "-"


@contextmanager
def document_output(
    target: str | None, made: Path | None = None, names: Sequence[str] = ()
) -> Iterator[Callable[[Document], None]]:
    """A function for the body to call once, at its end, with the document.

    target: `--json` as the user wrote it. A file is opened now, so that nobody waits for a result
        that cannot be kept, and appears when the body ends without an error; `-` is one line on
        stdout; None is nowhere.
    made: a folder that the body makes, or one that is there. A file in it whose own folder is not
        there is opened at the end, and its folder made; that the disk takes its name is tried now.
    names: of what the body itself writes in `made`, which the file is neither nor in.

    Raises SettingsError when it names a folder or cannot be written.
    """
    if target is None:
        yield lambda document: None
        return
    if target == STDOUT:
        yield lambda document: print(json.dumps(document, allow_nan=False))
        return
    if made is not None:
        _refuse_own_names(target, made, names)
    if made is not None and not target.endswith("/") and _comes_in(made, Path(target)):
        _try_names(target)
        yield partial(_write_in_new_folder, target)
    else:
        with text_output("--json", target) as write:
            yield lambda document: write(_text_of(document))


def _text_of(document: Document) -> str:
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def _comes_in(made: Path, path: Path) -> bool:
    """Whether the folder of `path` is not there, and below `made` or `made` itself."""
    folder = Path(os.path.realpath(path.parent))
    return not folder.exists() and folder.is_relative_to(os.path.realpath(made))


def _refuse_own_names(target: str, made: Path, names: Sequence[str]) -> None:
    path, folder = Path(os.path.realpath(target)), Path(os.path.realpath(made))
    own = next((name for name in names if path.is_relative_to(folder / name)), None)
    if own is not None:
        got = f"{own} is what the run itself writes in {made}"
        raise SettingsError(f"--json {target}", got, fix="choose another name")


def _try_names(target: str) -> None:
    """The file `target` and the folders above it that are not there may be called so: each name is
    tried in the nearest folder that is there."""
    missing, folder = [Path(target).name], Path(os.path.realpath(Path(target).parent))
    while not folder.exists():
        missing.append(folder.name)
        folder = folder.parent
    with _one_line_errors(f"--json {target}"):
        for name in missing:
            if not (folder / name).exists():
                (folder / name).touch(exist_ok=False)
                (folder / name).unlink()


def _write_in_new_folder(target: str, document: Document) -> None:
    with _one_line_errors(f"--json {target}"):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(target)) as file:
            _write(f"--json {target}", file, _text_of(document))


@contextmanager
def text_output(flag: str, target: str) -> Iterator[Callable[[str], None]]:
    """A function for the body to call with text that stands in the file `target` afterwards, as the
    user wrote it behind `flag`; whole, and opened now, as that of `document_output`.

    Raises SettingsError when it names a folder or cannot be written.
    """
    subject = f"{flag} {target}"
    if target.endswith("/"):
        raise SettingsError(subject, "names a folder", "a file", "name a file inside it")
    with ExitStack() as stack:
        with _one_line_errors(subject):
            file = stack.enter_context(whole_file(Path(target)))
        yield lambda text: _write(subject, file, text)
        with _one_line_errors(subject):
            stack.close()


def _write(subject: str, file: BinaryIO, text: str) -> None:
    with _one_line_errors(subject):
        file.write(text.encode())


@contextmanager
def _one_line_errors(subject: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            subject,
            f"cannot be written ({error.strerror or error})",
            fix="check its folder and the space left, or choose another path",
        ) from error


def refuse_shared_paths(
    outputs: Mapping[str, Path | str | None],
    *,
    video: str | None,
    bundle: Path,
    checkpoint: str | None = None,
    inputs: Mapping[str, Sequence[Path]] = MappingProxyType({}),
) -> None:
    """Nothing is read or written at, or inside, a path that one of `outputs` would replace.

    outputs: paths by what a user calls them; None and `-` are no path. inputs: further files that
    are read, by flag. Links, hard links and file:// addresses are seen through.

    Raises SettingsError naming both.
    """
    fix = "choose another path"
    taken = [] if video is None else [("--video", Path(local_path(video)))]
    taken += [(flag, path) for flag, paths in inputs.items() for path in paths]
    folders = {"the bundle": bundle}
    if checkpoint is not None:
        folders["--checkpoint"] = Path(checkpoint)
    for name, output in outputs.items():
        if output is None or output == STDOUT:
            continue
        path = Path(output)
        for other, place in taken:
            if _same(path, place):
                raise SettingsError(name, f"{output} is {other} as well", fix=fix)
        for other, folder in folders.items():
            if folder.is_dir() and Path(os.path.realpath(path)).is_relative_to(folder.resolve()):
                raise SettingsError(name, f"{output} is inside {other} {folder}", fix=fix)
        taken.append((name, path))


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the body ends, and vanishes when it raises.

    Until then whatever stood at `path` stays untouched. A link is followed; a device or pipe
    (`/dev/null`) is written straight through, as it cannot be replaced.

    Raises OSError naming `path` when it cannot be written: before the body for a missing or
    read-only folder, after it when the last bytes do not fit.
    """
    # Not resolve(), for which a loop of links is no OSError before Python 3.13.
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, "is a link that leads to itself", str(path))
    if target.is_dir():
        raise IsADirectoryError(21, "is a folder", str(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    with replacing(target) as file:
        yield file
