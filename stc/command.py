"""What all commands share: one line for a user's mistake, exit 2, no traceback.

Exit codes: 0 done, 1 a check failed, 2 a user's mistake, 130 interrupted before any result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from stc.errors import StcError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def run(body: Callable[[], int]) -> int:
    """The exit code of `body`, with a StcError told in one line on stderr."""
    try:
        return body()
    except StcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
