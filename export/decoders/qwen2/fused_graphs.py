"""The `attend` graphs a second time, for ONNX Runtime: cached keys are rotated by its own operator.

A decoded token spends a sixth of its time on the rotation written out (docs/log.md). The weights
are those of the portable graphs; two tables of cosines and sines come to them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from stc.contracts import ATTEND_CONTRACT
from stc.export.decoders.qwen2.key_rotation import (
    COSINES,
    SINES,
    fuse_key_rotation,
    rotation_tables,
)
from stc.export.graphs.check import GraphCheck
from stc.export.graphs.vision import FUSED, GraphWriter
from stc.manifest import LanguageSpec


class FusedWriter:
    """Writes beside the graphs of `writer`."""

    def __init__(self, writer: GraphWriter, spec: LanguageSpec) -> None:
        self._writer = writer
        self._spec = spec
        self._template: onnx.ModelProto | None = None

    def write(self, name: str, keys: Mapping[str, str]) -> GraphCheck:
        """The check of the graph beside the `attend` graph `name`, written with `keys` before."""
        if self._template is None:
            self._template = onnx.ModelProto()
            self._template.CopyFrom(self._writer.template("attend"))
            fuse_key_rotation(self._template, self._spec)
            for table, values in rotation_tables(self._spec).items():
                self._writer.weights.add(table, values)
        keys = {**keys, COSINES: COSINES, SINES: SINES}
        spans = {parameter: self._writer.weights.span(key) for parameter, key in keys.items()}
        return self._writer.finish(name, ATTEND_CONTRACT, self._template, spans, FUSED)
