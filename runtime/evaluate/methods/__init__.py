"""The methods there are, by the names that `--methods` takes."""

from __future__ import annotations

from collections.abc import Iterable

from stc.errors import SettingsError
from stc.runtime.evaluate.method import Method
from stc.runtime.evaluate.methods.blind import BLIND
from stc.runtime.evaluate.methods.controls.ablations import AttentionOnly, MlpOnly
from stc.runtime.evaluate.methods.controls.frames import CopyLast, SparseRate
from stc.runtime.evaluate.methods.controls.keeping import RandomKeep, UniformKeep
from stc.runtime.evaluate.methods.controls.recompute import RandomRecompute
from stc.runtime.evaluate.methods.pruning import PruningMethod, cached
from stc.runtime.evaluate.methods.published.dart import Dart
from stc.runtime.evaluate.methods.published.dycoke import DyCoke
from stc.runtime.evaluate.methods.published.evs import Evs, EvsThreshold
from stc.runtime.evaluate.methods.published.tome import ToMe, ToMeOutput
from stc.runtime.evaluate.methods.published.vidcom2 import VidCom2
from stc.runtime.evaluate.methods.published.visionzip import VisionZip
from stc.runtime.evaluate.methods.stc_methods import STC_METHODS
from stc.shell.ranges import meant, shown

ALONE, WITH_CACHER = 0.25, 0.3
"""Shares of the tokens that STC-Pruner keeps (arXiv 2512.00891, section 4.1): alone, and on
STC-Cacher's tokens. Whatever chooses tokens keeps as many unless it is told otherwise."""


def token_pruning(keep: float) -> tuple[PruningMethod, ...]:
    """Methods that keep some of a frame's finished tokens; those with a budget keep `keep`."""
    return (
        VidCom2(keep=keep),
        DyCoke(),
        Dart(keep=keep),
        Evs(keep=keep),
        EvsThreshold(),
        RandomKeep(keep=keep),
        UniformKeep(keep=keep),
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *STC_METHODS,
        ToMe(),
        ToMeOutput(),
        VisionZip(),
        *token_pruning(ALONE),
        *map(cached, token_pruning(WITH_CACHER)),
        CopyLast(),
        SparseRate(),
        BLIND,
        RandomRecompute(),
        AttentionOnly(),
        MlpOnly(),
    )
}


def methods_of(words: str) -> dict[str, Method]:
    """The methods that `words` name, by how they are named: `NAME,NAME:FIELD=VALUE:...`.

    Raises SettingsError for an unknown name or setting, and for a method named twice.
    """
    found: dict[str, Method] = {}
    for word in words.split(","):
        name, *options = word.strip().split(":")
        if name not in METHODS:
            expected = f"one of {', '.join(METHODS)}"
            near = meant(name, METHODS)
            fix = f"use {near}" if near else ""
            raise SettingsError("--methods", f"got {shown(name)}", expected, fix)
        label = ":".join((name, *options))
        if label in found:
            raise SettingsError("--methods", f"got {label} twice", fix="name it once")
        found[label] = METHODS[name].given(dict(_options(label, options)))
    return found


def _options(label: str, options: Iterable[str]) -> Iterable[tuple[str, str]]:
    for option in options:
        field, equals, value = option.partition("=")
        if not (field and equals and value):
            raise SettingsError(f"--methods {label}", f"got {shown(option)}", "FIELD=VALUE")
        yield field, value
