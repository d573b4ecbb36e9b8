"""Bundles from elsewhere whose manifest says what no model has: refused at once, in one line."""

from __future__ import annotations

import json
import shutil
import string
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stc.bundles.bundle import Bundle, export_again
from stc.bundles.contents import LIST
from stc.engines.library.library import EngineLibrary
from stc.errors import BundleError, EngineError
from stc.manifest import MANIFEST
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import doctor as doctor_command
from stc.runtime.commands import run as run_command
from tests.field.described import Place, before_long, places, spoilt, write_described
from tests.squares import square
from tests.tiny_bundle import provenance

VIDEO = Path(__file__).parents[1] / "data" / "street.mp4"
HUGE = 10**25


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A bundle with a decoder, and its manifest."""
    path = tmp_path_factory.mktemp("described") / "bundle"
    return path, write_described(path)


def refusal(bundle: Path, content: object) -> str:
    """The one line with which the bundle is refused once `content` is its manifest."""
    text = content if isinstance(content, str) else json.dumps(content)
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError) as caught, before_long():
        Bundle.open(bundle)
    line = str(caught.value)
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 2000
    assert str(bundle / MANIFEST) in line
    return line


def square_fields(image_size: int, patch_size: int) -> dict[str, Any]:
    """`square` as JSON has it."""
    fields = square(image_size, patch_size)
    return {**fields, "grid": fields["grid"].model_dump()}


VALUES: list[tuple[str, object]] = [
    *((f"vision.{field}", HUGE) for field in ("image_height", "width", "mlp_width", "blocks")),
    *((f"vision.{field}", 10**9) for field in ("image_width", "width", "heads", "blocks")),
    ("vision.blocks", True),
    ("vision.blocks", 1.0),
    ("vision.blocks", "1"),
    ("vision.patch_size", 1e300),
    ("vision.grid.rows", HUGE),
    ("vision.grid.columns", 0),
    ("vision.grid.prefix_tokens", -1),
    ("vision.grid.prefix_tokens", 10**9),
    ("vision.grid.pooled_rows", 10**9),
    ("vision.language_width", 10**9),
    ("vision.layer_norm_eps", 1e9),
    ("vision.activation", "sigmoid"),
    ("vision.projector_activation", ""),
    ("vision.image_mean", [1e30, 0.5, 0.5]),
    ("vision.image_std", [1e-30, 0.5, 0.5]),
    ("vision.image_std", [-1.0, 0.5, 0.5]),
    ("vision.rescale_factor", 1e30),
    ("language.blocks", 10**9),
    ("language.vocabulary", HUGE),
    ("language.max_positions", 10**30),
    ("language.head_width", 7),
    ("language.key_heads", 3),
    ("language.rotary_base", 1e300),
    ("language.rms_norm_eps", 1e9),
    ("language.activation", "gelu"),
    ("language.video_token_id", -1),
    ("language.video_token_id", HUGE),
    ("language.video_token_id", 9),
    ("language.stop_token_ids", [-1]),
    ("language.stop_token_ids", [7, 9]),
    ("language.stop_token_ids", [7] * 100_000),
    ("variants.fused.options", {"group": 7}),
    ("variants.fused.options", {"groups": 32}),
    ("variants.fused.base", "fused"),
    ("variants.fused.graphs", {}),
    ("variants.fused.backends", []),
    ("variants.fused.backends", ["tensorrt"]),
    ("variants.fused.weights", "x" * 100_000),
    ("settings.budget", 10**5),
    ("settings.budget", HUGE),
    ("settings.reference_interval", HUGE),
    ("settings.anchor_window", HUGE),
    ("settings.pruner", "x" * 100_000),
    ("provenance.checkpoint", ""),
    ("provenance.checkpoint", "   "),
    ("provenance.checkpoint", "demo\x1b[2J"),
    ("provenance.checkpoint", "x" * 100_000),
    ("provenance.model", ""),
    ("provenance.versions", {str(number): "1" for number in range(1000)}),
    ("provenance.opset", HUGE),
    ("files.0.size_bytes", HUGE),
    ("files.0.path", "x" * 100_000),
    ("graphs.embed.inputs.0.shape", [3] * 100_000),
    ("graphs.embed.inputs.0.shape.1", HUGE),
    ("graphs.embed.inputs.0.name", "x" * 100_000),
    ("graphs.embed.inputs.0.name", "\x1b[2J"),
]


@pytest.mark.parametrize(
    ("place", "value"),
    VALUES,
    ids=[f"{number}-{place}" for number, (place, _) in enumerate(VALUES)],
)
def test_a_value_no_model_has_is_refused_on_opening(
    described: tuple[Path, dict[str, Any]], place: str, value: object
) -> None:
    """A manifest written by hand, or by a hostile one: BundleError at once, naming the field."""
    bundle, document = described
    steps = tuple(int(step) if step.isdigit() else step for step in place.split("."))
    field = next(step for step in reversed(steps) if isinstance(step, str))
    line = refusal(bundle, spoilt(document, steps, value))
    assert field in line.partition(MANIFEST)[2].replace("-", "_")


@pytest.mark.parametrize(
    "fields",
    [
        square_fields(8192, 8),
        {"width": 65_536, "heads": 1024, **square_fields(512, 4)},
        {"blocks": 256, "width": 65_536, **square_fields(512, 4)},
    ],
)
def test_numbers_that_only_together_are_too_large_are_refused(
    described: tuple[Path, dict[str, Any]], fields: dict[str, Any]
) -> None:
    """Each in its range, together 16 GiB of one buffer: BundleError about the vision tower."""
    bundle, document = described
    line = refusal(bundle, {**document, "vision": {**document["vision"], **fields}})
    assert ": vision: " in line
    assert "at most" in line


def test_files_of_a_petabyte_are_refused_by_their_sizes_alone(
    described: tuple[Path, dict[str, Any]],
) -> None:
    """Sizes each in range whose sum is not: nothing is hashed."""
    bundle, document = described
    files = [{**entry, "size_bytes": 2**40} for entry in document["files"]]
    assert "together, at most" in refusal(bundle, {**document, "files": files})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (" " * (100 << 20), "has too many bytes, expected at most 4,194,304"),
        ("[" * 100_000, "is not JSON (recursion limit"),
        ('{"a":' * 100_000, "is not JSON (recursion limit"),
        ("9" * 100_000, "is not JSON (number out of range"),
    ],
)
def test_a_manifest_that_only_costs_time_is_refused(
    described: tuple[Path, dict[str, Any]], content: str, told: str
) -> None:
    """100 MB of it, nested a hundred thousand deep, a number of as many digits."""
    assert told in refusal(described[0], content)


def test_a_field_with_a_hostile_name_is_told_in_a_short_plain_line(
    described: tuple[Path, dict[str, Any]],
) -> None:
    """A key of a megabyte of escape sequences reaches no terminal."""
    bundle, document = described
    refusal(bundle, {**document, "\x1b[2J" * 200_000: 1})
    refusal(bundle, {**document, "graphs": {**document["graphs"], "\x1b[2J" * 200_000: {}}})


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2, 10**5, 10**9, 2**31, 2**63, HUGE, -HUGE]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["", " ", "\x00", "\x1b[2J", "../x", "x" * 5000]),
    st.lists(st.integers(-1, 10), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_stands_in_a_field_a_bundle_opens_or_is_refused(
    described: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    """Any value at any place: a Bundle whose numbers are in range, or BundleError in one line."""
    bundle, document = described
    place: Place = data.draw(st.sampled_from(sorted(places(document), key=str)))
    content = json.dumps(spoilt(document, place, data.draw(HOSTILE)))
    (bundle / MANIFEST).write_text(content)
    with before_long():
        try:
            opened = Bundle.open(bundle)
        except BundleError as error:
            line = str(error)
            assert "\n" not in line and line.isprintable() and len(line) < 20_000
            return
    manifest = opened.manifest
    assert manifest.default_settings.kept(manifest.vision.pooled) <= manifest.vision.pooled
    assert manifest.language is None or manifest.language.video_token_id < 10**7
    assert opened.export_again()


@pytest.mark.parametrize("checkpoint", ["x", "llava-ov-", " a", "ä ö", "-- --force", "'", "$(x)"])
@pytest.mark.parametrize("weights", ["checkpoint", "random", "demo"])
def test_a_bundle_of_any_making_says_how_to_export_it_again(
    checkpoint: str, weights: Any, tmp_path: Path
) -> None:
    """A name that no release had: the command is told, quoted, and nothing fails over it."""
    made = provenance("llava-ov", checkpoint, weights)
    line = export_again(tmp_path, {"provenance": made.model_dump()})
    assert line.startswith("export again with: stc-export --model llava-ov ")


@pytest.fixture(scope="module")
def demo_copy(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's bundle with a manifest of its own."""
    path = tmp_path_factory.mktemp("copy") / "bundle"
    shutil.copytree(demo_bundle, path)  # no links: onnx refuses external data that has several
    return path


ODD: dict[str, dict[str, dict[str, object]]] = {
    "longest interval": {
        "settings": {"reference_interval": 10**6, "recompute_ratio": 1e-300, "budget": 0}
    },
    "one position": {"language": {"max_positions": 1}},
    "no stop token": {"language": {"stop_token_ids": [], "video_token_id": 0}},
    "outermost pixels": {
        "vision": {"image_mean": [-1e4, 0, 1e4], "image_std": [1e4, 1, 1], "rescale_factor": 1e-9}
    },
    "strange making": {
        "provenance": {
            "weights": "random",
            "checkpoint": string.punctuation,
            "versions": {},
            "stc_version": "?",
            "opset": 1000,
        }
    },
}


@pytest.mark.parametrize("odd", ODD)
def test_what_opens_crashes_no_command(
    odd: str, demo_copy: Path, run_main: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Values at the ends of their ranges: every command ends, with a result or one error line."""
    document = json.loads((demo_copy / MANIFEST).read_text())
    changed = {part: {**document[part], **fields} for part, fields in ODD[odd].items()}
    (demo_copy / MANIFEST).write_text(json.dumps({**document, **changed}))
    try:
        asked = ("--ask", "What is moving?", "--max-new-tokens", "2", "--memory")
        for main, *words in (
            (doctor_command.main, demo_copy),
            (run_command.main, demo_copy, "--video", VIDEO, "--frames", "1", *asked, "all"),
            (run_command.main, demo_copy, "--video", VIDEO, "--frames", "1", *asked, "rekv"),
            (bench_command.main, demo_copy, "--frames", "1"),
        ):
            done = run_main(main, *words)
            assert done.returncode in (0, 1, 2)
            if done.returncode == 2:
                assert "error: " in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        (demo_copy / MANIFEST).write_text(json.dumps(document))


ENTRY: dict[str, Any] = {
    "stamp": {
        "graph": "embed",
        "graph_sha256": "0" * 64,
        "weights_sha256": "0" * 64,
        "flavour": "tensorrt",
        "version": "10.0",
        "targets": ["sm89"],
        "precision": "fp16",
        "profiles": [{}],
        "baked": None,
    },
    "file": {"path": "embed.engine", "sha256": "0" * 64, "size_bytes": 1},
    "build_s": 1.0,
    "workspace_bytes": 1,
    "acceptance": {
        "passed": True,
        "min_cosine": 1.0,
        "outputs": {"hidden": 1.0},
        "relative_l2": 0.0,
        "device": "GPU",
    },
}


def test_a_list_of_engines_as_it_is_written_is_read(tmp_path: Path) -> None:
    """The list that the other tests spoil is whole."""
    (tmp_path / LIST).write_text(
        json.dumps({"schema_version": 2, "engines": {"a.engine": ENTRY}, "chain_cosine": {}})
    )
    assert list(EngineLibrary(tmp_path).entries()) == ["a.engine"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("stamp", "targets"), []),
        (("stamp", "profiles"), [{"M": -1}]),
        (("stamp", "profiles"), [{"M": HUGE}]),
        (("stamp", "profiles"), []),
        (("stamp", "baked"), -1),
        (("stamp", "baked"), 1.0),
        (("stamp", "version"), "x" * 100_000),
        (("workspace_bytes",), -1),
        (("workspace_bytes",), HUGE),
        (("acceptance", "min_cosine"), 7.0),
        (("acceptance", "relative_l2"), -1.0),
        (("build_s",), -1.0),
        (("file", "size_bytes"), HUGE),
        (("file", "path"), "../x"),
    ],
)
def test_an_engine_with_a_value_none_has_is_refused_in_one_line(
    place: Place, value: object, tmp_path: Path
) -> None:
    """The list of a build that something else wrote into: EngineError with the field."""
    entry = spoilt(ENTRY, place, value)
    (tmp_path / LIST).write_text(
        json.dumps({"schema_version": 2, "engines": {"a": entry}, "chain_cosine": {}})
    )
    with pytest.raises(EngineError) as caught:
        EngineLibrary(tmp_path).entries()
    line = str(caught.value)
    assert str(place[-1]) in line
    assert "\n" not in line
    assert len(line) < 1000


@pytest.mark.parametrize("text", [" " * (5 << 20), "[" * 100_000, "{}", "null", "[]"])
def test_a_list_of_engines_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    """Megabytes, nesting, another document: EngineError in one line."""
    (tmp_path / LIST).write_text(text)
    with pytest.raises(EngineError) as caught:
        EngineLibrary(tmp_path).entries()
    assert "\n" not in str(caught.value)
