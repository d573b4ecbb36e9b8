"""How frames are prepared, as transformers' processor reads it from a checkpoint's files.

The runtime resizes every frame to the square input bicubically, then scales and shifts its values;
files that ask for anything else are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

import transformers
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from stc.errors import CheckpointError
from stc.export.companions import (
    CONFIG,
    FETCH,
    OTHER_MODEL,
    PREPROCESSOR,
    PROCESSOR,
    VIDEO_PREPROCESSOR,
    Companions,
    Described,
)

BICUBIC = 3
"""Pillow's number of it."""
VIDEO_CLASS = "LlavaOnevisionVideoProcessor"
DEFAULTS: Mapping[str, Any] = {
    "size": {"height": 384, "width": 384},
    "default_to_square": False,
    "resample": BICUBIC,
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
}
"""What VIDEO_CLASS takes for a value that is missing."""
FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]


def video_preprocessing(companions: Companions) -> Described:
    """The object transformers takes for video: of the same files in the same order.

    Raises CheckpointError when there is none.
    """
    if PROCESSOR in companions:
        nested = companions.described(PROCESSOR)
        video = nested.fields.get("video_processor")
        if isinstance(video, dict):
            return Described(nested.subject, video)
        if video is not None:
            got = f"video_processor is {short(video)}"
            raise CheckpointError(nested.subject, got, "a JSON object", FETCH)
    for name in (VIDEO_PREPROCESSOR, PREPROCESSOR):
        if name in companions:
            return companions.described(name)
    names = f"{PROCESSOR}, {VIDEO_PREPROCESSOR} or {PREPROCESSOR}"
    raise CheckpointError(companions.directory, "no preprocessing", names, FETCH)


def prepared(preprocessing: Described, side: int) -> dict[str, Any]:
    """The fields of VisionSpec that a preprocessor gives for a square input of `side` px.

    Raises CheckpointError when it prepares frames in another way.
    """
    subject = preprocessing.subject
    _check_class(preprocessing)
    given = {name: preprocessing.fields[name] for name in DEFAULTS if name in preprocessing.fields}
    values = {**DEFAULTS, **given}
    # Null is no default: transformers' versions differ in what they make of it, but for these.
    for name in ("do_center_crop", "default_to_square"):
        values[name] = False if values[name] is None else values[name]
    for name in FLAGS:
        if not isinstance(values[name], bool):
            got = f"{name} is {short(values[name])}"
            raise CheckpointError(subject, got, "true or false", FETCH)
    for name, expected in (("do_resize", True), ("do_center_crop", False), ("resample", BICUBIC)):
        if values[name] != expected or type(values[name]) is not type(expected):
            got = f"{name} is {short(values[name])}"
            raise CheckpointError(subject, got, str(expected), OTHER_MODEL)
    if _edges(values["size"], square=values["default_to_square"]) != {
        "height": side,
        "width": side,
    }:
        default = "" if "size" in given else ", transformers' default"
        got = f"resizes to {short(values['size'])}{default}"
        square = f"height and width {side}, as {CONFIG} has it"
        raise CheckpointError(subject, got, square, FETCH)
    # What is not used may be anything.
    if not values["do_normalize"]:
        values |= {"image_mean": 0.0, "image_std": 1.0}
    if not values["do_rescale"]:
        values["rescale_factor"] = 1.0
    found = {name: _three(values[name]) for name in ("image_mean", "image_std")}
    for name, numbers in (*found.items(), ("rescale_factor", (values["rescale_factor"],))):
        if any(type(number) not in (int, float) for number in numbers):
            got = f"{name} is {short(values[name])}"
            raise CheckpointError(subject, got, "numbers", FETCH)
    return {**found, "rescale_factor": values["rescale_factor"]}


def _check_class(preprocessing: Described) -> None:
    """A processor of another model prepares frames in its own way; transformers takes the one of
    this model where a file names none for video."""
    fields = preprocessing.fields
    name = fields.get("video_processor_type")
    if name is None:
        name = str(fields.get("image_processor_type")).replace("ImageProcessor", "VideoProcessor")
        if name not in dir(transformers):
            return
    if name != VIDEO_CLASS:
        got = f"video_processor_type is {short(name)}"
        raise CheckpointError(preprocessing.subject, got, VIDEO_CLASS, OTHER_MODEL)


def _edges(size: Any, *, square: bool) -> Any:
    """The object `size` stands for, without what is null."""
    if type(size) is int:
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, list) and len(size) == 2:
        return dict(zip(("height", "width"), size, strict=True))
    if isinstance(size, dict):
        return {name: value for name, value in size.items() if value is not None}
    return size


def _three(values: Any) -> tuple[Any, ...]:
    """One number stands for all three colours."""
    return tuple(values) if isinstance(values, list | tuple) else (values,) * 3
