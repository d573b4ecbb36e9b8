"""Text tokens are looked up where their table lies, and no engine is built for them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stc.bundles.bundle import Bundle
from stc.bundles.text_table import text_table
from stc.contracts import HIDDEN, IDS, TEXT_EMBED
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.errors import BundleError
from stc.manifest import LANGUAGE_WEIGHTS, LanguageSpec, Precision
from tests.language_cases import language_case


def spec_of(bundle: Bundle) -> LanguageSpec:
    assert bundle.manifest.language is not None
    return bundle.manifest.language


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_row_is_what_the_graph_computes(tied: bool, precision: Precision) -> None:
    case = language_case(tied=tied, precision=precision)
    ids = np.array([0, 7, spec_of(case.bundle).vocabulary - 1])
    backend = OnnxRuntimeBackend(case.bundle)
    outputs = backend.load(TEXT_EMBED)({IDS: backend.to_device(ids)})
    found = case.language().embed(ids)
    np.testing.assert_array_equal(found, backend.to_host(outputs[HIDDEN]))
    assert found.dtype == text_table(case.bundle, spec_of(case.bundle)).dtype


def test_the_table_is_mapped_and_cannot_be_written() -> None:
    bundle = language_case().bundle
    table = text_table(bundle, spec_of(bundle))
    assert isinstance(table, np.memmap)
    assert not table.flags.writeable


def test_another_size_than_the_models_is_refused() -> None:
    bundle = language_case().bundle
    other = spec_of(bundle).model_copy(update={"vocabulary": 7})
    with pytest.raises(BundleError, match=r"text_embed stores no table, expected one of float32 "):
        text_table(bundle, other)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    root = Path(shutil.copytree(language_case().bundle.root, tmp_path / "bundle"))
    bundle = Bundle.open(root)
    with (root / LANGUAGE_WEIGHTS).open("r+b") as weights:
        weights.truncate(10)
    with pytest.raises(BundleError, match=r"language\.bin"):
        text_table(bundle, spec_of(bundle))
