"""What the image URIs of a stranger's table may lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.uris import ImageError, resolve

TABLE = "s3://lake/tables/queries.parquet"


def refused(uri: str, table: str = TABLE, *roots: str, folder: str | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        resolve(uri, table, SegmentSettings(allow_roots=roots), folder)
    assert caught.value.code == RejectCode.URI_NOT_ALLOWED
    return caught.value.detail


@pytest.mark.parametrize(
    ("uri", "full"),
    [
        ("a.png", "s3://lake/tables/a.png"),
        ("/a.png", "s3://lake/tables/a.png"),
        ("s3://lake/images/a.png", "s3://lake/images/a.png"),
        ("s3a://lake/images/a.png", "s3://lake/images/a.png"),
    ],
)
def test_a_table_in_a_bucket_may_name_what_is_in_it(uri: str, full: str) -> None:
    assert resolve(uri, TABLE, SegmentSettings()) == full


def test_it_may_name_no_other_bucket_and_no_local_file() -> None:
    assert "is not below s3://lake" in refused("s3://other/a.png")
    refused("s3://lakeside/a.png")
    refused("file:///etc/passwd")
    refused("../other/a.png")
    refused("gs://lake/a.png")
    refused("memory://a.png")


def test_roots_are_added_by_name() -> None:
    for root in (
        "s3://other/images",
        "s3://other/images/",
        "s3a://other/images",
        "s3://other",
        "s3://",
    ):
        assert (
            resolve("s3://other/images/a.png", TABLE, SegmentSettings(allow_roots=(root,)))
            == "s3://other/images/a.png"
        )
    refused("s3://other/imagesque/a.png", TABLE, "s3://other/images")


def test_a_local_table_may_name_what_is_below_the_input(tmp_path: Path) -> None:
    table = f"file://{tmp_path}/data/tables/queries.parquet"
    folder = f"file://{tmp_path}/data"
    for uri in (
        "../images/a.png",
        f"{tmp_path}/data/images/a.png",
        f"file://{tmp_path}/data/images/a.png",
    ):
        assert resolve(uri, table, SegmentSettings(), folder) == f"{tmp_path}/data/images/a.png"
        refused(uri, table)  # of a single file the input is its own folder
    for uri in (
        "../../a.png",
        "/etc/passwd",
        "file:///etc/passwd",
        f"{tmp_path}/database/a.png",
        "s3://lake/a.png",
    ):
        refused(uri, table, folder=folder)
    assert (
        resolve("/etc/passwd", table, SegmentSettings(allow_roots=("/etc",)), folder)
        == "/etc/passwd"
    )


def test_a_link_is_where_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "secret.png").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    table = f"{tmp_path}/data/queries.parquet"
    assert f"is not below {tmp_path}/data" in refused("link.png", table)
    assert (
        resolve("link.png", table, SegmentSettings(allow_roots=(str(tmp_path),)))
        == f"{tmp_path}/secret.png"
    )


@pytest.mark.parametrize(
    ("folder", "store"),
    [
        ("snapshots/5f2a/data", "blobs"),
        ("data", ".dvc/cache/files/md5/ab"),
        ("data/deep", ".git/annex/objects/ab/cd"),
    ],
)
def test_a_link_may_lead_to_the_store_of_the_data_set(
    tmp_path: Path, folder: str, store: str
) -> None:
    (tmp_path / store).mkdir(parents=True)
    (tmp_path / store / "1f").touch()
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.png").symlink_to(tmp_path / store / "1f")
    table = f"{tmp_path}/{folder}/queries.parquet"
    assert resolve("a.png", table, SegmentSettings()) == f"{tmp_path}/{store}/1f"
    refused(f"{tmp_path}/{store}/1f", table)  # the data itself may not name it


def test_https_must_be_allowed_and_http_never_is() -> None:
    refused("https://example.com/a.png")
    url = "https://example.com/a.png"
    assert resolve(url, TABLE, SegmentSettings(allow_https=True)) == url
    assert resolve("HTTPS://example.com/a.png", TABLE, SegmentSettings(allow_https=True)) == url
    with pytest.raises(ImageError, match="http:// is not among the allowed schemes"):
        resolve("http://example.com/a.png", TABLE, SegmentSettings(allow_https=True))
