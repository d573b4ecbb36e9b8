"""What a bundle is compared with: PyTorch, or ONNX Runtime on a device that has no PyTorch.

The one door from the runtime to `stc.export`: torch is imported when it is asked for, never when
this module is. A stream through a tower gives all it computes on the host, the bundle's own too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.contracts import HIDDEN, HIDDEN_OUT, TEXT_EMBED
from stc.engines.eager import EagerRunner, EngineSide
from stc.engines.engine import Tensor
from stc.errors import CheckpointError, StcError
from stc.method.family import frame_program, indices_of
from stc.method.graphs import PIXEL_VALUES, PROJECT, SCORE, TOKENS, vision_graphs
from stc.program import Side
from stc.runtime.answers.stream_language import open_model
from stc.runtime.language.kv_rows import PlainRows
from stc.runtime.language.model import LanguageModel
from stc.runtime.stream.opening import open_backend, open_tower
from stc.runtime.vision.tower import VisionTower
from stc.settings import KEEP_ALL, SELECTIONS, Selection, Settings

if TYPE_CHECKING:
    from stc.export.checkpoint.pretrained import Pretrained as Pretrained
    from stc.export.decoders.qwen2.torch_language import TorchLanguage as TorchLanguage
    from stc.export.models.reference import TorchVision as TorchVision

Against = Literal["PyTorch", "ONNX Runtime"]
PYTORCH: Final = "PyTorch"
ONNX_RUNTIME: Final = "ONNX Runtime"
Pixels = NDArray[np.float32]
"""pixel_values [3, Hpx, Wpx]."""
Forced = Sequence[NDArray[np.int64]]
"""The indices that every block recomputes, instead of those it would select."""


@contextmanager
def torch_side(bundle: Bundle, checkpoint: str | None) -> Iterator[tuple[Side, TorchVision]]:
    """PyTorch with the weights `bundle` was made of, as single graphs and as whole streams.

    `checkpoint` says where a real one lies.

    Raises CheckpointError when the checkpoint is needed and not given, or is another model;
    StcError when the export extra is not installed.
    """
    with _weights(bundle, checkpoint) as weights:
        from stc.export.graphs.torch_graphs import TorchGraphs
        from stc.export.models.llava_onevision import VisionModel
        from stc.export.models.reference import TorchVision

        graphs = TorchGraphs(vision_graphs(weights.spec.blocks), VisionModel(weights).module)
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
            raise _another("decoder", weights, bundle)
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
            raise _another("model", weights, bundle)
        yield weights


def _another(what: str, weights: Any, bundle: Bundle) -> CheckpointError:
    expected = bundle.manifest.provenance.checkpoint
    fix = "pass the checkpoint it was exported from"
    return CheckpointError(weights.name, f"another {what} than the bundle's", expected, fix)


def other_side(checkpoint: str | None, *, on_device: bool) -> Against:
    """PyTorch, unless engines are compared where there is none and no `checkpoint` asks for it."""
    if on_device and checkpoint is None:
        try:
            import stc.export.weights  # noqa: F401
        except ImportError:
            return ONNX_RUNTIME
    return PYTORCH


@contextmanager
def vision_side(
    bundle: Bundle, checkpoint: str | None, against: Against, settings: Settings
) -> Iterator[tuple[Side, TorchVision | TowerStream]]:
    """The tower of `bundle` on the other side, as single graphs and as whole streams.

    ONNX Runtime runs the bundle's own graphs on the CPU, streams of `settings` that keep every
    token. Raises as `torch_side`, and EngineError when onnxruntime is not installed.
    """
    if against == ONNX_RUNTIME:
        tower = open_tower(bundle, "cpu")
        graphs = EngineSide(tower.backend, bundle.manifest.graphs, tower.engine)
        yield graphs, TowerStream(tower, settings)
        return
    with torch_side(bundle, checkpoint) as side:
        yield side


@contextmanager
def language_side(
    bundle: Bundle, checkpoint: str | None, against: Against
) -> Iterator[tuple[Side, TorchLanguage | OnnxDecoder]]:
    """The decoder of `bundle` on the other side; otherwise as `vision_side`."""
    if against == ONNX_RUNTIME:
        model = open_model(bundle, open_backend(bundle, "cpu"))
        backend = model.backend
        embed = backend.load(TEXT_EMBED)
        engines = (embed, *model.qkv, *model.attend, model.head)
        by_name = {engine.name: engine for engine in engines}
        graphs = EngineSide(backend, bundle.manifest.graphs, by_name.__getitem__)
        yield graphs, OnnxDecoder(model)
        return
    with torch_language_side(bundle, checkpoint) as side:
        yield side


class OnnxDecoder:
    """The decoder `model`, answering greedily; hidden [m, D] and logits [V] are float32."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._model.embed(ids).astype(np.float32)

    def logits(self, hidden: NDArray[np.float32]) -> NDArray[np.float32]:
        return PlainRows(self._model, len(hidden)).logits(hidden, 0)

    def generate(self, hidden: NDArray[np.float32], most: int) -> list[int]:
        rows = PlainRows(self._model, len(hidden) + most)
        answer = [int(rows.logits(hidden, 0).argmax())]
        while len(answer) < most:
            text = self._model.embed(np.array(answer[-1:]))
            answer.append(int(rows.logits(text, len(hidden) + len(answer) - 1).argmax()))
        return answer


@dataclass(frozen=True)
class TowerFrame:
    """A frame's way through a tower.

    hidden_states: [T, C] after the embedding and after every block. tokens: [n, D].
    indices: int64 [M] of every block, all T on a reference frame.
    scores: float32 [T] of every block that was scored.
    """

    hidden_states: list[NDArray[Any]]
    tokens: NDArray[Any]
    indices: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]

    @property
    def hidden(self) -> NDArray[Any]:
        """[T, C] after the last block."""
        return self.hidden_states[-1]


class TowerStream:
    """A stream through `tower` that keeps every token; it does what TorchVision does.

    Its reuse frames recompute as many tokens as `settings` say, whatever they are asked for.
    """

    def __init__(self, tower: VisionTower, settings: Settings) -> None:
        self._tower = tower
        spec, precision = tower.spec, tower.precision
        whole = replace(settings, budget=KEEP_ALL)
        programs = [frame_program(spec, precision, whole, "reference")]
        for selection in SELECTIONS:
            chosen = replace(whole, selection=selection)
            program = replace(frame_program(spec, precision, chosen, "reuse"), name=selection)
            forced = replace(program.given(program.choices), name=f"{selection} forced")
            programs += [program, forced]
        self._runner = EagerRunner(tower.backend, programs, tower.engine)

    def dense(self, pixel_values: Pixels) -> NDArray[Any]:
        return self.reference(pixel_values).hidden

    def reference(self, pixel_values: Pixels) -> TowerFrame:
        everything = np.arange(self._tower.spec.tokens)
        states, tokens, _ = self._run("reference", pixel_values)
        return TowerFrame(states, tokens, [everything] * self._tower.spec.blocks, [])

    def reuse(
        self,
        pixel_values: Pixels,
        recomputed: int,
        selection: Selection,
        forced: Forced | None = None,
    ) -> TowerFrame:
        names = [indices_of(block) for block in range(self._tower.spec.blocks)]
        if forced is not None:
            given = dict(zip(names, forced, strict=True))
            if selection == "shared":  # block 0 chooses for all
                given = {names[0]: forced[0]}
            states, tokens, scores = self._run(f"{selection} forced", pixel_values, given)
            return TowerFrame(states, tokens, list(forced), scores)
        states, tokens, scores = self._run(selection, pixel_values)
        # Where block 0 chose for all, the others wrote none.
        chosen = [name if self._runner.wrote(name) else names[0] for name in names]
        return TowerFrame(states, tokens, list(map(self._runner.read, chosen)), scores)

    def project(self, hidden: NDArray[np.float32]) -> NDArray[Any]:
        backend = self._tower.backend
        on_device = backend.to_device(hidden.astype(self._tower.dtype))
        return backend.to_host(self._tower.engine(PROJECT)({HIDDEN: on_device})[TOKENS])

    def _run(
        self, program: str, pixels: Pixels, given: Mapping[str, NDArray[np.int64]] | None = None
    ) -> tuple[list[NDArray[Any]], NDArray[Any], list[NDArray[np.float32]]]:
        seen: dict[str, list[NDArray[Any]]] = {HIDDEN: [], HIDDEN_OUT: [], SCORE: []}

        def look(_: str, outputs: Mapping[str, Tensor]) -> None:
            for name in outputs.keys() & seen.keys():
                seen[name].append(self._tower.backend.to_host(outputs[name]))

        inputs = {PIXEL_VALUES: pixels.astype(self._tower.dtype), **(given or {})}
        ran = self._runner.run(program, inputs, look)
        return [*seen[HIDDEN], *seen[HIDDEN_OUT]], ran.results[TOKENS], seen[SCORE]
