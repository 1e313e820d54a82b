"""Images as a viewer shows them, or a reason why not."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps, TiffImagePlugin, TiffTags

from tests.support.tables import png
from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images import decode as images
from wordmask.tasks.images.decode import decode
from wordmask.tasks.images.uris import ImageError

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


def test_exhausted_memory_rejects_an_image_only_if_the_machine_has_enough(
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
def test_a_large_image_converted_in_strips_equals_one_converted_whole(
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
    """A profile whose red and green primaries are swapped shows stored red as green."""
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


def test_errors_after_an_image_was_loaded_reject_it() -> None:
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


def test_files_of_other_formats_are_rejected() -> None:
    assert code_of(b"") == RejectCode.IMAGE_EMPTY
    assert code_of(b"%PDF-1.7 not an image at all") == RejectCode.IMAGE_UNREADABLE


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"])
def test_every_format_of_the_closed_list_is_decoded(format: str) -> None:
    image = Image.new("RGB", (8, 6), (200, 30, 30))
    assert decode(encoded(image, format), SETTINGS).shape == (6, 8, 3)


@pytest.mark.parametrize("format", ["EPS", "PPM", "ICO", "PCX", "TGA", "JPEG2000", "DDS", "SGI"])
def test_formats_beside_the_closed_list_are_unreadable(format: str) -> None:
    image = Image.new("RGB", (8, 6), (200, 30, 30))
    assert code_of(encoded(image, format)) == RejectCode.IMAGE_UNREADABLE


def test_an_avif_whose_first_brand_is_a_container_is_decoded() -> None:
    data = encoded(Image.new("RGB", (8, 6), (200, 30, 30)), "AVIF")
    assert decode(data[:8] + b"mif1" + data[12:], SETTINGS).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(30), "PostScript"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_a_reject_names_the_format_that_is_not_decoded(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=f"not JPEG, PNG, .* look like .*{words}"):
        decode(data, SETTINGS)


def test_no_image_of_a_row_starts_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    stand_in = tmp_path / "gs"
    stand_in.write_text(f"#!/bin/sh\necho 10.0 | tee {called}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # found before, perhaps
    assert code_of(encoded(Image.new("RGB", (8, 6)), "EPS")) == RejectCode.IMAGE_UNREADABLE
    assert not called.exists()


def test_bombs_are_rejected_before_they_are_decoded() -> None:
    header_only = encoded(Image.new("1", (4000, 4000)))
    assert (
        code_of(header_only, SegmentSettings(max_image_pixels=1_000_000))
        == RejectCode.IMAGE_TOO_LARGE
    )
    huge = encoded(Image.new("1", (20000, 20000)))
    assert code_of(huge) == RejectCode.IMAGE_TOO_LARGE


def test_an_image_of_too_many_bytes_is_rejected() -> None:
    assert code_of(png(), SegmentSettings(max_image_bytes=10)) == RejectCode.IMAGE_TOO_LARGE
