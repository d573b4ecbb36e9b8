"""A manifest that disagrees with its own spec is refused when the bundle is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.conformity import check_conformity
from stc.errors import BundleError
from stc.manifest import (
    LANGUAGE_WEIGHTS,
    MANIFEST,
    WEIGHTS,
    FileEntry,
    GraphEntry,
    LanguageSpec,
    Manifest,
    Variant,
)
from stc.ports import GraphPorts, language_ports
from tests.tiny_bundle import SPEC, tiny_manifest, write_bundle

LANGUAGE = LanguageSpec(
    width=SPEC.language_width,
    blocks=1,
    query_heads=2,
    key_heads=1,
    head_width=8,
    mlp_width=8,
    vocabulary=9,
    max_positions=600,
    rotary_base=1e4,
    rms_norm_eps=1e-6,
    activation="silu",
    tied_head=True,
    video_token_id=8,
    stop_token_ids=(7,),
)


def _blocks(document: dict[str, Any]) -> None:
    document["vision"]["blocks"] += 1


def _width(document: dict[str, Any]) -> None:
    document["vision"]["width"] = 64


def _scattered(document: dict[str, Any]) -> None:
    """As bundles were before keys and scores were graphs of their own."""
    for name in ("compare", "mlp_00"):
        del document["graphs"][name]


def _picture(document: dict[str, Any]) -> None:
    document["vision"]["image_width"] += 4


def _grid(document: dict[str, Any]) -> None:
    document["vision"]["grid"]["prefix_tokens"] = 1


def _precision(document: dict[str, Any]) -> None:
    document["provenance"]["precision"] = "fp16"


def _fewer(document: dict[str, Any]) -> None:
    del document["graphs"]["prune_gaussian"]


def _more(document: dict[str, Any]) -> None:
    document["graphs"]["keys_01"] = document["graphs"]["keys_00"]


def _other_port(document: dict[str, Any]) -> None:
    document["graphs"]["project"]["outputs"][0]["name"] = "visual_tokens"


def _four_bits(document: dict[str, Any]) -> None:
    graphs = {"qkv_00": document["graphs"]["keys_00"]}
    document["variants"]["int4"] = {"graphs": graphs, "backends": ["onnxruntime-cpu"]}


def _unlisted(document: dict[str, Any]) -> None:
    document["files"] = [file for file in document["files"] if file["path"] != WEIGHTS]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_blocks, "graphs has no keys_01, expected the 18 graphs of its spec"),
        (_scattered, "graphs has no compare, expected the 14 graphs of its spec"),
        (
            _width,
            "embed has outputs hidden [25, 32] float32, expected hidden [25, 64] float32 by its",
        ),
        (
            _picture,
            "embed has inputs pixel_values [3, 20, 20] float32, expected pixel_values [3, 20, 24]",
        ),
        (_grid, "embed has outputs hidden [25, 32] float32, expected hidden [26, 32] float32"),
        (_precision, "expected pixel_values [3, 20, 20] float16 by its spec"),
        (_fewer, "graphs has no prune_gaussian, expected the 14 graphs of its spec"),
        (_more, "graphs has keys_01, expected only the 14 graphs of its spec"),
        (_other_port, "project has outputs visual_tokens [9, 16] float32, expected tokens [9, 16]"),
        (_four_bits, "variants.int4 has qkv_00, expected only the 14 graphs of its spec"),
        (_unlisted, f"files leave weights out, expected {WEIGHTS}"),
    ],
)
def test_a_manifest_at_odds_with_its_spec_is_refused_with_the_fix(
    change: Callable[[dict[str, Any]], None], told: str, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "tiny")
    document = json.loads((bundle / MANIFEST).read_text())
    change(document)
    (bundle / MANIFEST).write_text(json.dumps(document))
    if change is _unlisted:
        os.truncate(bundle / WEIGHTS, 9)
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    line = str(caught.value)
    assert line.startswith(f"{bundle / MANIFEST}: ")
    assert told in line
    assert f"export again with: stc-export --model demo --precision {_said(document)}" in line
    assert "\n" not in line


def _said(document: dict[str, Any]) -> str:
    precision: str = document["provenance"]["precision"]
    return precision


def _entries(graphs: dict[str, GraphPorts]) -> dict[str, GraphEntry]:
    return {
        name: GraphEntry(
            file=FileEntry(path=f"graphs/{name}.onnx", sha256="0" * 64, size_bytes=1),
            inputs=ports.inputs,
            outputs=ports.outputs,
        )
        for name, ports in graphs.items()
    }


@pytest.fixture
def speaking(tmp_path: Path) -> Manifest:
    """A manifest with a language side, in four bits as well."""
    manifest = tiny_manifest(write_bundle(tmp_path / "tiny"))
    files = [manifest.files[0].model_copy(update={"path": path}) for path in LANGUAGE_FILES]
    return manifest.model_copy(
        update={
            "language": LANGUAGE,
            "graphs": manifest.graphs | _entries(language_ports(LANGUAGE, "fp32")),
            "variants": {
                "four": Variant(
                    graphs=_entries(language_ports(LANGUAGE, "fp32")),
                    weights=OWN_WEIGHTS,
                    backends=("onnxruntime-cpu",),
                )
            },
            "files": (*manifest.files, *files),
        }
    )


OWN_WEIGHTS = "graphs/four.bin"
LANGUAGE_FILES = (LANGUAGE_WEIGHTS, OWN_WEIGHTS)


def refusal(manifest: Manifest) -> str:
    with pytest.raises(BundleError) as caught:
        check_conformity(manifest, "bundle", "fix")
    return str(caught.value)


def test_the_language_side_conforms_too(speaking: Manifest) -> None:
    check_conformity(speaking, "bundle", "fix")
    other = LANGUAGE.model_copy(update={"vocabulary": 10})
    assert "text_embed" not in refusal(speaking.model_copy(update={"language": other}))
    assert "expected logits [1, 10]" in refusal(speaking.model_copy(update={"language": other}))
    wider = LANGUAGE.model_copy(update={"width": 24})
    line = refusal(speaking.model_copy(update={"language": wider}))
    assert "language.width is 24, expected vision's 16" in line
    line = refusal(speaking.model_copy(update={"language": None}))
    assert "graphs has attend_00, expected only" in line
    own = speaking.variants["four"]
    swapped = {**own.graphs, "head": own.graphs["qkv_00"]}
    odd = own.model_copy(update={"graphs": swapped})
    line = refusal(speaking.model_copy(update={"variants": {"four": odd}}))
    assert "head has inputs hidden [m, 16] float32" in line
    for path in LANGUAGE_FILES:
        files = tuple(file for file in speaking.files if file.path != path)
        line = refusal(speaking.model_copy(update={"files": files}))
        assert f"files leave weights out, expected {path}; fix" in line
