"""STC-Cacher and STC-Pruner in numpy (arXiv 2512.00891, sections 3.2 and 3.3): the oracle that the
vision graphs equal.

One pure function per graph of `stc.method.graphs`. Everything is computed in the dtype of the
weights, float32 or float64; clarity comes before speed.

Knows nothing of ONNX, engines or streams.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stc.manifest import Grid
from stc.method.graphs import ALWAYS, COSINE_EPS
from stc.method.pruner import Mean, novelty
from stc.settings import Scoring
from tests.oracle.layers import ACTIVATIONS, BlockWeights, EmbedWeights, ProjectorWeights

Array = NDArray[Any]
Indices = NDArray[np.int64]


class Pruned(NamedTuple):
    """kept [k, D], kept_indices int64 [k] ascending, frame_mean float32 [P]."""

    kept: Array
    kept_indices: NDArray[np.int64]
    frame_mean: Mean


def embed(weights: EmbedWeights, pixel_values: Array) -> Array:
    """pixel_values [3, Hpx, Wpx] -> hidden [T, C]: the prefix, then the patches row by row.

    What does not fill a patch is cut off.
    """
    width, channels, patch, _ = weights.patch.shape
    rows, columns = (size // patch for size in pixel_values.shape[1:])
    pixels = pixel_values[:, : rows * patch, : columns * patch].astype(weights.patch.dtype)
    patches = pixels.reshape(channels, rows, patch, columns, patch).transpose(1, 3, 0, 2, 4)
    flat = patches.reshape(rows * columns, channels * patch * patch)
    embedded = flat @ weights.patch.reshape(width, -1).T + weights.bias
    hidden: Array = np.concatenate([weights.prefix, embedded]) + weights.position
    return hidden


def keys(weights: BlockWeights, hidden: Array) -> Array:
    """hidden [T, C] -> key [T, C]."""
    key: Array = weights.key(weights.norm1(hidden))
    return key


def compare(key: Array, ref_key: Array, prefix_tokens: int = 0) -> Array:
    """key [T, C], ref_key [T, C] -> score float32 [T].

    The score is the cosine of a token's key to its reference, over all of C; of a prefix token
    ALWAYS.
    """
    dot = (key * ref_key).sum(axis=1)
    length = np.sqrt((key * key).sum(axis=1)) * np.sqrt((ref_key * ref_key).sum(axis=1))
    score: Array = (dot / np.maximum(length, COSINE_EPS)).astype(np.float32)
    score[:prefix_tokens] = ALWAYS
    return score


def select(score: Array, count: int) -> Indices:
    """score [T], count = M -> indices [M] of the lowest, ascending; of equals the lower index.

    Raises ValueError unless 1 <= M <= T.
    """
    if not 1 <= count <= len(score):
        raise ValueError(f"cannot select {count} of {len(score)} tokens")
    return np.sort(np.argsort(score, kind="stable")[:count]).astype(np.int64)


def place(indices: Indices, tokens: int) -> Indices:
    """indices [M], `tokens` = T -> places [T]: the row of a token among T old and M fresh ones."""
    places = np.arange(tokens, dtype=np.int64)
    places[indices] = tokens + np.arange(len(indices))
    return places


def reference(weights: BlockWeights, hidden: Array) -> tuple[Array, Array, Array]:
    """Attention of all tokens: hidden [T, C] -> key, value, attention, each [T, C]."""
    key, value = keys(weights, hidden), weights.value(weights.norm1(hidden))
    return key, value, attention(weights, hidden, key, value)


def update(
    weights: BlockWeights,
    hidden: Array,
    key: Array,
    ref_value: Array,
    indices: Indices,
    places: Indices,
) -> tuple[Array, Array]:
    """Attention of the M tokens of `indices`; the others' values are their reference's.

    hidden, key, ref_value [T, C], indices [M], places [T] -> rows, attention, each [M, C]. No input
    is written to.
    """
    rows = hidden[indices]
    value = np.concatenate([ref_value, weights.value(weights.norm1(rows))])[places]
    return rows, attention(weights, rows, key, value)


def attention(weights: BlockWeights, rows: Array, key: Array, value: Array) -> Array:
    """What attention adds to `rows` [M, C], which attend to key and value [T, C]."""
    query, keys_by_head, values = (
        split_heads(one, weights.heads) for one in (weights.query(weights.norm1(rows)), key, value)
    )
    scale = float(query.shape[2]) ** -0.5
    attended = softmax(query @ keys_by_head.transpose(0, 2, 1) * scale) @ values
    added: Array = weights.out(attended.transpose(1, 0, 2).reshape(rows.shape))
    return added


def mlp(weights: BlockWeights, rows: Array, attention: Array) -> Array:
    """rows, attention [M, C] -> residual [M, C]: attention output plus MLP output."""
    activation = ACTIVATIONS[weights.activation]
    residual: Array = attention + weights.fc2(
        activation(weights.fc1(weights.norm2(rows + attention)))
    )
    return residual


def merge(hidden: Array, ref_residual: Array, residual: Array, places: Indices) -> Array:
    """Every token moves by its fresh residual, or by its reference's: hidden [T, C], ref_residual
    [T, C], residual [M, C], places [T] -> hidden_out [T, C]."""
    hidden_out: Array = hidden + np.concatenate([ref_residual, residual])[places]
    return hidden_out


def project(weights: ProjectorWeights, hidden: Array) -> Array:
    """hidden [T, C] -> tokens [n, D]: the two-layer projector on all T, then bilinear pooling."""
    activation = ACTIVATIONS[weights.activation]
    projected = weights.linear_2(activation(weights.linear_1(hidden)))
    tokens: Array = pooling_matrix(weights.grid).astype(projected.dtype) @ projected
    return tokens


def prune(
    scoring: Scoring, tokens: Array, history_mean: Array, history_count: float, count: int
) -> Pruned:
    """The `count` = k most novel of tokens [n, D] are kept, in order; of equals the lower index.

    `history_mean` [P] is the mean of `history_count` earlier frames' means and is not read when
    that is 0. Computes in float64 for float64 tokens, else in float32. Raises ValueError unless
    1 <= k <= n.
    """
    if not 1 <= count <= len(tokens):
        raise ValueError(f"cannot keep {count} of {len(tokens)} tokens")
    scores, frame_mean = novelty(scoring, tokens, history_mean, history_count)
    kept_indices = np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int64)
    return Pruned(tokens[kept_indices], kept_indices, frame_mean)


def pooling_matrix(grid: Grid) -> NDArray[np.float32]:
    """Bilinear resize (align_corners False) of the patches to the pooled grid: [n, T].

    The columns of prefix tokens are 0.
    """
    rows = _resize_matrix(grid.rows, grid.pooled_rows)
    columns = _resize_matrix(grid.columns, grid.pooled_columns)
    return np.pad(np.kron(rows, columns), ((0, 0), (grid.prefix_tokens, 0)))


def _resize_matrix(side: int, pooled: int) -> NDArray[np.float32]:
    """Linear resize along one axis: [pooled, side]."""
    # torch's interpolate rounds the step and the place to float32, and nothing between them.
    step = float(np.float32(side / pooled))
    place = np.maximum((np.arange(pooled) + 0.5) * step - 0.5, 0).astype(np.float32)
    lower = place.astype(np.int64)
    upper = np.minimum(lower + 1, side - 1)
    share = place - lower.astype(np.float32)
    matrix = np.zeros((pooled, side), np.float32)
    np.add.at(matrix, (np.arange(pooled), lower), 1 - share)
    np.add.at(matrix, (np.arange(pooled), upper), share)
    return matrix


def split_heads(x: Array, heads: int) -> Array:
    """[tokens, C] -> [H, tokens, d]."""
    tokens, width = x.shape
    split: Array = x.reshape(tokens, heads, width // heads).transpose(1, 0, 2)
    return split


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares
