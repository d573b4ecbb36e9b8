"""A checkpoint as transformers itself loads and runs it: what a whole bundle is compared with.

Nothing here reads weights, geometry, preprocessing or prompt by this package's own understanding
of the files, so that a mistake in that cannot stand on both sides of the comparison. Weights stay
mapped from their files, in the dtype they have there (`compute_in_float32`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, LlavaOnevisionForConditionalGeneration
from transformers.image_transforms import normalize, rescale, resize
from transformers.image_utils import ChannelDimension
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import (
    LlavaOnevisionVideoProcessor,
)
from transformers.utils import logging

from stc.errors import CheckpointError, guarded
from stc.export.checkpoint.checkpoint import Checkpoint
from stc.export.checkpoint.shards import DTYPES
from stc.method.difference import difference, rounded_otherwise

STORED: dict[str, torch.dtype] = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes that are kept where all weights have one of them; otherwise all are held in float32."""


class Pretrained:
    """`LlavaOnevisionForConditionalGeneration.from_pretrained` of a checkpoint, in float32.

    stop_token_ids: what ends an answer, by transformers' own generation config; none where that
        is silent, though config.json may name one.
    missing: tensors that transformers did not find and made up, but for those nobody runs.

    Raises CheckpointError when transformers cannot load it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._directory = checkpoint.directory
        stored = {tensor.dtype for tensor in checkpoint.shards.tensors.values()} & set(DTYPES)
        dtype = STORED.get(stored.pop(), torch.float32) if len(stored) == 1 else torch.float32
        with _loading(self._directory):
            model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
                self._directory,
                dtype=dtype,
                attn_implementation="sdpa",  # what the configuration asks for may need a GPU
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            self._frames = LlavaOnevisionVideoProcessor.from_pretrained(
                self._directory, local_files_only=True
            )
        missing = sorted(name for name in info["missing_keys"] if _runs(checkpoint, name))
        self.missing: tuple[str, ...] = tuple(missing)
        self._model: Any = model.eval()
        compute_in_float32(self._model)
        stop = self._model.generation_config.eos_token_id
        self.stop_token_ids: tuple[int, ...] = ()
        if stop is not None:
            self.stop_token_ids = tuple(stop) if isinstance(stop, list) else (stop,)

    def pixel_values(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        """float32 [3, Hpx, Wpx] of a frame, uint8 [height_px, width_px, 3].

        transformers' own video processor says how; its Pillow-backed functions do it, because its
        processor of video wants torchvision.
        """
        first = ChannelDimension.FIRST
        how, pixels = self._frames, rgb.transpose(2, 0, 1)
        if how.do_resize:
            size = (how.size["height"], how.size["width"])
            pixels = resize(pixels, size, resample=how.resample, input_data_format=first)
        if how.do_rescale:
            pixels = rescale(pixels, how.rescale_factor, input_data_format=first)
        if how.do_normalize:
            pixels = normalize(pixels, how.image_mean, how.image_std, input_data_format=first)
        values: NDArray[np.float32] = pixels.astype(np.float32)
        return values

    @torch.inference_mode()
    def visual_tokens(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n, D] of one frame [3, Hpx, Wpx]: projected and pooled.

        Newer transformers append a row `image_newline` to a video; it is left out.
        """
        features = self._model.get_video_features(torch.from_numpy(pixel_values)[None, None])
        tokens = features.pooler_output[0]
        newline = torch.equal(tokens[-1], self._model.model.image_newline.to(tokens))
        return _numpy(tokens[:-1] if newline else tokens)

    def tokens_move(self, pixel_values: NDArray[np.float32], rounding: float) -> float:
        """Relative L2 by which `visual_tokens` move when every pixel value is rounded otherwise."""
        moved = self.visual_tokens(rounded_otherwise(pixel_values, rounding))
        return difference(self.visual_tokens(pixel_values), moved).relative_l2

    def logits_move(self, hidden: NDArray[np.float32], rounding: float) -> float:
        """Relative L2 by which the logits after the prompt `hidden` [m, D] move likewise."""
        _, logits = self.answer(hidden, 1)
        _, moved = self.answer(rounded_otherwise(hidden, rounding), 1)
        return difference(logits, moved).relative_l2

    @torch.inference_mode()
    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """hidden float32 [m, D] of text tokens."""
        return _numpy(self._model.get_input_embeddings()(torch.from_numpy(ids)))

    @torch.inference_mode()
    def answer(
        self, hidden: NDArray[np.float32], most: int
    ) -> tuple[list[int], NDArray[np.float32]]:
        """At most `most` tokens of the greedy answer to the prompt `hidden` [m, D], the stop token
        included; and the logits float32 [tokens, V] that each was chosen by.

        Stop tokens are the checkpoint's; penalties and sampling, which the checkpoint may propose,
        are left out.
        """
        stop = list(self.stop_token_ids)
        self._model.generation_config = GenerationConfig(
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        given = self._model.generate(
            inputs_embeds=torch.from_numpy(hidden)[None],
            attention_mask=torch.ones(1, len(hidden), dtype=torch.long),
        )
        return given.sequences[0].tolist(), _numpy(torch.cat(given.logits).float())

    def prompt_ids(self, question: str) -> NDArray[np.int64]:
        """int64 ids of the prompt for a question about a video, whose tokens one id stands for.

        Raises CheckpointError when transformers cannot render it.
        """
        content = [{"type": "video"}, {"type": "text", "text": question}]
        with _loading(self._directory):
            tokenizer = AutoTokenizer.from_pretrained(self._directory, local_files_only=True)
            # The processor as a whole wants torchvision; the template is all that is read of it.
            held, _ = LlavaOnevisionProcessor.get_processor_dict(
                self._directory, local_files_only=True
            )
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=held.get("chat_template"),
                add_generation_prompt=True,
                return_dict=False,
            )
        return np.array(ids, np.int64)


@contextmanager
def _loading(directory: Path) -> Iterator[None]:
    """transformers reads `directory` without a word; what it raises is a CheckpointError."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    fix = "compare its files with the published ones, or download it again"
    try:
        with guarded(directory, "transformers cannot load it", fix, CheckpointError):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _runs(checkpoint: Checkpoint, name: str) -> bool:
    """Whether what is compared depends on the model's tensor `name`."""
    if "vision_tower." in name:
        return name.endswith(tuple(checkpoint.tower.shapes(checkpoint.spec)))
    return not name.endswith("image_newline")


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.numpy()
    return array


def compute_in_float32(model: Any) -> None:
    """`model`, from transformers, computes in float32 from now on, whatever its weights are.

    Weights that are mapped from their file cost no memory of their own; on top of them is one
    layer in float32, while it runs.
    """
    table = model.get_input_embeddings()
    for layer in _layers(model):
        if layer is not table:
            _Widened(layer)
    # Looking a row up is exact in any dtype, and the table is the largest tensor there is.
    table.register_forward_hook(lambda _module, _inputs, rows: rows.float())


class _Widened:
    """Widens the parameters of `layer` before each of its calls, and puts them back after it."""

    def __init__(self, layer: nn.Module) -> None:
        self._stored: list[tuple[nn.Parameter, Tensor]] = []
        layer.register_forward_pre_hook(self._widen)
        layer.register_forward_hook(self._restore, always_call=True)

    def _widen(self, layer: nn.Module, _inputs: object) -> None:
        self._stored = [(parameter, parameter.data) for parameter in layer.parameters()]
        for parameter, stored in self._stored:
            parameter.data = stored.float()

    def _restore(self, _layer: nn.Module, _inputs: object, _outputs: object) -> None:
        for parameter, stored in self._stored:
            parameter.data = stored
        self._stored = []


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of `module` that run one after another: no list of layers is inside one."""
    for child in module.children():
        if any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from _layers(child)
        else:
            yield child
