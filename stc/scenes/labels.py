"""What is right about every frame of a scene, worked out without drawing it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stc.scenes.stage.bodies import Floats, body, drawn
from stc.scenes.stage.plan import Plan
from stc.scenes.words import CELLS, PATCH, SIDE, Thing

Flags = npt.NDArray[np.bool_]

OWNED = PATCH * PATCH / 5
"""Pixels of a patch a thing must cover to own it."""
OWNED_BY_DOT = PATCH * PATCH / 12


@dataclass(frozen=True)
class Labels:
    """K things over F frames, in pictures of 112 x 112 px.

    `centre`: float32 [F, K, 2], x and y in px of the middle of each thing; may be outside.
    `shown`: float32 [F, K], the share of it that is in the picture and not covered, 0..1.
    `owner`: int8 [F, 14, 14], the thing that covers most of each patch of 8 x 8 px, if it covers a
    fifth of it (a dot: a twelfth); -1 where none does.
    """

    things: tuple[Thing, ...]
    centre: Floats
    shown: Floats
    owner: npt.NDArray[np.int8]


def centres(plan: Plan) -> Floats:
    """Middles of the things in the picture, float32 [F, K, 2] of whole px (fixed zoom)."""
    camera = plan.camera
    zoom = np.asarray(camera.zoom, np.float32)[:, None, None]
    middle = np.float32(SIDE / 2)
    moved = (plan.track - camera.shift[:, None]).astype(np.float32)
    return np.asarray(np.floor(middle + zoom * (moved - middle) + np.float32(0.5)))


def occluder_boxes(plan: Plan) -> npt.NDArray[np.int64] | None:
    """Left, top, right, bottom in the picture, int64 [F, 4]."""
    if plan.occluder is None:
        return None
    box = np.asarray(plan.occluder.box, np.float32).reshape(1, 2, 2)
    zoom = np.asarray(plan.camera.zoom, np.float32)[:, None, None]
    middle = np.float32(SIDE / 2)
    moved = box - plan.camera.shift[:, None].astype(np.float32)
    at = np.floor(middle + zoom * (moved - middle) + np.float32(0.5))
    return np.asarray(at.reshape(-1, 4), np.int64)


def make_labels(plan: Plan) -> Labels:
    centre = centres(plan)
    frame_count, count = plan.there.shape
    shown = np.zeros((frame_count, count), np.float32)
    covered = np.zeros((count, frame_count, CELLS * CELLS), np.float32)
    masks = [body(drawn(look)) for look in plan.looks]
    for number, mask in enumerate(masks):
        points, area = _points(mask)
        zoom = np.asarray(plan.camera.zoom, np.float32)[:, None, None]
        at = np.floor(centre[:, number, None] + zoom * points)
        seen = _seen(plan, at, masks, centre, number)
        shown[:, number] = seen.sum(1).astype(np.float32) / np.float32(len(points))
        covered[number] = _covered(at, seen) * np.float32(area) * zoom[:, 0] ** 2
    return Labels(plan.things, centre, shown, _owners(plan, covered))


def _points(mask: Flags) -> tuple[Floats, int]:
    """Points of a body, [P, 2] of x and y from its centre, and the px each stands for."""
    rows, columns = np.nonzero(mask)
    area = 1 if mask.shape[0] <= 18 else 2
    at = np.stack([columns, rows], axis=1)[(rows + columns) % area == 0]
    return (at - (mask.shape[0] / 2 - 0.5)).astype(np.float32), area


def _seen(plan: Plan, at: Floats, masks: list[Flags], centre: Floats, number: int) -> Flags:
    """Which points of a thing are in the picture and before all else, [F, P]."""
    x, y = at[..., 0], at[..., 1]
    seen = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE) & plan.there[:, number, None]
    boxes = occluder_boxes(plan)
    if boxes is not None:
        left, top, right, bottom = (boxes[:, side, None] for side in range(4))
        seen &= ~((x >= left) & (x < right) & (y >= top) & (y < bottom))
    for other in range(number + 1, len(masks)):
        reach = (masks[number].shape[0] + masks[other].shape[0]) * 0.66
        apart = abs(centre[:, number] - centre[:, other]).max(1)
        near = np.flatnonzero((apart < reach) & plan.there[:, other])
        if len(near):
            seen[near] &= ~_inside(plan, at[near], masks[other], centre[near, other], near)
    return np.asarray(seen)


def _inside(
    plan: Plan, at: Floats, mask: Flags, centre: Floats, frames: npt.NDArray[np.intp]
) -> Flags:
    zoom = np.asarray(plan.camera.zoom, np.float32)[frames, None, None]
    from_it = (at + np.float32(0.5) - centre[:, None]) / zoom
    spot = np.floor(from_it + np.float32(mask.shape[0] / 2)).astype(np.intp)
    within = ((spot >= 0) & (spot < mask.shape[0])).all(-1)
    spot = np.where(within[..., None], spot, 0)
    return np.asarray(within & mask[spot[..., 1], spot[..., 0]])


def _covered(at: Floats, seen: Flags) -> Floats:
    """How many of the seen points are in each patch, [F, 196]."""
    frames, points = np.nonzero(seen)
    cells = at[frames, points].astype(np.intp) // PATCH
    flat = (frames * CELLS + cells[:, 1]) * CELLS + cells[:, 0]
    counts = np.bincount(flat, minlength=len(at) * CELLS * CELLS)
    return counts.reshape(len(at), CELLS * CELLS).astype(np.float32)


def _owners(plan: Plan, covered: Floats) -> npt.NDArray[np.int8]:
    frame_count = plan.frame_count
    out = np.full((frame_count, CELLS * CELLS), -1, np.int8)
    most = np.zeros((frame_count, CELLS * CELLS), np.float32)
    for number, thing in enumerate(plan.things):
        least = OWNED_BY_DOT if thing.kind == "dot" else OWNED
        mine = (covered[number] >= least) & (covered[number] > most)
        out[mine] = number
        most = np.where(mine, covered[number], most)
    return out.reshape(frame_count, CELLS, CELLS)
