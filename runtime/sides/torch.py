"""The PyTorch side of a comparison; the one door from the runtime to `stc.export`.

torch is imported when it is asked for, never when this module is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.errors import CheckpointError, StcError
from stc.method.graphs import vision_graphs
from stc.program import Side
from stc.runtime.sides.other import OtherStream, WholeDecoder, WholeModel


@dataclass(frozen=True)
class TorchSide:
    """PyTorch with a bundle's weights: single graphs, and whole streams."""

    graphs: Side
    stream: OtherStream


def torch_is_installed() -> bool:
    """Whether the extra that holds PyTorch can be imported."""
    try:
        import stc.export.weights  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def torch_side(bundle: Bundle, checkpoint: str | None) -> Iterator[TorchSide]:
    """PyTorch with the weights `bundle` was made of; `checkpoint` says where a real one lies.

    Raises CheckpointError when the checkpoint is needed and not given, or is another model;
    StcError when the export extra is not installed.
    """
    with _weights(bundle, checkpoint) as weights:
        from stc.export.graphs.torch_graphs import TorchGraphs
        from stc.export.models.llava_onevision import VisionModel
        from stc.export.models.reference import TorchVision

        graphs = TorchGraphs(vision_graphs(weights.spec.blocks), VisionModel(weights).module)
        yield TorchSide(graphs, TorchVision(weights))


class TorchDecoder(WholeDecoder, Protocol):
    """See `stc.export.decoders.qwen2.torch_language.TorchLanguage`."""

    def forget(self, kept: int) -> None: ...

    def prefill(self, hidden: NDArray[np.float32]) -> None: ...

    def decode(self, token: int) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class TorchLanguageSide:
    """PyTorch with a bundle's decoder: single graphs, and the whole of it."""

    graphs: Side
    decoder: TorchDecoder


@contextmanager
def torch_language_side(bundle: Bundle, checkpoint: str | None) -> Iterator[TorchLanguageSide]:
    """PyTorch with the decoder `bundle` was made of; raises as `torch_side`."""
    with _weights(bundle, checkpoint) as weights:
        from stc.export.decoders.qwen2.torch_language import TorchLanguage, language_graphs_in_torch

        language = weights.language()
        if language is None or language.spec != bundle.manifest.language:
            raise CheckpointError(
                weights.name,
                "another decoder than the bundle's",
                bundle.manifest.provenance.checkpoint,
                "pass the checkpoint it was exported from",
            )
        yield TorchLanguageSide(language_graphs_in_torch(language), TorchLanguage(language))


@contextmanager
def whole_model(bundle: Bundle, checkpoint: str | None) -> Iterator[WholeModel | None]:
    """The checkpoint `bundle` was made of as transformers itself loads it; None where its weights
    are made up and lie in no checkpoint. Raises as `torch_side`, and CheckpointError when
    transformers cannot load it.
    """
    with _weights(bundle, checkpoint) as weights:
        from stc.export.checkpoint.checkpoint import Checkpoint
        from stc.export.checkpoint.pretrained import Pretrained

        yield Pretrained(weights) if isinstance(weights, Checkpoint) else None


@contextmanager
def _weights(bundle: Bundle, checkpoint: str | None) -> Iterator[Any]:
    try:
        from stc.export.weights import open_weights
    except ImportError as error:
        raise StcError(
            "PyTorch", f"cannot be imported ({error})", fix="pip install 'stc[export]'"
        ) from error
    provenance = bundle.manifest.provenance
    if provenance.weights == "checkpoint" and checkpoint is None:
        raise CheckpointError(
            f"{bundle.root}",
            f"made of checkpoint {provenance.checkpoint}, which was not given",
            fix="add --checkpoint DIR_OR_ID",
        )
    kind = "checkpoint" if checkpoint is not None else provenance.weights
    with open_weights(kind, checkpoint or provenance.checkpoint) as weights:
        if weights.spec != bundle.manifest.vision:
            raise CheckpointError(
                weights.name,
                "another model than the bundle's",
                provenance.checkpoint,
                "pass the checkpoint it was exported from",
            )
        yield weights
