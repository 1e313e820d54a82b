"""A mask drawn over its image, with a caption, for a person to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

COLOURS: tuple[Colour, ...] = (
    (255, 30, 120),
    (0, 215, 255),
    (255, 200, 0),
    (130, 255, 40),
    (255, 255, 255),
)
DIM = 0.55  # brightness of what is not the object
FILL = 0.12  # opacity of the colour on the object: little, so that a red circle stays red
PIXELS_PER_STROKE = 450  # of the longer side, for each pixel of the outline's width
RING = 9  # pixels around the object that its outline is seen against
INK, FAINT, PAPER = (245, 245, 247), (160, 160, 170), (24, 24, 28)
SIDE = 900  # pixels, longer side of a picture
MARGIN = 2  # pixels left of the words
LEADING = 3  # pixels between lines
TITLE, NOTE = 15, 12  # pixels, sizes of type
TITLE_LINES = 2
CAPTION = 64  # pixels, height


def overlay(
    image_HW3: Pixels, mask_HW: Pixels, title: str, note: str, *, side: int = SIDE
) -> Image.Image:
    """Return a captioned picture, the longer side of its image `side` pixels.

    Args:
        image_HW3: RGB.
        mask_HW: 0 or 1.
        title: first lines of the caption.
        note: last line of the caption.
        side: pixels.
    """
    image, mask = _resized(image_HW3, mask_HW, side)
    picture = Image.fromarray(draw_mask(image, mask))
    page = Image.new("RGB", (picture.width, picture.height + CAPTION), PAPER)
    page.paste(picture, (0, 0))
    _draw_caption(page, picture.height, title, note)
    return page


def _resized(image_HW3: Pixels, mask_HW: Pixels, side: int) -> tuple[Pixels, Pixels]:
    """Return an image and its mask, their longer side `side` pixels."""
    height, width = mask_HW.shape
    scale = side / max(height, width)
    new_width = max(1, round(width * scale))
    new_height = max(1, round(height * scale))
    size = (new_width, new_height)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image_HW3, size, interpolation=interpolation)
    # Interpolated and thresholded, a small mask is enlarged without stairs.
    soft = mask_HW.astype(np.float32)
    soft = cv2.resize(soft, size, interpolation=cv2.INTER_LINEAR)
    mask = soft > 0.5
    return image.astype(np.uint8), mask.astype(np.uint8)


def draw_mask(image_HW3: Pixels, mask_HW: Pixels) -> Pixels:
    """Return an image with the object outlined and all else dimmed.

    An empty mask leaves the image as it is.
    """
    if not mask_HW.any():
        return image_HW3.copy()
    colour = standout(image_HW3, mask_HW)
    canvas = _highlight(image_HW3, mask_HW, colour)
    outlines, _ = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    longer = max(mask_HW.shape)
    width = max(1, round(longer / PIXELS_PER_STROKE))
    # Dark under light: the outline shows on any ground.
    cv2.drawContours(canvas, outlines, -1, PAPER, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas


def _highlight(image_HW3: Pixels, mask_HW: Pixels, colour: Colour) -> Pixels:
    """Return an image with all but the object dimmed, and the object a little coloured."""
    inside = mask_HW.astype(bool)
    light = image_HW3.astype(np.float32)
    light[~inside] *= DIM
    paint = np.array(colour, np.float32)
    light[inside] += FILL * (paint - light[inside])
    pixels: Pixels = light.round().astype(np.uint8)
    return np.ascontiguousarray(pixels)


def standout(image_HW3: Pixels, mask_HW: Pixels) -> Colour:
    """Return the colour that differs most, to the eye, from the object and its surroundings.

    Colours are compared by their distance in Lab.
    """
    side = 2 * RING + 1
    ring = np.ones((side, side), np.uint8)
    inside = mask_HW > 0
    around = (cv2.dilate(mask_HW, ring) > 0) & ~inside
    image_lab = _lab(image_HW3)
    regions = [region for region in (inside, around) if region.any()]
    grounds = [image_lab[region].mean(axis=0) for region in regions]
    palette = _lab(np.array([COLOURS], np.uint8))[0]
    distances = [_least_distance(colour, grounds) for colour in palette]
    best = int(np.argmax(distances))
    return COLOURS[best]


def _lab(rgb: Pixels) -> NDArray[np.float32]:
    lab: NDArray[np.float32] = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    return lab


def _least_distance(colour: NDArray[np.float32], grounds: list[NDArray[np.float32]]) -> float:
    distances = (float(np.linalg.norm(colour - ground)) for ground in grounds)
    return min(distances, default=0.0)


def note_of(scores: Mapping[str, Any]) -> str:
    """Return a caption's note on the scores of a mask row."""
    if scores["status"] == "absent":
        return "absent"
    parts = ["coarse mask"]
    if scores["predicted_iou"] is not None:
        parts = [f"predicted IoU {scores['predicted_iou']:.2f}"]
    if scores["trust"] is not None:
        parts.append(f"trust {scores['trust']:.2f}")
    return "  ·  ".join(parts)


def png_bytes(image: Image.Image) -> bytes:
    """Return an image as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _draw_caption(page: Image.Image, top: int, title: str, note: str) -> None:
    draw = ImageDraw.Draw(page)
    title_font = ImageFont.load_default(size=TITLE)
    note_font = ImageFont.load_default(size=NOTE)
    width = page.width - 2 * MARGIN
    y = top + 4
    for line in _wrap(draw, title, title_font, width):
        draw.text((MARGIN, y), line, fill=INK, font=title_font)
        y += TITLE + LEADING
    last_line = _cut(draw, note, note_font, width)
    draw.text((MARGIN, y + 2), last_line, fill=FAINT, font=note_font)


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """Return at most `TITLE_LINES` lines of at most `width` pixels.

    The last one is cut with an ellipsis if more would follow.
    """
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < TITLE_LINES - 1:
        taken = _words_that_fit(draw, words, font, width)
        lines.append(" ".join(words[:taken]))
        words = words[taken:]
    if words:
        lines.append(" ".join(words))
    return [_cut(draw, line, font, width) for line in lines]


def _words_that_fit(draw: ImageDraw.ImageDraw, words: list[str], font: Font, width: int) -> int:
    """Return how many words fit in a line; one is taken even if it does not."""
    taken = 1
    while taken < len(words):
        longer = " ".join(words[: taken + 1])
        if draw.textlength(longer, font=font) > width:
            break
        taken += 1
    return taken


def _cut(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text.rstrip() + "…"
