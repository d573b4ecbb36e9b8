"""Calls of a decoder on a GPU, each one CUDA graph from its second run on.

A graph works at the addresses it was captured with, so what differs from call to call stands at
places that never change. A call's own keys and values stand in the last rows of every buffer while
it attends; behind it one copy takes those of all blocks to the rows they belong in. Its tokens end
at the call's last row, so that the last of them, which the logits are of, is always the same one.
What the host says goes up from page-locked memory before the graph, what it asks for comes down
after it, and the host waits once, for as many calls as there are places to write the next into.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from stc.engines.engine import Engine
from stc.engines.gpu.device import Recording
from stc.engines.gpu.tensor import ALIGNMENT, DeviceTensor, PinnedArray
from stc.engines.tensorrt.backend import TensorRtBackend
from stc.manifest import LanguageSpec
from stc.runtime.language.kv_buckets import EMPTY, runs

if TYPE_CHECKING:
    from stc.runtime.language.kv_rows import KvRows

TOGETHER = 8
"""Calls that are enqueued before the host waits."""

Piece = tuple[int, int, int]
"""First token, tokens and size of a call."""


class _Given:
    """What the host says to calls of `m` tokens and `S` rows: one block of memory on the device,
    and TOGETHER alike on the host.

    hidden [m, D], queries int64 [m] and keys int64 [S], their positions.
    """

    def __init__(
        self, backend: TensorRtBackend, m: int, rows: int, width: int, dtype: np.dtype[Any]
    ) -> None:
        self._shapes: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...] = (
            ((m, width), dtype),
            ((m,), np.dtype(np.int64)),
            ((rows,), np.dtype(np.int64)),
        )
        self._device = backend.device
        sizes = [int(np.prod(shape)) * kind.itemsize for shape, kind in self._shapes]
        taken = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
        self._starts = [sum(taken[:number]) for number in range(len(taken))]
        self._whole = backend.empty((sum(taken),), np.uint8)
        self.hidden, self.queries, self.keys = (
            DeviceTensor(backend.device, shape, kind, within=self._whole, offset_bytes=start)
            for (shape, kind), start in zip(self._shapes, self._starts, strict=True)
        )
        self._hosts = [
            PinnedArray(backend.device, self._whole.shape, np.uint8) for _ in range(TOGETHER)
        ]

    def upload(
        self,
        number: int,
        hidden: NDArray[Any],
        positions: NDArray[np.int64],
        key_positions: NDArray[np.int64],
        unseen: NDArray[np.int64],
    ) -> None:
        """Enqueue: the call's last tokens are `hidden` [count, D], at `positions` [count].

        They see the rows of `key_positions` [S], but for those that are `unseen`, and one another.
        """
        host = self._hosts[number].values
        tokens, queries, keys = (
            host[start : start + int(np.prod(shape)) * kind.itemsize].view(kind).reshape(shape)
            for (shape, kind), start in zip(self._shapes, self._starts, strict=True)
        )
        padded = len(tokens) - len(hidden)
        tokens[:padded] = 0
        tokens[padded:] = hidden
        queries[:padded] = EMPTY
        queries[padded:] = positions
        keys[:] = key_positions
        keys[unseen] = EMPTY
        keys[len(keys) - len(hidden) :] = positions
        self._device.upload(self._whole.address, host)


@dataclass(frozen=True)
class _Work:
    """Where calls of `m` tokens compute. fresh [2, G, m, e]: their keys, then their values, which
    `key` and `value` are; `ends` are TOGETHER alike on the host. hidden: before and after a block.
    """

    query: DeviceTensor
    fresh: DeviceTensor
    key: DeviceTensor
    value: DeviceTensor
    hidden: tuple[DeviceTensor, DeviceTensor]
    ends: list[PinnedArray]


class CapturedCalls:
    """The engines `qkv`, `attend` and `head` of a decoder `spec`, run on `backend`.

    What it makes lives on: calls of a size allocate the first time, and later ones nothing. Work
    holds the backend's lock where several threads may.
    """

    def __init__(
        self,
        backend: TensorRtBackend,
        spec: LanguageSpec,
        dtype: np.dtype[Any],
        qkv: Sequence[Engine],
        attend: Sequence[Engine],
        head: Engine,
    ) -> None:
        self._backend = backend
        self._device = backend.device
        self._spec = spec
        self._dtype = dtype
        self._qkv, self._attend, self._head = qkv, attend, head
        self._row_bytes = spec.head_width * dtype.itemsize
        self._given: dict[tuple[int, int], _Given] = {}
        self._work: dict[int, _Work] = {}
        self._last = backend.empty((1, spec.width), dtype)
        self._logits = backend.empty((1, spec.vocabulary), np.float32)
        self._chosen_by = PinnedArray(backend.device, (spec.vocabulary,), np.float32)

    def buffers(self, count: int) -> list[tuple[DeviceTensor, DeviceTensor]]:
        """Keys and values of every block, [G, count, e] of zeros each, one behind the other."""
        spec = self._spec
        shape = (spec.key_heads, count, spec.head_width)
        whole = self._backend.to_device(np.zeros((spec.blocks, 2, *shape), self._dtype))
        size = whole.size_bytes // (2 * spec.blocks)
        found = [
            DeviceTensor(self._device, shape, self._dtype, within=whole, offset_bytes=place * size)
            for place in range(2 * spec.blocks)
        ]
        return list(zip(found[::2], found[1::2], strict=True))

    def run(
        self,
        hidden: NDArray[Any],
        rows: KvRows,
        places: NDArray[np.int64],
        key_positions: NDArray[np.int64],
        pieces: Sequence[Piece],
        *,
        whole: bool,
    ) -> tuple[bool, NDArray[np.float32] | None]:
        """Whether all was finite, and logits float32 [V] after the last of the tokens `hidden`,
        None unless `whole`; their keys and values stand in the rows `places`.

        `key_positions` [S] are those of all rows, the new ones included. Raises EngineError.
        """
        finite, logits = True, None
        for start in range(0, len(pieces), TOGETHER):
            ends: list[NDArray[Any]] = []
            for number, (first, count, size) in enumerate(pieces[start : start + TOGETHER]):
                last = whole and first + count == len(hidden)
                here = places[first : first + count]
                self._given_of(size, rows.capacity).upload(
                    number,
                    hidden[first : first + count],
                    key_positions[here],
                    key_positions,
                    places[first:],
                )
                self._recording(rows, size, whole=last).run()
                self._keep(rows, here)
                if last:
                    ends.append(self._chosen_by.values)
                    self._device.download(ends[-1], self._logits.address)
                else:
                    work = self._work_of(size)
                    ends.append(work.ends[number].values)
                    self._device.download(ends[-1], work.fresh.address)
            self._device.synchronize()
            # Whatever was not finite in any block has reached the last thing that was computed.
            finite = finite and all(np.isfinite(end).all() for end in ends)
        if whole:
            logits = self._chosen_by.values.copy()
        return finite, logits

    def _keep(self, rows: KvRows, places: NDArray[np.int64]) -> None:
        """Enqueue: the last rows of every buffer, as many as `places`, stand in those as well."""
        pitch, start = rows.capacity * self._row_bytes, rows.keys[0].address
        source = rows.capacity - len(places)
        for row, first, count in runs(places):
            self._device.copy_rows(
                start + row * self._row_bytes,
                pitch,
                start + (source + first) * self._row_bytes,
                pitch,
                row_bytes=count * self._row_bytes,
                rows=2 * self._spec.blocks * self._spec.key_heads,
            )

    def _recording(self, rows: KvRows, size: int, *, whole: bool) -> Recording:
        key = (size, whole)
        if key not in rows.recordings:
            # It lives as long as the rows do, which it must not keep alive.
            body = partial(self._enqueue, weakref.ref(rows), size, whole=whole)
            name = f"call of {size} tokens in {rows.capacity} rows"
            rows.recordings[key] = self._backend.recording(name, body)
        found: Recording = rows.recordings[key]
        return found

    def _enqueue(self, held: weakref.ref[KvRows], size: int, *, whole: bool) -> None:
        """All engines of a call; without `whole` only what its keys and values take."""
        rows = held()
        assert rows is not None
        given, work = self._given_of(size, rows.capacity), self._work_of(size)
        hidden = given.hidden
        for block in range(self._spec.blocks):
            fresh = {QUERY: work.query, KEY: work.key, VALUE: work.value}
            self._qkv[block]({HIDDEN: hidden}, fresh)
            self._stand(rows, block, work, size)
            if block == self._spec.blocks - 1 and not whole:
                return
            after = work.hidden[block % 2]
            self._attend[block](
                {
                    HIDDEN: hidden,
                    QUERY: work.query,
                    KEYS: rows.keys[block],
                    VALUES: rows.values[block],
                    QUERY_POSITIONS: given.queries,
                    KEY_POSITIONS: given.keys,
                },
                {HIDDEN_OUT: after},
            )
            hidden = after
        row = self._last.size_bytes
        self._device.copy(self._last.address, hidden.address + (size - 1) * row, row)
        self._head({HIDDEN: self._last}, {LOGITS: self._logits})

    def _stand(self, rows: KvRows, block: int, work: _Work, size: int) -> None:
        """Enqueue: the call's keys and values are the last rows of the block's."""
        self._device.copy_rows(
            rows.keys[block].address + (rows.capacity - size) * self._row_bytes,
            rows.capacity * self._row_bytes,
            work.fresh.address,
            size * self._row_bytes,
            row_bytes=size * self._row_bytes,
            rows=2 * self._spec.key_heads,
        )

    def _given_of(self, size: int, rows: int) -> _Given:
        key = (size, rows)
        if key not in self._given:
            width = self._spec.width
            self._given[key] = _Given(self._backend, size, rows, width, self._dtype)
        return self._given[key]

    def _work_of(self, size: int) -> _Work:
        if size not in self._work:
            spec = self._spec
            keys = (spec.key_heads, size, spec.head_width)
            fresh = self._made(2, *keys)
            key, value = (
                DeviceTensor(
                    self._device, keys, self._dtype, within=fresh, offset_bytes=number * half
                )
                for half in (fresh.size_bytes // 2,)
                for number in range(2)
            )
            self._work[size] = _Work(
                query=self._made(spec.query_heads, size, spec.head_width),
                fresh=fresh,
                key=key,
                value=value,
                hidden=(self._made(size, spec.width), self._made(size, spec.width)),
                ends=[PinnedArray(self._device, fresh.shape, self._dtype) for _ in range(TOGETHER)],
            )
        return self._work[size]

    def _made(self, *shape: int) -> DeviceTensor:
        return self._backend.empty(shape, self._dtype)
