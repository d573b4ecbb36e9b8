"""Settings from scripts and notebooks: numbers of any type and size, right or refused by name."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stc.errors import SettingsError
from stc.runtime.answers.questions import Questions
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import parity as parity_command
from stc.runtime.commands import run as run_command
from stc.runtime.language.sampling import Sampler, Sampling
from stc.runtime.memory.settings import MemorySettings
from stc.runtime.video.clock import FrameSampler
from stc.runtime.video.open import open_video
from stc.settings import Settings
from tests.tiny_bundle import write_bundle

Made = Callable[..., object]

COUNTS: list[tuple[Made, str]] = [
    *((Settings, field) for field in ("reference_interval", "budget", "anchor_window")),
    *(
        (MemorySettings, field)
        for field in ("window", "top_pages", "host_memory_mb", "spill_mb", "prefill_every")
    ),
    (Sampling, "seed"),
    (Questions, "most"),
]
REALS: list[tuple[Made, str]] = [
    (Settings, "recompute_ratio"),
    (Sampling, "temperature"),
    (Sampling, "top_p"),
    (lambda give_up_s: open_video("rtsp://h/a", give_up_s=give_up_s), "give_up_s"),
    (lambda probe_s: open_video("rtsp://h/a", probe_s=probe_s), "probe_s"),
    (lambda fps: FrameSampler(fps, 0.0), "fps"),
]
NO_NUMBERS: list[object] = ["1", "", [1], (1,), {}, 1j, b"1", ..., np.ones(2)]


def refusal(made: Made, field: str, value: object) -> str:
    """The one line with which `value` is refused."""
    with pytest.raises(SettingsError) as caught:
        made(**{field: value})
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 300
    flag = "max-new-tokens" if field == "most" else field.replace("_", "-")
    assert flag in line.replace("_", "-")
    return line


def _id(value: object) -> str | None:
    return value if isinstance(value, str) else None


@pytest.mark.parametrize(("made", "field"), COUNTS, ids=_id)
@pytest.mark.parametrize(
    "value",
    [1.5, 1.0, math.nan, math.inf, True, np.float32(1), np.bool_(True), Decimal(1), *NO_NUMBERS],
    ids=repr,
)
def test_a_count_that_is_no_whole_number_is_refused_by_name(
    made: Made, field: str, value: object
) -> None:
    """A division's result, a flag, an array in the place of a count: SettingsError."""
    assert "a whole number" in refusal(made, field, value)


@pytest.mark.parametrize(("made", "field"), COUNTS, ids=_id)
@pytest.mark.parametrize("value", [-1, -(10**30), 10**20, 10**5000, 2**63], ids=["-1", *"abcd"])
def test_a_count_that_no_machine_counts_to_is_refused_with_its_bounds(
    made: Made, field: str, value: int
) -> None:
    """A typing mistake of many digits, or a negative one: SettingsError with least and most."""
    line = refusal(made, field, value)
    assert "expected at least " in line
    assert " and at most " in line


@pytest.mark.parametrize(("made", "field"), COUNTS, ids=_id)
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.array])
def test_numpys_whole_numbers_are_taken_and_are_ints_from_then_on(
    made: Made, field: str, kind: Any
) -> None:
    """A count read off an array: taken, and written to JSON like any other."""
    value = getattr(made(**{field: kind(3)}), field)
    assert type(value) is int
    assert value == 3


@pytest.mark.parametrize(("made", "field"), REALS, ids=_id)
@pytest.mark.parametrize(
    "value",
    [math.nan, -math.inf, -1, -1e300, -(10**400), True, Decimal("0.5"), *NO_NUMBERS],
    ids=lambda value: type(value).__name__,
)
def test_a_real_number_that_is_none_is_refused_by_name(
    made: Made, field: str, value: object
) -> None:
    """NaN from a division by nothing, a negative time, a text: SettingsError."""
    refusal(made, field, value)


@pytest.mark.parametrize(("made", "field"), REALS, ids=_id)
@pytest.mark.parametrize("value", [math.inf, 10**400], ids=["inf", "10**400"])
def test_only_a_wait_may_be_infinite(made: Made, field: str, value: float) -> None:
    """`--give-up-s inf` waits for ever; nothing else has a meaning without end."""
    if field == "give_up_s":
        with pytest.raises(SettingsError, match="--give-up-s: requires a live --video"):
            open_video("clip.mp4", give_up_s=value)
    else:
        refusal(made, field, value)


def test_numpys_and_pythons_real_numbers_are_taken() -> None:
    """A ratio computed as float32, float64 or a fraction: taken as the float it is."""
    values: list[Any] = [np.float32(0.25), np.float64(0.25), Fraction(1, 4)]
    for value in values:
        settings = Settings(recompute_ratio=value)
        assert type(settings.recompute_ratio) is float
        assert settings == Settings(recompute_ratio=0.25)
        json.dumps(asdict(settings))
        json.dumps(asdict(Sampling(temperature=value, top_p=value, seed=np.int64(1))))


@pytest.mark.parametrize("value", [None, 1, [], ["shared"], np.array(["shared", "layerwise"])])
@pytest.mark.parametrize(
    ("made", "field"), [(Settings, "selection"), (Settings, "pruner"), (MemorySettings, "memory")]
)
def test_a_word_that_is_none_is_refused_by_name(made: Made, field: str, value: object) -> None:
    """Another type in the place of a name: SettingsError, not a comparison that fails."""
    refusal(made, field, value)


@pytest.mark.parametrize("value", [1, [], b"/tmp"])
def test_a_spill_folder_that_is_no_path_is_refused(value: object) -> None:
    """A number in the place of a folder: SettingsError; a str is a path."""
    refusal(MemorySettings, "spill", value)
    assert MemorySettings(spill="/tmp").spill == Path("/tmp")  # type: ignore[arg-type]


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans()))
def test_settings_are_whole_or_refused_whatever_is_given(value: Any) -> None:
    """Any value in any field: Settings that can be used, or SettingsError."""
    for field in ("reference_interval", "recompute_ratio", "budget", "anchor_window"):
        try:
            settings = Settings(**{field: value})
        except SettingsError as error:
            assert "\n" not in str(error)
            continue
        assert 1 <= settings.recomputed(729) <= 729
        assert settings.is_reference(0)
        json.dumps(asdict(settings), allow_nan=False)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_a_temperature_at_the_ends_still_draws_a_token(temperature: float) -> None:
    """Near 0 it is greedy, beyond all measure it draws evenly; neither overflows."""
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    drawn = {Sampler(Sampling(temperature=temperature, seed=seed))(logits) for seed in range(20)}
    assert drawn == ({1} if temperature < 1 else {0, 1, 2})


REFUSED = [
    (bench_command.main, ["--reference-interval", "99999999999999999999"], "--reference-interval"),
    (bench_command.main, ["--reference-interval", "1000000000"], "--reference-interval"),
    (bench_command.main, ["--reference-interval", "1001"], "--reference-interval"),
    (bench_command.main, ["--frames", "99999999999999999999"], "--frames"),
    (bench_command.main, ["--frames", "0"], "--frames"),
    (bench_command.main, ["--prefill", "--context", "99999999999999999999"], "--context"),
    (bench_command.main, ["--anchor-window", "99999999999999999999"], "--anchor-window"),
    (parity_command.main, ["--frames", "99999999999999999999"], "--frames"),
    (run_command.main, ["--video", "v", "--frames", "99999999999999999999"], "--frames"),
    (
        run_command.main,
        ["--video", "v", "--ask", "a", "--max-new-tokens", "99999999999999999999"],
        "--max-new-tokens",
    ),
    (
        run_command.main,
        ["--video", "v", "--ask", "a", "--prefill-every", "99999999999999999999"],
        "--prefill-every",
    ),
]


@pytest.mark.parametrize(
    ("main", "words", "flag"), REFUSED, ids=[f"{flag}-{words[-1]}" for _, words, flag in REFUSED]
)
def test_a_count_beyond_a_commands_patience_is_one_line(
    main: Callable[..., int],
    words: list[str],
    flag: str,
    tmp_path: Path,
    run_main: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """So many frames, tokens or rounds that no run ends: exit 2 and the flag, before any work."""
    done = run_main(main, write_bundle(tmp_path / "tiny"), *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {flag}: ")
    assert len(done.stderr.splitlines()) == 1
