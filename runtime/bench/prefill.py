"""Prefill of a frame at keep-all and at the preset, decoding, and the time to a first token.

The floor: multiply-accumulates of the tokens computed. Prefill is linear in them but for attention
to the context, so keeping 58 of 196 tokens cannot cut it by more than 1 - 58/196 = 70%; a decoded
token must read every weight once, so its floor is their bytes over the memory's bandwidth. All
are measured in turns in one run, with PyTorch and other weights of the bundle where asked for, so
that a noisy machine is noisy for all of them alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.bench.bench import PAUSE_S
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchLanguage

QUESTION = 16
"""Text tokens of the question whose first token is timed."""
DECODES = 4
"""Tokens decoded in a row in every round."""


class Filled:
    """A decoder behind a context of `context` random tokens, to be measured from."""

    def __init__(self, model: LanguageModel, context: int, most: int) -> None:
        if context + most > model.spec.max_positions:
            raise SettingsError(
                "--context",
                f"got {context}",
                f"at most {model.spec.max_positions - most}, the model's positions less a frame",
            )
        self.model = model
        self.context = context
        self._rows = PlainRows(model, context + most)
        random = np.random.default_rng(0)
        self.tokens = random.standard_normal((context, model.spec.width)).astype(model.dtype)
        step = 256
        for first in range(0, context, step):
            self._rows.remember(self.tokens[first : first + step], first)

    def prefill(self, hidden: NDArray[Any]) -> None:
        """The tokens `hidden` stand behind the context."""
        self._rows.remember(hidden, self.context)

    def text(self, ids: NDArray[np.int64], after: int = 0) -> NDArray[np.float32]:
        """Logits [V] after the text tokens `ids`, the first of which is number `after` of the text
        behind the context."""
        return self._rows.logits(self.model.embed(ids), self.context + after)


@dataclass
class PrefillBench:
    """Times in milliseconds, measured in rounds by `measure`.

    pooled, kept: n and k, tokens of a frame's prefill at keep-all and at the preset.
    others: decoders with other weights of the bundle, by their name, measured beside it.
    """

    model: LanguageModel
    pooled: int
    kept: int
    context: int
    torch: TorchLanguage | None = None
    others: Mapping[str, LanguageModel] = field(default_factory=dict)
    times: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = max(self.pooled, QUESTION + DECODES)
        self._filled = Filled(self.model, self.context, most)
        self._others = {
            name: Filled(model, self.context, most) for name, model in self.others.items()
        }
        random = np.random.default_rng(1)
        width = self.model.spec.width
        self._frame = random.standard_normal((self.pooled, width)).astype(self.model.dtype)
        self._ids = random.integers(0, self.model.spec.vocabulary, QUESTION)
        if self.torch is not None:
            self.torch.prefill(self._filled.tokens.astype(np.float32))

    def measure(self) -> None:
        """One round: both prefills, a question and a few tokens decoded, here and in PyTorch."""
        self._measure(self._filled)
        for name, filled in self._others.items():
            self._measure(filled, f"{name}_")
        if self.torch is not None:
            time.sleep(PAUSE_S)
            self._measure_torch(self.torch)
            time.sleep(PAUSE_S)

    def _measure(self, filled: Filled, prefix: str = "") -> None:
        frame = self._frame
        self._time(f"{prefix}prefill_keep_all", partial(filled.prefill, frame))
        self._time(f"{prefix}prefill_preset", partial(filled.prefill, frame[: self.kept]))
        self._time(f"{prefix}ttft", partial(filled.text, self._ids))
        for number in range(DECODES):
            self._time(f"{prefix}decode", partial(filled.text, self._ids[:1], QUESTION + number))

    def forget(self) -> None:
        """What was measured so far was warm-up."""
        self.times.clear()

    def figures(self) -> dict[str, Any]:
        """The measured figures; PyTorch's only when it was measured."""
        keep_all, preset = self._p50("prefill_keep_all"), self._p50("prefill_preset")
        decode = self._p50("decode")
        figures: dict[str, Any] = {
            "context": self.context,
            "tokens_keep_all": self.pooled,
            "tokens_preset": self.kept,
            "rounds": len(self.times["prefill_preset"]),
            "prefill_keep_all_ms_p50": keep_all,
            "prefill_keep_all_ms_min": min(self.times["prefill_keep_all"]),
            "prefill_preset_ms_p50": preset,
            "prefill_preset_ms_min": min(self.times["prefill_preset"]),
            "prefill_cut": 1.0 - preset / keep_all,
            "prefill_cut_ceiling": 1.0 - self.kept / self.pooled,
            "ttft_ms_p50": self._p50("ttft"),
            "decode_ms_p50": decode,
            "decode_ms_min": min(self.times["decode"]),
            "decode_tokens_per_s": 1e3 / decode,
            "kv_bytes_per_token": self.model.token_bytes,
        }
        for name in self.others:
            measured = ("prefill_keep_all", "prefill_preset", "ttft", "decode")
            figures |= {f"{name}_{one}_ms_p50": self._p50(f"{name}_{one}") for one in measured}
            figures |= {
                f"{name}_decode_ms_min": min(self.times[f"{name}_decode"]),
                f"{name}_decode_speedup": decode / self._p50(f"{name}_decode"),
            }
        if self.torch is not None:
            torch_decode = self._p50("torch_decode")
            figures |= {
                "torch_prefill_keep_all_ms_p50": self._p50("torch_prefill_keep_all"),
                "torch_prefill_preset_ms_p50": self._p50("torch_prefill_preset"),
                "torch_decode_ms_p50": torch_decode,
                "torch_decode_ms_min": min(self.times["torch_decode"]),
                "speedup_prefill_keep_all": self._p50("torch_prefill_keep_all") / keep_all,
                "speedup_prefill_preset": self._p50("torch_prefill_preset") / preset,
                "speedup_decode": torch_decode / decode,
            }
        return figures

    def _measure_torch(self, torch: TorchLanguage) -> None:
        whole = self._frame.astype(np.float32)
        for name, frame in (("keep_all", whole), ("preset", whole[: self.kept])):
            self._time(f"torch_prefill_{name}", partial(torch.prefill, frame))
            torch.forget(self.context)
        for _ in range(DECODES):
            self._time("torch_decode", partial(torch.decode, int(self._ids[0])))
        torch.forget(self.context)

    def _time(self, name: str, call: Callable[[], object]) -> None:
        start = time.perf_counter()
        call()
        self.times.setdefault(name, []).append((time.perf_counter() - start) * 1e3)

    def _p50(self, name: str) -> float:
        return statistics.median(self.times[name])
