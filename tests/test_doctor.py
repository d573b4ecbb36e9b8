"""stc-doctor names what is missing and the command that fixes it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from stc import optional
from stc.bundles.bundle import Bundle
from stc.engines.gpu.cuda import DeviceFacts
from stc.errors import DeviceError
from stc.method.graphs import prune_graph
from stc.runtime.commands import doctor
from stc.runtime.commands.doctor import Finding, diagnose
from tests.test_open_tensorrt import STRAYS, build
from tests.tiny_bundle import write_bundle

ORIN = DeviceFacts(
    name="Orin",
    compute_capability=(8, 7),
    total_bytes=8 << 30,
    free_bytes=5 << 30,
    unified=True,
    board="NVIDIA Jetson Orin Nano Developer Kit",
)
GEFORCE = DeviceFacts("GeForce", (8, 9), 16 << 30, 15 << 30, False, "")


class Machine:
    """What can be imported and which GPU there is; everything else is absent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.packages: dict[str, Any] = {}
        self.device: DeviceFacts | Exception = DeviceError("cudaSetDevice", "no driver")
        whole = importlib.import_module

        def find(name: str, package: str | None = None) -> ModuleType | Any:
            if name in ("stc", *doctor.BASE) or name.startswith("stc."):
                return whole(name, package)
            if name not in self.packages:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return self.packages[name]

        monkeypatch.setattr(importlib, "import_module", find)
        monkeypatch.setattr(doctor, "device_facts", lambda _: self._facts())
        (root / "proc").mkdir()
        self.swap(0)

    def install(self, name: str, version: str, **more: Any) -> None:
        self.packages[name] = SimpleNamespace(__version__=version, **more)

    def install_video(self) -> None:
        self.install("av", "18.1.0")
        self.install("PIL.Image", "13.0.0")

    def swap(self, gib: int) -> None:
        (self.root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nSwapTotal: {gib << 20} kB\n")

    def _facts(self) -> DeviceFacts:
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def found(self, subject: str, bundle: Path | None = None) -> Finding:
        (finding,) = [f for f in diagnose(bundle, self.root).findings if f.subject == subject]
        return finding


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_tensorrt_rtx_is_not_asked_for_where_it_does_not_run(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "12.9")
    for device, fine in ((ORIN, True), (GEFORCE, False)):
        machine.device = device
        assert machine.found("tensorrt-rtx").fine == fine


def test_a_machine_without_a_gpu_is_told_that_it_may_go_without(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "12.9")
    machine.device = DeviceError("cudaSetDevice", "no driver", fix="update it")
    gpu = Finding("GPU", "no driver", "update it", "--backend tensorrt", optional=True)
    assert machine.found("GPU") == gpu


def test_what_nobody_needs_to_run_a_bundle_is_optional(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands below what is there, and nothing of it is to be fixed."""
    machine.install("onnxruntime", "1.31.1", get_available_providers=list)
    machine.install_video()
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "fix" in line]
    signs = [line[:8].rstrip() for line in lines[:-1] if line[:8].strip()]
    assert signs == sorted(signs)
    assert signs.count("optional") == 6
    polygraphy = lines.index("optional  polygraphy: Python package polygraphy not found")
    assert lines[polygraphy + 1] == "          for stc-build: pip install polygraphy"
    assert lines[-1] == "bundles can be run here with: onnxruntime"


def test_a_backend_is_to_be_installed_where_there_is_none(machine: Machine) -> None:
    machine.install_video()
    diagnosis = diagnose(None, machine.root)
    to_fix = [one.subject for one in diagnosis.findings if not (one.fine or one.optional)]
    assert to_fix == ["onnxruntime"]
    assert diagnosis.verdict == (
        "nothing can be run here yet; missing: a backend (onnxruntime is the quickest to install)"
    )


def test_a_library_that_is_there_and_broken_is_to_be_fixed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install("tokenizers", "0.1")
    monkeypatch.setattr(optional, "oldest", lambda package: "0.22")
    finding = machine.found("tokenizers")
    assert (finding.found, finding.optional) == ("tokenizers 0.1 is too old", False)


def test_a_bare_machine_is_told_a_command_for_everything(machine: Machine) -> None:
    diagnosis = diagnose(None, machine.root)
    assert diagnosis.backends == []
    missing = {finding.subject: finding.fix for finding in diagnosis.findings if not finding.fine}
    assert "pip install cuda-bindings" in missing["GPU"]
    assert "--system-site-packages" in missing["tensorrt"]
    assert "pip install 'stc[tensorrt-rtx]'" in missing["tensorrt-rtx"]
    assert missing["onnxruntime"] == "pip install onnxruntime"
    assert missing["polygraphy"] == "pip install polygraphy"
    assert missing["video (PyAV)"] == "pip install 'stc[video]'"
    assert missing["tokenizers"] == missing["chat templates"]
    assert missing["tokenizers"] == "pip install 'stc[language]'"


def test_a_complete_jetson_can_run_native_engines_only(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "12.9")
    machine.install("tensorrt", "10.3.0")
    machine.install("tensorrt_rtx", "1.7.1")
    machine.install_video()
    machine.device = ORIN
    machine.swap(8)
    assert diagnose(None, machine.root).backends == ["tensorrt"]
    assert machine.found("GPU").found.endswith("target orin-nano")
    assert machine.found("tensorrt") == Finding(
        "tensorrt", "10.3.0, one engine per size (before 10.8)"
    )
    assert machine.found("tensorrt-rtx").found == "1.7.1, does not run on orin-nano"
    assert machine.found("swap").fine


def test_a_small_board_without_swap_is_told_to_add_some(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "12.9")
    machine.device = ORIN
    assert machine.found("swap").fix.startswith("sudo fallocate -l 8G /var/swapfile && ")


@pytest.mark.parametrize(
    ("said", "fix"), [("MAXN", ""), ("MAXN_SUPER", ""), ("15W", "sudo nvpmodel -m 2")]
)
def test_a_board_held_back_by_its_power_mode_is_told_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, said: str, fix: str
) -> None:
    machine.install("cuda.bindings.runtime", "12.9")
    machine.device = ORIN
    monkeypatch.setattr(doctor, "power_mode", lambda: said)
    assert machine.found("power mode") == Finding("power mode", said, fix, "full speed")


def test_cameras_are_listed(machine: Machine) -> None:
    assert machine.found("cameras").found.startswith("none")
    (machine.root / "dev").mkdir()
    for number in (1, 0):
        (machine.root / f"dev/video{number}").touch()
    dev = machine.root / "dev"
    assert machine.found("cameras").found == f"{dev}/video0, {dev}/video1"


def test_a_jetson_release_is_shown(machine: Machine) -> None:
    (machine.root / "etc").mkdir()
    (machine.root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\nmore\n")
    assert machine.found("Jetson Linux").found == "R36 (release), REVISION: 4.3"


def test_a_desktop_runs_both_flavours_and_onnx_runtime(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "13.0")
    machine.install("tensorrt", "10.16.1")
    machine.install("tensorrt_rtx", "1.7.1")
    machine.install(
        "onnxruntime", "1.31.1", get_available_providers=lambda: ["CPUExecutionProvider"]
    )
    machine.install_video()
    machine.device = GEFORCE
    diagnosis = diagnose(None, machine.root)
    assert diagnosis.backends == ["onnxruntime", "tensorrt", "tensorrt-rtx"]
    assert machine.found("onnxruntime").found == "1.31.1, CPU"


def test_a_gpu_outside_the_table_says_how_to_name_it(machine: Machine) -> None:
    machine.install("cuda.bindings.runtime", "13.0")
    machine.install("tensorrt", "10.16.1")
    machine.device = DeviceFacts("H200", (9, 0), 1 << 30, 1 << 30, False, "")
    assert "engines/library/targets.py" in machine.found("GPU").fix
    assert machine.found("tensorrt").found == "10.16.1, this GPU is no target"
    assert diagnose(None, machine.root).backends == []


def test_a_bundle_without_engines_says_how_to_build_them(machine: Machine, tmp_path: Path) -> None:
    machine.install("cuda.bindings.runtime", "13.0")
    machine.install("tensorrt", "10.16.1")
    machine.device = GEFORCE
    bundle = write_bundle(tmp_path / "bundle")
    assert machine.found("bundle", bundle).found == "demo, fp32"
    engines = machine.found("engines, tensorrt", bundle)
    assert engines.found == "has no engines"
    assert engines.fix.startswith("build with: stc-build")


def test_a_bundle_whose_own_pruner_was_refused_here_says_so(
    machine: Machine, tmp_path: Path
) -> None:
    machine.install("cuda.bindings.runtime", "13.0")
    machine.install("tensorrt_rtx", "1.7.1")
    machine.device = GEFORCE
    bundle = Bundle.open(write_bundle(tmp_path / "bundle"))
    pruner = prune_graph(bundle.manifest.default_settings.pruner)
    library = build(bundle)
    name, entry = next(iter(library.entries().items()))
    digest = bundle.manifest.graphs[pruner].file.sha256
    stamp = entry.stamp.model_copy(update={"graph": pruner, "graph_sha256": digest})
    refused = STRAYS.model_copy(update={"device": GEFORCE.name})
    strays = entry.model_copy(update={"stamp": stamp, "acceptance": refused})
    assert machine.found("engines, tensorrt-rtx", bundle.root).fine
    library.write({**library.entries(), f"pruner-{name}": strays})
    engines = machine.found("engines, tensorrt-rtx", bundle.root)
    assert engines.found.startswith("deviates from ONNX Runtime on this device")
    assert "another --pruner" in engines.fix


def test_a_damaged_bundle_is_a_finding_and_no_failure(machine: Machine, tmp_path: Path) -> None:
    finding = machine.found("bundle", tmp_path / "nothing")
    assert (finding.found, finding.fine) == ("no such directory, expected a bundle", False)


def test_the_last_line_says_once_why_a_bundle_cannot_be_run(
    machine: Machine, tmp_path: Path
) -> None:
    """Of a machine that is well; of one that is not, what it lacks."""
    bundle = write_bundle(tmp_path / "bundle")
    for file in ("config.json", "graphs/embed.onnx"):
        (bundle / file).unlink()
    assert diagnose(bundle, machine.root, verify=True).verdict.startswith("nothing can be run")
    machine.install("onnxruntime", "1.31.1", get_available_providers=list)
    machine.install_video()
    first = bundle / "graphs/embed.onnx"
    for broken, why in (
        (tmp_path / "nothing", "no such directory, expected a bundle"),
        (bundle, f"{first}: is missing, expected 9 bytes (and 1 more)"),
    ):
        diagnosis = diagnose(broken, machine.root, verify=True)
        assert diagnosis.backends == []
        assert diagnosis.verdict == f"{broken} cannot be run here: {why}"
    whole = write_bundle(tmp_path / "whole")
    assert diagnose(whole, machine.root).verdict == f"{whole} can be run here with: onnxruntime"
    machine.packages.pop("onnxruntime")
    machine.install("cuda.bindings.runtime", "13.0")
    machine.install("tensorrt", "10.16.1")
    machine.device = GEFORCE
    told = f"{whole} cannot be run here: has no engines"
    assert diagnose(whole, machine.root).verdict == told


def test_the_command_prints_lines_and_ends_in_one_when_nothing_can_run(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([]) == 1
    printed = capsys.readouterr().out
    assert "to fix    onnxruntime: Python package onnxruntime not found\n" in printed
    assert "fix: pip install onnxruntime" in printed
    assert "nothing can be run here yet; missing: video (PyAV), pictures (Pillow)" in printed


def test_the_command_prints_json(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.install("onnxruntime", "1.31.1", get_available_providers=list)
    machine.install_video()
    assert doctor.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["backends"] == ["onnxruntime"]
    assert document["verdict"] == "bundles can be run here with: onnxruntime"
    assert {"subject", "found", "fix", "needed_for", "vital", "optional"} == set(
        document["findings"][0]
    )
