"""The manifest of a bundle: what `manifest.json` says, validated.

Knows nothing of files on disk (see `stc.bundle`) nor of how graphs are made or run.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stc.settings import Settings

SCHEMA_VERSION: Final = 1
MANIFEST = "manifest.json"
GRAPHS = "graphs"
WEIGHTS = f"{GRAPHS}/weights.bin"
LANGUAGE_WEIGHTS = f"{GRAPHS}/language.bin"
"""Of the language graphs alone: a device that only watches does without."""
INT4_WEIGHTS = f"{GRAPHS}/language_int4.bin"

Precision = Literal["fp32", "fp16"]

_Positive = Annotated[float, Field(gt=0)]
Weights = Literal["checkpoint", "random", "demo"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VisionSpec(_Entry):
    """Geometry and preprocessing of a vision tower with its projector and pooling."""

    image_size: int = Field(gt=0, description="side of the square input, px")
    patch_size: int = Field(gt=0, description="side of a patch, px")
    width: int = Field(gt=0, description="C")
    heads: int = Field(gt=0, description="H")
    mlp_width: int = Field(gt=0, description="width of a block's MLP")
    blocks: int = Field(gt=0, description="L, blocks that run")
    activation: str = Field(description="the MLP's activation, Hugging Face name")
    layer_norm_eps: float = Field(gt=0)
    language_width: int = Field(gt=0, description="D")
    projector_activation: str
    projector_bias: bool = True
    image_mean: tuple[float, float, float]
    image_std: tuple[_Positive, _Positive, _Positive]
    rescale_factor: _Positive = 1 / 255

    @model_validator(mode="after")
    def _fits(self) -> VisionSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if self.image_size < self.patch_size:
            raise ValueError(f"image of {self.image_size} px, patch of {self.patch_size} px")
        return self

    @property
    def side(self) -> int:
        """Tokens along one side of the frame."""
        return self.image_size // self.patch_size

    @property
    def covered(self) -> float:
        """Share of the input's side that whole patches cover; the rest is cut off."""
        return self.side * self.patch_size / self.image_size

    @property
    def tokens(self) -> int:
        """T."""
        return self.side**2

    @property
    def head_width(self) -> int:
        """d."""
        return self.width // self.heads

    @property
    def pooled_side(self) -> int:
        """Tokens along one side after pooling: half of `side`, rounded up."""
        return -(-self.side // 2)

    @property
    def pooled(self) -> int:
        """n."""
        return self.pooled_side**2


class LanguageSpec(_Entry):
    """Geometry of a decoder with grouped-query attention and rotary positions (Qwen2)."""

    width: int = Field(gt=0, description="D")
    blocks: int = Field(gt=0)
    query_heads: int = Field(gt=0, description="Q")
    key_heads: int = Field(gt=0, description="G, heads of keys and values")
    head_width: int = Field(gt=0, description="e")
    mlp_width: int = Field(gt=0)
    vocabulary: int = Field(gt=0, description="V, rows of the embedding")
    most_positions: int = Field(gt=0, description="longest context the model was made for")
    rotary_base: float = Field(gt=0)
    rms_norm_eps: float = Field(gt=0)
    activation: str
    tied_head: bool
    video_token_id: int
    stop_token_ids: tuple[int, ...]


class PortEntry(_Entry):
    """One input or output of a graph; an axis is a number, or the name of a free size (M, k)."""

    name: str
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float16", "int64"]


class FileEntry(_Entry):
    """A file of the bundle, by its path from the bundle's root."""

    path: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        named = {"", ".", ".."}.isdisjoint(path.split("/"))
        if not named or "\\" in path or ":" in path or not path.isprintable():
            raise ValueError(f"path {path!r} is no path inside the bundle")
        return path


class GraphEntry(_Entry):
    """One graph: its file and its ports, in order."""

    file: FileEntry
    inputs: tuple[PortEntry, ...]
    outputs: tuple[PortEntry, ...]


class Provenance(_Entry):
    """Where the weights come from and what wrote the graphs."""

    model: str = Field(description="llava-ov or demo")
    checkpoint: str = Field(description="name of the checkpoint")
    weights: Weights = Field(description="where the weights came from")
    stc_version: str
    versions: dict[str, str] = Field(description="torch, transformers, onnx, ...")
    opset: int
    precision: Precision


class DefaultSettings(_Entry):
    """Settings as the manifest stores them; `Settings` validates the values."""

    reference_interval: int
    recompute_ratio: float
    selection: str
    budget: int
    pruner: str
    anchor_window: int


class Manifest(_Entry):
    """Everything a runtime needs to know of a bundle."""

    schema_version: Literal[1] = SCHEMA_VERSION
    vision: VisionSpec
    language: LanguageSpec | None = Field(None, description="None: the bundle has no language side")
    graphs: dict[str, GraphEntry]
    fused_graphs: dict[str, GraphEntry] = Field(
        {}, description="attend graphs a second time, with an operator of ONNX Runtime's own"
    )
    int4_graphs: dict[str, GraphEntry] = Field(
        {}, description="language graphs a second time, with four-bit matrices, ONNX Runtime's own"
    )
    int4_group: int | None = Field(None, description="values that share a scale in int4_graphs")
    files: tuple[FileEntry, ...] = Field(description="weights and the checkpoint's own files")
    settings: DefaultSettings
    provenance: Provenance

    @property
    def default_settings(self) -> Settings:
        """The bundle's default settings.

        Raises SettingsError when a stored value is out of range.
        """
        return Settings(**self.settings.model_dump())
