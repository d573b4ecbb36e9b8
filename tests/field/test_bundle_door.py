"""What is opened of a bundle is what was verified, and nothing else."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.writer import BundleWriter
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import BundleError, StcError
from stc.manifest import Manifest
from tests.field.resigned import edit_manifest, listed, resign, resign_as
from tests.tiny_bundle import write_bundle

onnx = pytest.importorskip("onnx")
GRAPH = "embed"


@pytest.fixture
def demo(demo_bundle: Path, tmp_path: Path) -> Path:
    """A demo bundle of the test's own."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def edit_graph(bundle: Path, change: Callable[[Any], None], name: str = GRAPH) -> None:
    """Graph `name` of `bundle` was changed, and the bundle signed again."""
    file = bundle / "graphs" / f"{name}.onnx"
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    resign(bundle)


def external(model: Any) -> Any:
    """The first tensor that lies in another file, by the entries that say where."""
    tensors = (tensor for tensor in model.graph.initializer if tensor.external_data)
    return {entry.key: entry for entry in next(tensors).external_data}


def load(bundle: Path, name: str = GRAPH) -> None:
    OnnxRuntimeBackend(Bundle.open(bundle)).load(name)


def refusal(bundle: Path, name: str = GRAPH) -> str:
    """The one line that opening `bundle` and loading graph `name` ends in."""
    with pytest.raises(StcError) as caught:
        load(bundle, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_in_a_file_the_manifest_does_not_list_are_not_opened(demo: Path) -> None:
    """A graph of a signed bundle names another weights file: refused, the tensor and file named."""
    shutil.copy(demo / "graphs/weights.bin", demo / "graphs/unlisted.bin")
    edit_graph(demo, lambda model: setattr(external(model)["location"], "value", "unlisted.bin"))
    line = refusal(demo)
    assert "graphs/embed.onnx: tensor" in line
    assert "lies in 'unlisted.bin', expected a file that the manifest lists" in line


@pytest.mark.parametrize(
    "location",
    [
        "../config.json",
        "/etc/hostname",
        "./weights.bin",
        "../graphs/weights.bin",
        "weights.bin/",
        "",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_weights_are_named_as_listed_and_in_no_other_way(demo: Path, location: str) -> None:
    """Paths out of the bundle, round about, and a memory address: none is handed on."""
    edit_graph(demo, lambda model: setattr(external(model)["location"], "value", location))
    assert "expected a file that the manifest lists" in refusal(demo)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("offset", "999999999999"),
        ("offset", "-4096"),
        ("offset", "1e3"),
        ("offset", "9" * 400),
        ("length", "999999999999"),
        ("length", "1"),
        ("length", "0"),
    ],
)
def test_weights_beyond_their_file_are_refused(demo: Path, key: str, value: str) -> None:
    """A listed file with a place it does not have: refused before anything maps it."""
    edit_graph(demo, lambda model: setattr(external(model)[key], "value", value))
    assert "graphs/embed.onnx: tensor" in refusal(demo)


def test_a_companion_that_is_not_listed_is_not_opened(demo: Path, tmp_path: Path) -> None:
    """tokenizer.json, taken off the list and made a link out of the bundle, stays closed."""
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    edit_manifest(
        demo,
        lambda document: document.update(
            files=[file for file in document["files"] if file["path"] != "tokenizer.json"]
        ),
    )
    (demo / "tokenizer.json").unlink()
    (demo / "tokenizer.json").symlink_to(outside)
    bundle = Bundle.open(demo)
    assert "tokenizer.json" not in bundle.companions()
    with pytest.raises(BundleError, match=r"tokenizer\.json: is not listed in the manifest"):
        bundle.read("tokenizer.json")


@pytest.mark.parametrize("path", ["graphs/weights.bin", "graphs/embed.onnx"])
def test_what_is_altered_after_opening_is_not_used(demo: Path, path: str) -> None:
    """A file copied over while stc-run starts: refused, not run with other weights."""
    opened = Bundle.open(demo)
    content = bytearray((demo / path).read_bytes())
    content[-1] ^= 1
    (demo / path).write_bytes(content)
    with pytest.raises(StcError, match=f"{path}: was altered"):
        OnnxRuntimeBackend(opened).load(GRAPH)


def test_what_is_altered_while_a_runtime_reads_it_is_not_used(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that change under ONNX Runtime as it loads a graph: the graph is refused."""
    import onnxruntime

    weights = demo / "graphs" / "weights.bin"
    session = onnxruntime.InferenceSession

    def altered(*arguments: Any, **options: Any) -> Any:
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return session(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", altered)
    with pytest.raises(StcError, match=r"weights\.bin: was altered"):
        OnnxRuntimeBackend(Bundle.open(demo)).load(GRAPH)


def test_weights_cut_short_after_opening_do_not_kill_the_process(demo: Path) -> None:
    """A file truncated under a mapping is a bus error: it is looked at before it is mapped."""
    opened = Bundle.open(demo)
    os.truncate(demo / "graphs" / "weights.bin", 4096)
    with pytest.raises(StcError, match=r"weights\.bin: is truncated"):
        OnnxRuntimeBackend(opened).load(GRAPH)


def test_weights_that_are_gone_after_opening_are_named(demo: Path) -> None:
    """A disk that was unmounted, a folder half deleted: the file that is missing is named."""
    opened = Bundle.open(demo)
    (demo / "graphs" / "weights.bin").unlink()
    with pytest.raises(StcError, match=r"weights\.bin: is missing"):
        OnnxRuntimeBackend(opened).load(GRAPH)


def test_touched_files_of_the_same_bytes_are_used(demo: Path) -> None:
    """`touch` or a backup tool between opening and loading changes nothing that matters."""
    opened = Bundle.open(demo)
    for file in (demo / "graphs").iterdir():
        file.touch()
    OnnxRuntimeBackend(opened).load(GRAPH)


@pytest.mark.parametrize("path", ["config.json", "manifest.json", "graphs/weights.bin"])
def test_a_bundle_of_links_is_refused_with_the_copy_that_works(tmp_path: Path, path: str) -> None:
    """A hub cache's snapshot links every file into blobs/: one line gives the copying command."""
    made = write_bundle(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    shutil.move(made / path, blobs / "blob")
    (made / path).symlink_to(os.path.relpath(blobs / "blob", (made / path).parent))
    with pytest.raises(BundleError) as caught:
        Bundle.open(made)
    line = str(caught.value)
    assert f"{made / path}: leads to {blobs / 'blob'}, expected a file inside the bundle; " in line
    assert f"cp -rL {made} " in line
    command = line.partition("with: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    Bundle.open(tmp_path / command.split()[-1])


def test_graphs_of_a_bundle_that_was_replaced_are_loaded_as_they_were(demo: Path) -> None:
    """Exported anew between opening and loading: the stream starts with the bundle it opened."""
    opened = Bundle.open(demo)
    with BundleWriter(demo, force=True) as writer:
        (writer.root / "graphs").mkdir()
        document = json.loads((demo / "manifest.json").read_text())
        for file in listed(document):
            (writer.root / file["path"]).write_bytes(b"of another model")
        resign_as(writer.root, document)
        writer.finish(Manifest.model_validate(document))
    assert (demo / "graphs" / "weights.bin").read_bytes() == b"of another model"
    for name in opened.manifest.graphs:
        OnnxRuntimeBackend(opened).load(name)


READ_ONLY = """
import os, sys
from pathlib import Path
from stc.bundles.bundle import Bundle
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend

root = os.path.realpath(sys.argv[1])
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def refuse(event, arguments):
    changes = event == "open" and arguments[2] & writing
    changes |= event.startswith("os.") and event not in ("os.listdir", "os.scandir")
    paths = [path for path in arguments if isinstance(path, (str, os.PathLike))]
    if changes and any(os.path.realpath(path).startswith(root) for path in paths):
        raise PermissionError(30, "Read-only file system", str(paths[0]))

sys.addaudithook(refuse)
bundle = Bundle.open(root)
for name in bundle.manifest.graphs:
    OnnxRuntimeBackend(bundle).load(name)
bundle.companions()
for change in (lambda: Path(root, ".lock").touch(), lambda: os.mkdir(Path(root, "engines"))):
    try:
        change()
    except PermissionError:
        print("refused")
"""
"""A bundle is opened and loaded where nothing in it may be changed, also by root."""


def test_a_bundle_on_read_only_media_opens(demo: Path) -> None:
    """A bundle on a mounted image, or another user's: nothing is written, no lock is needed."""

    def standing() -> dict[Path, tuple[int, int]]:
        found = {place: place.stat() for place in [demo, *demo.rglob("*")]}
        return {place: (stat.st_mtime_ns, stat.st_ctime_ns) for place, stat in found.items()}

    before = standing()
    command = [sys.executable, "-c", READ_ONLY, str(demo)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n" * 2), done.stderr
    assert standing() == before


def test_what_a_runtime_says_names_the_bundle_as_the_user_does(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weights file that ONNX Runtime cannot map: no path of the open directory is shown."""
    import onnxruntime

    opened = Bundle.open(demo)
    place = opened.files.place("graphs/weights.bin")

    def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"open file {place} fail, errcode = 24")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refused)
    with pytest.raises(StcError) as caught:
        OnnxRuntimeBackend(opened).load(GRAPH)
    assert f"open file {demo}/graphs/weights.bin fail" in str(caught.value)
    assert "/proc/" not in str(caught.value)


TWELVE = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
import sys
from stc.bundles.bundle import Bundle
from stc.bundles.writer import BundleWriter
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
bundle = Bundle.open(sys.argv[1])
engines = [OnnxRuntimeBackend(bundle).load(name) for name in bundle.manifest.graphs]
print(len(engines))
"""


def test_twelve_descriptors_are_enough(demo_bundle: Path) -> None:
    """A service with a low limit of open files opens a bundle and all of its graphs."""
    done = subprocess.run(
        [sys.executable, "-c", TWELVE, str(demo_bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 12


def test_a_closed_bundle_leaves_no_descriptor(tmp_path: Path) -> None:
    """A program that opens bundles again and again does not run out of files."""
    made = write_bundle(tmp_path / "tiny")

    def held() -> int:
        open_files = list(Path("/proc/self/fd").iterdir())
        return sum(place.is_dir() and place.samefile(made) for place in open_files)

    opened = Bundle.open(made)
    assert held() == 1
    for _ in range(20):
        Bundle.open(made)
    assert held() == 1
    del opened
    assert held() == 0
