"""What cannot be built is one line that names the way out. No TensorRT is needed for these."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from stc.bundles.bundle import Bundle
from stc.engines import command as build_command
from stc.engines.build.build import (
    check_native,
    check_precision,
    choose_flavour,
    this_target,
)
from stc.engines.gpu.cuda import DeviceFacts
from stc.engines.library.targets import TARGETS, TensorRt, load_tensorrt, parse_targets
from stc.errors import EngineError
from stc.optional import older
from tests.tiny_bundle import provenance, write_bundle

ORIN_NANO = DeviceFacts(
    name="Orin",
    compute_capability=(8, 7),
    total_bytes=8 << 30,
    free_bytes=6 << 30,
    unified=True,
    board="NVIDIA Jetson Orin Nano Developer Kit",
)


def native(version: str) -> TensorRt:
    return TensorRt("tensorrt", SimpleNamespace(__version__=version))


def rtx() -> TensorRt:
    return TensorRt("tensorrt-rtx", SimpleNamespace(__version__="1.7.1"))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert build_command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def half_bundle(tmp_path: Path) -> Path:
    """A tiny bundle that says it is float16."""
    half = provenance().model_copy(update={"precision": "fp16"})
    return write_bundle(tmp_path / "bundle", made=half)


def machine(
    monkeypatch: pytest.MonkeyPatch, tensorrt: TensorRt, device: DeviceFacts | None
) -> None:
    """It has `tensorrt` and the GPU `device`; Ctrl-C is pressed when builders are to start."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_command, "choose_flavour", lambda *_: tensorrt)
    monkeypatch.setattr(build_command, "_device", lambda: (device, "no driver"))
    monkeypatch.setattr(build_command, "run_build", stop)


def test_a_gpu_that_is_not_here_may_have_more_memory_than_the_smallest_board(
    half_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(monkeypatch, rtx(), None)
    small = replace(TARGETS["sm89"], memory_bytes=1 << 28)
    with monkeypatch.context() as patched:
        patched.setattr(build_command, "parse_targets", lambda _: (small, TARGETS["sm120"]))
        assert build_command.main([str(half_bundle), "--target", "sm89+sm120"]) == 130
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("sm89: needs 0.3")
    assert told[0].endswith("; its smallest board has 0.25 GiB, which would not hold it")
    assert told[1].endswith("; its smallest board has 8.00 GiB")
    here = replace(ORIN_NANO, compute_capability=(8, 9), board="", free_bytes=1 << 28)
    machine(monkeypatch, rtx(), here)
    error = refused([str(half_bundle), "--target", "sm89"], capsys)
    assert "expected at most 0.25 GiB, what is free" in error


@pytest.mark.parametrize("jobs", [2, 4])
def test_several_builders_of_native_tensorrt_are_refused(
    half_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jobs: int,
) -> None:
    machine(monkeypatch, native("10.3.0"), ORIN_NANO)
    command = [str(half_bundle), "--target", "orin-nano", "--jobs"]
    assert refused([*command, str(jobs)], capsys) == (
        f"error: --jobs: got {jobs} with native TensorRT, which times kernels and must be alone, "
        "expected 1; leave it out\n"
    )
    assert build_command.main([*command, "1"]) == 130
    machine(monkeypatch, rtx(), None)
    assert build_command.main([str(half_bundle), "--target", "sm89", "--jobs", str(jobs)]) == 130


def test_a_stop_that_becomes_an_error_keeps_finished_engines_and_says_so(
    half_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def masked(*_: object, **__: object) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise EngineError("qkv_00", "the compiler failed (a callback failed)")

    machine(monkeypatch, rtx(), None)
    monkeypatch.setattr(build_command, "run_build", masked)
    assert build_command.main([str(half_bundle), "--target", "sm89"]) == 130
    told = capsys.readouterr().err
    assert told.endswith("\ninterrupted; finished engines are kept, run it again to go on\n")
    assert "error" not in told


def test_an_fp32_bundle_is_refused_with_its_export_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    error = refused([str(bundle), "--target", "sm86"], capsys)
    assert "holds fp32 graphs, expected fp16 for target sm86" in error
    assert "stc-export --model demo --precision fp16" in error


def test_an_fp16_bundle_suits_every_target(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle"))
    half = bundle.manifest.provenance.model_copy(update={"precision": "fp16"})
    manifest = bundle.manifest.model_copy(update={"provenance": half})
    check_precision(replace(bundle, manifest=manifest), tuple(TARGETS.values()))


def test_an_unknown_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused([str(tmp_path), "--target", "sm90"], capsys)
    assert "--target: got 'sm90'" in error


def test_rtx_does_not_build_for_orin() -> None:
    with pytest.raises(EngineError, match=r"orin-nx: TensorRT-RTX does not run on .* 8\.7"):
        choose_flavour(parse_targets("orin-nx"), "tensorrt-rtx")


@pytest.mark.parametrize(
    ("flavour", "fix"),
    [
        ("tensorrt", "--system-site-packages"),
        ("tensorrt-rtx", r"pip install 'stc\[tensorrt-rtx\]'"),
    ],
)
def test_a_missing_package_names_the_command_that_installs_it(
    flavour: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(EngineError, match=f"package .* not found; .*{fix}"):
        load_tensorrt(flavour)  # type: ignore[arg-type]


def test_a_broken_package_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(EngineError, match=r"cannot be loaded \(libnvinfer"):
        load_tensorrt("tensorrt")


def test_native_tensorrt_builds_for_the_gpu_it_sits_on() -> None:
    check_native(native("10.3.0"), parse_targets("orin-nano"), ORIN_NANO, "")
    assert this_target(ORIN_NANO) is TARGETS["orin-nano"]


@pytest.mark.parametrize("target", ["orin-agx", "sm86"])
def test_native_tensorrt_refuses_another_gpu(target: str) -> None:
    with pytest.raises(EngineError, match=f"target {target}: this machine has Orin.*this-device"):
        check_native(native("10.3.0"), parse_targets(target), ORIN_NANO, "")


def test_native_tensorrt_refuses_a_machine_without_a_gpu() -> None:
    with pytest.raises(EngineError, match=r"no GPU can be used here \(why\).*on the device$"):
        check_native(native("10.3.0"), parse_targets("orin-nano"), None, "why")
    with pytest.raises(EngineError, match="or use --backend tensorrt-rtx"):
        check_native(native("10.3.0"), parse_targets("sm86"), None, "why")


def test_native_tensorrt_refuses_several_targets() -> None:
    with pytest.raises(EngineError, match="one GPU at a time"):
        check_native(native("10.3.0"), parse_targets("sm86+sm89"), ORIN_NANO, "")


@pytest.mark.parametrize(
    ("target", "version"), [("orin-nano", "10.2.0"), ("orin-nano", "12.0"), ("sm120", "10.7.0.23")]
)
def test_a_version_outside_the_targets_range_is_refused(target: str, version: str) -> None:
    with pytest.raises(
        EngineError, match=f"target {target}: TensorRT {version} is installed, .*in that range"
    ):
        check_native(native(version), parse_targets(target), ORIN_NANO, "")


def test_a_gpu_outside_the_table_must_be_named() -> None:
    hopper = replace(ORIN_NANO, name="H200", compute_capability=(9, 0), board="")
    with pytest.raises(EngineError, match=r"H200 has compute capability 9\.0"):
        this_target(hopper)


@pytest.mark.parametrize(
    ("version", "several"), [("10.3.0", False), ("10.7.0.23", False), ("10.8.0.43", True)]
)
def test_several_profiles_wait_for_the_version_that_computes_them_right(
    version: str, several: bool
) -> None:
    assert native(version).several_profiles is several


def test_versions_compare_by_number() -> None:
    assert not older("10.13.3.9", "10.3")
    assert older("10.3.0", "10.13")
    assert not older("11.0.0.114", "11")
