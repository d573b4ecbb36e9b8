"""What a decoder remembers of its stream: the interface, and memories that hold whole rows.

A memory decides which tokens' keys and values are held in which rows and at which positions they
are seen. It never runs on its own: a stream hands it tokens to remember and asks it for the context
of a question.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.errors import LanguageError
from stc.runtime.language.kv_rows import KvRows
from stc.runtime.language.model import EMPTY, LanguageModel, Retrieve
from stc.runtime.language.row_order import RowOrder

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


class Memory(Protocol):
    """One stream's memory."""

    def remember(self, hidden: NDArray[Any]) -> None:
        """The tokens `hidden` [m, D] follow what was remembered before.

        Raises LanguageError when they cannot be held, EngineError or NonFiniteError when the
        model fails; then they are not remembered, and everything that still is stays usable.
        """
        ...

    def context(self, count: int) -> Context:
        """The context of a question whose own tokens and answer take `count` rows at most.

        Nothing written to those rows is part of the memory. Raises LanguageError when it would
        be longer than the model allows.
        """
        ...

    def facts(self) -> MemoryFacts:
        """What is held now."""
        ...

    def notices(self) -> list[str]:
        """What the user should know and has not been told yet; empty the next time."""
        ...


class WindowMemory:
    """The first `fixed` tokens and the last `window` tokens; the rest is forgotten."""

    policy = "window"

    def __init__(self, model: LanguageModel, *, fixed: int, window: int) -> None:
        self.model = model
        self.order = RowOrder(fixed, window)
        self.rows = KvRows(model, model.spec.max_positions)

    def remember(self, hidden: NDArray[Any]) -> None:
        self._admit(len(hidden))
        places = self.order.place(len(hidden))
        try:
            self.rows.fit(max(self.order.used, int(places.max()) + 1))
            positions = self.order.with_next(places)
            self.model.remember(
                hidden, positions[places], self.rows, places, self._of_rows(positions)
            )
        except BaseException:
            self.rows.clear(places[places < self.rows.capacity])
            raise
        self.order.hold(places)

    def context(self, count: int) -> Context:
        order = self.order
        refuse_long(self.model, order.held, count)
        self.rows.fit(order.used + count)
        positions = self._of_rows(order.positions())
        return Context(self.rows, order.used, order.held, positions)

    def facts(self) -> MemoryFacts:
        return MemoryFacts(
            policy=self.policy, tokens=self.order.held, device_bytes=self.rows.size_bytes
        )

    def notices(self) -> list[str]:
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
