"""Where each command begins: Ctrl-C is heard before anything that takes time is imported.

Python itself takes some hundredths of a second before the first line here is run. Ctrl-C before
that ends the process as Python has it: at once by the signal, or with a traceback of its own.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin(module: str, arguments: Sequence[str] | None = None) -> int:
    """The exit code of `module`'s `main`, for a process that does nothing else.

    Whatever asks to end while `module` is imported ends the process at once, with exit code 130,
    since nothing was begun; and when `main` has ended, by the signal itself.
    """
    heard = [stop for stop in _STOPS if signal.getsignal(stop) is not signal.SIG_IGN]
    for stop in heard:
        signal.signal(stop, _leave)
    main: Callable[[Sequence[str] | None], int] = importlib.import_module(module).main
    try:
        return main(arguments)
    finally:
        for stop in heard:
            signal.signal(stop, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    # Raised, it would end in whatever the import makes of it.
    with suppress(OSError):  # nobody may be there to be told
        os.write(2, b"interrupted; nothing was written\n")
    os._exit(130)


export = partial(begin, "stc.export.command")
build = partial(begin, "stc.engines.command")
plan = partial(begin, "stc.runtime.commands.plan")
run = partial(begin, "stc.runtime.commands.run")
parity = partial(begin, "stc.runtime.commands.parity")
bench = partial(begin, "stc.runtime.commands.bench")
evaluate = partial(begin, "stc.runtime.commands.eval")
doctor = partial(begin, "stc.runtime.commands.doctor")
