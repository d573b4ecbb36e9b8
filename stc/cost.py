"""What a frame must cost: multiply-accumulates of the tower, the floor under every latency."""

from __future__ import annotations

from stc.manifest import VisionSpec


def reference_macs(spec: VisionSpec) -> int:
    """Multiply-accumulates of a reference frame: embedding and all blocks, all T tokens."""
    return _embed_macs(spec) + spec.blocks * _block_macs(spec, spec.tokens)


def reuse_macs(spec: VisionSpec, recomputed: int) -> int:
    """Multiply-accumulates of a reuse frame: keys of all T tokens, the rest of M `recomputed`."""
    return _embed_macs(spec) + spec.blocks * _block_macs(spec, recomputed)


def _embed_macs(spec: VisionSpec) -> int:
    return spec.tokens * spec.width * 3 * spec.patch_size**2


def _block_macs(spec: VisionSpec, recomputed: int) -> int:
    keys = spec.tokens * spec.width**2
    matrices = recomputed * (3 * spec.width**2 + 2 * spec.width * spec.mlp_width)
    attention = 2 * recomputed * spec.tokens * spec.width
    return keys + matrices + attention
