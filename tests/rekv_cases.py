"""Memories of the `rekv` policy on the small language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.language.model import LanguageModel
from stc.runtime.memory.host_pages import PageCap, SpillFile
from stc.runtime.memory.rekv import RekvMemory, page_shape
from tests.kept_tokens import POOLED

if TYPE_CHECKING:
    from tests.language_cases import LanguageCase
    from tests.oracle.language import NumpyCase


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
    cap = PageCap(window, held, 1000 if spill is not None else 0)
    fixed = len(prompt.before)
    memory = RekvMemory(model, fixed=fixed, page=POOLED, top=top, cap=cap, spill=spill)
    return StreamLanguage(model, memory, prompt), memory


def spill_of(model: LanguageModel, folder: Path) -> SpillFile:
    """A file for hundreds of them in `folder`."""
    return SpillFile(folder, page_shape(model, POOLED), np.dtype(np.float32), 1 << 20)
