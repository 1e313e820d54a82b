"""Which images behind URIs are others than they were when their rows were answered.

Stores are asked for fingerprints alone, once for each distinct URI, and compared with those that
masks and rejects keep.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from wordmask.model.runtime.prefetch import buffered_map
from wordmask.schemas.redaction import HIDDEN
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import ImageCheck, Part, Shard, ShardHints, ShardRecord
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.images.fetch import image_fingerprint
from wordmask.tasks.images.host_limits import HostLimits
from wordmask.tasks.images.https import HttpsClient
from wordmask.tasks.images.uris import ImageError, resolve
from wordmask.tasks.output.done import DoneShards, Listing, receipts_since, records_of_done
from wordmask.tasks.output.published import PublishedRun
from wordmask.tasks.storage import STORE_ERRORS, Store

REQUESTS_AT_ONCE = 32
SHARDS_AT_ONCE = 8
SHARDS_AHEAD = 64  # whose parts are read, or whose images are asked about
COLUMNS = ("image_uri", "image_fingerprint", "code")


class _Present(NamedTuple):
    """What the store of an image says now. No fingerprint: the image is not there."""

    fingerprint: str | None = None
    answered: bool = True


class CheckedShards(NamedTuple):
    """Shards whose images are those of then, hints for the others, and the extent of the check."""

    done: DoneShards
    hints: dict[str, ShardHints]
    check: ImageCheck


def check_images(
    done: DoneShards, output: Store, settings: RunSettings, base: PublishedRun | None
) -> CheckedShards:
    """Find the shards among those done that have an image which changed.

    Args:
        done: shards that need not be computed, as far as the table shows.
        output: the output that has them.
        settings: the settings of the run that is planned.
        base: the published run that has them, if there is one.
    """
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as requests:
        checker = ImageChecker(output, settings, requests)
        changed = checker.changed(records_of_done(output, done, base))
        redone = frozenset[str]()
        if base is not None and changed:
            # A run that was stopped may have computed them for the images that there are now.
            published = changed & done.published
            later = receipts_since(output, base.head, Listing(output), published)
            redone = frozenset(later) - checker.changed(later.values())
        stale = changed - redone
        check = checker.outcome(len(stale))
    hints = {
        record.shard.shard_id: ShardHints(reuse_from=(record.masks_part,))
        for record in records_of_done(output, done, base)
        if record.shard.shard_id in stale
    }
    left = DoneShards(done.published - changed, (done.with_receipts | redone) - stale)
    return CheckedShards(left, hints, check)


class ImageChecker:
    """Asks stores about the images of shards that are done.

    Args:
        output: the output, whose parts say which images there were.
        settings: where images may lie, and how https servers are asked.
        requests: threads that ask stores.
    """

    def __init__(self, output: Store, settings: RunSettings, requests: ThreadPoolExecutor) -> None:
        self._output = output
        self._settings = settings
        self._requests = requests
        self._client = HttpsClient.of(settings, HostLimits())
        self._lock = threading.Lock()
        self._asked: dict[str, Future[_Present]] = {}  # by full URI

    def changed(self, records: Iterable[ShardRecord]) -> frozenset[str]:
        """Return the ids of shards that have an image which is another now, gone, or there at last.

        An image whose store does not say counts as unchanged.
        """
        with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
            checked = buffered_map(pool, self._changed_shard, records, SHARDS_AHEAD)
            return frozenset(shard_id for shard_id in checked if shard_id)

    def outcome(self, changed: int) -> ImageCheck:
        """Return the extent of the check, of which so many shards have other images."""
        answers = [asked.result() for asked in self._asked.values()]
        unanswered = sum(not answer.answered for answer in answers)
        return ImageCheck(requests=len(answers), unanswered=unanswered, shards=changed)

    def _changed_shard(self, record: ShardRecord) -> str:
        """Return the shard's id if one of its images changed, else ""."""
        kept = {uri: before for part in record.parts for uri, before in self._images(part)}
        asked = [(self._ask(uri, record.shard), before) for uri, before in kept.items()]
        for future, before in asked:
            present = future.result()
            if present.answered and present.fingerprint != before:
                return record.shard.shard_id
        return ""

    def _images(self, part: Part) -> Iterator[tuple[str, str | None]]:
        """Yield the URIs of a part, and the fingerprints that their images had.

        A row whose image was not there counts, too. One that was rejected unseen does not.
        """
        with self._output.parquet(part.path) as parquet:
            names = [name for name in COLUMNS if name in parquet.schema_arrow.names]
            rows: list[dict[str, Any]] = parquet.read(columns=names).to_pylist()
        for row in rows:
            uri, before = row["image_uri"], row.get("image_fingerprint")
            was_missing = row.get("code") == RejectCode.IMAGE_NOT_FOUND
            if uri and (before or was_missing):
                yield uri, before

    def _ask(self, uri: str, shard: Shard) -> Future[_Present]:
        """Begin to ask about an image, unless that was done before."""
        try:
            full = resolve(uri, shard.file, self._settings.segment, shard.input_folder)
        except ImageError:  # it led to another place then
            gone = Future[_Present]()
            gone.set_result(_Present())
            return gone
        with self._lock:
            if full not in self._asked:
                self._asked[full] = self._requests.submit(self._present, full)
            return self._asked[full]

    def _present(self, full: str) -> _Present:
        if HIDDEN in full:  # it was signed, and the signature was not kept
            return _Present(answered=False)
        try:
            found = image_fingerprint(full, self._client)
        except ImageError as error:
            return _Present(answered=error.code == RejectCode.IMAGE_NOT_FOUND)
        except STORE_ERRORS:
            return _Present(answered=False)
        return _Present(found, answered=found is not None)
