"""Images as a viewer shows them: orientation applied, in sRGB, without transparency.

Pillow decodes, because of the libraries tried it alone raises on truncated files and gives the size
before it decodes.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.formats import DECODED_NAMES, decoded_format, looks_like
from wordmask.tasks.images.uris import ImageError
from wordmask.tasks.telemetry.logs import clean

Pixels = NDArray[np.uint8]

STRIP_PIXELS = 1 << 22
WHITE_16_BIT = 65535.0
WHITE_8_BIT = 255.0
# What undoes an EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TRUNCATION_WORDS = ("truncated", "unexpected end", "not enough data", "eof")
TRANSPARENT_MODES = ("P", "PA", "LA", "La", "RGBa")
PROFILE_MODES = ("RGB", "CMYK", "L")


def decode(data: bytes, settings: SegmentSettings) -> Pixels:
    """Decode an image to RGB uint8 (height, width, 3).

    Raises:
        ImageError: it is empty, too large, truncated or unreadable.
    """
    _check_bytes(data, settings)
    image = _open(data)
    _check_size(image, settings)
    _load(image)
    try:
        return _pixels(_upright(image))
    except MemoryError:
        raise
    # Pillow looks at palettes, transparency and tags only now, and raises whatever odd ones lead
    # it to.
    except Exception as error:
        detail = f"{_describe(image)}: {type(error).__name__}: {clean(str(error))}"
        raise ImageError(RejectCode.IMAGE_UNREADABLE, detail) from None


def check_header(data: bytes, settings: SegmentSettings) -> int:
    """Return the pixels of an encoded image by its header.

    Raises:
        ImageError: the header shows that it is empty, too large or unreadable.
    """
    _check_bytes(data, settings)
    image = _open(data)
    _check_size(image, settings)
    width, height = image.size
    return int(width * height)


def _check_bytes(data: bytes, settings: SegmentSettings) -> None:
    if not data:
        raise ImageError(RejectCode.IMAGE_EMPTY, "the image has 0 bytes")
    limit = settings.max_image_bytes
    if len(data) > limit:
        detail = f"{len(data)} bytes, more than the limit of {limit}"
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, detail)


def _check_size(image: Image.Image, settings: SegmentSettings) -> None:
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(RejectCode.IMAGE_EMPTY, f"the image is {width} x {height} pixels")
    pixels = width * height
    limit = settings.max_image_pixels
    if pixels > limit:
        detail = f"{width} x {height} = {pixels} pixels, more than the limit of {limit}"
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, detail)


def _open(data: bytes) -> Image.Image:
    """Open an image of a format that is decoded, and read its header."""
    name = decoded_format(data)
    if name is None:
        raise _unknown_format(data)
    try:
        with warnings.catch_warnings():
            # The pixel limit is ours, checked right after; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=[name])
    except Image.DecompressionBombError as error:
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        detail = f"begins as {name}, but cannot be read as such; {len(data)} bytes"
        raise ImageError(RejectCode.IMAGE_UNREADABLE, detail) from None
    except Exception as error:
        detail = f"{type(error).__name__}: {clean(str(error))}"
        raise ImageError(_code_of(error), detail) from None


def _unknown_format(data: bytes) -> ImageError:
    detail = f"not {DECODED_NAMES}; {len(data)} bytes"
    other = looks_like(data)
    if other is not None:
        detail += f" that look like {other}"
    return ImageError(RejectCode.IMAGE_UNREADABLE, detail)


def _load(image: Image.Image) -> None:
    """Decode an open image, in place."""
    try:
        image.load()
    except MemoryError:
        if not _fits_in_memory(*image.size):
            raise
        detail = f"{_describe(image)}: its headers ask for more memory than so many pixels need"
        raise ImageError(RejectCode.IMAGE_UNREADABLE, detail) from None
    except Exception as error:
        raise ImageError(_code_of(error), f"{_describe(image)}: {clean(str(error))}") from None


def _fits_in_memory(width: int, height: int) -> bool:
    """Return whether the machine has the memory that such an image needs.

    If so, an exhausted memory is the fault of the image: Pillow says the same of absurd headers.
    """
    try:
        np.empty((height, width, 8), np.uint8)
    except MemoryError:
        return False
    return True


def _describe(image: Image.Image) -> str:
    width, height = image.size
    return f"{image.format}, {width} x {height}"


def _code_of(error: Exception) -> RejectCode:
    """Return the code for an image on which Pillow raised."""
    text = str(error).lower()
    if isinstance(error, EOFError) or any(word in text for word in TRUNCATION_WORDS):
        return RejectCode.IMAGE_TRUNCATED
    return RejectCode.IMAGE_UNREADABLE


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says.

    Broken EXIF is ignored, as viewers do; nothing but the orientation is read of it.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    # Pillow raises whatever the broken bytes lead it to: SyntaxError, struct.error, ...
    except Exception:
        return image
    if orientation not in UPRIGHT:
        return image
    return image.transpose(UPRIGHT[orientation])


def _pixels(image: Image.Image) -> Pixels:
    """Convert an image to RGB uint8 (height, width, 3).

    It is done in strips: each step is a copy, and a large image is not to be in memory twice.
    """
    width, height = image.size
    white = _white(image)
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        return np.asarray(_as_rgb(image, white))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(_as_rgb(strip, white))
    return pixels


def _white(image: Image.Image) -> float | None:
    """Return the value of white of a grey image with more than 8 bits, None of all others.

    Mode I;16 has 16 bits also where the image is dark; modes I and F do not say.
    """
    if image.mode.startswith("I;16"):
        return WHITE_16_BIT
    if image.mode not in ("I", "F"):
        return None
    brightest: Any = image.getextrema()[1]
    return WHITE_16_BIT if brightest > WHITE_8_BIT else WHITE_8_BIT


def _as_rgb(image: Image.Image, white: float | None) -> Image.Image:
    """Convert to sRGB.

    Grey of more than 8 bits is scaled by its `white` rather than clipped, transparent pixels are
    composited on white, other colour profiles are converted.
    """
    if white is not None:
        return _grey_as_rgb(image, white)
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        image = _on_white(image)
    profile = image.info.get("icc_profile")
    if profile and image.mode in PROFILE_MODES:
        image = _to_srgb(image, profile)
    if image.mode == "RGB":
        return image
    return image.convert("RGB")


def _grey_as_rgb(image: Image.Image, white: float) -> Image.Image:
    grey = np.asarray(image).astype(np.float64) * (255.0 / white)
    grey_8_bit = np.clip(grey, 0, 255).round().astype(np.uint8)
    return Image.fromarray(grey_8_bit).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size, (255, 255, 255))
    flat.paste(image.convert("RGB"), mask=image.getchannel("A"))
    flat.info = image.info
    return flat


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """Convert by a colour profile. A broken one is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except MemoryError:
        raise
    except Exception:  # a TIFF's profile may be of any type
        return image
    return image if converted is None else converted
