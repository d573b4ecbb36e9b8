"""The `attend` graphs a second time, for ONNX Runtime: cached keys are rotated by its own operator.

A decoded token spends a sixth of its time on the rotation written out (docs/log.md). The weights
are those of the portable graphs; two tables of cosines and sines come to them.
"""

from __future__ import annotations

import onnx

from stc.contracts import ATTEND_CONTRACT
from stc.export.check import GraphCheck
from stc.export.graphs import GraphWriter
from stc.export.key_rotation import fuse_key_rotation, rotation_tables
from stc.export.weights_file import Span
from stc.manifest import LanguageSpec


class FusedWriter:
    """Writes beside the graphs of `writer`."""

    def __init__(self, writer: GraphWriter, spec: LanguageSpec) -> None:
        self._writer = writer
        self._spec = spec
        self._template: onnx.ModelProto | None = None
        self._tables: dict[str, Span] = {}

    def write(self, name: str) -> GraphCheck:
        """The check of the graph beside the `attend` graph `name`, which was just written."""
        if self._template is None:
            self._template = onnx.ModelProto()
            self._template.CopyFrom(self._writer.template("attend"))
            fuse_key_rotation(self._template, self._spec)
            self._tables = {
                table: self._writer.weights.add(table, values)
                for table, values in rotation_tables(self._spec).items()
            }
        return self._writer.write_fused(name, ATTEND_CONTRACT, self._template, self._tables)
