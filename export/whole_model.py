"""Do a bundle's graphs together answer as transformers' own model does? Asked before it is kept.

Every graph by itself equals the torch module it was traced from. Whether the checkpoint was read
as transformers reads it is seen only here. One graph is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.contracts import (
    HEAD,
    HIDDEN,
    HIDDEN_OUT,
    IDS,
    KEY,
    LOGITS,
    QUERY,
    TEXT_EMBED,
    VALUE,
    attend_graph,
    qkv_graph,
)
from stc.errors import ExportError
from stc.export.checkpoint.pretrained import Pretrained
from stc.export.graphs.written_graphs import WrittenGraphs
from stc.manifest import LanguageSpec, Precision, VisionSpec
from stc.method.difference import ANSWER, PIXEL, TEXT, difference, pixels_apart, whole_limit
from stc.method.family import frame_program
from stc.method.graphs import PIXEL_VALUES, TOKENS
from stc.program import run_alone
from stc.settings import KEEP_ALL, Settings

Array = NDArray[Any]


def visual_tokens(
    graphs: WrittenGraphs, spec: VisionSpec, pixel_values: NDArray[np.float32]
) -> Array:
    """[n, D] of a frame [3, Hpx, Wpx], every token computed."""
    dense = Settings(reference_interval=1, budget=KEEP_ALL)
    program = frame_program(spec, graphs.precision, dense, "reference")
    return run_alone(program, graphs, {PIXEL_VALUES: pixel_values})[TOKENS]


def text_logits(graphs: WrittenGraphs, spec: LanguageSpec, hidden: Array, count: int) -> Array:
    """[count, V] after each of the last `count` tokens of `hidden` [m, D]."""
    positions = np.arange(len(hidden))

    def run(graph: str, **inputs: Array) -> dict[str, Array]:
        outputs = graphs.run(graph, inputs)
        if graph != HEAD:
            graphs.end(graph)
        return outputs

    for block in range(spec.blocks):
        fresh = run(qkv_graph(block), hidden=hidden)
        hidden = run(
            attend_graph(block),
            hidden=hidden,
            query=fresh[QUERY],
            keys=fresh[KEY],
            values=fresh[VALUE],
            query_positions=positions,
            key_positions=positions,
        )[HIDDEN_OUT]
    return np.concatenate([run(HEAD, hidden=row[None])[LOGITS] for row in hidden[-count:]])


def check_whole_model(
    graphs: WrittenGraphs,
    vision: VisionSpec,
    language: LanguageSpec | None,
    pretrained: Pretrained,
) -> None:
    """A frame and a greedy answer about it are those of `pretrained`, from pixels to stop tokens.

    Without `language` the frame alone. Raises ExportError naming what differs, and by how much.
    """
    judge = _Judge(graphs.precision, pretrained)
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (vision.image_height, vision.image_width, 3), np.uint8)
    pixels, expected_pixels = _pixel_values(vision, rgb), pretrained.pixel_values(rgb)
    judge.pixels(expected_pixels, pixels)
    tokens = visual_tokens(graphs, vision, pixels)
    expected_tokens = pretrained.visual_tokens(expected_pixels)
    judge.array("visual tokens", expected_tokens, tokens, pretrained.tokens_move, expected_pixels)
    if language is None:
        return
    judge.stop_tokens(language.stop_token_ids)
    ids = random.integers(0, language.vocabulary, 2 * TEXT)
    room = max(1, language.max_positions - len(ids) - ANSWER)

    def prompt(text: Array, video: Array) -> Array:
        return np.concatenate([text[:TEXT], video[:room], text[TEXT:]])

    expected_prompt = prompt(pretrained.embed(ids), expected_tokens)
    answer, expected = pretrained.answer(expected_prompt, ANSWER)
    # transformers' answer is given token by token, so that one tie broken the other way does not
    # make the rest another text.
    text = graphs.run(TEXT_EMBED, {IDS: np.concatenate([ids, answer[:-1]]).astype(np.int64)})[
        HIDDEN
    ]
    given = np.concatenate([prompt(text[: len(ids)], tokens), text[len(ids) :]])
    logits = text_logits(graphs, language, given, len(answer))
    for number, token in enumerate(answer):
        after = f"answer token {number}" if number else "the prompt"
        likeliest = f", token {number + 1} of the answer {int(logits[number].argmax())} for {token}"
        judge.array(
            f"logits after {after}",
            expected[number],
            logits[number],
            pretrained.logits_move,
            expected_prompt,
            likeliest,
        )


@dataclass(frozen=True)
class _Judge:
    precision: Precision
    pretrained: Pretrained

    def pixels(self, expected: Array, got: Array) -> None:
        most = pixels_apart(expected, got)
        if not most <= PIXEL:
            raise self.differ("pixel values", f"by {most:.3g}", f"at most {PIXEL:.3g}")

    def array(
        self,
        what: str,
        expected: Array,
        got: Array,
        move: Callable[[Array, float], float],
        inputs: Array,
        consequence: str = "",
    ) -> None:
        """`got` is `expected` up to rounding: `move` tells what that of `inputs` can make."""
        if expected.shape != got.shape:
            raise self.differ(what, f"in shape, {list(got.shape)}", f"{list(expected.shape)}")
        found = difference(expected, got)
        limit = whole_limit(self.precision, expected, got, partial(move, inputs))
        if not found.relative_l2 <= limit:
            by = f"by {found.max_abs:.3g} at most and {found.relative_l2:.3g} relative L2"
            by += consequence
            raise self.differ(what, by, f"at most {limit:.3g} relative L2")

    def stop_tokens(self, ours: tuple[int, ...]) -> None:
        theirs = self.pretrained.stop_token_ids
        # Where transformers would never stop, what config.json names does no harm.
        if theirs and set(ours) != set(theirs):
            raise self.differ("stop tokens", f"being {sorted(ours)}", f"{sorted(theirs)}")

    def differ(self, what: str, by: str, expected: str) -> ExportError:
        """The error that `what` differs."""
        cause = "the checkpoint is not read as transformers reads it"
        if self.pretrained.missing:
            cause = f"transformers found no {self.pretrained.missing[0]} in the checkpoint"
        return ExportError(
            f"whole model: {what}",
            f"differ from transformers' {by}",
            expected,
            f"{cause}: please report it with its config.json and the versions in `pip list`",
        )


def _pixel_values(spec: VisionSpec, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[3, Hpx, Wpx] of a picture that has the network's size."""
    levels = (rgb.transpose(2, 0, 1) * spec.rescale_factor).astype(np.float32)
    mean, std = (
        np.array(of, np.float32)[:, None, None] for of in (spec.image_mean, spec.image_std)
    )
    values: NDArray[np.float32] = (levels - mean) / std
    return values
