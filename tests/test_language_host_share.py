"""What a full-size decoder costs the host per token, on a device that computes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from stc.bundles.bundle import Bundle
from stc.engines.library.plan import Buckets, plan_engines
from stc.engines.tensorrt.counted import CountedDevice, counted_backend
from stc.manifest import FileEntry, GraphEntry, LanguageSpec
from stc.ports import language_ports
from stc.runtime.bench.prefill import Filled
from stc.runtime.language.kv_buckets import KvBuckets
from stc.runtime.language.model import LanguageModel
from stc.runtime.language.sampling import GREEDY, Sampler
from tests.device_cases import manifest
from tests.test_preflight import QWEN

CONTEXT = 1000


def filled(root: Path, spec: LanguageSpec) -> tuple[Filled, CountedDevice]:
    """The decoder `spec` in float16 behind a context; its device."""
    graphs = {
        name: GraphEntry(
            file=FileEntry(path=f"graphs/{name}.onnx", sha256="0" * 64, size_bytes=1),
            inputs=ports.inputs,
            outputs=ports.outputs,
        )
        for name, ports in language_ports(spec, "fp16").items()
    }
    made = manifest().model_copy(update={"language": spec, "graphs": graphs})
    specs = plan_engines(made, Buckets((), ()), several_profiles=True)
    backend, device = counted_backend(Bundle(root, made), specs)
    chunks, contexts = backend.sizes("attend_00", "m"), backend.sizes("attend_00", "S")
    shorter = spec.model_copy(update={"max_positions": contexts[-1] - chunks[-1]})
    table = np.zeros((spec.vocabulary, spec.width), np.float16)
    buckets = KvBuckets(chunks, contexts, fresh=chunks[-1])
    return Filled(LanguageModel(backend, shorter, "fp16", table, buckets), CONTEXT, 256), device


def test_a_decoded_token_takes_the_host_less_than_a_millisecond(tmp_path: Path) -> None:
    """Looking it up, what is asked of the device, and the choice among 152,000."""
    decoder, device = filled(tmp_path, QWEN)
    choose, token, taken = Sampler(GREEDY), np.array([7]), []
    for number in range(40):
        start = time.perf_counter()
        with device.counting() as asked:
            choose(decoder.text(token, number))
        taken.append((time.perf_counter() - start) * 1e3)
    assert min(taken) < 1.0
    assert len(asked.runs) == 2 * QWEN.blocks + 1
    assert (asked.enqueues, asked.copies, asked.synchronisations) == (1, 3, 1)
    assert (asked.allocations, asked.frees) == (0, 0)


def test_a_frame_that_takes_several_calls_waits_once(tmp_path: Path) -> None:
    decoder, device = filled(tmp_path, QWEN)
    for _ in range(3):
        with device.counting() as asked:
            decoder.prefill(np.zeros((196, QWEN.width), np.float16))
    # 64 tokens three times, and 16 for the last four.
    assert len(asked.runs) == 4 * (2 * QWEN.blocks - 1)
    assert {sizes["m"] for _, sizes in asked.runs} == {16, 64}
    assert (asked.enqueues, asked.synchronisations) == (4, 1)
    assert (asked.allocations, asked.frees) == (0, 0)
