"""Image formats, told by the first bytes of a file: those that are decoded, and others by name.

The list of those that are decoded is closed. Pillow alone would try forty formats on a stranger's
bytes, and hand one of them, EPS, to another program.
"""

from __future__ import annotations

import re

# What is decoded, by Pillow's name of it. Pillow has no HEIC.
DECODED = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "AVIF": re.compile(rb"....ftyp(?:avi[fs]|(?:mif1|msf1).{0,48}?avi[fs])", re.DOTALL),
}
DECODED_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
# What is often sent in place of these. The first that fits counts.
OTHERS = {
    "a Git LFS pointer: fetch the image with `git lfs pull`": rb"version https://git-lfs",
    "PostScript (EPS)": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "HEIC": rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "a video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "Photoshop (PSD)": rb"8BPS",
    "an icon (ICO)": rb"\0\0[\x01\x02]\0",
    "an icon (ICNS)": rb"icns",
    "DDS": rb"DDS ",
    "FITS": rb"SIMPLE  =",
    "QOI": rb"qoif",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Netpbm (PPM)": rb"P[1-7]\s",
    "a ZIP archive": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    "markup, as of SVG or a web page": rb"\s*<|\xef\xbb\xbf\s*<",
    "JSON": rb"\s*[{\[]",
}
BEGINNING = 64  # bytes that are looked at


def decoded_format(data: bytes) -> str | None:
    """Return Pillow's name of the format that data begins as, None if it is not decoded."""
    for name, beginning in DECODED.items():
        if beginning.match(data):
            return name
    return None


def looks_like(data: bytes) -> str | None:
    """Return which other format data begins like, in words, None where that is unknown.

    The bytes themselves are not shown: a detail is read by more people than the image.
    """
    start = data[:BEGINNING]
    for name, beginning in OTHERS.items():
        if re.match(beginning, start, re.DOTALL):
            return name
    return None
