"""The demo model with fewer blocks, which is exported, built and compared in less time."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from stc.export.demo.tokenizer import MODEL


def write_shallow_demo(directory: Path, blocks: int) -> Path:
    """`directory`, which holds the first `blocks` blocks of the demo's tower and as many of its
    decoder, and all else."""
    shutil.copytree(MODEL, directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["num_hidden_layers"] = blocks
    text = config["text_config"]
    text["num_hidden_layers"], text["layer_types"] = blocks, text["layer_types"][:blocks]
    path.write_text(json.dumps(config))
    weights = directory / "model.safetensors"
    kept = {
        name: tensor
        for name, tensor in load_file(weights).items()
        if not ((deep := re.search(r"\.layers\.(\d+)\.", name)) and int(deep[1]) >= blocks)
    }
    save_file(kept, weights, metadata={"format": "pt"})
    return directory
