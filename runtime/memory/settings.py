"""How a stream remembers and prefills: one frozen value, and the flags that set it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from stc.engines.gpu.cuda import available_host_bytes
from stc.engines.library.plan import context_rows
from stc.errors import SettingsError
from stc.manifest import MAX_POSITIONS
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.host_pages import SpillFile, page_cap
from stc.runtime.memory.rekv import RekvMemory, page_shape
from stc.runtime.memory.window import AllMemory, WindowMemory, most_remembered
from stc.shell.ranges import flag_of, one_of, shown, whole_fields, whole_flag

MAX_TOGETHER = 10_000
"""Frames of one language call."""
Policy = Literal["window", "rekv", "all"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

WINDOW = 3840
"""Tokens of a window nobody asked for: 66 frames of 58. Engines have room for fewer
(`stc.engines.library.plan.window_of`). ReKV's own setting is 15,000."""
TOP_PAGES = 64
"""Pages fetched for a question nobody said otherwise for, as in ReKV."""
SINKS = 4
"""First tokens a window keeps at least, whatever they are (attention sinks)."""
MB = 1_000_000
MAX_MB = 1_000_000_000
"""A petabyte, beyond any machine."""

_WHOLE = {
    "window": (1, MAX_POSITIONS),
    "top_pages": (1, MAX_POSITIONS),
    "host_memory_mb": (1, MAX_MB),
    "spill_mb": (1, MAX_MB),
    "prefill_every": (1, MAX_TOGETHER),
}
"""Fields of MemorySettings that are whole numbers, with the least and the most."""

_REKV_ONLY = ("top_pages", "host_memory_mb", "spill", "spill_mb")


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """memory: the policy. window: tokens, None for as many as fit up to WINDOW. top_pages: pages
    each block fetches for a question, None for as many as fit up to TOP_PAGES. host_memory_mb: of
    pages that left the window, and of what all pages are found by. spill: folder for the file that
    takes what host memory cannot, spill_mb its size. prefill_every: frames per language call.

    Raises SettingsError naming the flag.
    """

    memory: Policy = "window"
    window: int | None = None
    top_pages: int | None = None
    host_memory_mb: int = 2000
    spill: Path | None = None
    spill_mb: int = 16000
    prefill_every: int = 1

    def __post_init__(self) -> None:
        one_of("--memory", self.memory, POLICIES)
        whole_fields(self, _WHOLE)
        if self.spill is not None:
            if not isinstance(self.spill, (str, Path)):
                raise SettingsError("--spill", f"got {shown(self.spill)}", "a folder")
            object.__setattr__(self, "spill", Path(self.spill))
        if self.memory == "all" and self.window is not None:
            raise SettingsError("--window", "has no effect with --memory all", fix="leave it out")

    def rows(self, page: int) -> int:
        """Rows of keys and values that engines take for frames of `page` kept tokens: the window's,
        and with rekv those of an answer too, which what is fetched goes to."""
        window = context_rows(self.window)
        if self.memory != "rekv":
            return window
        return window + context_rows((self.top_pages or TOP_PAGES) * page)

    def make(self, model: LanguageModel, before: int, page: int) -> WindowMemory:
        """An empty memory for a prompt of `before` text tokens and frames of `page` kept tokens.

        Raises SettingsError when a frame does not fit the window, or the window, or what a
        question fetches, the model or the machine.
        """
        if self.memory == "all":
            return AllMemory(model, fixed=before, fitting=_fitting(model))
        fixed = before if self.memory == "rekv" else max(before, SINKS)
        top = self._top(model, fixed, page) if self.memory == "rekv" else 0
        window = self._window(model, fixed, top * page)
        call = page * self.prefill_every
        if window < call:
            raise SettingsError(
                "--window",
                f"{window} tokens",
                f"at least the {call} of one language call",
                "enlarge it, or use a smaller --budget or --prefill-every",
            )
        if self.memory == "window":
            return WindowMemory(model, fixed=fixed, window=window)
        return self._rekv(model, fixed, page, top, window // page)

    def _rekv(
        self, model: LanguageModel, fixed: int, page: int, top: int, pages: int
    ) -> RekvMemory:
        spec, shape = model.spec, page_shape(model, page)
        page_bytes = int(np.prod(shape)) * model.dtype.itemsize
        cap = page_cap(
            self.host_memory_mb * MB,
            window=pages,
            spill_bytes=0 if self.spill is None else self.spill_mb * MB,
            page_bytes=page_bytes,
            representative_bytes=spec.blocks * spec.key_heads * spec.head_width * 4,
        )
        spill = None
        if self.spill is not None:
            spill = SpillFile(self.spill, shape, model.dtype, cap.spilled * page_bytes)
        return RekvMemory(model, fixed=fixed, page=page, top=top, cap=cap, spill=spill)

    def _top(self, model: LanguageModel, fixed: int, page: int) -> int:
        longest = max(0, min(most_remembered(model), _fitting(model)) - fixed) // page
        if self.top_pages is None:
            return max(1, min(TOP_PAGES, longest))
        if self.top_pages > longest:
            raise SettingsError(
                "--top-pages",
                f"got {self.top_pages}, frames of {page} tokens",
                f"at most {longest}, what the model's {model.spec.max_positions} positions less "
                "question and answer, and half of the memory that is free, have room for",
            )
        return self.top_pages

    def _window(self, model: LanguageModel, fixed: int, fetched: int) -> int:
        longest = most_remembered(model) - fixed
        fitting = _fitting(model) - fetched
        if self.window is None:
            return max(1, min(WINDOW, longest, fitting))
        if self.window > longest:
            raise SettingsError(
                "--window",
                f"got {self.window}",
                f"at most {longest}, the model's {model.spec.max_positions} positions less "
                "question and answer",
            )
        if self.window > fitting:
            beside = f", less {fetched} fetched for an answer" if fetched else ""
            raise SettingsError(
                "--window",
                f"got {self.window}, {self.window * model.token_bytes / MB:,.0f} MB",
                f"at most {fitting}, half of the memory that is free{beside}",
            )
        return self.window


def _fitting(model: LanguageModel) -> int:
    """Tokens that half of the free memory has room for."""
    if model.backend.name in ("onnxruntime-cpu", "oracle"):
        return available_host_bytes() // 2 // model.token_bytes
    # A device of its own says itself what fits; this process's memory does not.
    return sys.maxsize


NAMES = tuple(field.name for field in fields(MemorySettings))
"""Of the fields, and of their flags."""


_FLAGS = (
    ("window", "W", f"last tokens seen, default {WINDOW}, or as many as fit"),
    (
        "top_pages",
        "K",
        f"rekv: frames fetched for a question, default {TOP_PAGES}, or as many as fit",
    ),
    ("host_memory_mb", "MB", "rekv: host memory for frames that left the window, default 2000"),
    ("spill", "DIR", "rekv: frames beyond that go to a file in this folder, default none"),
    ("spill_mb", "MB", "size of that file at most, default 16000"),
    ("prefill_every", "F", "frames per language call, default 1"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of `MemorySettings`; read them with `from_flags`."""
    group = parser.add_argument_group("language memory")
    group.add_argument("--memory", metavar="|".join(POLICIES), help="default window")
    for name, metavar, told in _FLAGS:
        taken = Path if name == "spill" else whole_flag()
        group.add_argument(flag_of(name), type=taken, metavar=metavar, help=told)


def from_flags(flags: argparse.Namespace) -> MemorySettings:
    """The settings a user asked for.

    Raises SettingsError for a value out of range, or a flag that the policy does not use.
    """
    given = {
        field.name: value
        for field in fields(MemorySettings)
        if (value := getattr(flags, field.name)) is not None
    }
    chosen = MemorySettings(**given)
    if chosen.memory != "rekv":
        for name in _REKV_ONLY:
            if name in given:
                raise SettingsError(flag_of(name), "requires --memory rekv")
    if "spill_mb" in given and chosen.spill is None:
        raise SettingsError("--spill-mb", "requires --spill DIR")
    return chosen
