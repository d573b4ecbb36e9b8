"""Four-bit matrices: what the codes stand for, and the graphs that read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stc import contracts
from stc.bundles.bundle import Bundle
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import BundleError, SettingsError
from stc.export import command
from stc.export.graphs.int4_graphs import DOMAIN, INT4_WEIGHTS, OPERATOR, dequantise, quantise
from stc.manifest import GRAPHS, LANGUAGE_WEIGHTS, ON_REQUEST, Group
from stc.onnx_files.operators import PORTABLE_OPS
from stc.runtime.answers.stream_language import StreamLanguage
from stc.runtime.commands import bench as bench_command
from stc.runtime.commands import run as run_command
from stc.runtime.memory.window import AllMemory
from tests.graph_files import graph_file
from tests.kept_tokens import frames
from tests.language_cases import language_case
from tests.test_run_questions import QUESTION, VIDEO

GROUPS = ON_REQUEST["int4"]
Run = Callable[..., "CompletedProcess[str]"]


@given(
    fan_in=st.integers(1, 300),
    fan_out=st.integers(1, 5),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 9),
)
def test_codes_stand_for_values_within_half_a_step(
    fan_in: int, fan_out: int, group: Group, seed: int
) -> None:
    matrix = np.random.default_rng(seed).standard_normal((fan_in, fan_out)).astype(np.float32)
    codes, scales = quantise(matrix, group)
    groups = -(-fan_in // group)
    assert codes.shape == (fan_out, groups, group // 2)
    assert scales.shape == (fan_out * groups,)
    back = dequantise(codes, scales, fan_in)
    step = np.abs(scales).reshape(fan_out, groups).repeat(group, axis=1)[:, :fan_in].T
    error = np.abs(back - matrix)
    # Of the sign opposite to the farthest value there is one code less.
    assert (error <= np.where(np.abs(matrix) > 7 * step, 1.0, 0.5) * step + 1e-6).all()
    for first in range(0, fan_in, group):
        part = slice(first, min(first + group, fan_in))
        farthest = np.abs(matrix[part]).argmax(axis=0)
        exact = np.take_along_axis(error[part], farthest[None], 0)
        assert exact.max() < 1e-6


def test_a_matrix_of_zeros_stays_one() -> None:
    codes, scales = quantise(np.zeros((32, 3), np.float32), 32)
    assert not dequantise(codes, scales, 32).any()


@pytest.mark.parametrize("fan_in", [64, 80])
@pytest.mark.parametrize("group", GROUPS)
def test_onnxruntime_reads_the_codes_alike(fan_in: int, group: Group) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((fan_in, 6)).astype(np.float32)
    codes, scales = quantise(matrix, group)
    node = helper.make_node(
        OPERATOR,
        ["x", "codes", "scales"],
        ["y"],
        domain=DOMAIN,
        K=fan_in,
        N=6,
        bits=4,
        block_size=group,
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, fan_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 6])],
        [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = random.standard_normal((3, fan_in)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    assert np.allclose(y, x @ dequantise(codes, scales, fan_in), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_bundle_holds_both_precisions_and_each_answers(tied: bool) -> None:
    case = language_case(tied=tied, int4=32)
    manifest = case.bundle.manifest
    spec = manifest.language
    assert spec is not None
    language_graphs = set(contracts.language_graphs(spec.blocks))
    variant = manifest.variants["int4"]
    assert set(variant.graphs) == language_graphs - {contracts.TEXT_EMBED}
    assert (variant.weights, variant.options) == (INT4_WEIGHTS, {"group": 32})
    for name in language_graphs:
        graph = onnx.load(graph_file(case.bundle, name), load_external_data=False).graph
        assert {node.op_type for node in graph.node} <= PORTABLE_OPS
    full, packed = (
        (case.bundle.root / path).stat().st_size for path in (LANGUAGE_WEIGHTS, INT4_WEIGHTS)
    )
    assert packed < full
    prompt = case.prompt()
    logits = []
    for weights in (None, "int4"):
        model = case.language(weights=weights)
        language = StreamLanguage(model, AllMemory(model, fixed=len(prompt.before)), prompt)
        for tokens in frames(5):
            language.append(tokens)
        answer = language.ask(QUESTION, 8)
        logits.append(answer.logits)
        assert "".join(answer) == answer.text
        assert len(answer.token_ids) == 8
    full_precision, four_bits = logits
    assert not np.allclose(full_precision, four_bits)
    assert np.corrcoef(full_precision, four_bits)[0, 1] > 0.9


def test_half_precision_bundles_have_four_bit_graphs_too() -> None:
    case = language_case(precision="fp16", int4=128)
    name = contracts.attend_graph(0)
    graph = onnx.load(
        case.bundle.root / GRAPHS / f"{name}_int4.onnx", load_external_data=False
    ).graph
    dtypes = {one.name: one.data_type for one in graph.initializer}
    assert dtypes["gate.weight.scales"] == TensorProto.FLOAT16
    assert dtypes["gate.weight.codes"] == TensorProto.UINT8
    assert dtypes["norm2.weight"] == TensorProto.FLOAT
    model = case.language(weights="int4")
    hidden = model.embed(np.arange(3))
    assert hidden.dtype == np.float16


def test_an_altered_four_bit_file_is_refused(tmp_path: Path) -> None:
    root = Path(shutil.copytree(language_case(int4=32).bundle.root, tmp_path / "bundle"))
    graph = root / GRAPHS / "head_int4.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"head_int4\.onnx: was altered"):
        Bundle.open(root).graph("head", "onnxruntime-cpu", "int4")


def test_four_bits_are_measured_beside_full_precision(run_main: Run) -> None:
    bundle = language_case(int4=32).bundle.root
    flags = ["--prefill", "--frames", 2, "--budget", 1, "--context", 40, "--against", "int4"]
    ran = run_main(bench_command.main, bundle, *flags)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert figures["int4_group"] == 32
    times = figures["decode_ms_p50"], figures["int4_decode_ms_p50"]
    assert figures["int4_decode_speedup"] == pytest.approx(times[0] / times[1])
    assert figures["int4_ttft_ms_p50"] > 0


def test_int4_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = language_case().bundle
    with pytest.raises(SettingsError, match=r"has none but its own; .* --int4 32 --output"):
        OnnxRuntimeBackend(bundle, weights="int4").load(contracts.HEAD)
    root = str(language_case(int4=32).bundle.root)
    for main, arguments, told in (
        (run_command.main, [root, "--video", VIDEO, "--int4"], "weights int4: none of its graphs"),
        (bench_command.main, [root, "--int4"], "weights int4: none of its graphs"),
        (
            bench_command.main,
            [root, "--against", "int4"],
            "--against int4: names weights, which requires --prefill",
        ),
        (
            command.main,
            ["--model", "demo", "--vision-only", "--int4", "32"],
            "cannot be combined with --vision-only",
        ),
    ):
        assert main(arguments) == 2
        assert told in capsys.readouterr().err
