"""The artwork of training scenes: fetched into the cache folder, and what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from wordmask.model.scenes.sprite_sources import fetch
from wordmask.model.scenes.sprites import fetched_path, load


@dataclass(frozen=True, kw_only=True)
class SpritesAtHand:
    """A sprite library on disk. `styles`: name, author, licence, link, licence_link and package of
    each.
    """

    path: str
    size_bytes: int
    nouns: int
    sprites: int
    styles: list[dict[str, str]]


def fetch_sprites(tell: Callable[[str, int, int], object] | None = None) -> SpritesAtHand:
    """Fetch, check and render them; what came of it. Errors as in
    `model.train.sprite_sources.fetch`.
    """
    fetch(tell=tell)
    return sprites_at_hand()


def sprites_at_hand() -> SpritesAtHand:
    """What has been fetched. FileNotFoundError where nothing has."""
    path: Path = fetched_path()
    library = load(path)
    styles = [asdict(style) for style in library.styles]
    return SpritesAtHand(
        path=str(path),
        size_bytes=path.stat().st_size,
        nouns=len(library.nouns),
        sprites=len(library.pixels_NSS4),
        styles=styles,
    )
