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
    height, width = image_HW3.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = cv2.resize(image_HW3, size, interpolation=interpolation).astype(np.uint8)
    # Interpolated and thresholded, a small mask is enlarged without stairs.
    soft_mask = cv2.resize(mask_HW.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    mask = (soft_mask > 0.5).astype(np.uint8)
    page = Image.new("RGB", (size[0], size[1] + CAPTION), PAPER)
    page.paste(Image.fromarray(draw_mask(image, mask)), (0, 0))
    _draw_caption(page, size[1], title, note)
    return page


def draw_mask(image_HW3: Pixels, mask_HW: Pixels) -> Pixels:
    """Return an image with the object outlined and all else dimmed.

    An empty mask leaves the image as it is.
    """
    if not mask_HW.any():
        return image_HW3.copy()
    colour = standout(image_HW3, mask_HW)
    inside = mask_HW.astype(bool)
    light = image_HW3.astype(np.float32)
    light[~inside] *= DIM
    light[inside] += FILL * (np.array(colour, np.float32) - light[inside])
    canvas: Pixels = np.ascontiguousarray(light.round().astype(np.uint8))
    outlines, _ = cv2.findContours(mask_HW, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask_HW.shape) / PIXELS_PER_STROKE))
    # Dark under light: the outline shows on any ground.
    cv2.drawContours(canvas, outlines, -1, PAPER, width + 2, cv2.LINE_AA)
    cv2.drawContours(canvas, outlines, -1, colour, width, cv2.LINE_AA)
    return canvas


def standout(image_HW3: Pixels, mask_HW: Pixels) -> Colour:
    """Return the colour that differs most, to the eye, from the object and its surroundings.

    Colours are compared by their distance in Lab.
    """
    ring = np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)
    around = (cv2.dilate(mask_HW, ring) > 0) & (mask_HW == 0)
    image_lab = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2LAB).astype(np.float32)
    regions = [region for region in (mask_HW > 0, around) if region.any()]
    grounds = [image_lab[region].mean(axis=0) for region in regions]
    palette = cv2.cvtColor(np.array([COLOURS], np.uint8), cv2.COLOR_RGB2LAB)[0]
    distances = [_least_distance(colour, grounds) for colour in palette.astype(np.float32)]
    return COLOURS[int(np.argmax(distances))]


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
    draw.text((MARGIN, y + 2), _cut(draw, note, note_font, width), fill=FAINT, font=note_font)


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """Return at most `TITLE_LINES` lines of at most `width` pixels.

    The last one is cut with an ellipsis if more would follow.
    """
    lines: list[str] = []
    words = text.split()
    while words and len(lines) < TITLE_LINES - 1:
        taken = _words_that_fit(draw, words, font, width)
        lines.append(_cut(draw, " ".join(words[:taken]), font, width))
        words = words[taken:]
    if words:
        lines.append(_cut(draw, " ".join(words), font, width))
    return lines


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
