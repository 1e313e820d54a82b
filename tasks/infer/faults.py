"""Tell a row's fault, which rejects the row, from the machine's fault, which ends the shard."""

from __future__ import annotations

from collections.abc import Sequence

from wordmask.schemas.rejects import RejectCode
from wordmask.tasks.devices import is_broken_device, lacks_device_memory
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.rows import Reject, Row
from wordmask.tasks.storage import STORE_ERRORS
from wordmask.tasks.telemetry.logs import clean

# PyTorch's own, on a CPU, and Python's where there may be no more threads.
EXHAUSTED = ("allocate memory", "start new thread")


def is_machine_fault(error: Exception) -> bool:
    """Return whether the next row would fail too: no memory, a broken device, a store that is down.

    The row is not to blame then.
    """
    if isinstance(error, (MemoryError, *STORE_ERRORS)):
        return True
    if is_broken_device(error) or lacks_device_memory(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in EXHAUSTED)


def can_retry(error: Exception, batch_rows: int) -> bool:
    """Return whether the model may do better with fewer than `batch_rows` rows at a time."""
    if lacks_device_memory(error):
        return batch_rows > 1
    return not is_machine_fault(error)


def may_be_the_models(error: Exception) -> bool:
    """Return whether only a row that is known to work can tell if the model is to blame."""
    return not isinstance(error, STORE_ERRORS) and not is_broken_device(error)


def reject_image(error: Exception, rows: Sequence[Row]) -> list[Reject]:
    """Reject the rows of an image that cannot be read. Raises the machine's faults."""
    if is_machine_fault(error):
        raise error
    if isinstance(error, ImageError):
        return [Reject(row=row, code=error.code, detail=error.detail) for row in rows]
    # Nobody knows all errors that images and URIs lead libraries to raise.
    detail = clean(f"{type(error).__name__}: {error}", [row.query for row in rows])
    return [Reject(row=row, code=RejectCode.IMAGE_UNREADABLE, detail=detail) for row in rows]


def reject_answer(error: Exception, row: Row) -> Reject:
    """Reject a row that the model failed on by itself."""
    detail = clean(f"{type(error).__name__}: {error}", [row.query])
    return Reject(row=row, code=RejectCode.MODEL_ERROR, detail=detail)
