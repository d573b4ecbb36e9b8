"""Small vision towers: golden, made up and in half precision, as weights and as numpy oracles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stc.bundles.bundle import Bundle
from stc.engines.onnxruntime_backend import OnnxRuntimeBackend
from stc.export.bundle_export import export_bundle
from stc.export.made_up.synthetic import RandomCheckpoint, seeded
from stc.export.models.llava_onevision import projector_shapes
from stc.export.towers.part import TowerPart, VisionWeights
from stc.export.towers.siglip.tower import SIGLIP
from stc.manifest import Precision, VisionSpec
from stc.runtime.video.source.source import Frame
from stc.runtime.vision.tower import VisionTower
from stc.settings import Settings
from tests.oracle.backend import OracleBackend
from tests.oracle.layers import ProjectorWeights, TowerWeights
from tests.oracle.weights import projector_weights, tower_weights
from tests.squares import square

DATA = Path(__file__).parent / "data"
SIZES = {"image_size": 12, "patch_size": 4}
GOLDEN = tuple(sorted(path.stem for path in DATA.glob("cacher_*.npz")))
"""Cases whose frames and outcomes stand in the golden file of the same name."""


@dataclass(frozen=True)
class GoldenWeights:
    """The tower of a golden file, with a made-up projector; satisfies VisionWeights."""

    name: str
    spec: VisionSpec
    tensors: dict[str, NDArray[np.float32]]
    tower: TowerPart = SIGLIP

    def vision(self, name: str) -> Tensor:
        return torch.from_numpy(self.tensors[name].copy())

    def projector(self, name: str) -> Tensor:
        return seeded(0, name, projector_shapes(self.spec)[name])

    def companions(self) -> dict[str, bytes]:
        return {}


def golden_weights(name: str) -> GoldenWeights:
    """The weights of golden file `name`."""
    with np.load(DATA / f"{name}.npz") as golden:
        sizes = {key: int(golden[key]) for key in SIZES}
        spec = made_up_spec(
            **sizes,
            width=int(golden["hidden_size"]),
            heads=int(golden["num_heads"]),
            mlp_width=int(golden["intermediate_size"]),
            blocks=int(golden["num_layers"]),
        )
        tensors = {key[2:]: golden[key] for key in golden.files if key.startswith("w.")}
    return GoldenWeights(name, spec, tensors)


def made_up_spec(**fields: Any) -> VisionSpec:
    """A spec of two blocks, 9 tokens and two heads, but for `fields`.

    `image_size` and `patch_size` are those of a square input.
    """
    sizes = {name: fields.pop(name, size) for name, size in SIZES.items()}
    return VisionSpec(
        **{
            **square(**sizes),
            "width": 16,
            "heads": 2,
            "mlp_width": 24,
            "blocks": 2,
            "activation": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "language_width": 20,
            "projector_activation": "gelu",
            "image_mean": (0.5, 0.5, 0.5),
            "image_std": (0.5, 0.5, 0.5),
            **fields,
        }
    )


def made_up(**fields: Any) -> RandomCheckpoint:
    """Made-up weights of `made_up_spec`."""
    return RandomCheckpoint("made-up", made_up_spec(**fields), 0, {})


def _so400m_heads() -> VisionWeights:
    # Heads as wide as SigLIP-so400m's, all that is optional turned the other way, and a rim of
    # pixels that fills no patch.
    return made_up(
        image_size=30,
        width=144,
        mlp_width=80,
        activation="gelu",
        layer_norm_eps=1e-3,
        projector_bias=False,
        projector_activation="gelu_pytorch_tanh",
        language_width=36,
        image_mean=(0.4, 0.5, 0.6),
        image_std=(0.2, 0.3, 0.4),
    )


WEIGHTS: dict[str, Callable[[], VisionWeights]] = {
    **{name: lambda name=name: golden_weights(name) for name in GOLDEN},  # type: ignore[misc]
    "so400m heads": _so400m_heads,
    # The tower of `tests.language_cases`, whose traces serve both.
    "half": lambda: made_up(image_size=16, width=24, mlp_width=40, language_width=32),
}
"""Weights by the name of their case."""

PRECISIONS: dict[str, Precision] = {case: "fp16" if case == "half" else "fp32" for case in WEIGHTS}


@dataclass(frozen=True)
class Exported:
    """A bundle and the weights it was made of."""

    weights: VisionWeights
    bundle: Bundle

    def onnxruntime(self) -> VisionTower:
        """The bundle's tower."""
        return onnxruntime_tower(self.bundle)

    def oracle(self) -> VisionTower:
        """The same tower in numpy, float32."""
        return oracle_tower(self.weights)


def export(
    weights: VisionWeights, output: Path, precision: Precision = "fp32", *, force: bool = False
) -> Exported:
    """The bundle of `weights` at `output`, opened and verified."""
    export_bundle(
        weights,
        output,
        model="llava-ov",
        kind="checkpoint",
        precision=precision,
        settings=Settings(budget=2),
        force=force,
        tick=lambda _: None,
    )
    return Exported(weights, Bundle.open(output))


def onnxruntime_tower(bundle: Bundle) -> VisionTower:
    """The tower of `bundle` on ONNX Runtime."""
    manifest = bundle.manifest
    return VisionTower(OnnxRuntimeBackend(bundle), manifest.vision, manifest.provenance.precision)


def oracle_tower(weights: VisionWeights) -> VisionTower:
    """The tower of `weights` in numpy, float32."""
    return VisionTower(OracleBackend(*numpy_weights(weights)), weights.spec, "fp32")


def numpy_weights(weights: VisionWeights) -> tuple[TowerWeights, ProjectorWeights]:
    """`weights` as the oracle reads them, float32."""
    spec = weights.spec
    tower = tower_weights(
        {name: weights.vision(name).numpy() for name in SIGLIP.shapes(spec)},
        heads=spec.heads,
        blocks=spec.blocks,
        activation=spec.activation,
        eps=spec.layer_norm_eps,
    )
    projector = projector_weights(
        {name: weights.projector(name).numpy() for name in projector_shapes(spec)},
        spec.grid,
        activation=spec.projector_activation,
    )
    return tower, projector


def moving_frames(count: int, seed: int = 0, side: int = 40) -> list[Frame]:
    """`count` frames of noise in which a square of other noise moves."""
    random = np.random.default_rng(seed)
    still = random.integers(0, 256, (side, side, 3), np.uint8)
    frames = []
    for index in range(count):
        rgb = still.copy()
        left = 7 * index % (side * 2 // 3)
        part = rgb[side // 4 : side // 2, left : left + side // 3]
        part[:] = random.integers(0, 256, part.shape, np.uint8)
        frames.append(Frame(index=index, time_s=index / 2, rgb=rgb))
    return frames
