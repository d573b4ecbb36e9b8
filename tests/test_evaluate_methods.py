"""The methods of `stc-eval`: STC's are what a stream session computes, to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.errors import SettingsError
from stc.method.family import frame_program, macs
from stc.runtime.evaluate.method import Towers
from stc.runtime.evaluate.methods import METHODS, methods_of
from stc.runtime.evaluate.methods.stc_methods import StcEncoder, StcMethod
from stc.runtime.stream.opening import open_backend
from stc.runtime.stream.session import StreamSession
from stc.runtime.video.open import open_video
from stc.runtime.vision.preprocess import Preprocessor
from stc.runtime.vision.tower import VisionTower
from stc.settings import PRESETS, Settings
from tests.as_user import CLIP


@pytest.fixture(scope="module")
def towers(demo_bundle: Path) -> Iterator[Towers]:
    bundle = Bundle.open(demo_bundle)
    # Made before what keeps a test's process from taking threads of its own.
    backend = open_backend(bundle, "cpu", language=False, owns_process=False)
    tower = VisionTower(backend, bundle.manifest.vision, bundle.manifest.provenance.precision)
    with Towers(bundle, tower) as towers:
        yield towers


SPELLED = "cacher:reference_interval=3:recompute_ratio=0.1:selection=shared:budget=7"


@pytest.mark.parametrize("word", [*PRESETS, SPELLED])
def test_stc_methods_equal_a_session(word: str, towers: Towers) -> None:
    [method] = methods_of(word).values()
    assert isinstance(method, StcMethod)
    chosen = method.chosen(towers.spec)
    session = StreamSession(towers.vision, chosen)
    encoder = method.open(towers)
    dense = METHODS["off"].open(towers)
    preprocess, kinds = Preprocessor(towers.spec), []
    with open_video(str(CLIP)) as video:
        for frame in islice(video, 5):
            report, pixels = session.push(frame), preprocess(frame.rgb)
            encoded, whole = encoder.push(pixels), dense.push(pixels)
            np.testing.assert_array_equal(encoded.tokens, report.tokens)
            np.testing.assert_array_equal(encoded.kept, report.kept)
            program = frame_program(towers.spec, towers.vision.precision, chosen, report.kind)
            assert encoded.macs == macs(towers.spec, program)
            assert encoded.whole is not None
            np.testing.assert_array_equal(encoded.whole[encoded.kept], encoded.tokens)
            if encoded.recomputed is None:
                assert report.kind == "reference"
                np.testing.assert_array_equal(encoded.whole, whole.tokens)
            else:
                np.testing.assert_array_equal(encoded.recomputed, report.recomputed)
            kinds.append(report.kind)
    assert kinds == ["reference" if chosen.is_reference(i) else "reuse" for i in range(5)]


def test_a_chooser_keeps_what_the_encoder_keeps(towers: Towers) -> None:
    method = METHODS["released"]
    encoder, chooser = method.open(towers), method.chooser(towers)
    assert chooser is not None and METHODS["cacher"].chooser(towers) is None
    random = np.random.default_rng(0)
    for _ in range(4):
        pixels = random.uniform(-1, 1, towers.spec.pixel_shape).astype(np.float32)
        encoded = encoder.push(pixels)
        assert encoded.whole is not None
        np.testing.assert_array_equal(chooser(encoded.whole), encoded.kept)


def test_hidden_states_are_the_last_blocks(towers: Towers) -> None:
    encoder = METHODS["off"].open(towers)
    assert isinstance(encoder, StcEncoder)
    pixels = np.zeros(towers.spec.pixel_shape, np.float32)
    encoder.push(pixels)
    np.testing.assert_allclose(encoder.hidden, towers.torch.dense(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("off,none", "--methods: got 'none', expected one of off, cacher"),
        ("off,paper,off", "--methods: got off twice; name it once"),
        ("paper:ratio=1", "--methods paper: got setting 'ratio', expected reference_interval or"),
        ("paper:budget", "--methods paper:budget: got 'budget', expected FIELD=VALUE"),
        ("paper:budget=a", "--methods paper: budget=a, expected a whole number"),
        ("paper:recompute_ratio=a", "--methods paper: recompute_ratio=a, expected a number"),
        ("paper:recompute_ratio=2", "--recompute-ratio: got 2.0, expected 0 < R <= 1"),
        ("paper:selection=x", "--selection: got 'x', expected shared or layerwise"),
    ],
)
def test_a_methods_mistake_is_one_line(words: str, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        methods_of(words)
    assert str(caught.value).startswith(line)


def test_a_method_with_a_slip_in_its_name_is_told() -> None:
    with pytest.raises(SettingsError, match=r"; use cacher$"):
        methods_of("off,cachr:recompute_ratio=0.5")
    with pytest.raises(SettingsError, match=f"{list(METHODS)[-1]}$"):
        methods_of("none")


def test_settings_are_those_of_the_model(towers: Towers) -> None:
    [method] = methods_of("paper:recompute_ratio=0.5").values()
    told = method.settings(towers.spec)
    assert told["recompute_ratio"] == 0.5
    assert told["budget"] == 58 * towers.spec.pooled // 196
    assert Settings(**told).reference_interval == 2
