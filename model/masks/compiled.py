"""Functions that Numba compiles, cached where there is a folder for it.

Numba caches beside the code or at home, and refuses to where it may write to neither: in a
container with a user of its own, say. There the cache lies below the temporary folder, or each
process compiles anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba

from wordmask.model.runtime.folders import private_temporary_folder

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return a function that is compiled when it is first called, and does not hold the GIL."""
    dispatcher = numba.njit(nogil=True)(function)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # neither beside the code nor at home
        with suppress(RuntimeError, OSError):
            _cache_in(private_temporary_folder(), dispatcher)
    stand_in: Function = dispatcher
    return stand_in


def _cache_in(folder: Path, dispatcher: Any) -> None:
    """Cache a function in a folder. Raises RuntimeError where that cannot be written."""
    configured = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        dispatcher.enable_caching()
    finally:
        numba.config.CACHE_DIR = configured
