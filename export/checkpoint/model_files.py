"""The JSON files written beside weights that this package makes up."""

from __future__ import annotations

import json
from typing import Any


def preprocessing(image_size: int) -> dict[str, Any]:
    """What preprocessor_config.json says of frames for a square input of `image_size` px, for
    images and for video alike; mean and spread are SigLIP's."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
        "video_processor_type": "LlavaOnevisionVideoProcessor",
    }


def to_json(value: dict[str, Any]) -> bytes:
    """`value` as an indented JSON file."""
    return (json.dumps(value, indent=2) + "\n").encode()
