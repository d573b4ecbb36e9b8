"""What a compression method is to the instrument: pixels of a stream in, tokens to be read out.

The methods there are stand in `stc.runtime.evaluate.methods`, a file each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from stc.bundles.bundle import Bundle
from stc.errors import SettingsError
from stc.manifest import VisionSpec
from stc.runtime.parity.sides import torch_side
from stc.runtime.vision.tower import VisionTower
from stc.shell.ranges import number_flag, shown, whole_flag

if TYPE_CHECKING:
    from stc.runtime.parity.sides import TorchVision

Pixels = NDArray[np.float32]
"""pixel_values [3, Hpx, Wpx]."""
Runtime = Literal["engines", "PyTorch"]
"""Where a method's tower runs. Its time is compared with that of dense frames there."""
CONTROL = "control"
"""The source of a method that nobody proposes: what others must beat."""


@dataclass(frozen=True)
class Encoded:
    """What a method makes of one frame.

    tokens: [k, D], what the language model reads of it; k may be 0: nothing is appended.
    kept: int64 [k], their places among the n pooled tokens, ascending; of a merged token the place
    of the token it was merged into.
    whole: [n, D], the frame's tokens before any was dropped; None where the method has none.
    recomputed: int64 [M], what block 0 computed anew, M may be 0; None where every token was, as
    on a reference frame.
    macs: multiply-accumulates of the tower for this frame.
    """

    tokens: NDArray[Any]
    kept: NDArray[np.int64]
    whole: NDArray[Any] | None
    recomputed: NDArray[np.int64] | None
    macs: int


class FrameEncoder(Protocol):
    """One stream of a method; frames are pushed in the order they are seen."""

    def push(self, pixels: Pixels) -> Encoded:
        """The next frame. Raises EngineError when a graph fails."""
        ...


Chooser = Callable[[NDArray[Any]], NDArray[np.int64]]
"""Given the whole tokens [n, D] of the frames of one stream, one after the other, which are kept:
int64 [k], ascending."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to compress a stream; those that derive from it need to say `open` alone.

    name: as `--methods` has it. about: one line. source: arXiv number, or CONTROL. runtime: where
    its tower runs. Further fields of a dataclass that derives from it are its settings, which
    `--methods NAME:FIELD=VALUE` sets.
    """

    name: str
    about: str
    source: str
    runtime: ClassVar[Runtime] = "engines"

    @abstractmethod
    def open(self, towers: Towers) -> FrameEncoder:
        """A new stream. Raises SettingsError when its settings do not fit the model, StcError when
        it needs PyTorch and there is none."""

    def chooser(self, towers: Towers) -> Chooser | None:
        """What chooses the kept tokens of a new stream, to be shown the tokens of a dense tower;
        None where the choice is not made of a frame's whole tokens."""
        return None

    def settings(self, spec: VisionSpec) -> dict[str, Any]:
        """Its settings for a model of `spec`, of strings and numbers. Raises SettingsError when
        they do not fit."""
        return {name: getattr(self, name) for name in _fields(self)}

    def given(self, options: Mapping[str, str]) -> Method:
        """The same with the settings that `options` name, by field, as the user wrote them.

        Raises SettingsError for a field there is not and a value of another type.
        """
        parsed = {}
        for name, text in options.items():
            refuse_unknown(self.name, name, _fields(self))
            parsed[name] = parsed_value(self.name, name, text, getattr(self, name))
        return replace(self, **parsed)


class Towers:
    """The tower of one bundle, on engines and, once it is asked for, in PyTorch.

    vision: on engines. spec: of both. Close it, or use it in a `with`; `vision` is the caller's.
    """

    def __init__(self, bundle: Bundle, vision: VisionTower, checkpoint: str | None = None) -> None:
        self.vision = vision
        self.spec = vision.spec
        self._bundle = bundle
        self._checkpoint = checkpoint
        self._opened = ExitStack()
        self._torch: TorchVision | None = None

    @property
    def torch(self) -> TorchVision:
        """The tower in PyTorch, float32, with the weights the bundle was made of.

        Raises as `stc.runtime.parity.sides.torch_side`: StcError where the export extra is not
        installed, CheckpointError where a checkpoint is needed and was not given.
        """
        if self._torch is None:
            side = torch_side(self._bundle, self._checkpoint)
            self._torch = self._opened.enter_context(side)[1]
        return self._torch

    def close(self) -> None:
        """PyTorch's weights are given back."""
        self._torch = None
        self._opened.close()

    def __enter__(self) -> Towers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_unknown(method: str, name: str, known: list[str]) -> None:
    """Raise SettingsError unless `name` is one of the settings `known` of `method`."""
    if name not in known:
        expected = " or ".join(known) if known else "no settings"
        raise SettingsError(f"--methods {method}", f"got setting {shown(name)}", expected)


def parsed_value(method: str, name: str, text: str, like: object) -> Any:
    """`text`, given for setting `name` of `method`, as a value of the type of `like`.

    Raises SettingsError when it is none.
    """
    try:
        if isinstance(like, int):
            return whole_flag()(text)
        if isinstance(like, float):
            return number_flag(text)
    except ArgumentTypeError as error:
        expected = "a whole number" if isinstance(like, int) else "a number"
        raise SettingsError(f"--methods {method}", f"{name}={text}", expected) from error
    return text


def _fields(method: Method) -> list[str]:
    ours = [field.name for field in fields(Method)]
    return [field.name for field in fields(method) if field.name not in ours]
