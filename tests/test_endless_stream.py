"""A stream may go on for ever: neither memory nor time per frame or answer grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kept_tokens import POOLED
from tests.language_cases import BEFORE, language_case
from tests.own_process import run_python

WINDOW = ("--memory", "window", "--window", 280)
REKV = ("--memory", "rekv", "--window", 280)


def streamed(bundle: Path, *arguments: object) -> dict[str, Any]:
    """The figures of `tests.endless_stream`."""
    done = run_python("-m", "tests.endless_stream", bundle, *arguments)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert figures["frames"] == arguments[0]
    return figures


def assert_flat(figures: dict[str, Any], name: str, early: slice, late: slice) -> None:
    """The least of `name` late in the stream is about what it was early."""
    assert min(figures[name][late]) < 1.5 * min(figures[name][early]), (name, figures)


def assert_resident_memory_flat(figures: dict[str, Any], early: int, late: int) -> None:
    before, after = figures["rss_bytes"][early], figures["rss_bytes"][late]
    assert abs(after - before) <= 0.01 * before, figures["rss_bytes"]


@pytest.mark.slow
def test_an_endless_stream_takes_neither_more_memory_nor_more_time(demo_bundle: Path) -> None:
    figures = streamed(demo_bundle, 20_000)
    assert_resident_memory_flat(figures, 2, 7)
    assert_flat(figures, "fastest_ms", slice(2, 4), slice(6, 8))


@pytest.mark.parametrize(
    ("memory", "frames", "every"),
    [(WINDOW, 480, 10), ((*REKV, "--host-memory-mb", 1), 1_600, 25)],
    ids=["window", "rekv"],
)
def test_an_endless_stream_with_questions_is_as_flat_once_its_memory_is_full(
    memory: tuple[object, ...], frames: int, every: int
) -> None:
    assert_flat_with_questions(language_case().bundle.root, POOLED, memory, frames, every)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [WINDOW, (*REKV, "--host-memory-mb", 3)], ids=["window", "rekv"])
def test_an_endless_stream_of_the_demo_with_questions_is_as_flat(
    memory: tuple[object, ...], demo_bundle: Path
) -> None:
    assert_flat_with_questions(demo_bundle, 14, memory, 20_000, 5)


def assert_flat_with_questions(
    bundle: Path, kept: int, memory: tuple[object, ...], frames: int, every: int
) -> None:
    """`frames` frames of `kept` tokens each, a question `every` so many; a half fills memory."""
    figures = streamed(bundle, frames, "--ask-every", every, *memory)
    assert_resident_memory_flat(figures, 4, 7)
    for name in ("fastest_ms", "prefill_ms", "first_token_ms"):
        assert_flat(figures, name, slice(4, 6), slice(6, 8))
    assert figures["answer_tokens"] == [2] * (frames // every)
    facts = figures["memory"]
    assert facts["tokens"] == BEFORE + 280
    if facts["policy"] == "rekv":
        assert facts["host_bytes"] <= int(memory[-1]) * 1_000_000  # type: ignore[call-overload]
        assert facts["host_pages"] + facts["dropped_pages"] == frames - 280 // kept
        assert facts["dropped_pages"] > 0


@pytest.mark.slow
def test_a_large_cap_on_host_memory_holds(demo_bundle: Path) -> None:
    """200 MB are full after some 13,000 frames of the demo."""
    figures = streamed(demo_bundle, 20_000, "--ask-every", 5, *REKV, "--host-memory-mb", 200)
    facts = figures["memory"]
    assert 190_000_000 < facts["host_bytes"] <= 200_000_000
    assert facts["dropped_pages"] > 0
    assert figures["rss_bytes"][7] - figures["rss_bytes"][0] < 210_000_000
    assert_resident_memory_flat(figures, 6, 7)
    for name in ("fastest_ms", "prefill_ms", "first_token_ms"):
        assert_flat(figures, name, slice(2, 4), slice(6, 8))
    assert figures["answer_tokens"] == [2] * 4_000


def test_the_time_to_a_first_token_does_not_depend_on_the_length_of_the_stream(
    demo_bundle: Path,
) -> None:
    """Four minutes at a frame per second; the window of 1,120 tokens is full after 80 s."""
    window = ("--memory", "window", "--window", 1120)
    figures = streamed(demo_bundle, 240, "--ask-every", 6, *window)
    assert figures["memory"]["tokens"] == BEFORE + 1120
    assert_flat(figures, "first_token_ms", slice(4, 6), slice(6, 8))
