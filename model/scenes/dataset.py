"""Scenes and expressions about them, of one split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.compose import OBJECTS, make_scene
from wordmask.model.scenes.expressions import ABSENT_SHARE, Expression, sample_expressions
from wordmask.model.scenes.splits import SPLITS
from wordmask.model.scenes.sprites import SpriteLibrary, load, load_shipped

SIDE = 120  # pixels: the short side that `make_scene` draws by itself is up to so long
SOURCES = ("fetched", "shipped")


@dataclass(frozen=True)
class SceneDataset:
    """Scenes of a split by their seeds, and expressions about them.

    `source` says whose sprites: those that were "fetched", or those that are "shipped". `side` is
    the crop size of the model, in pixels: scenes are about as large.
    """

    source: str
    split: str = "train"
    side: int = SIDE

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source = {self.source!r}: must be one of {', '.join(SOURCES)}")

    @cached_property
    def sprites(self) -> SpriteLibrary:
        """The sprites of the split's styles.

        Raises:
            FileNotFoundError: if they were not fetched yet, with the command that does.
        """
        library = load() if self.source == "fetched" else load_shipped()
        return library.only(SPLITS[self.split].styles)

    def scene(
        self,
        seed: int,
        *,
        height: int | None = None,
        width: int | None = None,
        n_objects: tuple[int, int] = OBJECTS,
    ) -> Scene:
        """Make the scene of a seed; the options are those of `make_scene`."""
        if self.side != SIDE and height is None and width is None:
            height = self.side
        return make_scene(
            seed, sprites=self.sprites, height=height, width=width, n_objects=n_objects
        )

    def expressions(
        self,
        scene: Scene,
        seed: int,
        count: int,
        absent: float = ABSENT_SHARE,
        templates: Iterable[str] | None = None,
    ) -> list[Expression]:
        """Draw up to `count` expressions about a scene.

        Args:
            absent: share of expressions that name nothing.
            templates: some of the split's, instead of all.
        """
        allowed = SPLITS[self.split].templates
        if templates is not None:
            allowed = tuple(name for name in templates if name in allowed)
        return sample_expressions(
            scene, seed, count, nouns=self.sprites.nouns, templates=allowed, absent=absent
        )
