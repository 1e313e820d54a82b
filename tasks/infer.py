"""Rows of a shard to masks and rejects: check, decode each distinct image once, ask the model in bounded batches.

A row that fails costs no other: what is wrong with it becomes a reject. What is wrong with the machine (a store that is
down, a model that cannot run at all) is not a row's fault and ends the shard instead.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from model.prompt import QueryError
from model.segmenter import Query, Segmentation
from schemas.rejects import RejectCode
from schemas.runs import Shard
from schemas.settings import SegmentSettings
from tasks.images import ImageError, decode, fetch
from tasks.read import Row
from tasks.storage import STORE_ERRORS
from tasks.worker import SegmenterLike

DECODE_THREADS = 2
IMAGES_AHEAD = 16  # decoded images held at once, beside those of the batch


@dataclass(frozen=True, kw_only=True)
class Mask:
    """A row's answer and what it was an answer about."""

    row: Row
    image_id: str
    height: int
    width: int
    segmentation: Segmentation


@dataclass(frozen=True, kw_only=True)
class Reject:
    row: Row
    code: RejectCode
    detail: str


@dataclass(kw_only=True)
class Answers:
    """Masks and rejects of a shard, each in row order once `sort` was called. `infer_seconds`: the model was busy."""

    masks: list[Mask] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    infer_seconds: float = 0.0

    def sort(self) -> None:
        self.masks.sort(key=lambda mask: mask.row.row)
        self.rejects.sort(key=lambda reject: reject.row.row)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded image (height, width, 3) and the rows that ask about it."""

    image_id: str
    pixels: NDArray[np.uint8]
    rows: tuple[Row, ...]


def infer(rows: Sequence[Row], shard: Shard, settings: SegmentSettings, segmenter: SegmenterLike, batch_rows: int) -> Answers:
    """Answer every row, by a mask or by a reject."""
    answers = Answers()
    sound = [row for row in rows if not _reject_unsound(row, shard, segmenter, answers)]
    for pictures in _batches(_pictures(sound, shard, settings, answers), batch_rows):
        _segment(pictures, segmenter, answers)
    answers.sort()
    return answers


def _reject_unsound(row: Row, shard: Shard, segmenter: SegmenterLike, answers: Answers) -> bool:
    """Whether the row can be rejected before its image is touched; if so it is."""
    found = _unsound(row, shard, segmenter)
    if found is not None:
        answers.rejects.append(Reject(row=row, code=found[0], detail=found[1]))
    return found is not None


def _unsound(row: Row, shard: Shard, segmenter: SegmenterLike) -> tuple[RejectCode, str] | None:
    if row.row in shard.duplicates:
        return RejectCode.DUPLICATE_ROW_ID, f"row_id = {row.row_id!r} stands in an earlier row"
    if row.garbled:
        return RejectCode.INVALID_TEXT, f"{', '.join(row.garbled)}: holds bytes that are no UTF-8"
    if row.mode not in (None, "", "one"):
        return RejectCode.UNSUPPORTED_MODE, f'mode = {row.mode!r}: only "one" is supported'
    if row.query is None or not row.query.strip():
        return RejectCode.EMPTY_QUERY, f"query = {row.query!r}"
    if any(ref is None or any(value is None for value in ref) for ref in row.spatial_refs):
        return RejectCode.BAD_SPATIAL_REF, f"spatial_refs = {row.spatial_refs!r}: holds a null"
    if row.image_bytes is None and not row.image_uri:
        return RejectCode.MISSING_IMAGE, "the image is null"
    try:
        segmenter.check_query(row.query, _references(row))
    except QueryError as error:
        return RejectCode(error.code), error.detail
    return None


def _references(row: Row) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in ref if value is not None) for ref in row.spatial_refs if ref is not None)


def _pictures(rows: Sequence[Row], shard: Shard, settings: SegmentSettings, answers: Answers) -> Iterator[Picture]:
    """Distinct images in order of their first row, decoded in threads a little ahead of their use."""
    groups: dict[bytes | str, list[Row]] = {}
    for row in rows:
        key = hashlib.sha256(row.image_bytes).digest() if row.image_bytes is not None else str(row.image_uri)
        groups.setdefault(key, []).append(row)

    def load(group: list[Row]) -> Picture | ImageError:
        first = group[0]
        try:
            data = first.image_bytes if first.image_bytes is not None else fetch(str(first.image_uri), shard.file, settings)
            return Picture(image_id=hashlib.sha256(data).hexdigest()[:32], pixels=decode(data, settings), rows=tuple(group))
        except ImageError as error:
            return error

    waiting = list(groups.values())
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for start in range(0, len(waiting), IMAGES_AHEAD):
            part = waiting[start : start + IMAGES_AHEAD]
            for group, loaded in zip(part, pool.map(load, part), strict=True):
                if isinstance(loaded, ImageError):
                    answers.rejects += [Reject(row=row, code=loaded.code, detail=loaded.detail) for row in group]
                else:
                    yield loaded


def _batches(pictures: Iterator[Picture], batch_rows: int) -> Iterator[list[Picture]]:
    """Pictures with at most `batch_rows` rows together; one with more rows is cut into several."""
    batch: list[Picture] = []
    room = batch_rows
    for picture in pictures:
        rows = picture.rows
        while rows:
            batch.append(Picture(image_id=picture.image_id, pixels=picture.pixels, rows=rows[:room]))
            rows, room = rows[room:], room - len(rows[:room])
            if room == 0:
                yield batch
                batch, room = [], batch_rows
    if batch:
        yield batch


def _segment(pictures: list[Picture], segmenter: SegmenterLike, answers: Answers) -> None:
    """Ask the model about a batch. If that fails, ask row by row, so that only the row at fault is lost; if the device has
    too little memory for it, ask in halves."""
    began = time.perf_counter()
    rows = [row for picture in pictures for row in picture.rows]
    found: list[Segmentation] | None = None
    apart = len(rows)  # how many parts to ask about if there is no answer to the whole
    try:
        found = _ask(pictures, segmenter)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
        apart = 2
    except Exception as error:
        if _is_machines_fault(error):
            raise
        if len(rows) == 1:
            answers.rejects.append(Reject(row=rows[0], code=RejectCode.MODEL_ERROR, detail=f"{type(error).__name__}: {error}"))
            return
    if found is None:  # asked again only here, where what failed holds no memory any more
        for part in _batches(iter(pictures), math.ceil(len(rows) / apart)):
            _segment(part, segmenter, answers)
        return
    answers.infer_seconds += time.perf_counter() - began
    asked = ((picture, row) for picture in pictures for row in picture.rows)
    for (picture, row), segmentation in zip(asked, found, strict=True):
        height, width = picture.pixels.shape[:2]
        answers.masks.append(Mask(row=row, image_id=picture.image_id, height=height, width=width, segmentation=segmentation))


def _is_machines_fault(error: Exception) -> bool:
    """Whether the next row would fail too: no memory, a broken device, a store that is down. The row is not to blame then."""
    no_memory = isinstance(error, RuntimeError) and "allocate memory" in str(error)  # PyTorch's own, on a CPU
    return no_memory or isinstance(error, (MemoryError, *STORE_ERRORS, torch.AcceleratorError))


def _ask(pictures: list[Picture], segmenter: SegmenterLike) -> list[Segmentation]:
    queries = [
        Query(image=index, object=str(row.query), spatial_refs=_references(row))
        for index, picture in enumerate(pictures)
        for row in picture.rows
    ]  # fmt: skip
    return segmenter.segment_many([picture.pixels for picture in pictures], queries)
