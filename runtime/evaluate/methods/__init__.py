"""The methods there are, by the names that `--methods` takes."""

from __future__ import annotations

from collections.abc import Iterable

from stc.errors import SettingsError
from stc.runtime.evaluate.method import Method
from stc.runtime.evaluate.methods.blind import BLIND
from stc.runtime.evaluate.methods.stc_methods import STC_METHODS
from stc.shell.ranges import shown

METHODS: dict[str, Method] = {method.name: method for method in (*STC_METHODS, BLIND)}


def methods_of(words: str) -> dict[str, Method]:
    """The methods that `words` name, by how they are named: `NAME,NAME:FIELD=VALUE:...`.

    Raises SettingsError for an unknown name or setting, and for a method named twice.
    """
    found: dict[str, Method] = {}
    for word in words.split(","):
        name, *options = word.strip().split(":")
        if name not in METHODS:
            expected = f"one of {', '.join(METHODS)}"
            raise SettingsError("--methods", f"got {shown(name)}", expected)
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
