"""The PyTorch side of a comparison; the one door from the runtime to `stc.export`.

torch is imported when it is asked for, never when this module is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stc.bundles.bundle import Bundle
from stc.errors import CheckpointError, StcError
from stc.method.graphs import vision_graphs
from stc.program import Side

if TYPE_CHECKING:
    from stc.export.checkpoint.pretrained import Pretrained as Pretrained
    from stc.export.decoders.qwen2.torch_language import TorchLanguage as TorchLanguage
    from stc.export.towers.siglip.reference import TorchFrame as TorchFrame
    from stc.export.towers.siglip.reference import TorchVision as TorchVision


def torch_is_installed() -> bool:
    """Whether the extra that holds PyTorch can be imported."""
    try:
        import stc.export.weights  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def torch_side(bundle: Bundle, checkpoint: str | None) -> Iterator[tuple[Side, TorchVision]]:
    """PyTorch with the weights `bundle` was made of, as single graphs and as whole streams.

    `checkpoint` says where a real one lies.

    Raises CheckpointError when the checkpoint is needed and not given, or is another model;
    StcError when the export extra is not installed.
    """
    with _weights(bundle, checkpoint) as weights:
        from stc.export.graphs.torch_graphs import TorchGraphs
        from stc.export.towers.siglip.reference import TorchVision
        from stc.export.towers.siglip.tower import Tower

        graphs = TorchGraphs(vision_graphs(weights.spec.blocks), Tower(weights).module)
        yield graphs, TorchVision(weights)


@contextmanager
def torch_language_side(
    bundle: Bundle, checkpoint: str | None
) -> Iterator[tuple[Side, TorchLanguage]]:
    """PyTorch with the decoder `bundle` was made of, as single graphs and whole.

    Raises as `torch_side`.
    """
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
        yield language_graphs_in_torch(language), TorchLanguage(language)


@contextmanager
def whole_model(bundle: Bundle, checkpoint: str | None) -> Iterator[Pretrained | None]:
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
