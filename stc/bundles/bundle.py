"""A bundle on disk, opened only when it is whole.

Every file the manifest lists is there with its size when it is opened, and has its sha256 when it
is used; no other file of it is opened (`stc.bundles.files`).

Knows nothing of how graphs are made or run; `stc.bundles.writer` makes bundles appear.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

import stc
from stc.bundles.conformity import check_conformity
from stc.bundles.files import BundleFiles, PinnedFolder, led_out, real_place, sha256
from stc.contracts import language_graphs
from stc.errors import BundleError, SettingsError
from stc.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    ON_REQUEST,
    SCHEMA_VERSION,
    DefaultSettings,
    FileEntry,
    GraphChoice,
    Grid,
    Manifest,
    Provenance,
    Weights,
    first_mistake,
)
from stc.onnx_files.graph_check import MAX_GRAPH_BYTES, GraphRefusedError, check_graph
from stc.settings import Settings, flags_of

PARTIAL = ".stc-partial"
"""How the name of a directory ends in which a bundle is still being written."""
REPLACED = ".stc-replaced"
"""What follows the name of a bundle that was moved aside, then perhaps a number."""

MAX_COMPANION_BYTES = 256 << 20
"""Of a file of the checkpoint's own, as at export; a large tokenizer has some 30 MB."""

OPENINGS = 5
"""How often opening starts over when the bundle is replaced meanwhile."""
RENAMING_S = 0.5
"""How long a bundle may be gone that is being replaced where directories cannot be exchanged."""


@dataclass(frozen=True)
class GraphFile:
    """A graph that was checked, and how to load it.

    content: its bytes. path: where it stands, for what must open it by itself; tensors that it
    does not hold lie beside it. portable: it is the bundle's own, of no variant.
    """

    content: bytes
    path: Path
    portable: bool
    files: BundleFiles
    names: tuple[str, ...]

    def check_unchanged(self) -> None:
        """What was loaded meanwhile are the bytes that were verified. Raises BundleError."""
        self.files.check_unchanged(self.names)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those of its manifest when they are used; made by `Bundle.open`.

    It goes on with the directory it opened, also when another bundle takes its place.
    """

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str, *, whole: bool = True) -> Bundle:
        """The bundle at `path`.

        One that is replaced meanwhile is the old one or the new one. Raises BundleError, one line,
        when the directory is missing or no bundle, its manifest is of a newer schema, invalid or at
        odds with itself, or, unless it need not be `whole`, a file is missing, truncated or outside
        it. A file that was altered is refused when it is used.
        """
        root = Path(path)
        for _ in range(OPENINGS):
            folder = _pinned(root)
            try:
                bundle = cls(root, _read_manifest(root, folder))
                files = bundle._files(folder)
                if whole:
                    files.check_places()
            except BundleError:
                if folder.stands():
                    raise
                continue
            vars(bundle)["files"] = files
            return bundle
        got = "was replaced again and again while it was opened"
        raise BundleError(root, got, "", "run the command again")

    @cached_property
    def files(self) -> BundleFiles:
        """The door to its files. Raises OSError when there is no such directory."""
        return self._files(PinnedFolder(self.root))

    def table(self, backend: str, weights: str | None = None) -> dict[str, GraphChoice]:
        """The graphs that `backend` runs with `weights`, by name; without, with those it prefers.

        Raises SettingsError for weights that the bundle does not have, or not for `backend`.
        """
        variants, subject = self.manifest.variants, f"weights {weights}"
        if weights is None:
            own = (
                name for name, one in variants.items() if one.default and backend in one.backends
            )
            return self.manifest.table(next(own, None))
        named = [name for name, one in variants.items() if not one.default]
        if weights not in named:
            has = f"{self.root} has {' and '.join(named) or 'none but its own'}"
            fix = "name one of those, or none for its own" if named else "name none"
            if str(weights) in variants:
                has, fix = "are what it runs by itself wherever it can", "name none"
            if groups := ON_REQUEST.get(str(weights)):
                fix = self.export_again(f"--{weights}", str(groups[0]), answers=True)
            raise SettingsError(subject, has, "", fix)
        if backend not in (runs := variants[weights].backends):
            fix = "choose one with --backend and --device"
            raise SettingsError(subject, f"{backend} does not run them", " or ".join(runs), fix)
        return self.manifest.table(weights)

    def graph(self, name: str, backend: str = "", weights: str | None = None) -> GraphFile:
        """Graph `name` of the table of `backend` and `weights`, which may be handed to a runtime.

        Raises BundleError when there is no such graph, when it or a file its tensors lie in is
        not as the manifest says, or when it is no graph of stc-export's
        (`stc.onnx_files.graph_check`), and SettingsError as `table`.
        """
        table = self.table(backend, weights)
        if name not in table:
            raise BundleError(self.root, f"has no graph {name!r}", "", self.export_again())
        entry, variant = table[name].entry.file, table[name].variant
        folder, _, _ = entry.path.rpartition("/")
        beside = f"{folder}/" if folder else ""
        sizes = {
            path.removeprefix(beside): size
            for path, size in self.files.sizes.items()
            if path.startswith(beside)
        }
        language = self.manifest.language
        # Nothing of the tower is an operator of ONNX Runtime's own.
        blocks = language.blocks if language else 0
        try:
            if entry.size_bytes > MAX_GRAPH_BYTES:
                got = f"has {entry.size_bytes:,} bytes"
                raise GraphRefusedError(got, f"at most {MAX_GRAPH_BYTES:,}")
            content = self.files.read(entry.path)
            places = check_graph(
                content,
                sizes,
                own=variant is not None and name in language_graphs(blocks),
                group=variant.options.get("group") if variant else None,
                positions=language.max_positions if language else 0,
            )
        except GraphRefusedError as error:
            fix = self.export_again()
            raise BundleError(self.root / entry.path, error.got, error.expected, fix) from error
        names = (entry.path, *(f"{beside}{place}" for place in sorted(places)))
        place = self.files.place(entry.path)
        graph = GraphFile(content, place, variant is None, self.files, names)
        # A file cut short since would kill the process that maps it.
        graph.check_unchanged()
        return graph

    def read(self, path: str) -> bytes:
        """The bytes of the listed file `path`, which are those the manifest's digest is of.

        Raises BundleError when the manifest lists no such file, or its bytes are others.
        """
        return self.files.read(path)

    def companions(self) -> dict[str, bytes]:
        """The checkpoint's own files, by name; a few MB, tokenizer and templates among them.

        Raises BundleError as `read`, and when one has more than MAX_COMPANION_BYTES.
        """
        files = [file for file in self.manifest.files if "/" not in file.path]
        for file in files:
            if file.size_bytes > MAX_COMPANION_BYTES:
                got, expected = f"has {file.size_bytes:,} bytes", f"at most {MAX_COMPANION_BYTES:,}"
                raise BundleError(self.root / file.path, got, expected, self.export_again())
        return {file.path: self.read(file.path) for file in files}

    def export_again(self, *more: str, answers: bool = False, **other: str) -> str:
        """What to tell a user who must replace it: as it was made, but for the flags `more` and
        fields of its provenance that are to be `other`; with a language side if it is to answer."""
        document = self.manifest.model_dump(
            include={
                "provenance": True,
                "language": True,
                "settings": True,
                "vision": {"grid"},
                "variants": {"__all__": {"options"}},
            }
        )
        if answers:
            del document["language"]
        document["provenance"] |= other
        return export_again(self.root, document, more)

    def _files(self, folder: PinnedFolder) -> BundleFiles:
        fix = f"copy the bundle again, or {self.export_again()}"
        return BundleFiles(self.root, folder, self.manifest.listed, fix)


def file_entry(root: Path, path: str) -> FileEntry:
    """The entry of the file that stands at `path` below `root` now. Raises OSError."""
    file = root / path
    return FileEntry(path=path, sha256=sha256(file), size_bytes=file.stat().st_size)


def moved_aside(place: Path) -> dict[int, Path]:
    """What writers moved aside that replaced a bundle at `place`, numbered, the latest last."""
    start = f".{place.name}{REPLACED}"
    ends = {
        beside.name.removeprefix(start).removeprefix("-") or "0": beside
        for beside in place.parent.iterdir()
        if beside.name.startswith(start)
    }
    return dict(sorted((int(end), beside) for end, beside in ends.items() if end.isdecimal()))


def export_again(root: Path, document: object = None, more: Iterable[str] = ()) -> str:
    """What to tell a user who must replace the bundle at `root`.

    `document` is its manifest, of any schema and perhaps invalid; `more` are flags to add.
    """
    words = ["stc-export", "--model"]
    try:
        made = Provenance.model_validate(_at(document, "provenance"))
    except ValidationError:
        words.append("MODEL")
    else:
        size = made.checkpoint.partition(" ")[0]
        source: dict[Weights, list[str]] = {
            "checkpoint": ["--checkpoint", made.checkpoint],
            "random": ["--random-weights", size.removeprefix("llava-ov-")],
            "demo": [],
        }
        words += [made.model, *source[made.weights], "--precision", made.precision]
    if _at(document, "language") is None and isinstance(document, dict) and "language" in document:
        words.append("--vision-only")
    for name, groups in ON_REQUEST.items():
        schema_1 = _at(document, f"{name}_group")
        own = (_at(document, "variants", name, "options", "group"), schema_1)
        words += [word for group in groups if group in own for word in (f"--{name}", str(group))]
    words += _settings_flags(document)
    return f"export again with: {shlex.join([*words, *more, '--output', str(root), '--force'])}"


def _settings_flags(document: object) -> list[str]:
    """The flags with which an export has the settings that `document` tells; none where it does
    not, or tells such as no export takes."""
    try:
        made = DefaultSettings.model_validate(_at(document, "settings"))
        chosen, pooled = Settings(**made.model_dump()), _pooled(document)
        chosen.kept(pooled)
    except (ValidationError, SettingsError):
        return []
    return flags_of(chosen, pooled)


def _pooled(document: object) -> int:
    """n of a manifest of any schema, 0 when it does not tell."""
    image, patch = (_at(document, "vision", name) for name in ("image_size", "patch_size"))
    if isinstance(image, int) and isinstance(patch, int) and patch > 0:  # of schema 1
        side = image // patch
        return (side - side // 2) ** 2
    try:
        grid = Grid.model_validate(_at(document, "vision", "grid"))
    except ValidationError:
        return 0
    return grid.pooled_rows * grid.pooled_columns


def _at(document: object, *keys: str) -> object:
    """What stands below `keys` in `document`, None where nothing does."""
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _pinned(root: Path) -> PinnedFolder:
    """The directory at `root`, held open. Raises BundleError."""
    end = time.monotonic() + RENAMING_S
    while True:
        try:
            return PinnedFolder(root)
        except FileNotFoundError as error:
            aside = _aside(root)
            if aside and time.monotonic() < end:
                time.sleep(0.01)
                continue
            fix = f"make one with: stc-export --model MODEL --output {shlex.quote(str(root))}"
            if aside:
                there = shlex.join(["mv", str(aside), os.path.realpath(root)])
                fix = f"an export was killed while replacing it: restore the old one with: {there}"
            raise BundleError(root, "no such directory", "a bundle", fix) from error
        except BlockingIOError as error:
            if time.monotonic() < end:
                time.sleep(0.01)
                continue
            raise BundleError(root, "is being replaced", "", "run the command again") from error
        except NotADirectoryError as error:
            fix = "pass its directory"
            raise BundleError(root, "is a file", "a bundle's directory", fix) from error
        except OSError as error:
            got = f"cannot be read ({error.strerror})"
            raise BundleError(root, got, "", "make it readable") from error


def _aside(root: Path) -> Path | None:
    """The bundle that was moved aside from `root` last."""
    place = Path(os.path.realpath(root))
    try:
        return next(reversed(moved_aside(place).values()), None)
    except OSError:  # there is no such folder, or it cannot be listed
        return None


def _read_manifest(root: Path, folder: PinnedFolder) -> Manifest:
    """The manifest of the bundle at `root`, read from `folder`. Raises BundleError."""
    file = root / MANIFEST
    if os.path.realpath(root).endswith(PARTIAL):
        got = "is what an interrupted export left behind"
        raise BundleError(root, got, "a bundle", "export again to the same --output")
    try:
        if not (folder.path / MANIFEST).is_file():
            got = f"is not a bundle, it has no {MANIFEST}"
            raise BundleError(root, got, "", "pass a directory of stc-export, or copy it again")
        place = real_place(folder, MANIFEST)
        if place is None:
            raise led_out(root, file)
        with place.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        fix = "make it readable"
        raise BundleError(file, f"cannot be read ({error.strerror})", "", fix) from error
    if len(content) > MAX_MANIFEST_BYTES:
        expected = f"at most {MAX_MANIFEST_BYTES:,}"
        raise BundleError(file, "has too many bytes", expected, export_again(root))
    try:
        document = from_json(content)
    except ValueError as error:
        fix = f"copy it again, or delete {root} and {export_again(root)}"
        raise BundleError(file, f"is not JSON ({error})", "", fix) from error
    fix = export_again(root, document)
    version = _at(document, "schema_version")
    # Before anything else: the other fields of another schema mean nothing here.
    if type(version) is int and version > 0 and version != SCHEMA_VERSION:
        expected = f"{SCHEMA_VERSION} by stc {stc.__version__}"
        upgrade = "upgrade stc, or " if version > SCHEMA_VERSION else ""
        raise BundleError(file, f"has schema version {version}", expected, f"{upgrade}{fix}")
    try:
        manifest = Manifest.model_validate_json(content, strict=True)
        _ = manifest.default_settings  # asked for here, so that no command trips over it later
    except ValidationError as error:
        raise BundleError(file, first_mistake(error), "", fix) from error
    except SettingsError as error:
        raise BundleError(file, f"default settings: {error}", "", fix) from error
    check_conformity(manifest, file, fix)
    return manifest
