"""The manifest of a bundle: what `manifest.json` says, validated.

Every field has a range, wide beside any model there is: what runs by a manifest takes no time, no
memory and no more lines than the largest of them would.

Knows nothing of files on disk (see `stc.bundles.bundle`) nor of how graphs are made or run.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, NamedTuple, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stc.settings import Settings
from stc.shell.ranges import shown

SCHEMA_VERSION: Final = 2
MANIFEST = "manifest.json"
GRAPHS = "graphs"
WEIGHTS = f"{GRAPHS}/weights.bin"
LANGUAGE_WEIGHTS = f"{GRAPHS}/language.bin"
"""Of the language graphs alone: a device that only watches does without."""

MAX_MANIFEST_BYTES: Final = 4 << 20
"""Of a manifest: ten times that of the largest model."""
MAX_BLOCKS: Final = 256
MAX_WIDTH: Final = 65_536
MAX_TOKENS: Final = 16_384
"""T."""
MAX_POSITIONS: Final = 1 << 24
MAX_VALUES: Final = 1 << 32
"""Of one frame's attention, and of a stream's references: 16 GiB in float32."""
MAX_BYTES: Final = 1 << 40
"""Of all files of a bundle."""
MAX_PIXEL: Final = 65_504.0
"""The largest number of float16, which pixel values may be."""
LONGEST_NAME: Final = 64
LONGEST_TEXT: Final = 4096

Precision = Literal["fp32", "fp16"]
Weights = Literal["checkpoint", "random", "demo"]
VisionActivation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh"]
VariantBackend = Literal["onnxruntime-cpu", "onnxruntime-cuda"]
VARIANT_BACKENDS: tuple[VariantBackend, ...] = get_args(VariantBackend)
"""What loads graphs of a bundle itself; engines are built from the bundle's own graphs."""
Group = Literal[32, 128]
"""Values that share a scale."""
ON_REQUEST: Final[dict[str, tuple[Group, ...]]] = {"int4": get_args(Group)}
"""Variants that stc-export makes by a flag of their name, with the values of their option `group`,
which the flag takes."""


def printable(text: str) -> str:
    """`text` as a manifest may hold it: letters that cannot be shown are "?", and never too many or
    none."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown.strip()[:LONGEST_TEXT] or "unnamed"


def first_mistake(error: ValidationError) -> str:
    """The first of the mistakes in a document, and how many there are, in one short line."""
    mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(printable(str(part))[:LONGEST_NAME] for part in mistakes[0]["loc"])
    message = mistakes[0]["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    return f"{place or 'the document'}: {message}{more}"


def _printed(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has letters that cannot be shown")
    return text


def _not_pytorch(name: str) -> str:
    if name == "torch":
        raise ValueError("'torch' is what stc-bench calls PyTorch")
    return name


_Positive = Annotated[float, Field(gt=0, le=1e4)]
_Level = Annotated[float, Field(ge=-1e4, le=1e4)]
_Epsilon = Annotated[float, Field(gt=0, le=1)]
_Blocks = Annotated[int, Field(gt=0, le=MAX_BLOCKS)]
_Heads = Annotated[int, Field(gt=0, le=1024)]
_Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
_Side = Annotated[int, Field(gt=0, le=8192)]
_Axis = Annotated[int, Field(gt=0, le=1 << 31)] | Annotated[str, Field(max_length=LONGEST_NAME)]
_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_printed)]
_VariantName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$"), AfterValidator(_not_pytorch)
]
"""As flags and names of figures have it."""
_Text = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_printed)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Grid(_Entry):
    """How the tokens of a frame lie on it.

    First the prefix tokens, such as a class token, which lie nowhere; then one per patch, row by
    row. Pooling leaves out the prefix and makes a smaller grid of the rest.
    """

    rows: _Side
    columns: _Side
    prefix_tokens: int = Field(0, ge=0, le=1024)
    pooled_rows: _Side
    pooled_columns: _Side

    @model_validator(mode="after")
    def _fits(self) -> Grid:
        if self.pooled_rows > self.rows or self.pooled_columns > self.columns:
            pooled = f"{self.pooled_rows} x {self.pooled_columns}"
            raise ValueError(f"{pooled} tokens pooled from {self.rows} x {self.columns}")
        return self

    @property
    def patches(self) -> int:
        """T without the prefix tokens."""
        return self.rows * self.columns


class VisionSpec(_Entry):
    """Geometry and preprocessing of a vision tower with its projector and pooling."""

    image_height: _Side = Field(description="of the input, px")
    image_width: _Side = Field(description="of the input, px")
    patch_size: _Side = Field(description="side of a patch, px")
    grid: Grid
    width: _Width = Field(description="C")
    heads: _Heads = Field(description="H")
    mlp_width: _Width = Field(description="width of a block's MLP")
    blocks: _Blocks = Field(description="L, blocks that run")
    activation: VisionActivation = Field(description="the MLP's activation, Hugging Face name")
    layer_norm_eps: _Epsilon
    language_width: _Width = Field(description="D")
    projector_activation: VisionActivation
    projector_bias: bool = True
    image_mean: tuple[_Level, _Level, _Level]
    image_std: tuple[_Positive, _Positive, _Positive]
    rescale_factor: _Positive = 1 / 255

    @model_validator(mode="after")
    def _fits(self) -> VisionSpec:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        if max(self.covered) > 1:
            patches = f"{self.grid.rows} x {self.grid.columns} patches of {self.patch_size} px"
            image = f"image of {self.image_height} x {self.image_width} px"
            raise ValueError(f"{patches}, {image}")
        if self.tokens > MAX_TOKENS:
            raise ValueError(f"{self.tokens} tokens per frame, at most {MAX_TOKENS}")
        if max(self._values) > MAX_VALUES:
            attention, references = self._values
            raise ValueError(
                f"attention of {attention} values, references of {references}, "
                f"at most {MAX_VALUES} each"
            )
        for mean, std in zip(self.image_mean, self.image_std, strict=True):
            if max(abs(mean), abs(255 * self.rescale_factor - mean)) > MAX_PIXEL * std:
                raise ValueError(
                    f"image_mean {mean:g}, image_std {std:g} and rescale_factor "
                    f"{self.rescale_factor:g} make pixel values beyond {MAX_PIXEL:g}"
                )
        return self

    @property
    def _values(self) -> tuple[int, int]:
        """Of one block's attention, and of the references of all."""
        return self.heads * self.tokens**2, 3 * self.blocks * self.tokens * self.width

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """The shape of a frame's pixel values: 3, Hpx, Wpx."""
        return 3, self.image_height, self.image_width

    @property
    def covered(self) -> tuple[float, float]:
        """Shares of the input's height and width that patches cover; the rest is cut off."""
        down, across = self.grid.rows * self.patch_size, self.grid.columns * self.patch_size
        return down / self.image_height, across / self.image_width

    @property
    def tokens(self) -> int:
        """T, the prefix tokens among them."""
        return self.grid.prefix_tokens + self.grid.patches

    @property
    def head_width(self) -> int:
        """d."""
        return self.width // self.heads

    @property
    def pooled(self) -> int:
        """n."""
        return self.grid.pooled_rows * self.grid.pooled_columns


class LanguageSpec(_Entry):
    """Geometry of a decoder with grouped-query attention and rotary positions (Qwen2)."""

    width: _Width = Field(description="D")
    blocks: _Blocks
    query_heads: _Heads = Field(description="Q")
    key_heads: _Heads = Field(description="G, heads of keys and values")
    head_width: int = Field(gt=0, le=1024, multiple_of=2, description="e")
    mlp_width: int = Field(gt=0, le=4 * MAX_WIDTH)
    vocabulary: int = Field(gt=0, le=10_000_000, description="V, rows of the embedding")
    max_positions: int = Field(
        gt=0, le=MAX_POSITIONS, description="longest context the model was made for"
    )
    rotary_base: float = Field(gt=0, le=1e15)
    rms_norm_eps: _Epsilon
    activation: Literal["silu"]
    tied_head: bool
    video_token_id: int
    stop_token_ids: Annotated[tuple[int, ...], FailFast()] = Field(max_length=1024)

    @field_validator("key_heads")
    @classmethod
    def _groups(cls, heads: int, info: ValidationInfo) -> int:
        if info.data.get("query_heads", heads) % heads:
            raise ValueError(f"{info.data['query_heads']} query heads are no multiple of {heads}")
        return heads

    @field_validator("video_token_id", "stop_token_ids")
    @classmethod
    def _in_vocabulary(
        cls, ids: int | tuple[int, ...], info: ValidationInfo
    ) -> int | tuple[int, ...]:
        vocabulary = info.data.get("vocabulary")
        for token in ids if isinstance(ids, tuple) else (ids,):
            if vocabulary is not None and not 0 <= token < vocabulary:
                raise ValueError(f"{shown(token)} is no token of a vocabulary of {vocabulary}")
        return ids


class PortEntry(_Entry):
    """One input or output of a graph; an axis is a number, or the name of a free size (M, k)."""

    name: _Name
    shape: Annotated[tuple[_Axis, ...], FailFast()] = Field(max_length=8)
    dtype: Literal["float32", "float16", "int64"]


class FileEntry(_Entry):
    """A file of the bundle, by its path from the bundle's root."""

    path: str = Field(max_length=LONGEST_TEXT)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0, le=MAX_BYTES)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        named = {"", ".", ".."}.isdisjoint(path.split("/"))
        if not named or "\\" in path or ":" in path or not path.isprintable():
            raise ValueError(f"path {path!r} is no path inside the bundle")
        return path


_Ports = Annotated[tuple[PortEntry, ...], FailFast(), Field(max_length=16)]


class GraphEntry(_Entry):
    """One graph: its file and its ports, in order."""

    file: FileEntry
    inputs: _Ports
    outputs: _Ports


_Graphs = Annotated[dict[_Name, GraphEntry], Field(max_length=4 * MAX_BLOCKS + 16)]


class Variant(_Entry):
    """Graphs that stand in for those of the same names, with the same ports."""

    base: str = Field(
        "", max_length=LONGEST_NAME, description="variant it lies over; empty: the bundle's graphs"
    )
    graphs: _Graphs = Field(min_length=1)
    weights: _Text | None = Field(None, description="path of its own weights, listed in files")
    backends: Annotated[tuple[VariantBackend, ...], FailFast()] = Field(
        VARIANT_BACKENDS, min_length=1, max_length=8
    )
    default: bool = Field(False, description="what its backends run when no weights are named")
    options: dict[Literal["group"], Group] = {}


class GraphChoice(NamedTuple):
    """A graph, and the variant it is of; None is the bundle itself, whose graphs are portable."""

    entry: GraphEntry
    variant: Variant | None


class Provenance(_Entry):
    """Where the weights come from and what wrote the graphs."""

    model: _Name = Field(description="llava-ov or demo")
    checkpoint: _Text = Field(description="name of the checkpoint")
    weights: Weights = Field(description="where the weights came from")
    stc_version: _Name
    versions: dict[_Name, _Name] = Field(
        max_length=64, description="torch, transformers, onnx, ..."
    )
    opset: int = Field(gt=0, le=1000)
    precision: Precision

    @field_validator("checkpoint")
    @classmethod
    def _named(cls, checkpoint: str) -> str:
        if not checkpoint.strip():
            raise ValueError("blank")
        return checkpoint


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

    schema_version: Literal[2] = SCHEMA_VERSION
    vision: VisionSpec
    language: LanguageSpec | None = Field(None, description="None: the bundle has no language side")
    graphs: _Graphs
    variants: dict[_VariantName, Variant] = Field(
        {}, max_length=16, description="graphs a second time, each over an earlier one or its base"
    )
    files: Annotated[tuple[FileEntry, ...], FailFast()] = Field(
        max_length=4096, description="weights and the checkpoint's own files"
    )
    settings: DefaultSettings
    provenance: Provenance

    @model_validator(mode="after")
    def _fits(self) -> Manifest:
        if (total := sum(file.size_bytes for file in self.listed)) > MAX_BYTES:
            raise ValueError(f"files of {total} bytes together, at most {MAX_BYTES}")
        runs: dict[str, tuple[VariantBackend, ...]] = {"": VARIANT_BACKENDS}
        for name, variant in self.variants.items():
            if not set(variant.backends) <= set(runs.get(variant.base, ())):
                raise ValueError(f"variants.{name}: its base is no earlier one for its backends")
            runs[name] = variant.backends
        if self.settings.budget > self.vision.pooled:
            raise ValueError(
                f"settings.budget: {shown(self.settings.budget)}, the model has "
                f"{self.vision.pooled} tokens per frame"
            )
        return self

    @property
    def listed(self) -> list[FileEntry]:
        """Every file of the bundle but the manifest itself."""
        kinds = (self.graphs, *(variant.graphs for variant in self.variants.values()))
        return [*(graph.file for kind in kinds for graph in kind.values()), *self.files]

    def table(self, variant: str | None) -> dict[str, GraphChoice]:
        """The graphs of the bundle as `variant` has them, by name; its own without."""
        if not variant:
            return {name: GraphChoice(entry, None) for name, entry in self.graphs.items()}
        one = self.variants[variant]
        own = {name: GraphChoice(entry, one) for name, entry in one.graphs.items()}
        return self.table(one.base) | own

    @property
    def default_settings(self) -> Settings:
        """The bundle's default settings.

        Raises SettingsError when a stored value is out of range.
        """
        return Settings(**self.settings.model_dump())
