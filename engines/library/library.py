"""The engines of a bundle on disk: what each was built from, and whether it may be used here.

    BUNDLE/engines/<targets>/<engine>      one file per engine
    BUNDLE/engines/<targets>/engines.json  the stamp of each
    BUNDLE/engines/<targets>/kernels.rtxcache  see stc.engines.tensorrt.shared

The list is rewritten after every engine, file first, each by a rename: whenever a build stops, what
the list names is whole, and the next build goes on from there. Engines that are being built are in
it by name, so that what is deleted is always what it names.

Nothing is read, written or deleted through a link.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stc.bundles.bundle import Bundle
from stc.bundles.contents import ENGINES, LIST, LOCK, is_engine_name
from stc.bundles.part_file import replacing
from stc.engines.library.targets import THIS_DEVICE, Flavour
from stc.errors import EngineError
from stc.manifest import (
    GRAPHS,
    MAX_BYTES,
    MAX_POSITIONS,
    FileEntry,
    Precision,
    first_mistake,
)

LIST_SCHEMA: Final = 2
_LOCKING = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_BUILD = "build again with stc-build"

MAX_LIST_BYTES: Final = 4 << 20
"""Of a list: ten times that of the largest model."""

CHAIN_COSINE: Final = 0.99
"""Lowest cosine of a token at the end of the whole chain, each backend on its own outputs."""

Attention = Literal["fused", "unfused", "tf32", "float32"]
LADDER: Final[tuple[Attention, ...]] = get_args(Attention)
"""How an engine's attention is computed, from the fastest to the most exact: in one kernel, or its
products in kernels of their own, of float16, TF32 and float32."""

_Size = Annotated[int, Field(gt=0, le=MAX_POSITIONS)]
_Likeness = Annotated[float, Field(ge=-1.01, le=1.01)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stamp(_Entry):
    """What an engine was built from and for. Engines of equal stamps stand for one another."""

    graph: _Name
    graph_sha256: _Name = Field(description="of the graph's file")
    weights_sha256: _Name = Field(description="of the bundle's weight files together")
    flavour: Flavour
    version: _Name = Field(description="of the flavour's library")
    targets: tuple[_Name, ...] = Field(min_length=1, max_length=64)
    precision: Precision
    profiles: tuple[dict[_Name, _Size], ...] = Field(
        min_length=1, max_length=64, description="sizes of free axes, per profile"
    )
    baked: _Size | None = Field(description="the value of the graph's count")


class Acceptance(_Entry):
    """How an engine compared with ONNX Runtime on equal inputs, on the device it runs on."""

    passed: bool
    min_cosine: _Likeness = Field(description="of a token, over all outputs; NaN counts as -1")
    outputs: dict[_Name, _Likeness] = Field(max_length=64, description="the same, per output")
    relative_l2: float = Field(0.0, ge=0, description="the largest of all outputs")
    device: _Name = Field(description="that GPU's name")


class Chain(_Entry):
    """How the whole tower compared with ONNX Runtime."""

    cosine: _Likeness = Field(description="the lowest of a token, after the projector")
    device: _Name = Field(description="the GPU's name")

    @property
    def passed(self) -> bool:
        """Whether the tower is accepted."""
        return self.cosine >= CHAIN_COSINE


class EngineEntry(_Entry):
    """One engine of the list."""

    stamp: Stamp
    file: FileEntry = Field(description="path from the folder of the list")
    build_s: float = Field(ge=0, le=1e9)
    attention: Attention = Field("fused", description="how it was built to compute attention")
    workspace_bytes: int | None = Field(
        None, ge=0, le=MAX_BYTES, description="scratch memory; None: not loaded yet"
    )
    acceptance: Acceptance | None = Field(None, description="None: not compared yet")

    @property
    def next_attention(self) -> Attention | None:
        """How its attention would be built next, were it refused; None without attention and where
        nothing is more exact."""
        later = LADDER[LADDER.index(self.attention) + 1 :]
        if self.stamp.precision == "fp32":  # whose products are no more exact in TF32
            later = tuple(one for one in later if one != "tf32")
        attends = self.stamp.graph.startswith(("reference", "update", "attend"))
        return later[0] if later and attends else None

    def accepted_on(self, device: str | None) -> Acceptance | None:
        """Its acceptance on the GPU called `device`, None where it was not compared there.

        Another GPU computes with other kernels. `device` None takes that of any.
        """
        judged = self.acceptance
        return judged if judged is not None and device in (judged.device, None) else None


class EngineList(_Entry):
    """The list of a library's engines, by file name."""

    schema_version: Literal[2] = LIST_SCHEMA
    engines: dict[str, EngineEntry]
    unfinished: tuple[str, ...] = Field((), description="files a build was to write or delete")
    chain_cosine: dict[Flavour, Chain] = Field({}, description="of the whole tower, as accepted")

    def chain_on(self, flavour: Flavour, device: str | None) -> Chain | None:
        """How the whole tower compared with ONNX Runtime on the GPU called `device`, where it did
        and nothing changed since; None takes that of any."""
        chain = self.chain_cosine.get(flavour)
        return chain if chain is not None and device in (chain.device, None) else None

    @model_validator(mode="after")
    def _beside(self) -> EngineList:
        names = (*self.engines, *(one.file.path for one in self.engines.values()), *self.unfinished)
        if strange := [name for name in names if not is_engine_name(name)]:
            raise ValueError(f"{strange[0]!r} is no engine beside the list")
        return self


class EngineLibrary:
    """The engines of one set of targets, in `folder`; the folder need not exist yet.

    place: where the folder is found, when that is not its name, for as long as `pinned` lives (see
    `stc.bundles.files`). A builder's process is handed the place alone.
    """

    def __init__(
        self, folder: Path, place: Path | None = None, pinned: object | None = None
    ) -> None:
        self.folder = folder
        self.place = folder if place is None else place
        self.pinned = pinned

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "pinned": None}

    def file(self, name: str) -> Path:
        """Where file `name` of the library is read and written.

        Raises EngineError when it, its folder or the folder of all engines is a link: what it
        leads to is not the bundle's.
        """
        shown = (self.folder.parent, self.folder, self.folder / name)
        places = (self.place.parent, self.place, self.place / name)
        for seen, place in zip(shown, places, strict=True):
            if place.is_symlink():
                raise EngineError(
                    seen,
                    f"is a link to {place.readlink()}",
                    "a folder or file of the bundle's own",
                    f"remove the link with: {shlex.join(['rm', str(seen)])}",
                )
        return self.place / name

    def entries(self) -> dict[str, EngineEntry]:
        """Engines by file name, empty when none was built. Raises EngineError as `listed`."""
        return dict(self.listed().engines)

    def targets(self) -> set[tuple[str, ...]]:
        """The targets its engines say they were built for. Raises EngineError as `listed`."""
        return {entry.stamp.targets for entry in self.listed().engines.values()}

    def whole(self, entry: EngineEntry) -> bool:
        """Whether the engine's file is there with its size.

        Raises EngineError when it cannot be looked at.
        """
        try:
            found = self.file(entry.file.path).stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unread(self.folder / entry.file.path, error, "make it readable") from error
        return stat.S_ISREG(found.st_mode) and found.st_size == entry.file.size_bytes

    def store(self, name: str, content: memoryview) -> FileEntry:
        """`content` stands in file `name`, whole, on disk; it is not in the list yet.

        Raises EngineError when it cannot be written.
        """
        with self._written():
            self._make(name, content)
        digest = hashlib.sha256(content).hexdigest()
        return FileEntry(path=name, sha256=digest, size_bytes=content.nbytes)

    def write(
        self,
        entries: dict[str, EngineEntry],
        chains: dict[Flavour, Chain] | None = None,
        unfinished: Iterable[str] | None = None,
    ) -> None:
        """The list is `entries`; what is known of the whole tower is `chains`.

        `unfinished` are names of engines that a build may write or has yet to delete; None leaves
        them as they are.
        """
        names = self.listed().unfinished if unfinished is None else tuple(sorted(unfinished))
        made = EngineList(engines=entries, unfinished=names, chain_cosine=chains or {})
        with self._written():
            self._make(LIST, memoryview(made.model_dump_json(indent=1).encode()))

    def sweep(self) -> None:
        """Engines that were never finished or are of no use are gone. Not while builders work.

        Raises EngineError when one cannot be deleted.
        """
        known = self.listed()
        for name in set(known.unfinished) - known.engines.keys():
            try:
                self.file(name).unlink(missing_ok=True)
            except OSError as error:
                got = f"cannot be deleted ({error.strerror})"
                raise EngineError(self.folder / name, got, "", f"remove it and {_BUILD}") from error

    @contextmanager
    def _written(self) -> Iterator[None]:
        """An OSError of the body is an EngineError about the folder."""
        try:
            yield
        except OSError as error:
            got = f"cannot be written ({error.strerror})"
            raise EngineError(
                self.folder, got, "", "make it writable, or copy the bundle"
            ) from error

    def _make(self, name: str, content: memoryview) -> None:
        file = self.file(name)
        self.place.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)

    def read(self, entry: EngineEntry) -> bytes:
        """The engine's bytes. Raises EngineError when they are not those that were written."""
        file = self.folder / entry.file.path
        fix = _BUILD
        try:
            content = self.file(entry.file.path).read_bytes()
        except OSError as error:
            raise _unread(file, error, fix) from error
        if hashlib.sha256(content).hexdigest() != entry.file.sha256:
            raise EngineError(file, "was altered or cut short", entry.file.sha256[:12], fix)
        return content

    def listed(self) -> EngineList:
        """What the list says; it is empty where none was written.

        Raises EngineError when it cannot be read.
        """
        file = self.folder / LIST
        fix = f"delete {self.folder} and {_BUILD}"
        try:
            place = self.file(LIST)
            if place.exists() and not place.is_file():
                raise EngineError(file, "is no file", "", f"remove it and {_BUILD}")
            with place.open("rb") as stream:
                content = stream.read(MAX_LIST_BYTES + 1)
            if len(content) > MAX_LIST_BYTES:
                raise EngineError(file, "has too many bytes", f"at most {MAX_LIST_BYTES:,}", fix)
            return EngineList.model_validate_json(content, strict=True)
        except FileNotFoundError:
            return EngineList(engines={})
        except ValidationError as error:
            reason = first_mistake(error)
            raise EngineError(file, f"cannot be read ({reason})", "", fix) from error
        except OSError as error:
            raise _unread(file, error, fix) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other build writes this folder.

        Raises EngineError when another build is writing it.
        """
        file = self.file(LOCK)
        with self._written():
            self.place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, _LOCKING, 0o666)
        with os.fdopen(descriptor, "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EngineError(
                    self.folder, "another stc-build is writing it", "", "wait for it"
                ) from error
            yield


def library_of(bundle: Bundle, targets: str) -> EngineLibrary:
    """The library of a bundle for the targets called `targets` together."""
    within = Path(ENGINES, targets)
    return EngineLibrary(bundle.root / within, bundle.files.folder / within, bundle.files)


def libraries_of(bundle: Bundle) -> list[EngineLibrary]:
    """Every library of the bundle that has a list."""
    lists = (bundle.files.folder / ENGINES).glob(f"*/{LIST}")
    return [library_of(bundle, targets) for targets in sorted(file.parent.name for file in lists)]


def build_again(bundle: Bundle, flavour: Flavour, targets: str = THIS_DEVICE) -> str:
    """The command that builds the bundle's engines, for this machine if `targets` says no other."""
    return shlex.join(["stc-build", str(bundle.root), "--target", targets, "--backend", flavour])


def of_bundle(stamp: Stamp, bundle: Bundle, weights: str) -> bool:
    """Whether the bundle's graph and weights are still those that `stamp` was built from.

    `weights` is the bundle's `weights_sha256`.
    """
    graph = bundle.manifest.graphs.get(stamp.graph)
    made = (stamp.weights_sha256, stamp.precision)
    return (
        graph is not None
        and stamp.graph_sha256 == graph.file.sha256
        and made == (weights, bundle.manifest.provenance.precision)
    )


def weights_sha256(bundle: Bundle) -> str:
    """One digest of all weight files: a graph's own digest does not change with its weights."""
    digests = [file.sha256 for file in bundle.manifest.files if file.path.startswith(GRAPHS)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _unread(file: Path, error: OSError, fix: str) -> EngineError:
    return EngineError(file, f"cannot be read ({error.strerror})", "", fix)


def replace_file(file: Path, content: memoryview) -> None:
    """`file` holds `content`, on disk; until then it holds the whole of what it held before.

    Raises OSError naming `file`.
    """
    try:
        with replacing(file) as stream:
            stream.write(content)
    except OSError as error:
        error.filename = str(file)  # a full disk names none
        raise
