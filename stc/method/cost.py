"""Multiply-accumulates of a vision tower's steps, by how many tokens take each."""

from __future__ import annotations

from stc.manifest import VisionSpec


def embed_macs(spec: VisionSpec) -> int:
    """Of pixels becoming patches."""
    return spec.grid.patches * spec.width * 3 * spec.patch_size**2


def key_macs(spec: VisionSpec, tokens: int) -> int:
    """Of one block's keys of `tokens`."""
    return tokens * spec.width**2


def attention_macs(spec: VisionSpec, tokens: int, keys: int) -> int:
    """Of one block's attention of `tokens` to `keys`, queries, values and output among it."""
    return tokens * (3 * spec.width**2 + 2 * keys * spec.width)


def mlp_macs(spec: VisionSpec, tokens: int) -> int:
    """Of `tokens` through one block's MLP."""
    return 2 * tokens * spec.width * spec.mlp_width
