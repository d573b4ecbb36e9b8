"""Over the whole space of streams and settings: ONNX Runtime computes what the oracle computes.

ONNX Runtime leads and the oracle takes the same tokens, after judging the choice by its own
scores. Where two tokens score alike up to rounding, either may be taken; what is compared
afterwards is arithmetic and not luck.
"""

from __future__ import annotations

class Noting:
    """A backend that notes which tokens the graphs of another choose."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.choices: deque[Array] = deque()
        self.to_device, self.to_host, self.empty = (
            backend.to_device,
            backend.to_host,
            backend.empty,
        )
        self._backend = backend

    def load(self, graph: str) -> Engine:
        return _NotingEngine(self._backend.load(graph), self)


class _NotingEngine:
    def __init__(self, engine: Engine, noting: Noting) -> None:
        self.name = engine.name
        self._engine = engine
        self._noting = noting

    def __call__(
        self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        results = self._engine(inputs, outputs)
        for name in (INDICES, KEPT_INDICES):
            if name in results:
                self._noting.choices.append(self._noting.to_host(results[name]))
        return results


class Following(OracleBackend):
    """The oracle, taking the tokens that were noted; `gaps` says by how much they miss its own."""

    def __init__(self, weights: VisionWeights, choices: deque[Array]) -> None:
        super().__init__(*numpy_weights(weights))
        self.choices = choices
        self.gaps: list[float] = []

    def load(self, graph: str) -> Engine:
        if graph == contracts.SELECT:
            return OracleEngine(graph, contracts.SELECT_CONTRACT, self._select)
        for scoring in SCORINGS:
            if graph == contracts.prune_graph(scoring):
                return OracleEngine(graph, PRUNE_CONTRACT, self._pruning(scoring))
        return super().load(graph)

    def _taken(self, rank: Array, count: Array) -> Array:
        chosen = self.choices.popleft()
        assert len(chosen) == count[0]
        assert (np.diff(chosen) > 0).all()
        self.gaps.append(selection_gap(rank, chosen))
        return chosen

    def _select(self, score: Array, count: Array) -> tuple[Array, ...]:
        return (self._taken(score, count),)

    def _pruning(self, scoring: Scoring) -> Callable[..., tuple[Array, ...]]:
        def prune(tokens: Array, mean: Array, frames: Array, count: Array) -> tuple[Array, ...]:
            scores, frame_mean = pruner.novelty(scoring, tokens, mean, float(frames[0]))
            kept = self._taken(-scores, count)
            return tokens[kept], kept, frame_mean

        return prune


@pytest.fixture(scope="module")
def pairs(exported: Exporting) -> Callable[[str], tuple[VisionTower, VisionTower]]:
    """A case's tower on ONNX Runtime, and the oracle that follows it."""
    made: dict[str, tuple[VisionTower, VisionTower]] = {}

    def pair(case: str) -> tuple[VisionTower, VisionTower]:
        if case not in made:
            one = exported(case)
            spec = one.weights.spec
            noting = Noting(OnnxRuntimeBackend(one.bundle))
            following = Following(one.weights, noting.choices)
            made[case] = VisionTower(noting, spec, "fp32"), VisionTower(following, spec, "fp32")
        return made[case]

    return pair


@st.composite
def streams(draw: st.DrawFn) -> list[Frame]:
    """Up to 6 frames: noise of which parts change, stay or turn flat, of any size."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.tuples(st.integers(1, 50), st.integers(1, 50)))
    rgb = random.integers(0, 256, (height, width, 3), np.uint8)
    frames = []
    for index in range(draw(st.integers(1, 6))):
        rgb = rgb.copy()
        top, left = int(random.integers(height)), int(random.integers(width))
        part = rgb[top:, left : left + width // 2 + 1]
        change = draw(st.sampled_from(["noise", "none", "flat", "all noise", "all flat"]))
        if change.startswith("all"):
            part = rgb
        if change.endswith("noise"):
            part[:] = random.integers(0, 256, part.shape, np.uint8)
        elif change.endswith("flat"):
            part[:] = random.integers(256)
        frames.append(Frame(index=index, time_s=float(index), rgb=rgb))
    return frames


@hypothesis_settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(data=st.data())
def test_onnxruntime_equals_the_oracle_for_every_stream_and_setting(
    data: st.DataObject, pairs: Callable[[str], tuple[VisionTower, VisionTower]]
) -> None:
    led, followed = pairs(data.draw(st.sampled_from(FULL), label="case"))
    assert isinstance(led.backend, Noting)
    assert isinstance(followed.backend, Following)
    led.backend.choices.clear()
    settings = Settings(
        reference_interval=data.draw(st.integers(1, 5), label="reference_interval"),
        recompute_ratio=data.draw(
            st.floats(0, 1, exclude_min=True) | st.sampled_from([0.01, 0.25, 1.0]),
            label="recompute_ratio",
        ),
        selection=data.draw(st.sampled_from(SELECTIONS), label="selection"),
        budget=data.draw(st.integers(KEEP_ALL, led.spec.pooled), label="budget"),
        pruner=data.draw(st.sampled_from(SCORINGS), label="pruner"),
        anchor_window=data.draw(st.integers(1, 4), label="anchor_window"),
    )
    limits = TOLERANCES["onnxruntime"]
    sessions = StreamSession(led, settings), StreamSession(followed, settings)
    for frame in data.draw(streams(), label="frames"):
        followed.backend.gaps.clear()
        got, expected = (session.push(frame) for session in sessions)
        assert not led.backend.choices
        assert (got.index, got.kind) == (expected.index, expected.kind)
        np.testing.assert_array_equal(got.recomputed, expected.recomputed)
        np.testing.assert_array_equal(got.kept, expected.kept)
        assert max(followed.backend.gaps, default=0.0) <= limits.score_gap
        assert relative_l2(expected.tokens, got.tokens) <= limits.oracle_l2
