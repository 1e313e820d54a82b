"""Images as a viewer shows them: orientation applied, in sRGB, without transparency; or a reason
why not.

Pillow decodes, because it alone of the libraries tried raises on truncated files and lets the size
be known first.
"""

from __future__ import annotations

import errno
import io
import warnings
from typing import Any

import numpy as np
from botocore.exceptions import ClientError, ParamValidationError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from wordmask.schemas.rejects import RejectCode
from wordmask.schemas.runs import Shard
from wordmask.schemas.settings import SegmentSettings
from wordmask.tasks.images.https import fetch_https
from wordmask.tasks.images.uris import ImageError, resolve
from wordmask.tasks.rows import Row
from wordmask.tasks.storage import Store
from wordmask.tasks.telemetry.logs import clean

STRIP_PIXELS = 1 << 22
S3_BARE = (
    "400",
    "403",
)  # of a HEAD, whose reply has no body to say more: of the object, or of credentials that expired
S3_DENIED = ("403", "AccessDenied")
S3_SHUT = (
    "InvalidObjectState",
    "InvalidRequest",
)  # archived; encrypted with a key that must come with each request
S3_NO_NAME = ("InvalidBucketName", "InvalidURI", "KeyTooLongError", "InvalidArgument")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation to what undoes it


def bytes_of(row: Row, shard: Shard, settings: SegmentSettings) -> bytes:
    """A row's image as it is encoded: the row's own bytes, or those that its URI leads to. Raises
    as `fetch` does.
    """
    return (
        row.image_bytes
        if row.image_bytes is not None
        else fetch(str(row.image_uri), shard.file, settings, shard.input_folder)
    )


def fetch(
    uri: str, table_uri: str, settings: SegmentSettings, input_folder: str | None = None
) -> bytes:
    """Bytes of an image by its URI, see `tasks.uris.resolve`.

    Raises:
        ImageError: not allowed, not there, or too large. A store that cannot be reached is no fault
            of the row: its own exception goes on.
    """
    full = resolve(uri, table_uri, settings, input_folder)
    limit = settings.max_image_bytes
    if full.startswith("https://"):
        return fetch_https(full, limit)
    store = Store.open(full)
    try:
        info = _info(store)
        if info["type"] != "file":  # a pipe would be waited for, a device read for ever
            raise ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri}: is a {info['type']}, not a file")
        if info["size"] > limit:
            raise ImageError(
                RejectCode.IMAGE_TOO_LARGE,
                f"{uri}: {info['size']} bytes, more than the limit of {limit}",
            )
        return store.read_bytes("")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri}: there is no such file") from None
    except (OSError, ValueError, ParamValidationError) as error:
        code = _s3_code(error)
        if code in S3_SHUT:
            raise ImageError(
                RejectCode.IMAGE_NOT_FOUND, f"{uri}: the store does not give it: {code}: {error}"
            ) from None
        if isinstance(error, PermissionError) and code in (None, *S3_DENIED):
            denied = "access is denied, as some stores also say of what is not there"
            raise ImageError(RejectCode.IMAGE_NOT_FOUND, f"{uri}: {denied}") from None
        if isinstance(error, ImageError) or not _is_unnameable(error):
            raise
        raise ImageError(
            RejectCode.IMAGE_NOT_FOUND, f"{uri!r}: no file can have this name"
        ) from None


def _info(store: Store) -> dict[str, Any]:
    """What is known of a file. Where an S3 store refuses that without a word, what it says to who
    reads the first byte is raised.
    """
    try:
        info: dict[str, Any] = store.fs.info(store.root)
    except OSError as error:
        if _s3_code(error) not in S3_BARE:
            raise
        store.fs.cat_file(store.root, start=0, end=1)
        info = store.fs.info(
            store.root
        )  # it gives the file: what was wrong, such as credentials, has been mended
    return info


def _is_unnameable(error: Exception) -> bool:
    """Whether it is the name that leads nowhere: a NUL in it, too long, an impossible bucket or
    key, links in a circle.
    """
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return _s3_code(error) in (None, *S3_NO_NAME)
    return not isinstance(error, OSError) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)


def _s3_code(error: Exception) -> str | None:
    """What an S3 store answered. Credentials that expired come as the same exceptions as a key that
    cannot be.
    """
    cause = error.__cause__
    return (
        str(cause.response.get("Error", {}).get("Code")) if isinstance(cause, ClientError) else None
    )


def decode(data: bytes, settings: SegmentSettings) -> NDArray[np.uint8]:
    """RGB uint8 (height, width, 3) of an encoded image. Raises ImageError."""
    if not data:
        raise ImageError(RejectCode.IMAGE_EMPTY, "the image has 0 bytes")
    if len(data) > settings.max_image_bytes:
        raise ImageError(
            RejectCode.IMAGE_TOO_LARGE,
            f"{len(data)} bytes, more than the limit of {settings.max_image_bytes}",
        )
    image = _open(data)
    width, height = image.size
    if width == 0 or height == 0:
        raise ImageError(RejectCode.IMAGE_EMPTY, f"the image is {width} x {height} pixels")
    if width * height > settings.max_image_pixels:
        detail = (
            f"{width} x {height} = {width * height} pixels, more than the limit of"
            f" {settings.max_image_pixels}"
        )
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, detail)
    try:
        image.load()
    except MemoryError:
        if not _fits(width, height):
            raise
        detail = (
            f"{image.format}, {width} x {height}: its headers ask for more memory than so many"
            " pixels need"
        )
        raise ImageError(RejectCode.IMAGE_UNREADABLE, detail) from None
    except Exception as error:
        code = RejectCode.IMAGE_TRUNCATED if _is_truncation(error) else RejectCode.IMAGE_UNREADABLE
        raise ImageError(code, f"{image.format}, {width} x {height}: {clean(str(error))}") from None
    try:
        return _pixels(_upright(image))
    except MemoryError:
        raise
    # Pillow looks at palettes, transparency and tags only now, and raises whatever odd ones lead it
    # to
    except Exception as error:
        detail = f"{image.format}, {width} x {height}: {type(error).__name__}: {clean(str(error))}"
        raise ImageError(RejectCode.IMAGE_UNREADABLE, detail) from None


def pixels_of(data: bytes) -> int:
    """How many pixels an encoded image says that it has; 0 where it cannot be told what it is."""
    try:
        width, height = _open(data).size
    except ImageError:
        return 0
    return int(width * height)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # The pixel limit is ours, checked right after; Pillow's warning would only repeat it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError(RejectCode.IMAGE_TOO_LARGE, str(error)) from None
    except UnidentifiedImageError:
        raise ImageError(
            RejectCode.IMAGE_UNREADABLE,
            f"no known image format; {len(data)} bytes{_looks_like(data)}",
        ) from None
    except Exception as error:
        code = RejectCode.IMAGE_TRUNCATED if _is_truncation(error) else RejectCode.IMAGE_UNREADABLE
        raise ImageError(code, f"{type(error).__name__}: {clean(str(error))}") from None


def _fits(width: int, height: int) -> bool:
    """Whether the machine has the memory that such an image needs. If so, what ran out of memory
    was not its fault but the image's, as Pillow says the same of absurd headers."""
    try:
        np.empty((height, width, 8), np.uint8)
    except MemoryError:
        return False
    return True


def _looks_like(data: bytes) -> str:
    """What is often sent for an image. The bytes themselves are not shown: a detail is read by more
    people than the image.
    """
    kinds = {
        b"%PDF": "PDF",
        b"PK": "a ZIP archive",
        b"\x1f\x8b": "gzip",
        b"<": "markup, as of SVG or a web page",
        b"{": "JSON",
    }
    found = next(
        (kind for start, kind in kinds.items() if data[:64].lstrip().startswith(start)), None
    )
    found = "HEIC or a video" if data[4:8] == b"ftyp" else found
    return f" that look like {found}" if found else ""


def _is_truncation(error: Exception) -> bool:
    return isinstance(error, EOFError) or any(
        word in str(error).lower()
        for word in ("truncated", "unexpected end", "not enough data", "eof")
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says. Broken EXIF is ignored, as viewers do; nothing but the orientation
    is read of it.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except (
        Exception
    ):  # Pillow raises whatever the broken bytes lead it to: SyntaxError, struct.error, ...
        return image
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """RGB uint8 (height, width, 3). In strips, because each step on the way is a copy, and of a
    large image the whole is not had twice.
    """
    width, height = image.size
    white, rows = _white(image), max(1, STRIP_PIXELS // width)
    if rows >= height:
        return np.asarray(_as_rgb(image, white))
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        pixels[top : top + rows] = np.asarray(_as_rgb(strip, white))
    return pixels


def _white(image: Image.Image) -> float | None:
    """The value of white, of grey in more than 8 bits; None of all else. I;16 says how many bits it
    means also of a dark image, modes I and F do not."""
    if image.mode.startswith("I;16"):
        return 65535.0
    if image.mode not in ("I", "F"):
        return None
    brightest: Any = image.getextrema()[1]
    return 65535.0 if brightest > 255 else 255.0


def _as_rgb(image: Image.Image, white: float | None) -> Image.Image:
    """To sRGB: 16-bit grey scaled by its `white` rather than clipped, alpha composited on white,
    other colour profiles converted.
    """
    if white is not None:
        grey = (
            np.clip(np.asarray(image).astype(np.float64) * (255.0 / white), 0, 255)
            .round()
            .astype(np.uint8)
        )
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(image.convert("RGB"), mask=alpha)
        flat.info = image.info
        image = flat
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """A broken profile is ignored, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except MemoryError:
        raise
    except Exception:  # a TIFF's profile may be of any type
        return image
    return image if converted is None else converted
