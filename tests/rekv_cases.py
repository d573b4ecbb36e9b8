"""Memories of the `rekv` policy on the small language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.page_cap import PageCap
from stc.runtime.memory.rekv import RekvMemory, page_shape
from stc.runtime.memory.spill_file import SpillFile
from tests.kept_tokens import POOLED

if TYPE_CHECKING:
    from tests.language_cases import LanguageCase
    from tests.language_oracle import NumpyCase


def rekv_stream(
    case: LanguageCase | NumpyCase,
    model: LanguageModel,
    *,
    window: int,
    top: int,
    held: int = 1000,
    spill: SpillFile | None = None,
) -> tuple[StreamLanguage, RekvMemory]:
    """A stream and its memory: `window` pages on the device, `held` on the host, then `spill`."""
    prompt = case.prompt()
    cap = cap_of(model, window, held, 1000 if spill is not None else 0)
    fixed = len(prompt.before)
    memory = RekvMemory(model, fixed=fixed, page=POOLED, top=top, cap=cap, spill=spill)
    return StreamLanguage(model, memory, prompt), memory


def cap_of(model: LanguageModel, window: int, held: int, spilled: int = 0) -> PageCap:
    """So many pages of POOLED tokens."""
    spec = model.spec
    return PageCap(
        window=window,
        held=held,
        spilled=spilled,
        page_bytes=int(np.prod(page_shape(model, POOLED))) * 4,
        representative_bytes=spec.blocks * spec.key_heads * spec.head_width * 4,
    )


def spill_of(model: LanguageModel, folder: Path) -> SpillFile:
    """A file for hundreds of them in `folder`."""
    return SpillFile(folder, page_shape(model, POOLED), np.dtype(np.float32), 1 << 20)
