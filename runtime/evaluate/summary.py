"""The figures of finished scenes: what the table, the documents and the page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from stc.manifest import VisionSpec
from stc.runtime.answers.scoring import normal
from stc.runtime.evaluate import statistics
from stc.runtime.evaluate.data import Data, Question
from stc.runtime.evaluate.method import Method
from stc.runtime.evaluate.methods.blind import BLIND
from stc.runtime.evaluate.methods.stc_methods import DENSE
from stc.runtime.evaluate.store import Record

Figures = dict[str, Any]
Records = Mapping[str, Record]
"""Of a method, by scene."""


def summary(
    data: Data, methods: Mapping[str, Method], records: Mapping[str, Records], spec: VisionSpec
) -> Figures:
    """The figures of `methods` on `data`, of which `records` hold every scene.

    Figures that there is nothing to make of are None.
    """
    asked = [question for item in data.items for question in item.questions]
    found = {label: _of_method(label, data, asked, records) for label in methods}
    for label, method in methods.items():
        told = {"about": method.about, "source": method.source, "runtime": method.runtime}
        found[label] = {**told, "settings": method.settings(spec), **found[label]}
    return {
        "data": data.name,
        "data_sha256": data.digest,
        "scenes": len(data.items),
        "questions": len(asked),
        "scoring": data.scoring if asked else None,
        "methods": found,
        "baselines": baselines(data, asked, found),
    }


def baselines(data: Data, asked: Sequence[Question], found: Mapping[str, Figures]) -> Figures:
    """What is reached without looking: chance, the commonest answer, and the model blind.

    chance: one over the answers to choose from, which are the options or, where there are none, the
    answers that questions of this kind have; mean over questions. majority: the commonest right
    answer of each kind, with and without options, given always; it is taken from these very
    questions, so it is a little too good. blind: the model with zero frames.
    """
    if not asked:
        return {"chance": None, "majority": None, "blind": None}
    kinds: dict[tuple[str, str, bool], Counter[str]] = {}
    for question in asked:
        kinds.setdefault(_form(question), Counter())[normal(question.answer)] += 1
    chance = [1 / (len(one.options) or len(kinds[_form(one)])) for one in asked]
    commonest = sum(max(kind.values()) for kind in kinds.values())
    return {
        "chance": statistics.mean(chance),
        "majority": commonest / len(asked),
        "blind": found[BLIND.name]["accuracy"] if BLIND.name in found else None,
    }


def _form(question: Question) -> tuple[str, str, bool]:
    return question.family, question.kind, bool(question.options)


def question_rows(
    data: Data, methods: Iterable[str], records: Mapping[str, Records]
) -> Iterable[dict[str, Any]]:
    """One row for each question and method, with what was asked and answered."""
    for item in data.items:
        for number, question in enumerate(item.questions):
            for label in methods:
                given = records[label][item.key]["questions"][number]
                yield {
                    "scene": item.key,
                    "question": number,
                    "frame": question.frame,
                    "family": question.family,
                    "kind": question.kind,
                    "text": question.text,
                    "expected": question.answer,
                    "method": label,
                    **given,
                }


def _of_method(
    label: str, data: Data, asked: Sequence[Question], records: Mapping[str, Records]
) -> Figures:
    scenes = [records[label][item.key] for item in data.items]
    dense = [records[DENSE][item.key] for item in data.items]
    return {**_answers(asked, scenes, dense), **_cost(scenes, dense), **_fidelity(scenes)}


def _answers(
    asked: Sequence[Question], scenes: Sequence[Record], dense: Sequence[Record]
) -> Figures:
    given, theirs = (_questions(of) for of in (scenes, dense))
    right = [one["right"] for one in given]
    pairs = list(zip(right, (one["right"] for one in theirs), strict=True))
    lost, won = pairs.count((False, True)), pairs.count((True, False))
    families = dict.fromkeys(question.family for question in asked)
    kept = statistics.retention(*([_right(one) for one in of] for of in (scenes, dense)))
    share, interval = kept if kept else (None, None)
    same = [normal(a["answer"]) == normal(b["answer"]) for a, b in zip(given, theirs, strict=True)]
    distances = [one["kl"] for one in given]
    return {
        "questions": len(given),
        **_share(right),
        "strict_accuracy": statistics.mean([one["strict"] for one in given]),
        "families": {
            family: {
                "questions": len(of),
                **_share(of),
            }
            for family in families
            if (of := _of_family(family, asked, right))
        },
        "retention": share,
        "interval": interval,
        "right_to_wrong": lost if given else None,
        "wrong_to_right": won if given else None,
        "mcnemar_p": statistics.mcnemar(lost, won) if given else None,
        "same_answer": statistics.mean(same),
        "same_first_token": statistics.mean([one["same_first"] for one in given]),
        "kl_mean": statistics.mean(distances),
        "kl_p95": statistics.quantile(distances, 0.95),
    }


def _cost(scenes: Sequence[Record], dense: Sequence[Record]) -> Figures:
    frames, theirs = (list(_frames(of)) for of in (scenes, dense))
    kept = [frame["kept"] for frame in frames]
    spent_ms, dense_ms = (_typical_ms(scenes, name, "since") for name in ("ms", "dense_ms"))
    read = [one for one in scenes if "prefill_ms" in one]
    beside = [one for one in dense if "prefill_ms" in one]
    prefill_ms, dense_prefill_ms = (
        _typical_ms(of, "prefill_ms", "kept") if of else None for of in (read, beside)
    )
    return {
        "frames": len(frames),
        "tower_cost": sum(frame["macs"] for frame in frames)
        / sum(frame["dense_macs"] for frame in frames),
        "tower_cost_ms": spent_ms / dense_ms,
        "frame_ms": spent_ms,
        "dense_frame_ms": dense_ms,
        "tokens_per_frame": statistics.mean(kept),
        "tokens_cost": sum(kept) / sum(frame["kept"] for frame in theirs),
        "prefill_ms_per_frame": prefill_ms,
        "prefill_cost_ms": prefill_ms / dense_prefill_ms
        if prefill_ms is not None and dense_prefill_ms
        else None,
    }


def _typical_ms(scenes: Sequence[Record], name: str, alike: str) -> float:
    """Milliseconds of a frame, mean over all where each counts as the median of those like it, of
    the same value of `alike`: the few that something else held up do not count."""
    groups: dict[int, list[float]] = {}
    for one in scenes:
        for frame, ms in zip(one["frames"], one[name], strict=True):
            groups.setdefault(frame[alike], []).append(ms)
    total = sum(len(times) * float(np.median(times)) for times in groups.values())
    return total / sum(map(len, groups.values()))


def _fidelity(scenes: Sequence[Record]) -> Figures:
    def values(name: str, since: int | None = None) -> list[float]:
        return [
            frame[name]
            for frame in _frames(scenes)
            if frame[name] is not None and since in (None, frame["since"])
        ]

    cosines = values("cosine_min")
    ages = sorted({frame["since"] for frame in _frames(scenes) if frame["cosine"] is not None})
    return {
        "cosine": statistics.mean(values("cosine")),
        "cosine_p5": statistics.mean(values("cosine_p5")),
        "cosine_min": min(cosines) if cosines else None,
        "relative_l2": statistics.mean(values("relative_l2")),
        "drift": [
            {
                "since_reference": age,
                "frames": len(values("cosine", age)),
                "cosine": statistics.mean(values("cosine", age)),
                "cosine_p5": statistics.mean(values("cosine_p5", age)),
                "cosine_min": min(values("cosine_min", age)),
                "relative_l2": statistics.mean(values("relative_l2", age)),
            }
            for age in ages
        ],
        "recall": statistics.mean(values("recall")),
        "recall_chance": statistics.mean(values("recall_chance")),
        "jaccard": statistics.mean(values("jaccard")),
    }


def _share(right: Sequence[bool]) -> Figures:
    return {
        "accuracy": statistics.mean(right),
        "accuracy_interval": statistics.wilson(sum(right), len(right)),
    }


def _of_family(family: str, asked: Sequence[Question], right: Sequence[bool]) -> list[bool]:
    return [one for question, one in zip(asked, right, strict=True) if question.family == family]


def _questions(scenes: Sequence[Record]) -> list[Record]:
    return list(chain.from_iterable(one.get("questions", ()) for one in scenes))


def _frames(scenes: Sequence[Record]) -> Iterable[Record]:
    return chain.from_iterable(one["frames"] for one in scenes)


def _right(scene: Record) -> int:
    return sum(one["right"] for one in scene.get("questions", ()))
