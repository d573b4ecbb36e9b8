"""What a decoder remembers of its stream: the window, and everything.

A memory decides which tokens' keys and values are held in which rows and at which positions they
are seen. It never runs on its own: a stream hands it tokens to remember and asks it for the context
of a question.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import LanguageError
from stc.runtime.language.kv_buckets import EMPTY
from stc.runtime.language.kv_rows import KvRows
from stc.runtime.language.model import LanguageModel, Retrieve

RESERVE = 1024
"""Positions of the model that a memory leaves for a question and its answer, at most."""


@dataclass(frozen=True)
class Context:
    """What a question attends to.

    rows: where it is, and where the rows of question and answer go, from `start_row` on.
    positions: [capacity] of the rows held; the next token's position is `start_position`.
    retrieve: writes the rows of a block once the question's query is known, if it depends on it.
    """

    rows: KvRows
    start_row: int
    start_position: int
    positions: NDArray[np.int64]
    retrieve: Retrieve | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryFacts:
    """What a memory holds now.

    tokens: in rows of the device. device_bytes: of all its rows, used or not. The others count
    pages that left the window: held by the host, in the spill file, and dropped for good.
    """

    policy: str
    tokens: int
    device_bytes: int
    host_pages: int = 0
    host_bytes: int = 0
    spilled_pages: int = 0
    dropped_pages: int = 0


class WindowMemory:
    """The first `fixed` tokens and the last `window` tokens of a stream; the rest is forgotten."""

    policy = "window"

    def __init__(self, model: LanguageModel, *, fixed: int, window: int) -> None:
        self.model = model
        self.order = RowOrder(fixed, window)
        self.rows = KvRows(model, model.spec.max_positions)

    def remember(self, hidden: NDArray[Any]) -> NDArray[np.int64]:
        """The tokens `hidden` [m, D] follow what was remembered before, in the rows returned.

        Raises LanguageError when they cannot be held, EngineError or NonFiniteError when the
        model fails; then they are not remembered, and everything that still is stays usable.
        """
        self._admit(len(hidden))
        places = self.order.place(len(hidden))
        try:
            self.rows.fit(max(self.order.used, int(places.max()) + 1))
            positions = self._of_rows(self.order.with_next(places))
            self.model.remember(hidden, self.rows, places, positions)
        except BaseException:
            self.rows.clear(places[places < self.rows.capacity])
            raise
        self.order.hold(places)
        return places

    def context(self, count: int) -> Context:
        """The context of a question whose own tokens and answer take `count` rows at most.

        Nothing written to those rows is part of the memory. Raises LanguageError when it would
        be longer than the model allows.
        """
        order = self.order
        refuse_long(self.model, order.held, count)
        self.rows.fit(order.used + count)
        positions = self._of_rows(order.positions())
        return Context(self.rows, order.used, order.held, positions)

    def facts(self) -> MemoryFacts:
        """What is held now."""
        return MemoryFacts(
            policy=self.policy, tokens=self.order.held, device_bytes=self.rows.size_bytes
        )

    def notices(self) -> list[str]:
        """What the user should know and has not been told yet; empty the next time."""
        return []

    def _admit(self, count: int) -> None:
        """Raise LanguageError when `count` tokens cannot be remembered at once."""
        if count > self.order.ring:
            raise LanguageError(
                f"--window {self.order.ring}",
                f"smaller than the {count} tokens of one language call",
                fix="use a larger --window, a smaller --budget or --prefill-every 1",
            )

    def _of_rows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """`positions` of the rows there are buffers for."""
        fitted = np.full(self.rows.capacity, EMPTY, np.int64)
        held = min(len(positions), self.rows.capacity)
        fitted[:held] = positions[:held]
        return fitted


class AllMemory(WindowMemory):
    """Every token, while there is room for a question; beyond that nothing more is taken in.

    fitting: tokens there is memory for.
    """

    policy = "all"

    def __init__(self, model: LanguageModel, *, fixed: int, fitting: int = sys.maxsize) -> None:
        longest = most_remembered(model)
        self._most, self._limit = longest, "the model's positions less question and answer"
        if fitting < longest:
            self._most, self._limit = fitting, "half of the memory that was free at the start"
        super().__init__(model, fixed=fixed, window=self._most - fixed)

    def _admit(self, count: int) -> None:
        if self.order.count + count > self._most:
            raise LanguageError(
                "--memory all",
                f"{self.order.count} tokens remembered and {count} more",
                f"at most {self._most}, {self._limit}",
                "use --memory window or --memory rekv",
            )


def most_remembered(model: LanguageModel) -> int:
    """Positions there are for what is remembered; the others are a question's and its answer's."""
    positions = model.spec.max_positions
    return positions - min(RESERVE, positions // 4)


def refuse_long(model: LanguageModel, held: int, count: int) -> None:
    """Raise LanguageError when `count` tokens after `held` exceed the model's positions."""
    most = model.spec.max_positions
    if held + count > most:
        raise LanguageError(
            "question",
            f"{held} tokens of context and {count} of question and answer",
            f"at most {most}, the model's longest context",
            "ask less, allow fewer --max-new-tokens, or use a smaller --window",
        )


class RowOrder:
    """Which row holds which token: `fixed` rows stay, then `ring` rows are a ring.

    Tokens are numbered in the order they were kept. A token's position for attention is its number
    while nothing has left; then the ring's oldest follows the first rows at once, so that positions
    never exceed the rows there are.

    count: tokens remembered so far, those that have left included.
    """

    def __init__(self, fixed: int, ring: int) -> None:
        self.fixed = fixed
        self.ring = ring
        self.count = 0
        self._next = 0  # of the ring's rows
        self._numbers = np.full(fixed + ring, EMPTY, np.int64)

    @property
    def used(self) -> int:
        """Rows that hold a token, or have held one: no row from here on does."""
        held = np.flatnonzero(self._numbers != EMPTY)
        return int(held[-1]) + 1 if len(held) else 0

    @property
    def held(self) -> int:
        """Tokens that are held."""
        return int(np.count_nonzero(self._numbers != EMPTY))

    def place(self, count: int) -> NDArray[np.int64]:
        """Rows [count] for the next tokens; what stood there is no longer held.

        The first rows are filled first. Raises ValueError when `count` exceeds the ring.
        """
        first = min(max(0, self.fixed - self.count), count)
        if count - first > self.ring:
            raise ValueError(f"{count} tokens at once, ring of {self.ring}")
        places = np.arange(self.count, self.count + count)
        places[first:] = self.fixed + (self._next + np.arange(count - first)) % max(1, self.ring)
        self._numbers[places] = EMPTY
        return places

    def hold(self, places: NDArray[np.int64]) -> None:
        """The rows `places`, as `place` gave them, hold the next tokens."""
        self._numbers[places] = np.arange(self.count, self.count + len(places))
        self.count += len(places)
        in_ring = int(np.count_nonzero(places >= self.fixed))
        self._next = (self._next + in_ring) % max(1, self.ring)

    def positions(self) -> NDArray[np.int64]:
        """Position [fixed + ring] of every row's token, EMPTY where there is none."""
        positions: NDArray[np.int64] = self._numbers.copy()
        ring = positions[self.fixed :]
        held = ring != EMPTY
        if held.any():
            ring[held] += self.fixed - ring[held].min()
        return positions

    def with_next(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """`positions` as they will be once `places` are held."""
        future = deepcopy(self)
        future.hold(places)
        return future.positions()
