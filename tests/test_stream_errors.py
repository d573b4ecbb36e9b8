"""What a stream session survives: failing graphs, NaN, and frames that are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.errors import EngineError, NonFiniteError, VideoError
from stc.manifest import Precision
from stc.method.graphs import (
    ADD,
    COMPARE,
    EMBED,
    MERGE,
    PLACE,
    PROJECT,
    SELECT,
    TOKENS,
    keys_graph,
    kind_of,
    mlp_graph,
    reference_graph,
    update_graph,
)
from stc.ports import NETWORK_DTYPES
from stc.runtime.stream.session import StreamSession
from stc.runtime.vision.tower import VisionTower
from stc.settings import SCORINGS, Scoring
from tests.oracle.backend import OracleBackend
from tests.oracle.layers import ProjectorWeights, TowerWeights
from tests.session_case import SETTINGS, WEIGHTS, assert_equal
from tests.unreliable import Unreliable
from tests.vision_cases import moving_frames, numpy_weights, oracle_tower


@pytest.fixture
def unreliable() -> Unreliable:
    return Unreliable(*numpy_weights(WEIGHTS))


ALWAYS_RUN = (EMBED, PROJECT, "prune_dual_anchor")
REFERENCE, REUSE = 3, 4
"""Frames of those kinds."""
RUNS = [
    *((graph, frame) for graph in ALWAYS_RUN for frame in (REFERENCE, REUSE)),
    *((graph, REFERENCE) for graph in (reference_graph(1), mlp_graph(0), ADD)),
    *(
        (graph, REUSE)
        for graph in (keys_graph(1), COMPARE, SELECT, PLACE, update_graph(0), mlp_graph(1), MERGE)
    ),
]


@pytest.mark.parametrize(("graph", "fails_at"), RUNS)
def test_after_a_failing_graph_the_next_frame_is_a_reference_frame(
    unreliable: Unreliable, graph: str, fails_at: int
) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, SETTINGS)
    frames = moving_frames(9)
    kinds = []
    for index, frame in enumerate(frames):
        if index > 0:
            unreliable.engines[graph].armed = index == fails_at
        if index == fails_at:
            with pytest.raises(EngineError, match=f"{graph}: the device is gone"):
                session.push(frame)
            kinds.append("failed")
        else:
            kinds.append(session.push(frame).kind)
    scheduled = ["reference", "reuse", "reuse"] * 3
    scheduled[fails_at] = "failed"
    scheduled[fails_at + 1] = "reference"
    assert kinds == scheduled


def test_after_a_failing_graph_nothing_of_the_frame_is_remembered(unreliable: Unreliable) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, replace(SETTINGS, reference_interval=100))
    frames = moving_frames(6)
    session.push(frames[0])
    unreliable.engines[update_graph(1)].armed = True
    with pytest.raises(EngineError):
        session.push(frames[1])
    unreliable.engines[update_graph(1)].armed = False
    after = [session.push(frame) for frame in frames[2:]]

    undisturbed = StreamSession(tower, replace(SETTINGS, reference_interval=2))
    undisturbed.push(frames[0])
    # Frame 2 of this one is a reference frame by schedule, with one frame in the memory as well.
    undisturbed.frame_index = 2
    expected = [undisturbed.push(frame) for frame in frames[2:4]]
    for got, want in zip(after, expected, strict=False):
        assert_equal(got, want)


def test_after_a_picture_that_is_none_the_next_frame_is_a_reference_frame() -> None:
    session = StreamSession(oracle_tower(WEIGHTS), SETTINGS)
    frames = moving_frames(5)
    for frame in frames[:3]:
        session.push(frame)
    # Frame 3, which the schedule makes a reference frame.
    with pytest.raises(VideoError):
        session.push(replace(frames[3], rgb=np.zeros((4, 4), np.uint8)))
    assert session.push(frames[4]).kind == "reference"


# NaN.


def _poison(tower: TowerWeights, projector: ProjectorWeights) -> dict[str, NDArray[Any]]:
    """By graph, a weight that it reads and none before it."""
    block = tower.blocks[1]
    return {
        EMBED: tower.embed.bias,
        keys_graph(1): block.key.weight,
        mlp_graph(1): block.fc2.weight,
        update_graph(0): tower.blocks[0].query.weight,
        PROJECT: projector.linear_2.weight,
    }


POISONED = list(_poison(*numpy_weights(WEIGHTS)))


@pytest.mark.parametrize("frame_index", [REFERENCE, REUSE])
@pytest.mark.parametrize("graph", POISONED)
def test_nan_is_traced_to_its_graph_and_frame(graph: str, frame_index: int) -> None:
    weights = numpy_weights(WEIGHTS)
    session = StreamSession(VisionTower(OracleBackend(*weights), WEIGHTS.spec, "fp32"), SETTINGS)
    frames = moving_frames(9)
    for frame in frames[:frame_index]:
        session.push(frame)
    weight = _poison(*weights)[graph]
    sane = weight.flat[0]
    weight.flat[0] = np.nan
    if frame_index == REFERENCE and graph in (keys_graph(1), update_graph(0)):
        graph = reference_graph(kind_of(graph)[1])
    with pytest.raises(NonFiniteError, match=f"^graph {graph}, frame {frame_index}: NaN"):
        session.push(frames[frame_index])
    weight.flat[0] = sane

    after = session.push(frames[frame_index + 1])
    assert after.kind == "reference"
    assert np.isfinite(after.tokens).all()
    assert session.push(frames[frame_index + 2]).kind == (
        "reference" if (frame_index + 2) % 3 == 0 else "reuse"
    )


@pytest.mark.parametrize(
    ("precision", "fix"),
    [
        ("fp32", "; export another checkpoint, or copy this one again"),
        ("fp16", "; export again with --precision fp32, or another checkpoint"),
    ],
)
def test_fp32_is_advised_where_it_is_not_in_use(precision: Precision, fix: str) -> None:
    weights = numpy_weights(WEIGHTS)
    _poison(*weights)[PROJECT].flat[0] = np.nan
    tower = VisionTower(OracleBackend(*weights), WEIGHTS.spec, "fp32")
    session = StreamSession(tower, SETTINGS)
    # The oracle computes in float32 whatever the bundle has.
    tower.dtype = NETWORK_DTYPES[precision]
    with pytest.raises(NonFiniteError) as caught:
        session.push(moving_frames(1)[0])
    assert str(caught.value).endswith(fix)


@pytest.mark.parametrize("scoring", SCORINGS)
def test_infinity_in_a_token_that_is_not_kept_is_no_part_of_the_memory(
    unreliable: Unreliable, scoring: Scoring
) -> None:
    tower = VisionTower(unreliable, WEIGHTS.spec, "fp32")
    session = StreamSession(tower, replace(SETTINGS, pruner=scoring))
    frames = moving_frames(6)
    session.push(frames[0])
    project = unreliable.engines[PROJECT]
    project.armed, project.spoilt = True, TOKENS
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError, match="graph project, frame 1"):
        session.push(frames[1])
    project.armed = False
    for frame in frames[2:]:
        assert np.isfinite(session.push(frame).tokens).all()
