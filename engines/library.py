"""The engines of a bundle on disk: what each was built from, and whether it may be used here.

    BUNDLE/engines/<targets>/<engine>      one file per engine
    BUNDLE/engines/<targets>/engines.json  the stamp of each
    BUNDLE/engines/<targets>/kernels.rtxcache  see stc.engines.kernel_cache

The list is rewritten after every engine, file first, each by a rename: whenever a build stops, what
the list names is whole, and the next build goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stc.bundle import Bundle
from stc.engines.flavour import Flavour
from stc.engines.targets import THIS_DEVICE
from stc.errors import EngineError
from stc.manifest import GRAPHS, FileEntry, Precision

LIST = "engines.json"
ENGINES = "engines"
LIST_SCHEMA: Final = 1
_LOCK = ".lock"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stamp(_Entry):
    """What an engine was built from and for. Engines of equal stamps stand for one another."""

    graph: str
    graph_sha256: str = Field(description="of the graph's file")
    weights_sha256: str = Field(description="of the bundle's weight files together")
    flavour: Flavour
    version: str = Field(description="of the flavour's library")
    targets: tuple[str, ...]
    precision: Precision
    profiles: tuple[dict[str, int], ...] = Field(description="sizes of free axes, per profile")
    baked: int | None = Field(description="the value of the graph's count")


class Acceptance(_Entry):
    """How an engine compared with ONNX Runtime on equal inputs, on the device it runs on."""

    passed: bool
    min_cosine: float = Field(description="of a token, over all outputs; NaN counts as -1")
    outputs: dict[str, float] = Field(description="the same, per output")
    relative_l2: float = Field(0.0, description="the largest of all outputs")
    device: str = Field(description="that GPU's name")


class Chain(_Entry):
    """How the whole tower compared with ONNX Runtime."""

    cosine: float = Field(description="the lowest of a token, after the projector")
    device: str = Field(description="the GPU's name")


class EngineEntry(_Entry):
    """One engine of the list."""

    stamp: Stamp
    file: FileEntry = Field(description="path from the folder of the list")
    build_s: float
    wide_attention: bool = Field(False, description="attention's products were made float32")
    workspace_bytes: int | None = Field(None, description="scratch memory; None: not loaded yet")
    acceptance: Acceptance | None = Field(None, description="None: not compared yet")

    def accepted_on(self, device: str | None) -> Acceptance | None:
        """Its acceptance on the GPU called `device`, None where it was not compared there.

        Another GPU computes with other kernels. `device` None takes that of any.
        """
        judged = self.acceptance
        return judged if judged is not None and device in (judged.device, None) else None


class _List(_Entry):
    schema_version: Literal[1] = LIST_SCHEMA
    engines: dict[str, EngineEntry]
    chain_cosine: dict[Flavour, Chain] = Field({}, description="of the whole tower, as accepted")


class EngineLibrary:
    """The engines of one set of targets, in `folder`; the folder need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> dict[str, EngineEntry]:
        """Engines by file name, empty when none was built.

        Raises EngineError when the list cannot be read.
        """
        return dict(self._list().engines)

    def chains(self) -> dict[Flavour, Chain]:
        """How the whole tower compared with ONNX Runtime, where it was and nothing changed since.

        Raises EngineError when the list cannot be read.
        """
        return dict(self._list().chain_cosine)

    def chain_on(self, flavour: Flavour, device: str | None) -> Chain | None:
        """The same of `flavour` on the GPU called `device`; None takes that of any."""
        chain = self.chains().get(flavour)
        return chain if chain is not None and device in (chain.device, None) else None

    def targets(self) -> set[tuple[str, ...]]:
        """The targets its engines say they were built for. Raises EngineError as `entries`."""
        return {entry.stamp.targets for entry in self.entries().values()}

    def whole(self, entry: EngineEntry) -> bool:
        """Whether the engine's file is there with its size."""
        try:
            return (self.folder / entry.file.path).stat().st_size == entry.file.size_bytes
        except FileNotFoundError:
            return False

    def store(self, name: str, content: memoryview) -> FileEntry:
        """`content` stands in file `name`, whole, on disk; it is not in the list yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / name, content)
        digest = hashlib.sha256(content).hexdigest()
        return FileEntry(path=name, sha256=digest, size_bytes=content.nbytes)

    def write(
        self, entries: dict[str, EngineEntry], chains: dict[Flavour, Chain] | None = None
    ) -> None:
        """The list is `entries`; what is known of the whole tower is `chains`."""
        text = _List(engines=entries, chain_cosine=chains or {}).model_dump_json(indent=1)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / LIST, memoryview(text.encode()))

    def sweep(self) -> None:
        """Engine files that the list does not name are gone. Not while builders are at work."""
        entries = self.entries()
        for file in self.folder.glob("*.engine"):
            if file.name not in entries:
                file.unlink()

    def read(self, entry: EngineEntry) -> bytes:
        """The engine's bytes. Raises EngineError when they are not those that were written."""
        file = self.folder / entry.file.path
        mend = "build again with stc-build"
        try:
            content = file.read_bytes()
        except OSError as error:
            raise EngineError(file, f"cannot be read ({error.strerror})", "", mend) from error
        if hashlib.sha256(content).hexdigest() != entry.file.sha256:
            raise EngineError(file, "was altered or cut short", entry.file.sha256[:12], mend)
        return content

    def _list(self) -> _List:
        file = self.folder / LIST
        try:
            return _List.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return _List(engines={})
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            mend = f"delete {self.folder} and build again with stc-build"
            raise EngineError(file, f"cannot be read ({reason})", "", mend) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No other build writes this folder, and what a killed one left half written is gone.

        Raises EngineError when another build is writing it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise EngineError(
                    self.folder, "another stc-build is writing it", "", "wait for it"
                ) from error
            for leftover in self.folder.glob(".*.part"):
                leftover.unlink()
            yield


def library_of(bundle: Bundle, targets: str) -> EngineLibrary:
    """The library of a bundle for the targets called `targets` together."""
    return EngineLibrary(bundle.root / ENGINES / targets)


def libraries_of(bundle: Bundle) -> list[EngineLibrary]:
    """Every library of the bundle that has a list."""
    return [
        EngineLibrary(file.parent) for file in sorted((bundle.root / ENGINES).glob(f"*/{LIST}"))
    ]


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


def replace_file(file: Path, content: memoryview) -> None:
    """`file` holds `content`, on disk; until then it holds the whole of what it held before.

    Raises OSError naming `file`.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)  # a full disk names none
        raise
