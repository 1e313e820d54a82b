"""The artwork of training scenes: fetching it into the cache folder, and listing it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from wordmask.model.scenes.sprite_sources import OnProgress, fetch, ignore_progress
from wordmask.model.scenes.sprites import fetched_path, load


@dataclass(frozen=True, kw_only=True)
class SpritesAtHand:
    """A sprite library on disk.

    `styles` has the name, author, licence, link, licence_link and package of each.
    """

    path: str
    size_bytes: int
    nouns: int
    sprites: int
    styles: list[dict[str, str]]


def fetch_sprites(on_progress: OnProgress = ignore_progress) -> SpritesAtHand:
    """Fetch, check and render the sprites; the errors are those of `sprite_sources.fetch`."""
    fetch(on_progress=on_progress)
    return sprites_at_hand()


def sprites_at_hand() -> SpritesAtHand:
    """Return what has been fetched.

    Raises:
        FileNotFoundError: where nothing has.
    """
    path = fetched_path()
    library = load(path)
    styles = [asdict(style) for style in library.styles]
    return SpritesAtHand(
        path=str(path),
        size_bytes=path.stat().st_size,
        nouns=len(library.nouns),
        sprites=len(library.pixels_NSS4),
        styles=styles,
    )
