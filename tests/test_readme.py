"""What the README shows works: every command in it and its Python are run, every path exists.

Commands of the full-size model are run by `tests.test_full_size`, `./scripts/demo` by the slow test
here, what many tests need by those; for these the quick tests check that the command takes the
flags. The quick tests run the others on the first seconds of the clip, and on two made-up scenes.
"""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import stc.runtime as face
from stc import contracts
from stc.engines import open_tensorrt
from stc.method.graphs import vision_graphs
from stc.runtime.evaluate import data as evaluate_data
from stc.runtime.video.open import open_video
from tests.as_user import CLIP, MODULES, ROOT, frames_of
from tests.clips import write_clip
from tests.device_cases import Rig, assert_equal, oracle_session, write_device_bundle
from tests.made_scenes import made_scenes
from tests.test_device_arrays import Interface, prepared

README = (ROOT / "README.md").read_text()
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/accuracy.md",
    "docs/log.md",
    "docs/jetson.md",
    "docs/language.md",
    "docs/python.md",
    "docs/field.md",
    "docs/benchmarks.md",
    "docs/plan.md",
]
MARKDOWN = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.md")]

SLOW = {
    "stc-export --model llava-ov --random-weights --int4 32 --output out/full",
    "stc-bench out/full --video tests/data/street.mp4 --frames 12 --against torch",
    "stc-bench out/full --prefill --frames 8 --against torch --against int4",
    "stc-parity out/full --video tests/data/street.mp4",
}
"""Commands of the README that take minutes."""

RUN = ("README.md", "docs/jetson.md", "docs/language.md", "docs/python.md")
"""Pages with Python, which tests here run."""
ELSEWHERE = {
    "stc-plan out/demo/half --target orin-nano+sm86 --picture out/demo/plan.svg",
    "stc-build out/demo/half --target sm86+sm89+sm120 --backend tensorrt-rtx",
    "stc-export --model demo --precision fp16 --output out/demo/half --force",
    "stc-parity out/demo/bundle --video tests/data/street.mp4",
}
"""What `tests.test_build_rtx` does, with the bundle that `tests.conftest` exports for it, and
`tests.test_parity_command`; the first is `tests.test_plan_command`'s."""

STREET_QUESTIONS = ROOT / "tests" / "data" / "street-questions.json"
SCRIPTS = {"./scripts/demo", "./scripts/test"}
SHOWN = 30
"""Frames of the clip that quick commands are given: six seconds."""


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of `language`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for named, content in fenced if named == language]


def commands(text: str = README) -> list[str]:
    """Every command of the shell blocks, without its comment."""
    lines = "".join(blocks("bash", text)).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


@pytest.fixture
def checkout(tmp_path: Path, demo_bundle: Path) -> Path:
    """A folder in which the README's commands find what they name, the demo's bundle too."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    shutil.copytree(demo_bundle, tmp_path / "out" / "demo" / "bundle")
    return tmp_path


def test_every_command_is_run_by_some_test() -> None:
    known = SLOW | ELSEWHERE | SCRIPTS
    quick = {line for line in commands() if line not in known}
    assert quick
    assert {line.split()[0] for line in quick} <= set(MODULES)
    assert known <= set(commands())


def test_quick_commands_run_in_the_order_they_are_shown(
    checkout: Path, run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "tests" / "data").unlink()
    (checkout / "tests" / "data").mkdir()
    with open_video(str(CLIP)) as video:
        first = (frame.rgb for frame in islice(video, SHOWN))
        write_clip(checkout / "tests" / "data" / CLIP.name, first, rate=5)
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(evaluate_data, "frozen_test", made_scenes)
    demo, of_the_demo = checkout / "out" / "demo", {"overlay.mp4", "overlay.png", "report.json"}
    for name in of_the_demo:
        (demo / name).write_text("the demo's")
    for line in commands():
        if line in SLOW | ELSEWHERE | SCRIPTS:
            continue
        command, *arguments = shlex.split(line)
        result = run_main(import_module(MODULES[command]).main, *arguments)
        assert result.returncode == 0, f"{line}\n{result.stderr}"
    frames = json.loads((demo / "cacher.json").read_text())["summary"]["frames"]
    assert frames == frames_of(demo / "cacher.mp4") == SHOWN
    assert (demo / "cacher.png").exists()
    assert (checkout / "out" / "eval" / "bundle" / "report.html").exists()
    assert all((demo / name).read_text() == "the demo's" for name in of_the_demo)


@pytest.mark.parametrize("line", sorted(SLOW | ELSEWHERE))
def test_other_commands_take_their_flags(line: str) -> None:
    command, *arguments = shlex.split(line)
    import_module(MODULES[command])._parse(arguments)


ONE_AFTER_THE_OTHER = """
import json, sys
for code in json.loads(sys.argv[1]):
    exec(code, {})
    print(chr(0))
"""
"""A program of programs that know nothing of each other."""


def printed(pages: Sequence[str], checkout: Path) -> list[str]:
    """What the Python of each of `pages`, one program in all its blocks, prints."""
    codes = ["".join(blocks("python", (ROOT / page).read_text())) for page in pages]
    assert all(codes)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", ONE_AFTER_THE_OTHER, json.dumps(codes)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split("\0\n")[:-1]


def test_the_python_runs(checkout: Path) -> None:
    pages = {"README.md": "", "docs/python.md": "--budget: got 1000, expected at most 49"}
    *streams, language = printed([*pages, "docs/language.md"], checkout)
    for text, told in zip(streams, pages.values(), strict=True):
        lines = text.splitlines()
        assert lines[0].split()[:3] == ["0", "reference", "196"]
        assert lines[1].split()[:3] == ["1", "reuse", "49"]
        assert [line.split()[0] for line in lines[:24]] == list(map(str, range(24)))
        [answer, *rest] = lines[24:]
        assert answer == "right"  # what is right, where the person is
        assert [line.startswith(told) for line in rest] == [True] * bool(told)
    assert language


def test_the_python_of_jetson_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(tmp_path / "rig")
    write_device_bundle(tmp_path / "out" / "demo" / "half")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_tensorrt, "open_tensorrt", lambda *_, **__: rig.backend)
    values, frame = prepared(oracle_session(), 0)
    [code] = blocks("python", (ROOT / "docs" / "jetson.md").read_text())
    ran: dict[str, Any] = {"pixel_values": Interface(rig, values)}
    exec(code, ran)
    assert_equal(ran["report"], oracle_session().push(frame))
    ran["stream"].close()
    assert rig.device.closed


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in MARKDOWN))
def test_python_uses_the_public_face_alone(page: str) -> None:
    text = (ROOT / page).read_text()
    code = ast.parse("".join(blocks("python", text)))
    assert not code.body or page in RUN
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            ours = [one for one in node.names if one.name.split(".")[0] == "stc"]
            assert all((one.name, one.asname) == ("stc.runtime", "stc") for one in ours)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stc":
            assert node.module == "stc.runtime"
            assert {one.name for one in node.names} <= set(face.__all__)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "stc":
            assert node.attr in face.__all__
    # Python that is not marked as such would not be run.
    assert not re.search(r"^ *(import|from) stc\b", "".join(blocks("", text)), re.MULTILINE)


def test_every_path_in_the_tree_exists() -> None:
    [tree] = [block for block in blocks("") if block.startswith("stc/")]
    above = [ROOT]
    shown = set()
    for line in tree.splitlines():
        names = re.match(r"( *)((?:[\w./]+ )+)", line + " ")
        assert names, line
        depth = len(names[1]) // 2
        paths = [above[depth] / name for name in names[2].split()]
        above[depth + 1 :] = paths[:1]
        for path in paths:
            assert path.is_dir(), f"{path} of line {line!r}"
            shown.add(path)
    for room in (path.parent for path in ROOT.glob("*/**/__init__.py")):
        if room.relative_to(ROOT).parts[0] in ("stc", "export", "engines", "runtime"):
            one_for_all = room.name in ("towers", "decoders")  # shown with their only folder
            assert room in shown or one_for_all, f"{room} has no line"
            assert len(list(room.glob("*.py"))) <= 10, f"{room} is too full"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        leads_to = (ROOT / page).parent / file if file else ROOT / page
        assert leads_to.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", leads_to.read_text(), re.MULTILINE)
            assert heading in {one.lower().replace(" ", "-") for one in headings}, target


def test_every_file_of_the_test_data_has_a_line() -> None:
    data = ROOT / "tests" / "data"
    table = re.findall(r"^\| `([^`]+)` \|", (data / "README.md").read_text(), re.MULTILINE)
    found = {path.name + "/" * path.is_dir() for path in data.iterdir()} - {"README.md"}
    lines = {line: fnmatch.filter(found, line) for line in table}
    assert all(lines.values()), lines
    assert set().union(*lines.values()) == found


def test_every_letter_of_a_shape_is_explained() -> None:
    graphs = vision_graphs(1) | contracts.language_graphs(1)
    ports = [port for graph in graphs.values() for port in (*graph.inputs, *graph.outputs)]
    letters = {axis for port in ports for axis in port.shape if len(axis) == 1 and axis.isalpha()}
    explained = set(re.findall(r"\*\*(\w)\*\*", README))
    assert letters <= explained, letters - explained


def test_the_picture_is_small_enough_to_show() -> None:
    picture = ROOT / "docs" / "images" / "overlay.png"
    assert f"](docs/images/{picture.name})" in README
    assert picture.stat().st_size < 500_000


def test_no_figure_is_missing() -> None:
    for page in PAGES:
        assert "TBD" not in (ROOT / page).read_text(), page


def test_scripts_can_be_run_and_name_no_registry() -> None:
    for script in [*(ROOT / "scripts").iterdir(), ROOT / ".ci" / "run"]:
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert "://" not in script.read_text(), script


@pytest.mark.slow
def test_the_demo_runs_in_a_fresh_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for _ in ("fresh", "again"):
        ran = subprocess.run(["./scripts/demo"], cwd=clone, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        demo = clone / "out" / "demo"
        report = json.loads((demo / "report.json").read_text())
        assert report["against_dense"]["basis"] == "dense run"
        assert report["against_dense"]["prefill_tokens_saving"] > 0.7
        assert report["against_dense"]["vision_work"] < 0.7
        of_street = json.loads(STREET_QUESTIONS.read_text())
        of_scene = json.loads((demo / "scene.json").read_text())
        assert [one["expected"] for one in report["questions"]] == [
            one["expected"] for one in (*of_scene, *of_street)
        ]
        for one in report["questions"]:
            assert {"clip", "time_s", "settings", "question", "dense_right"} <= set(one)
            told = "right" if one["right"] else "wrong"
            beside = f"[expected {one['expected']}: {told}; dense "
            assert f"{one['question']}\n> {one['answer']}  {beside}" in ran.stdout
        right = sum(one["right"] for one in report["questions"])
        assert right >= 0.5 * len(report["questions"])  # of a machine's rounding some depend
        assert frames_of(demo / "overlay.mp4") == 80
        assert (demo / "overlay.png").exists()
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=clone) == b""
