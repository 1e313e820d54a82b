"""Interrupts, on which only the command itself may act: Ctrl-C reaches all of its processes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def interrupts_blocked() -> Generator[None]:
    """Block interrupts for what is started within: its threads and processes never see one.

    An interrupt of this thread takes effect at the end.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
