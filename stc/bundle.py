"""A bundle on disk, opened only when it is whole.

Every file the manifest lists is there, with its size and its sha256, before anything is run.
Hashing is what takes the time: about a second per 1.7 GB with a processor's SHA instructions.

Knows nothing of how graphs are made or run; `stc.bundle_writer` makes bundles appear.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import from_json

import stc
from stc.conformity import check_conformity
from stc.errors import BundleError, SettingsError
from stc.manifest import (
    MANIFEST,
    MOST_MANIFEST_BYTES,
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    Provenance,
    Weights,
    first_mistake,
)

PARTIAL = ".stc-partial"
"""How the name of a directory ends in which a bundle is still being written."""

HASHING_THREADS = 2
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are those of its manifest; made by `Bundle.open`."""

    root: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """The bundle at `path`, every file verified.

        Raises BundleError, one line, when the directory is missing or no bundle, its manifest is
        of a newer schema, invalid or at odds with itself, or a file is missing, truncated, altered
        or outside it.
        """
        root = Path(path)
        manifest = _read_manifest(root)
        mend = f"copy the bundle again, or {export_again(root, manifest.provenance)}"
        kinds = (manifest.graphs, manifest.fused_graphs, manifest.int4_graphs)
        graphs = [graph for kind in kinds for graph in kind.values()]
        entries = list(dict.fromkeys([*(graph.file for graph in graphs), *manifest.files]))
        try:
            for entry in entries:
                _verify_size(root, entry, mend)
            _verify_hashes(root, entries, mend)
        except OSError as error:
            file = error.filename or root
            raise BundleError(file, f"cannot be read ({error.strerror})", "", mend) from error
        return cls(root, manifest)

    def graph_path(self, name: str) -> Path:
        """The file of graph `name`. Raises BundleError when the bundle has no such graph."""
        if name not in self.manifest.graphs:
            got = f"has no graph {name!r}"
            raise BundleError(self.root, got, "", export_again(self.root, self.manifest.provenance))
        return self.root / self.manifest.graphs[name].file.path

    def read(self, path: str) -> bytes:
        """The bytes of the listed file `path`, which are those the manifest's digest is of.

        Raises BundleError when the manifest lists no such file, or its bytes are others.
        """
        entry = next((file for file in self.manifest.files if file.path == path), None)
        if entry is None:
            again = export_again(self.root, self.manifest.provenance)
            raise BundleError(self.root / path, "is not listed in the manifest", "", again)
        file = self.root / path
        mend = f"copy the bundle again, or {export_again(self.root, self.manifest.provenance)}"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise BundleError(file, f"cannot be read ({error.strerror})", "", mend) from error
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry.sha256:
            got = f"was altered, sha256 {digest[:12]}"
            raise BundleError(file, got, entry.sha256[:12], mend)
        return content

    def companions(self) -> dict[str, bytes]:
        """The checkpoint's own files, by name; a few MB, tokenizer and templates among them."""
        names = [file.path for file in self.manifest.files if "/" not in file.path]
        return {name: self.read(name) for name in names}


def file_entry(root: Path, path: str) -> FileEntry:
    """The entry of the file that stands at `path` below `root` now. Raises OSError."""
    file = root / path
    return FileEntry(path=path, sha256=sha256(file), size_bytes=file.stat().st_size)


def sha256(file: Path, stop: threading.Event | None = None) -> str:
    """The hexadecimal SHA-256 of a file's bytes; of some of them once `stop` is set.

    Raises OSError.
    """
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with file.open("rb", buffering=0) as stream:
        while not (stop and stop.is_set()) and (size := stream.readinto(chunk)):
            digest.update(chunk[:size])
    return digest.hexdigest()


def export_again(root: Path, made: Provenance | None = None) -> str:
    """What to tell a user whose bundle at `root`, `made` so, must be replaced."""
    words = ["stc-export", "--model"]
    if made is None:
        words.append("MODEL")
    else:
        words.append(made.model)
        size = made.checkpoint.partition(" ")[0]
        source: dict[Weights, list[str]] = {
            "checkpoint": ["--checkpoint", made.checkpoint],
            "random": ["--random-weights", size.removeprefix("llava-ov-")],
            "demo": [],
        }
        words += [*source[made.weights], "--precision", made.precision]
    return f"export again with: {shlex.join([*words, '--output', str(root), '--force'])}"


def _read_manifest(root: Path) -> Manifest:
    """The manifest of the bundle at `root`. Raises BundleError."""
    file = root / MANIFEST
    try:
        if not root.exists():
            mend = f"make one with: stc-export --model MODEL --output {shlex.quote(str(root))}"
            raise BundleError(root, "no such directory", "a bundle", mend)
        if not root.is_dir():
            raise BundleError(root, "is a file", "a bundle's directory", "pass its directory")
        if os.path.realpath(root).endswith(PARTIAL):
            got = "is what an interrupted export left behind"
            raise BundleError(root, got, "a bundle", "export again to the same --output")
        if not file.is_file():
            got = f"is not a bundle, it has no {MANIFEST}"
            raise BundleError(root, got, "", "pass a directory of stc-export, or copy it again")
        with file.open("rb") as stream:
            content = stream.read(MOST_MANIFEST_BYTES + 1)
    except OSError as error:
        mend = "make it readable"
        raise BundleError(file, f"cannot be read ({error.strerror})", "", mend) from error
    if len(content) > MOST_MANIFEST_BYTES:
        expected = f"at most {MOST_MANIFEST_BYTES:,}"
        raise BundleError(file, "has too many bytes", expected, export_again(root))
    try:
        document = from_json(content)
    except ValueError as error:
        raise BundleError(file, f"is not JSON ({error})", "", export_again(root)) from error
    mend = export_again(root, _provenance(document))
    version = document.get("schema_version") if isinstance(document, dict) else None
    # Before anything else: the other fields of a newer schema mean nothing here.
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            file,
            f"has schema version {version}",
            f"at most {SCHEMA_VERSION} by stc {stc.__version__}",
            f"upgrade stc, or {mend}",
        )
    try:
        manifest = Manifest.model_validate_json(content, strict=True)
        _ = manifest.default_settings  # asked for here, so that no command trips over it later
    except ValidationError as error:
        raise BundleError(file, first_mistake(error), "", mend) from error
    except SettingsError as error:
        raise BundleError(file, f"default settings: {error}", "", mend) from error
    check_conformity(manifest, file, mend)
    return manifest


def _provenance(document: object) -> Provenance | None:
    """What a manifest that may be invalid or newer says of its making, if it can be read."""
    if not isinstance(document, dict):
        return None
    try:
        return Provenance.model_validate(document.get("provenance"))
    except ValidationError:
        return None


def _verify_size(root: Path, entry: FileEntry, mend: str) -> None:
    """The file of `entry` is a plain file inside `root` and has its size."""
    file = root / entry.path
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(os.path.realpath(root)):
        raise BundleError(file, f"leads to {target}", "a file inside the bundle", mend)
    try:
        found = target.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(file, "is missing", f"{entry.size_bytes:,} bytes", mend) from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(file, "is not a plain file", f"{entry.size_bytes:,} bytes", mend)
    if found.st_size != entry.size_bytes:
        got = f"is {'truncated' if found.st_size < entry.size_bytes else 'too long'}"
        raise BundleError(
            file, f"{got}, {found.st_size:,} bytes", f"{entry.size_bytes:,} bytes", mend
        )


def _verify_hashes(root: Path, entries: list[FileEntry], mend: str) -> None:
    """The files of `entries` hold the bytes they were written with."""
    pool, stop = ThreadPoolExecutor(HASHING_THREADS), threading.Event()
    try:
        found = pool.map(lambda entry: sha256(root / entry.path, stop), entries)
        for entry, digest in zip(entries, found, strict=True):
            if digest != entry.sha256:
                got = f"was altered, sha256 {digest[:12]}"
                raise BundleError(root / entry.path, got, entry.sha256[:12], mend)
    finally:
        # Ctrl-C, too, waits for a chunk, not for a file of many gigabytes.
        stop.set()
        pool.shutdown(cancel_futures=True)
