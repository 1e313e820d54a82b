"""Images as a viewer shows them, or a reason why not."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin, TiffTags
from s3fs.errors import translate_boto_error

from tests.support.tables import png
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images import decode as images
from wordmask.tasks.images.decode import ImageError, decode, fetch
from wordmask.tasks.storage import Store

SETTINGS = SegmentSettings()


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def code_of(data: bytes, settings: SegmentSettings = SETTINGS) -> RejectCode:
    with pytest.raises(ImageError) as caught:
        decode(data, settings)
    assert caught.value.detail
    return caught.value.code


def test_plain_image_comes_back_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels)), SETTINGS), pixels)


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (30, 20), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    assert decode(encoded(image, "JPEG", exif=exif), SETTINGS).shape == (30, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(orientation: int) -> None:
    image = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    np.testing.assert_array_equal(
        decode(data, SETTINGS), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    )


@pytest.mark.parametrize("exif", [b"Exif\0\0" + b"\xff" * 40, b"Exif\0\0MM", b"Exif\0\0II*\0"])
def test_broken_exif_is_ignored_as_viewers_do(exif: bytes) -> None:
    assert decode(encoded(Image.new("RGB", (30, 20)), exif=exif), SETTINGS).shape == (20, 30, 3)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from(("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")),
    st.lists(st.tuples(st.integers(0, 199), st.binary(min_size=1, max_size=4))),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_are_an_image_or_an_image_error(
    format: str, damage: list[tuple[int, bytes]]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(
        encoded(
            Image.new("RGB", (12, 9), (1, 2, 3)),
            format,
            **({} if format in ("GIF", "BMP") else {"exif": exif}),
        )
    )
    for at, what in damage:
        data[at : at + len(what)] = what
    with contextlib.suppress(ImageError):
        pixels = decode(bytes(data), SegmentSettings(max_image_pixels=100_000))
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3)


def test_running_out_of_memory_is_the_images_fault_only_where_there_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhausted)
    assert code_of(png()) == RejectCode.IMAGE_UNREADABLE, (
        "one that asks for absurd amounts would end its shard for ever"
    )
    monkeypatch.setattr(np, "empty", exhausted)
    with pytest.raises(MemoryError):
        decode(png(), SETTINGS)


def test_alpha_is_composited_on_white_not_dropped() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.putpixel((1, 2), (200, 10, 20, 255))
    pixels = decode(encoded(image), SETTINGS)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[2, 1].tolist() == [200, 10, 20]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {"transparency": 3}),
        ("LA", "PNG", {}),
        ("CMYK", "TIFF", {}),
        ("I;16", "PNG", {}),
        ("I", "TIFF", {}),
        ("F", "TIFF", {}),
        ("RGB", "PNG", {"icc_profile": SRGB}),
    ],
)
def test_a_large_image_is_in_strips_what_it_is_whole(
    mode: str, format: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        values = np.arange(23 * 17).reshape(23, 17) * 100  # bright only at its end
        image = Image.fromarray(values.astype(kind))
    else:
        image = Image.fromarray(rng.integers(0, 256, (23, 17, 4), dtype=np.uint8)).convert(mode)
    data = encoded(image, format, **options)
    whole = decode(data, SETTINGS)
    monkeypatch.setattr(images, "STRIP_PIXELS", 5 * 17)
    np.testing.assert_array_equal(decode(data, SETTINGS), whole)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.putpixel((0, 0), 1)
    pixels = decode(encoded(image, transparency=0), SETTINGS)
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[3, 3].tolist() == [255, 255, 255]


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    values = np.array([[0, 32768, 65535]], np.uint16)
    pixels = decode(encoded(Image.fromarray(values)), SETTINGS)
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def test_dark_grey_of_16_bits_stays_dark() -> None:
    values = np.array([[0, 100, 255]], np.uint16)
    assert decode(encoded(Image.fromarray(values)), SETTINGS)[0, :, 0].tolist() == [0, 0, 1]


def test_other_colour_profiles_become_srgb() -> None:
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    plain = decode(encoded(image), SETTINGS)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.abs(decode(encoded(image, icc_profile=srgb), SETTINGS).astype(int) - plain).max() <= 1
    # A profile that does not fit the image is ignored, as viewers do.
    np.testing.assert_array_equal(decode(encoded(image, icc_profile=profile), SETTINGS), plain)


def test_a_profile_is_applied_not_dropped() -> None:
    """A profile whose red and green primaries are swapped: what was stored as red is seen as
    green.
    """
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = (
        srgb.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    )
    pixels = decode(
        encoded(Image.new("RGB", (2, 2), (200, 100, 50)), icc_profile=swapped), SETTINGS
    )
    assert np.abs(pixels.astype(int) - [100, 200, 50]).max() <= 1


def test_cmyk_jpeg() -> None:
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), SETTINGS).shape == (
        8,
        8,
        3,
    )


def test_a_profile_that_is_no_profile_is_ignored() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[34675], tags.tagtype[34675] = 7, TiffTags.SHORT
    data = encoded(Image.new("RGB", (2, 2), (200, 100, 50)), "TIFF", tiffinfo=tags)
    assert decode(data, SETTINGS)[0, 0].tolist() == [200, 100, 50]


def test_what_is_odd_only_after_an_image_was_loaded_is_its_own_fault() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([7] * 768)
    data = encoded(image, transparency=b"\0" * 256)
    at = data.index(b"tRNS")
    chunk = b"tRNS" + b"\0" * 257
    odd = (
        data[: at - 4]
        + struct.pack(">I", 257)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + data[at + 4 + 256 + 4 :]
    )
    with pytest.raises(ImageError, match="PNG, 4 x 4: ValueError") as caught:
        decode(odd, SETTINGS)
    assert caught.value.code == RejectCode.IMAGE_UNREADABLE


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_rejected(format: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), format)
    assert code_of(data[: len(data) // 2]) in (
        RejectCode.IMAGE_TRUNCATED,
        RejectCode.IMAGE_UNREADABLE,
    )


def test_half_a_jpeg_is_called_truncated() -> None:
    data = encoded(
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)),
        "JPEG",
    )
    assert code_of(data[: len(data) // 2]) == RejectCode.IMAGE_TRUNCATED


def test_what_is_no_image() -> None:
    assert code_of(b"") == RejectCode.IMAGE_EMPTY
    assert code_of(b"%PDF-1.7 not an image at all") == RejectCode.IMAGE_UNREADABLE


def test_bombs_are_rejected_before_they_are_decoded() -> None:
    header_only = encoded(Image.new("1", (4000, 4000)))
    assert (
        code_of(header_only, SegmentSettings(max_image_pixels=1_000_000))
        == RejectCode.IMAGE_TOO_LARGE
    )
    huge = encoded(Image.new("1", (20000, 20000)))
    assert code_of(huge) == RejectCode.IMAGE_TOO_LARGE


def test_too_many_bytes() -> None:
    assert code_of(png(), SegmentSettings(max_image_bytes=10)) == RejectCode.IMAGE_TOO_LARGE


def test_fetch_relative_and_absolute(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    table = f"file://{tmp_path}/queries.parquet"
    assert fetch("a.png", table, SETTINGS) == png(3)
    assert fetch(str(tmp_path / "a.png"), table, SETTINGS) == png(3)
    assert fetch(f"file://{tmp_path}/a.png", table, SETTINGS) == png(3)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("nowhere.png", RejectCode.IMAGE_NOT_FOUND),
        (".", RejectCode.IMAGE_NOT_FOUND),
        ("https://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("http://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("ftp://example.invalid/a.png", RejectCode.URI_NOT_ALLOWED),
        ("memory://a.png", RejectCode.URI_NOT_ALLOWED),
        (
            "s3://lake/a.png::file:///secret.png",
            RejectCode.URI_NOT_ALLOWED,
        ),  # fsspec would chain these
        ("nul\0.png", RejectCode.IMAGE_NOT_FOUND),
        ("x" * 300 + ".png", RejectCode.IMAGE_NOT_FOUND),
    ],
)
def test_fetch_rejects(tmp_path: Path, uri: str, code: RejectCode) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(uri, f"file://{tmp_path}/queries.parquet", SETTINGS)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "uri",
    ["s3://", "s3://Not A Bucket/a.png", "s3://lake/nowhere.png", "s3://no-such-bucket/a.png"],
)
def test_fetch_rejects_what_no_store_can_hold(s3: str, uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(uri, f"{s3}/queries.parquet", SegmentSettings(allow_roots=("s3://",)))
    assert caught.value.code == RejectCode.IMAGE_NOT_FOUND


def test_fetch_checks_the_size_first(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(ImageError) as caught:
        fetch("a.png", f"file://{tmp_path}/t.parquet", SegmentSettings(max_image_bytes=10))
    assert caught.value.code == RejectCode.IMAGE_TOO_LARGE


def test_fetch_waits_for_no_pipe_and_follows_no_circle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for name in ("pipe.png", "circle.png"):
        with pytest.raises(ImageError) as caught:
            fetch(name, f"file://{tmp_path}/t.parquet", SETTINGS)
        assert caught.value.code == RejectCode.IMAGE_NOT_FOUND, name


def test_an_image_that_may_not_be_read_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png())

    def denied(*_: Any) -> bytes:
        raise PermissionError("not yours")

    monkeypatch.setattr(Store, "read_bytes", denied)
    with pytest.raises(ImageError, match=r"a\.png: access is denied"):
        fetch("a.png", f"file://{tmp_path}/t.parquet", SETTINGS)


@pytest.mark.parametrize(
    ("status", "rejected"),
    [("AccessDenied", True), ("403", True), ("ExpiredToken", False), ("400", False)],
)
def test_expired_credentials_are_no_fault_of_the_row(
    s3: str, monkeypatch: pytest.MonkeyPatch, status: str, rejected: bool
) -> None:
    def refuse(*_: Any) -> bytes:
        raise translate_boto_error(
            ClientError({"Error": {"Code": status, "Message": "no"}}, "GetObject")
        )

    Store.open(f"{s3}/denied").write_bytes("a.png", png())
    monkeypatch.setattr(Store, "read_bytes", refuse)
    with pytest.raises(ImageError if rejected else OSError):
        fetch(f"{s3}/denied/a.png", f"{s3}/t.parquet", SETTINGS)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[BaseHTTPRequestHandler]]:
    """An S3 store that refuses: HEAD by its `head` status, GET by its `get` status and code."""

    class Store(BaseHTTPRequestHandler):
        head, get = 403, (403, "AccessDenied")

        def do_HEAD(self) -> None:
            self.send_response(self.head)
            self.send_header("Content-Length", "99")
            self.end_headers()

        def do_GET(self) -> None:
            status, code = self.get
            error = f"<Error><Code>{code}</Code><Message>no</Message></Error>"
            body = f"<?xml version='1.0'?>{error}".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "sesame")
        yield Store
        server.shutdown()


@pytest.mark.parametrize(
    ("head", "status", "code", "rejected"),
    [
        (403, 403, "AccessDenied", True),
        (400, 400, "InvalidRequest", True),  # encrypted with a key of the customer's
        (200, 403, "InvalidObjectState", True),  # archived
        (403, 404, "NoSuchKey", True),  # it may be that nobody may list it
        (403, 403, "ExpiredToken", False),
        (400, 400, "ExpiredToken", False),
        (403, 403, "InvalidAccessKeyId", False),
        (403, 403, "RequestTimeTooSkewed", False),
    ],
)
def test_who_is_refused_without_a_word_asks_why(
    refusing: Any,
    monkeypatch: pytest.MonkeyPatch,
    head: int,
    status: int,
    code: str,
    rejected: bool,
) -> None:
    monkeypatch.setattr(refusing, "head", head)
    monkeypatch.setattr(refusing, "get", (status, code))
    with pytest.raises(ImageError if rejected else OSError) as caught:
        fetch("a.png", "s3://lake/t.parquet", SETTINGS)
    assert not rejected or caught.value.code == RejectCode.IMAGE_NOT_FOUND
