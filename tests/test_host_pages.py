"""Pages that left the window: within their caps, found again, dropped when there is no room."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stc.errors import SettingsError
from stc.runtime.commands import run as run_command
from stc.runtime.memory.host_pages import SpillFile, page_cap
from stc.runtime.memory.rekv import Representatives, best, page_shape
from tests.as_user import CLIP
from tests.endless_stream import rss_bytes
from tests.kept_tokens import POOLED, frames
from tests.language_cases import BEFORE, language_case
from tests.language_reference import ReferenceRekv
from tests.rekv_cases import rekv_stream, spill_of

QUESTION = "How many objects are moving?"
TOKENS = 12


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 30))
def test_best_takes_the_older_of_equals_and_gives_order_of_time(
    scores: list[int], count: int
) -> None:
    ranked = sorted(range(len(scores)), key=lambda page: -scores[page])
    assert best(np.array(scores, np.float32), count) == sorted(ranked[:count])


def test_host_memory_is_bounded_and_drops_the_oldest() -> None:
    case = language_case()
    model = case.language()
    language, memory = rekv_stream(case, model, window=2, top=100, held=5)
    video = frames(20)
    for tokens in video:
        language.append(tokens)
    facts = memory.facts()
    assert (facts.host_pages, facts.spilled_pages, facts.dropped_pages) == (5, 0, 13)
    # Room for every representative is made at once: there are few.
    representative_bytes = model.spec.blocks * model.spec.key_heads * model.spec.head_width * 4
    page_bytes = int(np.prod(page_shape(model, POOLED))) * 4
    assert facts.host_bytes == 5 * page_bytes + 7 * representative_bytes
    reference = ReferenceRekv(case.model, case.prompt().before, window=2, top=100)
    for tokens in video:
        reference.frame(tokens)
    for pages in reference.pages:
        del pages[:13]
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids == reference.answer(case.prompt().after(QUESTION), TOKENS)[0]


def test_spilled_pages_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stc.runtime.memory.host_pages.SEGMENT_BYTES", 1)  # a segment per page
    case = language_case()
    model = case.language()
    spill = spill_of(model, tmp_path)
    language, memory = rekv_stream(case, model, window=2, top=4, held=3, spill=spill)
    reference = ReferenceRekv(case.model, case.prompt().before, window=2, top=4)
    for tokens in frames(20):
        language.append(tokens)
        reference.frame(tokens)
    facts = memory.facts()
    assert (facts.host_pages, facts.spilled_pages, facts.dropped_pages) == (3, 15, 0)
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    assert answer.token_ids == reference.answer(case.prompt().after(QUESTION), TOKENS)[0]
    assert list(tmp_path.iterdir()) == []  # the file has no name


def test_a_full_disk_stops_the_spilling_and_not_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated = 0

    def allocate(_: int, start: int, length: int) -> None:
        nonlocal allocated
        if allocated >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocated += 1
        os.truncate(_, start + length)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr("stc.runtime.memory.host_pages.SEGMENT_BYTES", 1)
    case = language_case()
    model = case.language()
    spill = spill_of(model, tmp_path)
    language, memory = rekv_stream(case, model, window=2, top=100, held=3, spill=spill)
    for tokens in frames(20):
        language.append(tokens)
    facts = memory.facts()
    assert (facts.host_pages, facts.spilled_pages, facts.dropped_pages) == (3, 4, 11)
    (notice,) = language.notices()
    assert "No space left on device after 4 pages" in notice
    assert language.notices() == []
    answer = language.ask(QUESTION, TOKENS)
    list(answer)
    reference = ReferenceRekv(case.model, case.prompt().before, window=2, top=100)
    for tokens in frames(20):
        reference.frame(tokens)
    for pages in reference.pages:
        del pages[:11]
    assert answer.token_ids == reference.answer(case.prompt().after(QUESTION), TOKENS)[0]


def test_a_run_goes_on_when_its_disk_is_full(
    full_disk: Path,
    talkative_demo_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_main: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    monkeypatch.setattr("stc.runtime.memory.host_pages.SEGMENT_BYTES", 400_000)
    memory = ["--memory", "rekv", "--window", "280", "--host-memory-mb", "1", "--spill", full_disk]
    flags = ["--video", CLIP, "--frames", "120", *memory, "--ask", QUESTION]
    flags += ["--max-new-tokens", "3", "--json", "-"]
    done = run_main(run_command.main, talkative_demo_bundle, *flags)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("spill file in ")]
    assert len(told) == 1
    assert "No space left on device after " in told[0]
    (asked,) = json.loads(done.stdout.splitlines()[-1])["language"]["questions"]
    assert asked["answer_tokens"] == 3
    memory_facts = asked["memory"]
    assert memory_facts["spilled_pages"] > 40
    assert memory_facts["dropped_pages"] > 0
    assert memory_facts["tokens"] == BEFORE + 280


def test_a_spill_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--spill: .*cannot be written"):
        SpillFile(tmp_path / "missing", (1, 2, 1, 1, 1), np.dtype(np.float32), 100)


def test_a_cap_counts_what_pages_are_found_by_wherever_they_are() -> None:
    sizes = {"window": 10, "page_bytes": 1000, "representative_bytes": 10}
    alone = page_cap(20_300, spill_bytes=0, **sizes)
    assert alone == (10, 20, 0)
    spilling = page_cap(20_300, spill_bytes=100_000, **sizes)
    assert spilling == (10, 19, 100)
    # However large the file, half of the memory is left for pages.
    assert page_cap(20_300, spill_bytes=10**9, **sizes).spilled == 1010
    for cap, most in ((alone, 20_300), (spilling, 20_300)):
        assert cap.held * 1000 + sum(cap) * 10 <= most


def test_host_memory_below_one_page_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--host-memory-mb: got 0.001 MB, expected at least"):
        page_cap(1000, window=1, spill_bytes=0, page_bytes=1000, representative_bytes=10)


@given(
    most=st.integers(1, 200),
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=20),
)
def test_representatives_are_those_of_the_pages_left_in_order_of_time(
    most: int, steps: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(0)
    kept = Representatives(2, 1, 3, most)
    expected: list[NDArray[np.float32]] = []
    for added, dropped in steps:
        for _ in range(min(added, most - len(expected))):
            expected.append(random.standard_normal((2, 1, 3)).astype(np.float32))
            kept.add(expected[-1])
        gone = min(dropped, len(expected))
        kept.drop(gone)
        del expected[:gone]
        assert len(kept) == len(expected)
        assert kept.size_bytes <= most * 2 * 3 * 4
        for block in range(2):
            scores = kept.scores(block, np.array([[1, 2, 4], [1, 0, 0]], np.float32))
            query = np.array([2, 2, 4], np.float32)
            wanted = [float(page[block, 0] @ query) for page in expected]
            assert np.allclose(scores, wanted, atol=1e-4)


def test_what_is_spilled_does_not_stay_in_memory(tmp_path: Path) -> None:
    shape = (2, 2, 1, 100, 250)  # 400 kB
    spill = SpillFile(tmp_path, shape, np.dtype(np.float32), 100 << 20)
    page = np.ones(shape, np.float32)
    assert spill.grow()
    before = rss_bytes()
    for slot in range(spill.slots):
        spill.write(slot, page * slot)
    for slot in range(spill.slots):
        assert (spill.read(slot, 1) == slot).all()
    assert spill.slots * spill.page_bytes > 60 << 20
    assert rss_bytes() - before < 10 << 20
