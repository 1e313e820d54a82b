"""An image that its store alone does not give is rejected; a store that gives none ends the shard.

Each test but those of a store that is down fails on 117a9f2, where such an image ended its shard.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from tests.support.runs import publish_run, require_every_row_once, run_all
from tests.support.tables import png, write_input
from tests.support.tables import read_rows as written_rows
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.storage import Store

Fault = Callable[[str], Exception | None]  # by the path that is read


def of_s3(code: str, status: int) -> Exception:
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(ClientError(response, "GetObject"))


def table_of(tmp_path: Path, images: int = 6) -> RunSettings:
    """Write a table whose images are files beside it."""
    for number in range(images):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    rows = [
        {"row_id": f"r{number}", "image": f"{number}.png", "query": "a thing"}
        for number in range(images)
    ]
    source = write_input(tmp_path / "in.parquet", rows)
    return RunSettings(input=source, output=str(tmp_path / "out"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fault]:
    """A store of images whose reads fail as `fault` says of their path."""
    faults: dict[str, Fault] = {"fault": lambda _: None}
    read_bytes = Store.read_bytes

    def read(self: Store, path: str) -> bytes:
        error = faults["fault"](self.root)
        if error is not None and self.root.endswith(".png"):
            raise error
        return read_bytes(self, path)

    monkeypatch.setattr(Store, "read_bytes", read)
    return faults


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EBADMSG, "Bad message"),
        of_s3("KMS.DisabledException", 400),
    ],
)
def test_an_image_that_its_store_alone_does_not_give_is_rejected(
    error: Exception, tmp_path: Path, store: dict[str, Fault]
) -> None:
    settings = table_of(tmp_path)
    store["fault"] = lambda path: error if path.endswith("3.png") else None
    plan = run_all(settings)
    require_every_row_once(plan, settings)
    summary = publish_run(plan, settings)
    assert (summary.masks, summary.rejects) == (5, {"image_unreachable": 1})
    (reject,) = written_rows(settings.output, "rejects")
    assert reject["row_id"] == "r3"
    assert "the store gives other images, but not this one" in reject["detail"]


def test_the_detail_holds_no_credential(tmp_path: Path, store: dict[str, Fault]) -> None:
    settings = table_of(tmp_path)
    signed = OSError(errno.EIO, "https://lake/3.png?X-Amz-Signature=abcdef0123456789")
    store["fault"] = lambda path: signed if path.endswith("3.png") else None
    run_all(settings)
    (reject,) = written_rows(settings.output, "rejects")
    assert "abcdef" not in reject["detail"]


def test_an_error_that_passes_rejects_no_row(tmp_path: Path, store: dict[str, Fault]) -> None:
    settings = table_of(tmp_path)
    failures = [OSError(errno.EIO, "Input/output error")]
    store["fault"] = lambda path: failures.pop() if failures and path.endswith("3.png") else None
    run_all(settings)
    assert len(written_rows(settings.output, "masks")) == 6


@pytest.mark.parametrize(
    ("error", "path", "words"),
    [
        (OSError(errno.EIO, "Input/output error"), ".png", "Input/output"),
        (ConnectionError("refused"), "3.png", "refused"),
        (of_s3("SlowDown", 503), "3.png", "SlowDown"),
        (of_s3("InternalError", 500), "3.png", "InternalError"),
        (OSError(errno.EMFILE, "Too many open files"), "3.png", "Too many"),
    ],
)
def test_what_concerns_the_store_ends_the_shard(
    error: Exception, path: str, words: str, tmp_path: Path, store: dict[str, Fault]
) -> None:
    settings = table_of(tmp_path)
    store["fault"] = lambda read: error if read.endswith(path) else None
    with pytest.raises(OSError, match=words):
        run_all(settings)


def test_an_image_without_neighbours_is_compared_with_its_table(
    tmp_path: Path, store: dict[str, Fault]
) -> None:
    settings = table_of(tmp_path, images=1)
    store["fault"] = lambda _: OSError(errno.EIO, "Input/output error")
    run_all(settings)
    (reject,) = written_rows(settings.output, "rejects")
    assert reject["code"] == RejectCode.IMAGE_UNREACHABLE
