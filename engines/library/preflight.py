"""Does it fit? Device memory counted before anything is built or loaded.

weights      once, whatever the number of streams
references   key, value and residual of every block, two sets per stream: a reference frame
             writes one while the other still serves
work         hidden states, keys, choices, frame and kept tokens, per stream
KV           keys and values of the language model's context, per stream
workspace    scratch memory, once: engines run one after another and share it
CUDA         the driver's context and the runtime's own code
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stc.engines.engine import REFERENCE_SETS, stream_bytes
from stc.engines.library.plan import CONTEXTS, EngineSpec, window_of
from stc.engines.library.targets import GIB
from stc.errors import EngineError
from stc.manifest import LANGUAGE_WEIGHTS, WEIGHTS, Manifest, Precision
from stc.method.family import stream_programs
from stc.ports import NETWORK_DTYPES

MIB = 1 << 20

CUDA_BYTES = 400 * MIB
"""A guess until measured on a device: context, TensorRT's code and kernels."""

ENGINE_OVERHEAD = 1.21
"""Size of the full-size tower's engines over that of their weights, three sizes of M
(docs/log.md)."""

LANGUAGE_OVERHEAD = 1.12
"""The same of the language side, two sizes of m at two of S (docs/log.md): 2,342 MB less the
tower's 966 and 272 of an engine that looked text tokens up, for 988 MB."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to run.

    context: rows of keys and values of a stream; 0 without questions, and without a decoder.
    weights_bytes: of the engines; None estimates them from the bundle's weights.
    workspace_bytes: of the engine that asks for most; None estimates an upper bound.
    update_copies: engines that hold the weights of one block's `update`: one, but one per size of M
        where several profiles are not known good.
    language_copies: the same of the language model, per chunk and context; its head has one size.
    precision: of the graphs; None is the bundle's own.
    """

    manifest: Manifest
    context: int
    streams: int = 1
    weights_bytes: int | None = None
    workspace_bytes: int | None = None
    update_copies: int = 1
    language_copies: int = 1
    precision: Precision | None = None

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for."""
        spec, language = self.manifest.vision, self.manifest.language
        element = self._element_bytes
        weights = self.weights_bytes
        if weights is None:
            weights = self._tower_bytes() + (self._language_bytes() if self.context else 0)
        workspace = self.workspace_bytes
        if workspace is None:
            # Attention unfused, in float16 and float32, and the MLP's activation step by step.
            workspace = 12 * spec.heads * spec.tokens**2 + 8 * spec.tokens * spec.mlp_width
        keys_and_values = 0
        if language is not None:
            per_row = 2 * language.blocks * language.key_heads * language.head_width * element
            keys_and_values = per_row * min(self.context, language.max_positions)
        reusing = replace(self.manifest.default_settings, reference_interval=2)
        programs = stream_programs(spec, self._precision, reusing)
        held = stream_bytes(programs, reference_sets=REFERENCE_SETS)
        return {
            "weights": weights,
            "references": self.streams * held["references"],
            "work": self.streams * held["work"],
            "KV": self.streams * keys_and_values,
            "workspace": workspace,
            "CUDA": CUDA_BYTES,
        }

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    @property
    def _precision(self) -> Precision:
        return self.precision or self.manifest.provenance.precision

    @property
    def _element_bytes(self) -> int:
        return NETWORK_DTYPES[self._precision].itemsize

    def _tower_bytes(self) -> int:
        """Of the tower's engines, estimated."""
        spec, whole = self.manifest.vision, self._file_bytes(WEIGHTS)
        # Queries, values and attention's output; a reference frame's graphs hold them and keys
        # once more. The MLP is in one engine, whatever the frame.
        update, reference = (
            min(whole, spec.blocks * matrices * spec.width**2 * self._element_bytes)
            for matrices in (3, 4)
        )
        copies = whole + (self.update_copies - 1) * update + reference
        return int(ENGINE_OVERHEAD * copies)

    def _language_bytes(self) -> int:
        """Of the language model's engines, estimated; 0 without one."""
        spec = self.manifest.language
        if spec is None:
            return 0
        # The host looks text tokens up; the head's engine holds its table, though it be the same.
        head = spec.vocabulary * spec.width * self._element_bytes
        tables = head if spec.tied_head else 2 * head
        rest = max(0, self._file_bytes(LANGUAGE_WEIGHTS) - tables)
        return int(LANGUAGE_OVERHEAD * (self.language_copies * rest + head))

    def _file_bytes(self, path: str) -> int:
        """What the weights in the bundle's file `path` take in the precision that is counted."""
        stored = NETWORK_DTYPES[self.manifest.provenance.precision].itemsize
        size = sum(file.size_bytes for file in self.manifest.files if file.path == path)
        return size * self._element_bytes // stored

    def line(self) -> str:
        """The sum, for a person: `2.1 GiB: weights 0.9, references 0.3, ...`."""
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.parts.items() if size)
        return f"{self.total_bytes / GIB:.2f} GiB: {parts}"


def check_fits(demand: Demand, device: str, free_bytes: int) -> str:
    """One line that says what `demand` takes of the `free_bytes` of `device`.

    Raises EngineError when it does not fit, naming the setting that would make it fit, if any.
    """
    if demand.total_bytes <= free_bytes:
        return f"{device}: needs {demand.line()}; {free_bytes / GIB:.2f} GiB are free"
    raise EngineError(
        device,
        f"needs {demand.line()}",
        f"at most {free_bytes / GIB:.2f} GiB, what is free",
        _fix(demand, free_bytes),
    )


def told_elsewhere(demand: Demand, target: str, smallest_bytes: int) -> str:
    """One line that says what `demand` takes on a GPU of `target` that is not here.

    Nothing is refused: how much memory that GPU has is not known, only that the smallest board of
    the target has `smallest_bytes`.
    """
    short = ", which would not hold it" if demand.total_bytes > smallest_bytes else ""
    smallest = f"its smallest board has {smallest_bytes / GIB:.2f} GiB{short}"
    return f"{target}: needs {demand.line()}; {smallest}"


def copies_of(graph: str, specs: Iterable[EngineSpec]) -> int:
    """How many of the engines `specs` hold the weights of `graph`; at least 1."""
    return max(1, sum(spec.graph == graph for spec in specs))


def _fix(demand: Demand, free_bytes: int) -> str:
    """The smallest step that makes it fit."""
    for streams in range(demand.streams - 1, 0, -1):
        if replace(demand, streams=streams).total_bytes <= free_bytes:
            if streams == 1:
                return "1 stream would fit: leave out --compare-dense, which is one more"
            return f"{streams} streams would fit: open no more"
    for rows in reversed(CONTEXTS):
        if rows < demand.context and replace(demand, context=rows).total_bytes <= free_bytes:
            return f"use --memory window --window {window_of(rows)} or less, where it takes them"
    if demand.manifest.provenance.precision == "fp32":
        half = replace(demand, precision="fp16", weights_bytes=None, streams=1)
        if half.total_bytes <= free_bytes:
            return "export with --precision fp16"
    least = replace(demand, streams=1, context=min(demand.context, CONTEXTS[0]))
    lacking = (least.total_bytes - free_bytes) / GIB
    return f"no setting makes it fit: free {lacking:.2f} GiB, or use a larger device"
