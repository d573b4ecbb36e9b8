"""ToMe, token merging (arXiv 2210.09461), as published inside every block, and once at the end."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.manifest import VisionSpec
from stc.method.cost import attention_macs, embed_macs, key_macs, mlp_macs
from stc.method.family import macs, stream_programs
from stc.runtime.evaluate.method import Encoded, Method, Pixels, Runtime, Towers
from stc.runtime.evaluate.methods.pruning import checked_share, directions
from stc.runtime.evaluate.methods.stc_methods import StcEncoder
from stc.settings import PRESETS, choose
from stc.shell.ranges import number_flag, one_of, shown

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision


Schedule = Literal["constant", "decreasing"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
"""As published: every block merges as many tokens, or the first twice as many as on average and the
last none."""

TOLERANCE = 0.01
"""Of a dense frame's cost, how far below the least that merging can reach is still met by it."""


class Merge(NamedTuple):
    """Which tokens become one.

    where: int64 [t], for every token the one it is part of afterwards.
    stays: int64, for every one of those the token that it was, into which others merged.
    """

    where: NDArray[np.int64]
    stays: NDArray[np.int64]

    def sums(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """values [t, ...] of the tokens -> their sums over the tokens that became one."""
        total = values[self.stays]
        gone = np.setdiff1d(np.arange(len(self.where)), self.stays)
        np.add.at(total, self.where[gone], values[gone])
        return total


def matched(metric: NDArray[Any], merges: int, prefix: int = 0) -> Merge:
    """Bipartite soft matching of tokens by metric [t, d]: the `merges` most similar pairs merge.

    Tokens are dealt in turns to A and B. Each of A is drawn to the most similar of B by cosine, and
    the `merges` strongest of those pairs become one, several of A into one of B among them.
    Afterwards stand the `prefix` first tokens, which take no part, then what is left of A, then B.
    """
    direction = directions(metric)
    first, second = (np.arange(start, len(metric), 2) for start in (prefix, prefix + 1))
    similarity = direction[first] @ direction[second].T
    strongest = np.argsort(-similarity.max(axis=1), kind="stable")[:merges]
    left = np.delete(first, strongest)
    stays = np.concatenate((np.arange(prefix), left, second))
    where = np.empty(len(metric), np.int64)
    where[stays] = np.arange(len(stays))
    where[first[strongest]] = where[second[similarity.argmax(axis=1)[strongest]]]
    return Merge(where, stays)


def spread(spec: VisionSpec, total: int, schedule: Schedule) -> list[int]:
    """How many tokens each block merges, `total` in all, but at most half of what it has."""
    falling = schedule == "decreasing" and spec.blocks > 1
    shares = np.arange(spec.blocks - 1, -1, -1) if falling else np.ones(spec.blocks)
    until = np.floor(total * shares.cumsum() / shares.sum() + 0.5)
    merges, patches = [], spec.grid.patches
    for count in np.diff(until, prepend=0):
        merges.append(min(int(count), patches // 2))
        patches -= merges[-1]
    return merges


def merged_macs(spec: VisionSpec, merges: list[int]) -> int:
    """Of a frame whose blocks merge so many tokens, matching them among it."""
    total, tokens = embed_macs(spec), spec.tokens
    for count in merges:
        total += key_macs(spec, tokens) + attention_macs(spec, tokens, tokens)
        if count:
            patches = tokens - spec.grid.prefix_tokens
            total += (patches - patches // 2) * (patches // 2) * spec.head_width
        tokens -= count
        total += mlp_macs(spec, tokens)
    return total


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Tokens merge in every block, between attention and MLP: the tower is saved, prefill is not.

    cost: multiply-accumulates of a frame, as a share of a dense one, or the name of the preset
    whose frames cost as much on average. How many tokens merge follows from it, and from schedule,
    how they are spread over the blocks; both schedules are published. At the cost of `cacher`
    `constant`, the published default, would leave 15 of SigLIP's 729 tokens after the last block,
    `decreasing` leaves 191; hence the default here.

    The metric is the keys' mean over heads, means are weighted by size, and attention adds the
    logarithm of the sizes. LLaVA-OneVision's projector and pooling need a grid: after the last
    block every place of it gets the token that its patch became part of. A frame is a unit of its
    own, so nothing had to be made causal.
    """

    name: str = "tome"
    about: str = "tokens merge in every block of the tower; all places are read"
    source: str = "2210.09461"
    cost: str = "cacher"
    schedule: Schedule = "decreasing"
    runtime: ClassVar[Runtime] = "PyTorch"

    def __post_init__(self) -> None:
        one_of(f"--methods {self.name}:schedule", self.schedule, SCHEDULES)
        if self.cost not in PRESETS:
            self._share()

    def open(self, towers: Towers) -> ToMeEncoder:
        return ToMeEncoder(towers.torch, self.merges(towers.spec))

    def settings(self, spec: VisionSpec) -> dict[str, Any]:
        merges = self.merges(spec)
        share = merged_macs(spec, merges) / merged_macs(spec, [0] * spec.blocks)
        given = {"cost": self.cost, "schedule": self.schedule}
        return {**given, "tower_share": share, "merged_tokens": sum(merges)}

    def merges(self, spec: VisionSpec) -> list[int]:
        """How many tokens each block merges. Raises SettingsError where no merging saves that
        much."""
        wanted = self._wanted(spec)
        every = [spread(spec, total, self.schedule) for total in range(spec.grid.patches)]
        costs = [merged_macs(spec, merges) for merges in every]
        if wanted < min(costs) - TOLERANCE * costs[0]:
            least = min(costs) / costs[0]
            got, expected = f"a share of {wanted / costs[0]:.3f}", f"at least {least:.3f}"
            raise SettingsError(f"--methods {self.name}:cost", got, expected)
        return min(zip(costs, every, strict=True), key=lambda one: abs(one[0] - wanted))[1]

    def _wanted(self, spec: VisionSpec) -> float:
        if self.cost not in PRESETS:
            return self._share() * merged_macs(spec, [0] * spec.blocks)
        preset = choose(self.cost, spec.pooled)
        costs = {one.name: macs(spec, one) for one in stream_programs(spec, "fp32", preset)}
        reuse = preset.reference_interval - 1
        return (costs["reference"] + reuse * costs.get("reuse", 0)) / preset.reference_interval

    def _share(self) -> float:
        try:
            share = number_flag(self.cost)
        except ArgumentTypeError as error:
            subject, got = f"--methods {self.name}:cost", f"got {shown(self.cost)}"
            raise SettingsError(subject, got, f"a share or one of {', '.join(PRESETS)}") from error
        checked_share(self.name, "cost", share)
        return share


class ToMeEncoder:
    """Frames through a tower in PyTorch whose blocks merge as many tokens as `merges` says."""

    def __init__(self, torch: TorchVision, merges: list[int]) -> None:
        self._torch, self._merges = torch, merges
        self._macs = merged_macs(torch.spec, merges)

    def push(self, pixels: Pixels) -> Encoded:
        whole = self._torch.project(self.hidden(pixels))
        everything = np.arange(len(whole), dtype=np.int64)
        return Encoded(whole, everything, whole, None, self._macs)

    def hidden(self, pixels: Pixels) -> NDArray[np.float32]:
        """[T, C] after the last block, each token back at every place it is made of."""
        steps, prefix = self._torch.steps, self._torch.spec.grid.prefix_tokens
        hidden = steps.embed(pixels)
        sizes: NDArray[np.float32] = np.ones((len(hidden), 1), np.float32)
        place = np.arange(len(hidden))
        for block, merges in enumerate(self._merges):
            normed = steps.normed(block, hidden)
            key, value = steps.key(block, normed), steps.value(block, normed)
            bias = np.log(sizes[:, 0])
            hidden = hidden + steps.attention(block, normed, key, value, bias)
            if merges:
                merge = matched(key.mean(axis=0), merges, prefix)
                weighted, sizes = merge.sums(hidden * sizes), merge.sums(sizes)
                hidden, place = weighted / sizes, merge.where[place]
            hidden = hidden + steps.mlp(block, hidden)
        return hidden[place]


@dataclass(frozen=True, kw_only=True)
class ToMeOutput(Method):
    """The finished tokens of a dense tower merge once: prefill is saved, the tower is not.

    merge: share of n that is merged away, at most a third. This is what the code released with
    Streaming Token Compression calls ToMe; the metric is the tokens themselves.
    """

    name: str = "tome-output"
    about: str = "a third of the finished tokens is merged; saves nothing in the tower"
    source: str = "2210.09461"
    merge: float = 1 / 3

    def __post_init__(self) -> None:
        checked_share(self.name, "merge", self.merge, 1 / 3)

    def open(self, towers: Towers) -> ToMeOutputEncoder:
        merges = int(self.merge * towers.spec.pooled + 1e-9)
        return ToMeOutputEncoder(StcEncoder(towers.vision, PRESETS["off"]), merges)


class ToMeOutputEncoder:
    """Merges as many pairs of each frame's whole tokens by `encoder` as `merges` says."""

    def __init__(self, encoder: StcEncoder, merges: int) -> None:
        self._encoder, self._merges = encoder, merges

    def push(self, pixels: Pixels) -> Encoded:
        encoded = self._encoder.push(pixels)
        tokens, kept = merged_once(encoded.tokens, self._merges)
        return Encoded(tokens, kept, encoded.tokens, None, encoded.macs)


def merged_once(tokens: NDArray[Any], merges: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """tokens [n, D] after one matching of as many pairs, and their places, ascending."""
    merge = matched(tokens, merges)
    sizes = merge.sums(np.ones((len(tokens), 1), np.float32))
    merged = (merge.sums(tokens.astype(np.float32)) / sizes).astype(tokens.dtype)
    order = np.argsort(merge.stays)
    return merged[order], merge.stays[order]
