"""Engines that stray from ONNX Runtime are found, rebuilt or refused; never silently accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stc.engines.accept.acceptance import (
    Comparison,
    Rebuilt,
    accept_engines,
    compared_buckets,
)
from stc.engines.accept.comparison import (
    Compared,
    Sides,
    by_token,
    chain_cosine,
    compare_vision,
    compared_outputs,
)
from stc.engines.eager import EngineSide
from stc.engines.engine import Engine, Tensor
from stc.engines.library.library import (
    CHAIN_COSINE,
    LADDER,
    Attention,
    Chain,
    EngineEntry,
    EngineLibrary,
    Stamp,
)
from stc.engines.library.plan import Buckets
from stc.method.difference import difference
from stc.method.graphs import ATTENTION, FRAME_MEAN, INDICES, KEPT, KEPT_INDICES, PLACES
from tests.device_cases import BUCKETS, SPEC, Rig, manifest, weights
from tests.oracle.backend import OracleBackend

Outputs = dict[str, Tensor]
Spoil = Callable[[Outputs], Outputs]
GPU = "GPU of this test"


class Spoiled(OracleBackend):
    """The oracle with the outputs of some graphs changed."""

    def __init__(self, spoils: Mapping[str, Spoil]) -> None:
        super().__init__(*weights())
        self._spoils = spoils

    def load(self, graph: str) -> Engine:
        whole = super().load(graph)
        spoil = self._spoils.get(graph)

        class Spoiling:
            name = graph

            def __call__(self, inputs: Any, outputs: Any = None) -> Outputs:
                found = whole(inputs, outputs)
                return found if spoil is None else spoil(found)

        return Spoiling()


def noisy(amount: float, *, only: str | None = None) -> Spoil:
    """Outputs with noise of `amount` times their own size."""

    def spoil(outputs: Outputs) -> Outputs:
        random = np.random.default_rng(0)
        return {
            name: value + amount * value.std() * random.standard_normal(value.shape)
            if value.dtype.kind == "f" and name in (only or name)
            else value
            for name, value in outputs.items()
        }

    return spoil


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Spoil:
    return lambda outputs: {**outputs, name: change(outputs[name])}


def sides(candidate: Any) -> Sides:
    """The numpy oracle and `candidate`."""
    expected, got = (
        EngineSide(one, manifest().graphs) for one in (OracleBackend(*weights()), candidate)
    )
    return expected, got


def compared(**spoils: Spoil) -> list[Compared]:
    return compare_vision(manifest(), sides(Spoiled(spoils)), BUCKETS, lambda _: None)


def strayed(found: list[Compared]) -> set[str]:
    return {one.graph for one in found if not one.passed}


def test_equal_backends_pass_at_every_graph_and_size() -> None:
    ticks: list[str] = []
    both = sides(OracleBackend(*weights()))
    found = compare_vision(manifest(), both, BUCKETS, ticks.append)
    assert strayed(found) == set()
    assert set(ticks) == {one.graph for one in found} == set(manifest().graphs)
    assert len(ticks) == len(set(ticks))
    sizes = [one.sizes for one in found if one.graph == "update_01"]
    assert sizes == [{"M": 6}, {"M": 12}]
    assert {"M": SPEC.tokens} in [one.sizes for one in found if one.graph == "mlp_01"]
    selected = [one.sizes for one in found if one.graph == "select"]
    assert selected == [{"M": 6}, {"M": 12}] * SPEC.blocks
    assert chain_cosine(manifest(), both, 6) == pytest.approx(1.0)


def test_engines_on_the_device_are_compared_like_any_other(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    both = sides(rig.backend)
    assert strayed(compare_vision(manifest(), both, BUCKETS, lambda _: None)) == set()
    assert chain_cosine(manifest(), both, 6) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("graph", "spoil"),
    [
        ("embed", noisy(0.1)),
        ("reference_01", noisy(0.1)),
        ("reference_02", noisy(0.1, only="attention")),
        ("mlp_01", noisy(0.1)),
        ("add", noisy(0.1)),
        ("merge", noisy(0.1)),
        ("place", changed(PLACES, lambda value: np.roll(value, 1))),
        ("keys_01", noisy(0.1)),
        ("compare", noisy(0.1)),
        ("update_02", noisy(0.1)),
        ("update_00", changed(ATTENTION, lambda value: value * np.nan)),
        ("update_00", changed(ATTENTION, lambda value: value * 2)),
        ("update_00", changed(ATTENTION, np.zeros_like)),
        ("project", noisy(0.1)),
        ("select", changed(INDICES, lambda value: value[::-1].copy())),
        ("select", changed(INDICES, lambda value: np.arange(len(value)))),
        ("select", changed(INDICES, lambda value: value + SPEC.tokens)),
        ("prune_gaussian", changed(KEPT_INDICES, lambda value: np.arange(len(value)))),
        ("prune_dual_anchor", changed(KEPT, lambda value: value[::-1].copy())),
        ("prune_gaussian_fixed", changed(FRAME_MEAN, lambda value: value + value.std())),
        ("prune_gaussian", changed(FRAME_MEAN, lambda value: value[::-1].copy())),
        ("prune_gaussian", changed(FRAME_MEAN, lambda value: value * np.nan)),
    ],
)
def test_an_engine_that_strays_is_found_and_no_other(graph: str, spoil: Spoil) -> None:
    assert strayed(compared(**{graph: spoil})) == {graph}


def test_channels_that_vary_alike_may_stand_in_either_order() -> None:
    """The released pruner remembers channels by rank: of a tie each backend picks its own."""
    random, graph = np.random.default_rng(0), "prune_gaussian"
    tokens = random.standard_normal((SPEC.pooled, SPEC.language_width)).astype(np.float32)
    tokens *= np.arange(1, SPEC.language_width + 1)
    tokens[:, 1] = 3 - tokens[:, 0]  # varies as much, about another mean

    def swapped(places: list[int]) -> Spoil:
        return changed(FRAME_MEAN, lambda value: np.concatenate([value[places], value[2:]]))

    memory = np.zeros(SPEC.language_width // 2)
    inputs: dict[str, NDArray[Any]] = {
        "tokens": tokens,
        "history_mean": memory,
        "history_count": np.zeros(1),
        "count": np.array([3]),
    }
    passed = []
    for spoil in (swapped([1, 0]), changed(FRAME_MEAN, lambda value: np.roll(value, 1))):
        wanted, given = (one.run(graph, inputs) for one in sides(Spoiled({graph: spoil})))
        passed.append(compared_outputs(graph, {"k": 3}, inputs, wanted, given).passed)
    assert passed == [True, False]


def test_rounding_of_half_precision_passes() -> None:
    half = noisy(2e-3)
    spoils = {
        name: half for name in manifest().graphs if name.startswith(("reference", "keys", "update"))
    }
    assert strayed(compared(**spoils)) == set()


def test_errors_that_add_up_show_at_the_end_of_the_chain() -> None:
    both = sides(Spoiled({"merge": noisy(0.5)}))
    assert chain_cosine(manifest(), both, 6) < CHAIN_COSINE


@pytest.mark.parametrize(
    ("got", "cosine"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[0.0, 1.0], [0.0, 1.0]], 0.0),
        ([[0.0, 0.0], [0.0, 1.0]], 0.0),
        ([[np.nan, 0.0], [0.0, 1.0]], -1.0),
        ([[1.0, 0.0, 0.0]], -1.0),
    ],
)
def test_the_lowest_cosine_of_a_token_is_told(got: Any, cosine: float) -> None:
    assert by_token(np.eye(2), np.array(got)).min_cosine == cosine


def test_a_token_next_to_nothing_is_like_nothing_and_unlike_anything_else() -> None:
    expected = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    for small, cosine in ((1e-12, 1.0), (1e-2, 0.0)):
        got = expected + np.array([[0.0], [small]])
        assert difference(expected, got).min_cosine == cosine


def test_two_tokens_of_zeros_are_alike_and_a_length_off_shows_in_the_error() -> None:
    assert by_token(np.zeros((1, 3)), np.zeros((1, 3))).min_cosine == 1.0
    assert by_token(np.ones(4), 2 * np.ones(4)).relative_l2 == 1.0
    assert by_token(np.ones(4), np.ones(5)).relative_l2 == np.inf


# What follows from it.


def library(tmp_path: Path, graphs: list[str]) -> EngineLibrary:
    made = EngineLibrary(tmp_path)
    entries = {}
    for graph in graphs:
        stamp = Stamp(
            graph=graph,
            graph_sha256="0" * 64,
            weights_sha256="0" * 64,
            flavour="tensorrt",
            version="10.3.0",
            targets=("orin-nano",),
            precision="fp16",
            profiles=({},),
            baked=None,
        )
        name = f"{graph}.engine"
        file = made.store(name, memoryview(graph.encode()))
        entries[name] = EngineEntry(stamp=stamp, file=file, build_s=1.0)
    made.write(entries)
    return made


class Bench:
    """Comparisons whose cosines the test sets, and rebuilds that fix some of them: graphs by the
    way in which attention must be built."""

    def __init__(
        self, made: EngineLibrary, cosines: dict[str, float], fixed: dict[str, Attention]
    ) -> None:
        self.library, self.cosines, self.fixed = made, cosines, fixed
        self.rebuilt: list[tuple[str, Attention]] = []
        self.chain = 1.0
        self.workspace_bytes: dict[str, int] = {}

    def compare(self) -> Comparison:
        found = [Compared(name, {}, {"hidden_out": c}, 0.0) for name, c in self.cosines.items()]
        return Comparison(found, self.chain, self.workspace_bytes)

    def rebuild(self, wanted: dict[str, Attention]) -> None:
        self.rebuilt += list(wanted.items())
        entries = self.library.entries()
        for name, attention in wanted.items():
            entries[name] = entries[name].model_copy(
                update={"attention": attention, "acceptance": None}
            )
            if self.fixed.get(entries[name].stamp.graph) == attention:
                self.cosines[entries[name].stamp.graph] = 0.9999
        self.library.write(entries)


def test_engines_that_pass_are_accepted_with_their_cosines(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00", "update_00"])
    bench = Bench(made, {"keys_00": 0.9999, "update_00": 0.9995}, {})
    report = accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    assert (report.passed, report.compared, bench.rebuilt) == (True, 2, [])
    acceptance = made.entries()["update_00.engine"].acceptance
    assert acceptance is not None
    assert (acceptance.passed, acceptance.outputs) == (True, {"hidden_out": 0.9995})
    assert acceptance.device == GPU
    assert made.listed().chain_cosine["tensorrt"] == Chain(cosine=1.0, device=GPU)


@pytest.mark.parametrize("kind", ["reference", "update", "attend"])
@pytest.mark.parametrize(("rungs", "attention"), list(enumerate(LADDER))[1:])
def test_a_block_that_strays_is_rebuilt_one_rung_after_the_other_until_it_passes(
    tmp_path: Path, kind: str, rungs: int, attention: Attention
) -> None:
    strays, other = f"{kind}_00", f"{kind}_01"
    made, name = library(tmp_path, [strays, other]), f"{strays}.engine"
    bench = Bench(made, {strays: 0.99, other: 0.9999}, {strays: attention})
    report = accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    assert bench.rebuilt == [(name, rung) for rung in LADDER[1 : rungs + 1]]
    assert report.passed
    assert report.rebuilt == {name: Rebuilt(attention, 0.99, 0.9999)}
    entry = made.entries()[name]
    assert entry.attention == attention
    assert entry.acceptance is not None
    assert entry.acceptance.passed


def test_a_block_that_strays_on_every_rung_is_refused_and_not_rebuilt_again(
    tmp_path: Path,
) -> None:
    made = library(tmp_path, ["update_00"])
    bench = Bench(made, {"update_00": 0.99}, {})
    report = accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    assert not report.passed
    assert report.refused == {"update_00.engine": 0.99}
    again = accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    assert bench.rebuilt == [("update_00.engine", rung) for rung in LADDER[1:]]
    assert not again.passed
    acceptance = made.entries()["update_00.engine"].acceptance
    assert acceptance is not None
    assert not acceptance.passed


def test_a_rebuild_goes_on_from_the_rung_an_engine_stands_on(tmp_path: Path) -> None:
    made, name = library(tmp_path, ["update_00"]), "update_00.engine"
    made.write({name: made.entries()[name].model_copy(update={"attention": "unfused"})})
    bench = Bench(made, {"update_00": 0.99}, {"update_00": "tf32"})
    assert accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild).passed
    assert bench.rebuilt == [(name, "tf32")]


def test_a_graph_without_attention_is_refused_at_once(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00"])
    bench = Bench(made, {"keys_00": -1.0}, {})
    report = accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    assert (bench.rebuilt, report.refused) == ([], {"keys_00.engine": -1.0})


def test_a_chain_that_strays_is_not_passed_though_every_graph_is(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00"])
    bench = Bench(made, {"keys_00": 1.0}, {})
    bench.chain = 0.98
    assert not accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild).passed
    assert made.listed().chain_cosine["tensorrt"].cosine == 0.98


def test_one_flavours_acceptance_leaves_the_others(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00"])
    other = Chain(cosine=0.9998, device="another GPU")
    made.write(made.entries(), {"tensorrt-rtx": other})
    bench = Bench(made, {"keys_00": 1.0}, {})
    accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    own = Chain(cosine=1.0, device=GPU)
    assert made.listed().chain_cosine == {"tensorrt-rtx": other, "tensorrt": own}


def test_an_engines_scratch_memory_is_in_the_list(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00", "keys_01"])
    bench = Bench(made, {"keys_00": 1.0, "keys_01": 1.0}, {})
    bench.workspace_bytes = {"keys_00.engine": 4096}
    accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild)
    found = {name: entry.workspace_bytes for name, entry in made.entries().items()}
    assert found == {"keys_00.engine": 4096, "keys_01.engine": None}


def test_what_was_not_compared_is_not_accepted(tmp_path: Path) -> None:
    made = library(tmp_path, ["keys_00", "keys_01"])
    bench = Bench(made, {"keys_00": 1.0}, {})
    assert accept_engines(made, "tensorrt", GPU, bench.compare, bench.rebuild).compared == 1
    assert made.entries()["keys_01.engine"].acceptance is None


def test_the_sizes_compared_are_those_baked_into_the_engines(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    entries = [entry for some in rig._library()[1].values() for entry in some]
    assert compared_buckets(entries) == Buckets(recomputed=(6, 12), kept=(3, 5))
