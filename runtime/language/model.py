"""A bundle's language graphs, loaded on a backend: shared by every stream, holding none of their
state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc import contracts
from stc.contracts import (
    HIDDEN,
    HIDDEN_OUT,
    KEY,
    KEY_POSITIONS,
    KEYS,
    LOGITS,
    QUERY,
    QUERY_POSITIONS,
    VALUE,
    VALUES,
)
from stc.engines.engine import Backend, Engine, Tensor
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.errors import NonFiniteError
from stc.manifest import LanguageSpec, Precision
from stc.ports import NETWORK_DTYPES
from stc.runtime.language.captured_calls import CapturedCalls
from stc.runtime.language.kv_buckets import EMPTY, CallOutputs, KvBuckets, SpareOutputs

if TYPE_CHECKING:
    from stc.runtime.language.kv_rows import KvRows

Retrieve = Callable[[int, NDArray[np.float32]], None]
"""Called with a block and the mean query float32 [Q, e], before that block attends."""


@dataclass
class _Piece:
    """Tokens `first` to `first` + `count` of a chunk, as one call of a bucket's `size`."""

    first: int
    count: int
    size: int
    hidden: Tensor
    positions: Tensor
    outputs: CallOutputs
    query: Tensor = None


class LanguageModel:
    """The engines of one decoder, and `table` [V, D], what each text token becomes.

    Raises EngineError when a graph cannot be loaded.
    """

    def __init__(
        self,
        backend: Backend,
        spec: LanguageSpec,
        precision: Precision,
        table: NDArray[np.floating],
        buckets: KvBuckets | None = None,
    ) -> None:
        self.backend = backend
        self.spec = spec
        self.dtype = NETWORK_DTYPES[precision]
        self.buckets = buckets or KvBuckets()
        self._spare = SpareOutputs(backend, spec, self.dtype, self.buckets.chunks)
        self._table = np.asarray(table)
        self.qkv = [backend.load(contracts.qkv_graph(i)) for i in range(spec.blocks)]
        self.attend = [backend.load(contracts.attend_graph(i)) for i in range(spec.blocks)]
        self.head = backend.load(contracts.HEAD)
        self.captured: CapturedCalls | None = None
        if isinstance(backend, TensorRtBackend):
            engines = self.qkv, self.attend, self.head
            self.captured = CapturedCalls(backend, spec, self.dtype, *engines)

    @property
    def token_bytes(self) -> int:
        """Bytes one token's key and value take in all blocks together."""
        spec = self.spec
        return 2 * spec.blocks * spec.key_heads * spec.head_width * self.dtype.itemsize

    def blank_rows(self, count: int) -> Tensor:
        """Rows [G, count, e] of zeros."""
        spec = self.spec
        return self.backend.to_device(
            np.zeros((spec.key_heads, count, spec.head_width), self.dtype)
        )

    def blank_buffers(self, count: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Rows as `blank_rows` for the keys and for the values of every block."""
        if self.captured is not None:
            return self.captured.buffers(count)
        # Block by block, so that only one is held twice while rows move.
        blocks = range(self.spec.blocks)
        return ((self.blank_rows(count), self.blank_rows(count)) for _ in blocks)

    def embed(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """hidden [m, D] of the text tokens `ids` [m], on the host."""
        return self._table[ids]

    def remember(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
    ) -> None:
        """The rows `places` [m] hold keys and values of the tokens `hidden` [m, D].

        `key_positions` [S] are those of all rows, the new ones included. The last block's attend is
        not run: nobody reads what it computes.

        Raises NonFiniteError naming the graph that yields NaN or infinity; the rows may then hold
        some of it.
        """
        self._run(hidden, rows, places, key_positions, None, whole=False)

    def logits(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
        retrieve: Retrieve | None = None,
    ) -> NDArray[np.float32]:
        """float32 [V] after the last of the tokens `hidden`; otherwise as `remember`.

        `retrieve` may write rows of a block before it attends.
        """
        logits = self._run(hidden, rows, places, key_positions, retrieve, whole=True)
        assert logits is not None
        return logits

    def _run(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
        retrieve: Retrieve | None,
        *,
        whole: bool,
    ) -> NDArray[np.float32] | None:
        """float32 [V] after the last token; None unless `whole`."""
        if self.captured is not None and retrieve is None:
            pieces = list(self.buckets.pieces(len(hidden)))
            given = hidden.astype(self.dtype, copy=False), rows, places, key_positions
            finite, logits = self.captured.run(*given, pieces, whole=whole)
            if not finite:
                self._name_culprit(hidden, rows, places, key_positions)
            return logits
        return self._run_each(hidden, rows, places, key_positions, retrieve, whole=whole)

    def _run_each(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
        retrieve: Retrieve | None,
        *,
        whole: bool,
    ) -> NDArray[np.float32] | None:
        """The same, engine by engine."""
        seen, positions = self.backend.to_device(key_positions), key_positions[places]
        ends: list[NDArray[Any]] = []
        with self._pieces(hidden, positions) as pieces:
            for block in range(self.spec.blocks):
                last = block == self.spec.blocks - 1
                for piece in pieces:
                    fresh = self._qkv(block, piece)
                    here = places[piece.first : piece.first + piece.count]
                    rows.write(block, here, fresh[KEY], fresh[VALUE])
                    if last and not whole:
                        ends += [
                            self.backend.read_rows(fresh[name], 0, piece.count)
                            for name in (KEY, VALUE)
                        ]
                if last and not whole:
                    break
                if retrieve is not None:
                    retrieve(block, self._mean_query(pieces))
                for piece in pieces:
                    self._attend(block, piece, rows, seen)
                    if last:
                        ends.append(self.backend.read_rows(piece.hidden, 0, piece.count))
        # Whatever was not finite in any block has reached the last thing that was computed.
        if not all(np.isfinite(end).all() for end in ends):
            self._name_culprit(hidden, rows, places, key_positions)
        if not whole:
            return None
        end = self.backend.to_device(ends[-1][-1:])
        logits: NDArray[np.float32] = self.backend.to_host(self.head({HIDDEN: end})[LOGITS])[0]
        if not np.isfinite(logits).all():
            raise _not_finite(contracts.HEAD, LOGITS)
        return logits

    @contextmanager
    def _pieces(self, hidden: NDArray[Any], positions: NDArray[np.int64]) -> Iterator[list[_Piece]]:
        """The tokens `hidden` in calls of the sizes there are; their outputs are lent."""
        pieces: list[_Piece] = []
        device = self.backend.to_device
        try:
            for first, count, size in self.buckets.pieces(len(hidden)):
                padded = np.zeros((size, self.spec.width), self.dtype)
                padded[:count] = hidden[first : first + count]
                places = np.full(size, EMPTY, np.int64)
                places[:count] = positions[first : first + count]
                lent = self._spare.take(size)
                pieces.append(_Piece(first, count, size, device(padded), device(places), lent))
            yield pieces
        finally:
            for piece in pieces:
                self._spare.keep(piece.size, piece.outputs)

    def _qkv(self, block: int, piece: _Piece) -> dict[str, Tensor]:
        """What `block` makes of the piece before it attends; the piece has its query."""
        outputs = piece.outputs
        wanted = {QUERY: outputs.query, KEY: outputs.key, VALUE: outputs.value}
        fresh = self.qkv[block]({HIDDEN: piece.hidden}, wanted)
        piece.query = fresh[QUERY]
        return fresh

    def _attend(self, block: int, piece: _Piece, rows: KvRows, seen: Tensor) -> None:
        """The piece has its hidden after `block`."""
        piece.hidden = self.attend[block](
            {
                HIDDEN: piece.hidden,
                QUERY: piece.query,
                KEYS: rows.keys[block],
                VALUES: rows.values[block],
                QUERY_POSITIONS: piece.positions,
                KEY_POSITIONS: seen,
            },
            {HIDDEN_OUT: piece.outputs.hidden[block % 2]},
        )[HIDDEN_OUT]

    def _mean_query(self, pieces: list[_Piece]) -> NDArray[np.float32]:
        """float32 [Q, e], the mean over all tokens."""
        queries = [self.backend.read_rows(piece.query, 0, piece.count) for piece in pieces]
        mean: NDArray[np.float32] = np.concatenate(queries, axis=1).mean(axis=1, dtype=np.float32)
        return mean

    def _name_culprit(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
    ) -> None:
        """Run the blocks again on the rows there are, looking at every output; always raises
        NonFiniteError."""
        if not np.isfinite(hidden.astype(self.dtype, copy=False)).all():
            raise _not_finite("the language model's input", HIDDEN)

        def look(engine: Engine, outputs: dict[str, Tensor]) -> None:
            for name, tensor in outputs.items():
                if not np.isfinite(self.backend.to_host(tensor)).all():
                    raise _not_finite(engine.name, name)

        seen = self.backend.to_device(key_positions)
        with self._pieces(hidden, key_positions[places]) as pieces:
            for block in range(self.spec.blocks):
                for piece in pieces:
                    look(self.qkv[block], self._qkv(block, piece))
                for piece in pieces:
                    self._attend(block, piece, rows, seen)
                    look(self.attend[block], {HIDDEN_OUT: piece.hidden})
            last = pieces[-1]
            end = self.backend.read_rows(last.hidden, last.count - 1, 1)
            look(self.head, self.head({HIDDEN: self.backend.to_device(end)}))
        raise NonFiniteError("language model", "NaN or infinity, not seen again on a re-run")


def _not_finite(graph: str, tensor: str) -> NonFiniteError:
    return NonFiniteError(
        graph,
        f"NaN or infinity in {tensor}",
        "finite numbers",
        "try --precision fp32 at export, or another checkpoint",
    )
