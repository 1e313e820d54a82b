"""Mutated images of the formats that are decoded and of five others, and bombs among them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

BOMBS = 0.01  # share of images


def seed_images() -> list[tuple[str, bytes]]:
    """Return small pictures of each format and of its kinds, with the formats' names."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("PNG", rgb, {"exif": exif}),
        ("PNG", rgba, {}),
        ("PNG", rgb.quantize(), {"transparency": 3}),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), {}),
        ("JPEG", rgb, {"exif": exif}),
        ("JPEG", rgb, {"progressive": True}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("JPEG", grey, {}),
        ("WEBP", rgb, {"exif": exif}),
        ("WEBP", rgba, {"lossless": True}),
        ("GIF", grey, {"save_all": True, "append_images": [rgb]}),
        ("TIFF", rgb, {"compression": "tiff_lzw", "exif": exif}),
        ("TIFF", grey.convert("F"), {}),
        ("TIFF", rgb, {"compression": "jpeg"}),
        ("BMP", rgb, {}),
        ("ICO", rgba, {"sizes": [(32, 32)]}),
        ("PPM", rgb, {}),
        ("AVIF", rgb, {}),
        ("JPEG2000", rgb, {}),
        ("TGA", rgba, {}),
        ("PCX", rgb, {}),
    ]
    return [(kind, _encoded(image, kind, **options)) for kind, image, options in kinds]


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutated_images(count: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield images with the names of their formats, or of the bombs that they are."""
    seeds = seed_images()
    for _ in range(count):
        kind, data = rng.choice(seeds)
        if rng.random() < BOMBS:
            yield rng.choice(BOMB_KINDS)(rng)
            continue
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3, 8, 40))):
            rng.choice(MUTATIONS)(changed, rng, seeds)
        mutated = bytes(changed)
        if kind == "PNG" and rng.random() < 0.5:
            mutated = with_checksums(mutated)
        yield kind, mutated


def _flip(data: bytearray, rng: random.Random, _: Any) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, _: Any) -> None:
    """Write a size, count or offset that nobody means, mostly near the start, as headers are."""
    at = int(len(data) * rng.random() ** 3)
    order = rng.choice("<>")
    width = rng.choice("BHIQ")
    bits = 8 * struct.calcsize(width)
    number = rng.choice((0, 1, 255, 2**bits - 1, 2 ** (bits - 1), 2**bits // 3))
    data[at : at + bits // 8] = struct.pack(order + width, number % 2**bits)


def _cut(data: bytearray, rng: random.Random, _: Any) -> None:
    del data[int(len(data) * rng.random()) :]


def _remove(data: bytearray, rng: random.Random, _: Any) -> None:
    at = int(len(data) * rng.random())
    del data[at : at + rng.choice((1, 4, 20))]


def _double(data: bytearray, rng: random.Random, _: Any) -> None:
    at = int(len(data) * rng.random())
    data[at:at] = data[at : at + rng.choice((1, 8, 200))] * rng.choice((1, 50))


def _splice(data: bytearray, rng: random.Random, seeds: list[tuple[str, bytes]]) -> None:
    other = rng.choice(seeds)[1]
    at = int(len(data) * rng.random())
    data[at:] = other[int(len(other) * rng.random()) :]


MUTATIONS = (_flip, _flip, _flip, _number, _number, _number, _cut, _remove, _double, _splice)


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with right checksums, so that what is wrong lies deeper."""
    out = bytearray(data[:8])
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + size]
        out += struct.pack(">I", max(0, len(body) - 4))
        out += body
        out += struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(out)


def _png_bomb(rng: random.Random) -> tuple[str, bytes]:
    """Make a PNG of a few hundred kilobytes, within the limit of pixels, that fills 300 MB."""
    side = rng.randrange(9_000, 10_000)
    return "PNG bomb", _png(side, side, zlib.compress(b"\0" * side * (side * 3 + 1), 1))


def _png_lie(rng: random.Random) -> tuple[str, bytes]:
    width, height = rng.choice(
        ((2**31 - 1, 2**31 - 1), (1, 99_999_999), (99_999_999, 1), (20_000, 20_000), (0, 5))
    )
    return "PNG lie", _png(width, height, zlib.compress(b"\0" * 1000))


def _png_text_bomb(rng: random.Random) -> tuple[str, bytes]:
    text = b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 50_000_000, 1)
    return "PNG text bomb", _png(4, 4, zlib.compress(b"\0" * 52), text)


def _long(rng: random.Random) -> tuple[str, bytes]:
    size = rng.choice(((1, 60_000), (60_000, 1), (1, 1)))
    return "thin", _encoded(Image.new("RGB", size, (rng.randrange(256), 0, 0)), "PNG")


BOMB_KINDS: tuple[Callable[[random.Random], tuple[str, bytes]], ...] = (
    _png_bomb,
    _png_bomb,
    _png_lie,
    _png_text_bomb,
    _long,
)


def _png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *more,
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
