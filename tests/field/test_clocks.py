"""Clocks of files and live sources, whatever their time stamps do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import av
import pytest
from av.container import InputContainer
from hypothesis import given, settings
from hypothesis import strategies as st

from stc.errors import VideoError
from stc.runtime.video import live as video_live
from stc.runtime.video.clock import (
    LONGEST_PAUSE_OF_RESTARTING_S,
    LONGEST_PAUSE_S,
    LOOK_AHEAD,
    WALL_LAG_S,
    Clock,
    Foreseen,
)
from stc.runtime.video.live import LiveVideo
from stc.runtime.video.open import open_video
from tests.clips import numbered, numbered_clip, read_frames, write_clip
from tests.rtsp_camera import RtspCamera
from tests.transport_stream import restamped, stamped_clip

PERIOD_S = 0.04
STRAY_S = 37_600.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost source is opened again at once."""
    monkeypatch.setattr(video_live, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(video_live, "LONGEST_WAIT_S", 0.04)


def times_of(stamps: Sequence[float | None], period_s: float = PERIOD_S, **how: Any) -> list[float]:
    """The times of a file whose frames have `stamps`."""
    clock = Clock(period_s, **how)
    return [clock.time_s(stamp, stamps[at + 1 :]) for at, stamp in enumerate(stamps)]


# Files.


STRAYS: dict[str, Callable[[int], float]] = {
    "one in ten, far ahead": lambda k: STRAY_S * (k % 10 == 9),
    "one in ten, half a minute ahead": lambda k: 30.0 * (k % 10 == 9),
    "one in ten, a second back": lambda k: -1.0 * (k % 10 == 9 and k > 30),
    "two in a row": lambda k: 30.0 * (k % 10 in (5, 6)),
    "every other": lambda k: STRAY_S * (k % 2),
    "the first": lambda k: STRAY_S * (k == 0),
    "the first is behind": lambda k: STRAY_S * (k > 0),
    "all but one in ten": lambda k: STRAY_S * (k % 10 != 9),
    "a new zero ahead": lambda k: STRAY_S * (k > 50),
    "a new zero back": lambda k: -1.5 * (k > 50),
    "wraps round": lambda k: 2**33 / 90_000 - 1.4 - 2.0,
}


@pytest.mark.parametrize("move_s", STRAYS.values(), ids=STRAYS.keys())
def test_stray_stamps_move_no_clock(tmp_path: Path, move_s: Callable[[int], float]) -> None:
    """A recording from a bad line: 100 frames at 25 a second last 3.96 s, to within a frame."""
    frames = read_frames(stamped_clip_of_hundred(tmp_path, move_s))
    assert len(frames) == 100
    for number, frame in enumerate(frames):
        assert frame.time_s == pytest.approx(number * PERIOD_S, abs=PERIOD_S * 1.01)


def stamped_clip_of_hundred(folder: Path, move_s: Callable[[int], float]) -> Path:
    pictures = (numbered(number % 20) for number in range(100))
    path = write_clip(folder / "clip.ts", pictures, rate=25, codec="libx264")
    return restamped(path, move_s)


def test_a_stray_stamp_does_not_change_which_frames_are_sampled(tmp_path: Path) -> None:
    """At 5 a second of a recording with strays, every fifth frame, give or take one."""
    path = stamped_clip_of_hundred(tmp_path, STRAYS["one in ten, far ahead"])
    assert len(read_frames(path, 5.0)) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("name", ["clip.ts", "clip.mkv", "clip.mp4"])
def test_a_pause_lasts_as_long_as_it_was(tmp_path: Path, name: str) -> None:
    """A screen recording that stood still for 20 s: the frames behind it are 20 s later."""
    stamps = [*range(10), *range(210, 220)]
    codec = "libx264" if name.endswith("ts") else "mpeg4"
    frames = read_frames(numbered_clip(tmp_path, 20, name, rate=10, stamps=stamps, codec=codec))
    assert [frame.time_s for frame in frames] == pytest.approx(
        [stamp / 10 for stamp in stamps], abs=0.002
    )


@pytest.mark.parametrize("name", ["clip.mkv", "clip.mp4", "clip.ts"])
def test_a_camera_of_one_frame_in_ten_seconds_keeps_real_time(tmp_path: Path, name: str) -> None:
    """A security camera's time lapse: ten frames last 90 s."""
    codec = "libx264" if name.endswith("ts") else "mpeg4"
    stamps = [number * 100 for number in range(10)]
    frames = read_frames(numbered_clip(tmp_path, 10, name, rate=10, stamps=stamps, codec=codec))
    assert [frame.time_s for frame in frames] == pytest.approx(
        [number * 10 for number in range(10)], abs=0.002
    )


def test_a_night_without_a_frame_is_a_night(tmp_path: Path) -> None:
    """A camera that records movement only: eight hours between two frames stay eight hours."""
    night = 8 * 3600 * 10
    stamps = [*range(5), *range(night, night + 5)]
    frames = read_frames(numbered_clip(tmp_path, 10, "clip.mkv", stamps=stamps))
    assert frames[-1].time_s == pytest.approx(8 * 3600 + 0.4, abs=0.01)


@pytest.mark.parametrize("joined", [2, 5])
def test_files_joined_end_to_end_take_as_long_as_their_frames(tmp_path: Path, joined: int) -> None:
    """Recordings appended with cat, or a clip that loops: each starts its stamps anew."""
    part = stamped_clip(tmp_path, 20, lambda k: 0.0).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(part * joined)
    frames = read_frames(path)
    times = [frame.time_s for frame in frames]
    assert times == pytest.approx([k * PERIOD_S for k in range(20 * joined)], abs=0.001)


def test_a_stamp_that_is_stuck_is_none() -> None:
    """A muxer that stamps every frame alike: frames pass at the declared rate."""
    assert times_of([7.0] * 50)[-1] == pytest.approx(49 * PERIOD_S)
    stuck = [*(k * PERIOD_S for k in range(10)), *[0.36] * 20, *(30 * PERIOD_S, 31 * PERIOD_S)]
    assert times_of(stuck)[-1] == pytest.approx(31 * PERIOD_S, abs=2 * PERIOD_S)


def test_a_pause_of_a_stream_that_may_start_again_is_believed_for_ten_minutes() -> None:
    """MPEG-TS does not say whether 11 hours ahead are a pause or the next program."""
    longest_s = LONGEST_PAUSE_OF_RESTARTING_S
    for jump_s, told_s in ((longest_s - 1, longest_s - 1), (longest_s + 1, PERIOD_S)):
        stamps = [k * PERIOD_S + jump_s * (k >= 10) for k in range(30)]
        times = times_of(stamps, longest_pause_s=longest_s)
        assert times[10] - times[9] == pytest.approx(told_s, abs=PERIOD_S)
        assert times[29] - times[10] == pytest.approx(19 * PERIOD_S)


@settings(deadline=None)
@given(
    st.integers(20, 60),
    st.dictionaries(st.integers(0, 14), st.floats(0.5, 1e5) | st.floats(-1e5, -0.5), max_size=14),
    st.sampled_from([1 / 60, 0.04, 0.2, 10.0]),
)
def test_single_strays_cost_less_than_a_frame(
    count: int, strays: dict[int, float], period_s: float
) -> None:
    """Any stamps, ahead and back, of up to every fourth frame of a steady recording."""
    offsets = {1 + 4 * place: periods for place, periods in strays.items() if 5 + 4 * place < count}
    stamps = [1e3 + (k + offsets.get(k, 0.0)) * period_s for k in range(count)]
    times = times_of(stamps, period_s)
    assert times == sorted(times)
    slack_s = 3 * period_s  # An offset this small is disorder, and holds the clock.
    for k, time_s in enumerate(times):
        assert abs(time_s - k * period_s) <= slack_s * 1.001
    far = all(abs(offset) > 8 for offset in offsets.values())
    if far:
        assert all(abs(t - k * period_s) <= period_s * 1.001 for k, t in enumerate(times))


LIMITS_S = st.sampled_from([LONGEST_PAUSE_OF_RESTARTING_S, LONGEST_PAUSE_S])
FAR_S = st.sampled_from([1.0, 3.0, 100.0, STRAY_S, -3.0, -100.0, -STRAY_S])


@settings(deadline=None)
@given(st.integers(20, 60), st.integers(1, 2), FAR_S, LIMITS_S)
def test_every_other_stamp_may_be_astray(
    count: int, first: int, move_s: float, limit_s: float
) -> None:
    """One field of each two stamped elsewhere, in any container; the last frame is sound."""
    stamps = [1e6 + k * PERIOD_S for k in range(count)]
    stamps[first:-1:2] = [stamp + move_s for stamp in stamps[first:-1:2]]
    times = times_of(stamps, longest_pause_s=limit_s)
    for k, time_s in enumerate(times):
        assert abs(time_s - k * PERIOD_S) <= PERIOD_S * 1.01


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=12),
    st.none() | FAR_S,
    LIMITS_S,
    st.randoms(use_true_random=False),
)
def test_strays_fewer_than_the_others_move_no_clock(
    runs: list[tuple[int, int]], move_s: float | None, limit_s: float, random: Random
) -> None:
    """Up to three in a row, and more sound frames behind them; all moved alike, or each anew."""
    astray = [False, *(k < bad for bad, more in runs for k in range(2 * bad + more)), False, False]
    stamps = []
    for k, is_stray in enumerate(astray):
        anew_s = random.choice((-1, 1)) * random.uniform(1, 1e5)
        stamps.append(1e6 + k * PERIOD_S + is_stray * (anew_s if move_s is None else move_s))
    for k, time_s in enumerate(times_of(stamps, longest_pause_s=limit_s)):
        assert abs(time_s - k * PERIOD_S) <= PERIOD_S * 1.01


def test_no_more_frames_are_held_than_are_looked_at() -> None:
    """Pictures of a large film are held while a jump is judged: nine of them at most."""
    taken = most = 0

    def stamps() -> Iterator[float]:
        nonlocal taken
        for taken in range(1, 201):
            yield taken * PERIOD_S + STRAY_S * (taken % 2)

    coming, clock = Foreseen(stamps()), Clock(PERIOD_S)
    for at, stamp in enumerate(coming, 1):
        clock.time_s(stamp, coming.coming())
        most = max(most, taken - at)
    assert most == LOOK_AHEAD == 9


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 7.0, 60.0]), min_size=4, max_size=12),
    st.integers(1, 8),
    st.sampled_from([-5_000.0, 5_000.0, 37_600.0]),
)
def test_strays_and_pauses_are_told_apart(pauses: list[float], first: int, offset_s: float) -> None:
    """A screen recording with pauses from a bad line: one frame in eight is stamped hours off."""
    steps = [step for pause in pauses for step in (*[PERIOD_S] * 4, PERIOD_S + pause)]
    true_s = [0.0, *accumulate([*steps, *[PERIOD_S] * 4])]
    strays = range(first, len(true_s) - 4, 8)
    stamps = [at_s + offset_s * (k in strays) for k, at_s in enumerate(true_s)]
    times = times_of(stamps)
    for k, time_s in enumerate(times):
        assert k in strays or time_s == pytest.approx(true_s[k], abs=PERIOD_S * 1.01)


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 3600), min_size=1, max_size=40), st.sampled_from([0.04, 10.0]))
def test_stamps_that_only_rise_are_the_times(steps: list[float], period_s: float) -> None:
    """A variable rate, screen recordings and time lapses among them, is kept as it was filmed."""
    stamps = [50.0, *accumulate(steps, initial=50.0)][1:]
    times = times_of(stamps, period_s)
    assert times == pytest.approx([stamp - 50.0 for stamp in stamps], abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_joined_parts_go_on_a_period_later(lengths: list[int]) -> None:
    """Parts of any length, even of one frame, each from a zero of its own."""
    stamps = [k * PERIOD_S for length in lengths for k in range(length)]
    times = times_of(stamps)
    assert times == sorted(times)
    if min(lengths) > 4:
        assert times == pytest.approx([k * PERIOD_S for k in range(len(stamps))], abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=40))
def test_no_stamps_turn_a_files_clock_back(stamps: list[float | None]) -> None:
    """Stamps of noise: times start at 0 and never run backwards."""
    times = times_of(stamps)
    assert times == sorted(times)
    assert times[:1] in ([], [0.0])


def test_looking_ahead_takes_nothing_and_hides_no_error() -> None:
    """A disk that fails behind the frames that were looked at: they all come, then the error."""

    def failing() -> Any:
        yield from range(4)
        raise VideoError("clip", "gone")

    items = Foreseen(failing())
    assert next(items) == 0
    assert list(items.coming()) == [1, 2, 3]
    assert list(items.coming()) == [1, 2, 3]
    assert [next(items) for _ in range(3)] == [1, 2, 3]
    for _ in range(2):
        with pytest.raises(VideoError, match="gone"):
            next(items)


# Live sources.


Arrivals = list[tuple[float, float | None]]

arrivals = st.lists(
    st.tuples(st.floats(0.0, 30.0), st.none() | st.floats(-1e6, 1e6)), min_size=1, max_size=60
)


def live_times(seen: Arrivals) -> tuple[list[float], list[float]]:
    """Wall time since the first frame, and the clock's, for steps of wall time and stamps."""
    clock = Clock(PERIOD_S)
    walls = list(accumulate((step for step, _ in seen[1:]), initial=0.0))
    times = [
        clock.time_s(stamp, arrived_s=500.0 + wall_s)
        for wall_s, (_, stamp) in zip(walls, seen, strict=True)
    ]
    return walls, times


@settings(deadline=None)
@given(arrivals)
def test_a_live_clock_stays_beside_the_wall(seen: Arrivals) -> None:
    """Stalls, bursts, reconnections and stamps of any kind: never ahead, never 0.5 s behind."""
    walls, times = live_times(seen)
    assert times == sorted(times)
    for wall_s, time_s in zip(walls, times, strict=True):
        assert wall_s - WALL_LAG_S - 1e-6 <= time_s <= wall_s + 1e-6


@settings(deadline=None)
@given(
    st.lists(st.floats(0.0, 0.4), min_size=2, max_size=40),
    st.sampled_from([0.04, 0.2, 1.0]),
)
def test_frames_that_come_late_keep_the_distance_they_were_filmed_at(
    late: list[float], period_s: float
) -> None:
    """A wireless camera, whose frames are up to 0.4 s on the way."""
    came = [k * period_s + delay for k, delay in enumerate(late)]
    clock = Clock(period_s)
    times = []
    newest = 0.0
    for k, at_s in enumerate(came):
        newest = max(newest, at_s)
        times.append(clock.time_s(7.0 + k * period_s, arrived_s=newest))
    for k, time_s in enumerate(times):
        assert abs(time_s - k * period_s) <= 0.4 + 1e-6


def test_what_a_server_kept_is_not_counted_again_at_every_reconnection() -> None:
    """A server that ends every 3 s and starts with 5 s from before: 12 times in 41 s of wall."""
    clock, wall_s, times = Clock(PERIOD_S), 0.0, []
    for _ in range(12):
        for number in range(200):
            wall_s += 0.001 if number < 125 else PERIOD_S
            times.append(clock.time_s(number * PERIOD_S, arrived_s=wall_s))
        wall_s += 0.4
    assert times[-1] == pytest.approx(wall_s - 0.4, abs=1.0)


def test_a_stream_that_starts_again_at_once_does_not_stand_still() -> None:
    """Lost after a tenth of a second: its new stamps are those of frames it had already."""
    clock = Clock(PERIOD_S)
    stamps = [0.0, 0.04, 0.08, 0.0, 0.04, 0.08]
    times = [clock.time_s(stamp, arrived_s=0.05 * k) for k, stamp in enumerate(stamps)]
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(0.25, abs=PERIOD_S)


def test_a_camera_that_ends_and_comes_back_keeps_to_the_wall_clock(tmp_path: Path) -> None:
    """It first sends the second it kept, and then hangs up: no second is counted twice."""
    clip = write_clip(tmp_path / "clip.mp4", map(numbered, range(20)))
    camera = RtspCamera(clip, burst=25, frames=26)
    with camera, open_video(camera.address) as video:
        start_s = time.monotonic()
        frames = [next(video)]
        while video.reconnects < 6:
            frames.append(next(video))
        frames.append(next(video))
        passed_s = time.monotonic() - start_s
    times = [frame.time_s for frame in frames]
    assert times == sorted(times)
    # What was decoded before the first frame was taken may be older than `start_s`, by little.
    assert times[-1] <= passed_s + 1.0


def test_a_live_source_without_frames_for_a_while_is_as_late_as_the_wall(tmp_path: Path) -> None:
    """A camera off for a minute of a wall clock that the test holds: the next frame is then."""
    clip = write_clip(tmp_path / "clip.mp4", map(numbered, range(10)))
    wall, taken = [0.0], threading.Event()

    def opener() -> InputContainer:
        if wall[0]:
            taken.wait(20.0)
        wall[0] += 60.0
        return av.open(str(clip))

    with LiveVideo(opener, "rtsp://camera", fps=None, give_up_s=20.0, now=lambda: wall[0]) as video:
        assert next(video).time_s == 0.0
        taken.set()
        while (time_s := next(video).time_s) == 0.0:
            pass
    assert time_s % 60.0 == pytest.approx(0.0, abs=0.1)
