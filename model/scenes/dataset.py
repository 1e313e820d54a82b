"""Scenes with something asked about them, of the kind that a stage trains on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from wordmask.model.scenes.canvas import Scene
from wordmask.model.scenes.compose import make_scene
from wordmask.model.scenes.expressions import ABSENT_SHARE, Expression, sample_expressions
from wordmask.model.scenes.splits import SPLITS
from wordmask.model.scenes.sprites import SpriteLibrary, load, load_shipped

SIDE = 120  # pixels: what `make_scene` draws by itself is up to so high or wide
SOURCES = ("fetched", "shipped")


@dataclass(frozen=True)
class SceneDataset:
    """Draws scenes and questions. `source`: sprites that were "fetched", or those that are
    "shipped". `side`: the crop size of the model that is asked, which scenes are about as large
    as."""

    source: str
    split: str = "train"
    side: int = SIDE

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source = {self.source!r}: must be one of {', '.join(SOURCES)}")

    @cached_property
    def sprites(self) -> SpriteLibrary:
        """The sprites of the split's styles. FileNotFoundError, with what to do, if they were not
        fetched yet.
        """
        return (load() if self.source == "fetched" else load_shipped()).only(
            SPLITS[self.split].styles
        )

    def scene(self, seed: int, **options: Any) -> Scene:
        """The scene of a seed, see `make_scene`."""
        if self.side != SIDE and not options.keys() & {"height", "width"}:
            options["height"] = self.side
        return make_scene(seed, sprites=self.sprites, **options)

    def expressions(
        self,
        scene: Scene,
        seed: int,
        count: int,
        absent: float = ABSENT_SHARE,
        templates: Iterable[str] | None = None,
    ) -> list[Expression]:
        """Up to `count` expressions, of which a share of `absent` names nothing. `templates`: some
        of the split's, instead of all.
        """
        allowed = SPLITS[self.split].templates
        templates = (
            allowed if templates is None else [name for name in templates if name in allowed]
        )
        return sample_expressions(
            scene, seed, count, nouns=self.sprites.nouns, templates=templates, absent=absent
        )
