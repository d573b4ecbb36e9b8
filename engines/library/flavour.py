"""TensorRT or TensorRT-RTX: two packages with one Python interface, and what differs.

Nothing of either is imported before it is asked for: a machine that runs ONNX Runtime needs none.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

from stc import optional

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}

_MENDS: dict[Flavour, str] = {
    "tensorrt": "on a Jetson it comes with JetPack: make the environment with "
    "python3 -m venv --system-site-packages; elsewhere: pip install tensorrt",
    "tensorrt-rtx": "install it with: pip install 'stc[tensorrt-rtx]'",
}

SEVERAL_PROFILES_SINCE = (10, 8)
"""Before 10.8 native TensorRT computed wrongly with several profiles (TensorRT issue 4250)."""


class TensorRt:
    """An imported flavour: `module` is tensorrt or tensorrt_rtx, `version` what it says it is.

    `several_profiles`: one engine may serve several sizes of a free axis and hold its weights once.
    """

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.flavour = flavour
        self.module = module
        self.version = str(module.__version__)
        self.several_profiles = flavour == "tensorrt-rtx" or version_at_least(
            self.version, SEVERAL_PROFILES_SINCE
        )
        # What fixes bindings that cannot make their objects.
        self.wheel_fix = (
            "the driver may be older than the CUDA it was made for: install the wheel of the "
            f"driver's CUDA major version (pip install {flavour}-cu12), or update the driver"
        )


def load_tensorrt(flavour: Flavour) -> TensorRt:
    """The installed `flavour`. Raises EngineError with the command that installs it."""
    module = optional.load(_MODULES[flavour], flavour, subject=flavour, fix=_MENDS[flavour])
    return TensorRt(flavour, module)


def version_at_least(version: str, least: tuple[int, ...]) -> bool:
    """Whether the leading numbers of `version` ('10.13.3.9') are at least `least`."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[: len(least)])
    return numbers >= least
