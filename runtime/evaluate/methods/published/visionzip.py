"""VisionZip (arXiv 2412.04467): the tokens attended to most, and means of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stc.method.cost import attention_macs, embed_macs, key_macs, mlp_macs
from stc.runtime.evaluate.method import Encoded, Method, Pixels, Runtime, Towers
from stc.runtime.evaluate.methods.pruning import checked_share, directions, kept_of

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision

DOMINANT = 54 / 64
"""Share of the kept tokens that are kept as they are (the paper's 54 of 64)."""


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Keeps dominant tokens by attention, and contextual ones into which the others are averaged.

    keep: share of n; 54 of 64 of them dominant, the rest contextual. Published, dominance is the
    attention that the class token pays in the last but one block. SigLIP has no class token, so it
    is the mean attention that a token receives from all, in the last block that runs, the last but
    one of the checkpoint. LLaVA-OneVision pools its tokens before they are read: attention and keys
    are pooled as the tokens are, so that a pooled token has the mean of its patches'.

    Of the tokens that are not dominant every step-th is a target; each of the others goes to the
    target of the most similar keys (mean of the heads), and the mean of what a target gets is added
    to it. A frame is a unit of its own, so nothing had to be made causal.
    """

    name: str = "visionzip"
    about: str = "tokens that get most attention, and means of the others"
    source: str = "2412.04467"
    keep: float = 0.25
    runtime: ClassVar[Runtime] = "PyTorch"

    def __post_init__(self) -> None:
        checked_share(self.name, "keep", self.keep)

    def open(self, towers: Towers) -> VisionZipEncoder:
        return VisionZipEncoder(towers.torch, kept_of(self.keep, towers.spec.pooled))


class VisionZipEncoder:
    """Keeps `count` tokens of each frame of a dense tower in PyTorch."""

    def __init__(self, torch: TorchVision, count: int) -> None:
        self._torch = torch
        self._count = count
        spec = torch.spec
        block = key_macs(spec, spec.tokens) + attention_macs(spec, spec.tokens, spec.tokens)
        self._macs = embed_macs(spec) + spec.blocks * (block + mlp_macs(spec, spec.tokens))

    def push(self, pixels: Pixels) -> Encoded:
        torch, steps = self._torch, self._torch.steps
        hidden = steps.embed(pixels)
        for block in range(torch.spec.blocks):
            normed = steps.normed(block, hidden)
            key = steps.key(block, normed)
            if block == torch.spec.blocks - 1:
                received = steps.received(block, normed, key)
            hidden = hidden + steps.attention(block, normed, key, steps.value(block, normed))
            hidden = hidden + steps.mlp(block, hidden)
        whole = torch.project(hidden)
        attention = torch.pool(received[:, None])[:, 0]
        tokens, kept = zipped(whole, attention, torch.pool(key.mean(axis=0)), self._count)
        return Encoded(tokens, kept, whole, None, self._macs)


def zipped(
    tokens: NDArray[Any], attention: NDArray[np.float32], keys: NDArray[np.float32], count: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """`count` of tokens [n, D], by the attention [n] they get and keys [n, d], and their places.

    Places ascend; of a contextual token that of its target.
    """
    dominant = max(1, round(count * DOMINANT))
    contextual = count - dominant
    by_attention = np.argsort(-attention, kind="stable")
    places, rest = by_attention[:dominant], np.sort(by_attention[dominant:])
    merged = tokens.copy()
    if contextual:
        step = max(1, len(rest) // contextual)
        targets = rest[::step][:contextual]
        others = np.setdiff1d(rest, targets)
        direction = directions(keys)
        nearest = (direction[others] @ direction[targets].T).argmax(axis=1)
        for number, target in enumerate(targets):
            mine = others[nearest == number]
            if len(mine):
                merged[target] += tokens[mine].mean(axis=0)
        places = np.concatenate((places, targets))
    places = np.sort(places).astype(np.int64)
    return merged[places], places
