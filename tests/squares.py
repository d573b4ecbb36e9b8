"""Square inputs, as LLaVA-OneVision has them, in the words of a manifest."""

from __future__ import annotations

from typing import Any

from stc.manifest import Grid


def square_grid(side: int) -> Grid:
    """`side` x `side` patches, pooled to half of it, rounded up."""
    pooled = -(-side // 2)
    return Grid(rows=side, columns=side, pooled_rows=pooled, pooled_columns=pooled)


def square(image_size: int, patch_size: int) -> dict[str, Any]:
    """The fields of VisionSpec of a square input, px."""
    return {
        "image_height": image_size,
        "image_width": image_size,
        "patch_size": patch_size,
        "grid": square_grid(image_size // patch_size),
    }
