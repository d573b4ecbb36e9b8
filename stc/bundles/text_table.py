"""The table that text tokens are looked up in, mapped from the file it lies in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.contracts import TEXT_EMBED
from stc.errors import BundleError
from stc.manifest import LanguageSpec
from stc.onnx_files.onnx_file import read_onnx
from stc.ports import NETWORK_DTYPES


def text_table(bundle: Bundle, spec: LanguageSpec) -> NDArray[np.floating]:
    """What text token i becomes, in row i: [V, D] in the network's dtype, for reading alone.

    It is the weight of `text_embed`, whose graph says where it lies. A row is read when it is asked
    for; nothing else of the file is. Raises BundleError when there is no such table, or its file is
    not as the manifest says.
    """
    graph = bundle.graph(TEXT_EMBED)
    shape, dtype = (spec.vocabulary, spec.width), _dtype(bundle)
    size = spec.vocabulary * spec.width * dtype.itemsize
    for tensor in read_onnx(graph.content).tensors:
        place = tensor.external or {}
        if tensor.shape == shape and place.get("length") == str(size):
            file, offset = graph.path.parent / place["location"], int(place.get("offset", 0))
            return np.memmap(file, dtype, mode="r", offset=offset, shape=shape)
    got, expected = f"its {TEXT_EMBED} stores no table", f"one of {dtype} {list(shape)} in a file"
    raise BundleError(bundle.root, got, expected, bundle.export_again())


def _dtype(bundle: Bundle) -> np.dtype[Any]:
    return NETWORK_DTYPES[bundle.manifest.provenance.precision]
