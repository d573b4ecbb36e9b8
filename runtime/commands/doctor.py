"""`stc-doctor`: what is installed here, what is missing or too old, and how to fix it."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take time: see stc.entry
    import sys

    from stc import entry

    sys.exit(entry.doctor())

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from stc.errors import SettingsError
from stc.runtime.commands.checks import Diagnosis, diagnose
from stc.shell import command
from stc.shell.command import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 when stc-run would run here, 1 when it would not.

    With a bundle, when it would run that.
    """
    return command.run(lambda: _doctor(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.Parser(prog="stc-doctor", description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="look at it as well")
    parser.add_argument(
        "--verify", action="store_true", help="hash every file of the bundle, known or not"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    return parser.parse_args(arguments)


def _doctor(flags: argparse.Namespace) -> int:
    if flags.verify and flags.bundle is None:
        raise SettingsError("--verify", "no bundle", "stc-doctor --verify BUNDLE")
    diagnosis = diagnose(flags.bundle, verify=flags.verify)
    if flags.json:
        print(json.dumps(asdict(diagnosis)))
    else:
        _show(diagnosis)
    return 0 if diagnosis.backends else 1


def _show(diagnosis: Diagnosis) -> None:
    console = Console()
    for finding in diagnosis.findings:
        sign = "ok    " if finding.fine else "to fix"
        console.say(f"{sign}  {finding.subject}: {finding.found}")
        if not finding.fine:
            needed = f" (for {finding.needed_for})" if finding.needed_for else ""
            console.say(f"        fix: {finding.fix}{needed}")
    if diagnosis.backends:
        console.say(f"bundles can be run here with: {', '.join(diagnosis.backends)}")
        return
    vital = [one.subject for one in diagnosis.findings if one.vital and not one.fine]
    first = ", ".join(vital) or "a backend, onnxruntime is the quickest"
    console.say(f"nothing can be run here yet; missing: {first}")
