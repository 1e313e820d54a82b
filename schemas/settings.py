"""What a run is told. Frozen, checked when made; what changes the masks is hashed into every
shard's identity.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from wordmask.schemas.redaction import redacted

PILLOW_PIXELS = (
    178_956_970  # twice Pillow's MAX_IMAGE_PIXELS: it refuses larger images whatever is set here
)


class Frozen(BaseModel):
    """Base of all settings and records: immutable, and an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )


class Columns(Frozen):
    """Names of the input's columns. Only `image` and `query` must exist."""

    image: str = Field("image", description="struct<bytes, path>, binary, or a URI string")
    query: str = Field("query", description="the referring expression")
    row_id: str = Field(
        "row_id",
        description=(
            "unique id, string or integer; derived from place and content if absent or null"
        ),
    )
    spatial_refs: str = Field(
        "spatial_refs",
        description="list of points (x, y) and boxes (x_min, y_min, x_max, y_max), unit of image",
    )
    mode: str = Field("mode", description='"one" or null')


class SegmentSettings(Frozen):
    """What decides which masks come out."""

    columns: Columns = Columns()
    carry: tuple[str, ...] = Field(
        (), description="further input columns to copy into the masks table"
    )
    refiner_iterations: int | None = Field(
        None,
        ge=0,
        le=100,
        description="refinement steps; 0 keeps the coarse mask, None the model's own",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the model"
    )
    grammar: bool = Field(
        True,
        description="decode well-formed paths only; false is the published engine's free decoding",
    )
    early_stop: bool = Field(
        True, description="leave off refining a mask that has settled; false takes every step"
    )
    deterministic: bool = Field(
        False,
        description="a row's mask does not depend on its neighbours, to the last digit; slower",
    )
    path_style: Literal["exact", "smooth"] = Field(
        "exact", description="outlines of masks: pixel for pixel, or curves"
    )
    max_image_pixels: int = Field(
        100_000_000,
        ge=1,
        le=PILLOW_PIXELS,
        description="larger images are rejected before they are decoded",
    )
    max_image_bytes: int = Field(
        100_000_000, ge=1, description="larger encoded images are rejected"
    )
    allow_https: bool = Field(
        False, description="fetch https:// images, of public servers; http:// never is"
    )
    allow_roots: tuple[str, ...] = Field(
        (),
        description=(
            "folders and URIs below which images may lie, besides the input's own folder or bucket"
        ),
    )

    @field_validator("allow_roots")
    @classmethod
    def _roots_without_credentials(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_without_credentials(root) for root in roots)

    @field_validator("carry")
    @classmethod
    def _carried_once(cls, carry: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in carry if carry.count(name) > 1}):
            raise ValueError(f"names {', '.join(repeated)} more than once; name each column once")
        return carry

    @property
    def method(self) -> dict[str, Any]:
        """What a model is told of how to segment: of the settings all that the answer to a row
        depends on.
        """
        return self.model_dump(
            include={
                "dtype",
                "refiner_iterations",
                "early_stop",
                "grammar",
                "deterministic",
                "path_style",
            }
        )

    @property
    def settings_hash(self) -> str:
        """16 hex digits of everything that can change a row of the output."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class ModelSettings(Frozen):
    """Which model, where. The revision that a run found goes into its shards' identity."""

    model: str = Field("demo", description="demo, a local folder, or a hub repository")
    refiner: str | None = Field(
        None, description="where the refiner's weights are, if not with the model's"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub repository")
    device: str | None = Field(
        None, description="cpu, cuda or cuda:N; None takes a GPU if there is one"
    )


def _without_credentials(uri: str) -> str:
    if redacted(uri) != uri:
        raise ValueError(
            f"{redacted(uri)} holds a password, a signature or another web query, which receipts"
            " would show. Give credentials in the environment, as botocore finds them"
        )
    return uri


def seconds_of_budget(text: str, price_per_hour: float | None) -> float:
    """Seconds of a budget such as "90s", "30m", "2h" or, at a price, "$40". Raises ValueError."""
    found = re.fullmatch(r"(\$?)\s*(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or bool(found[1]) == bool(found[3]) or float(found[2]) == 0:
        raise ValueError(f"--budget {text}: must be a time such as 30m or 2h, or money such as $40")
    if not found[1]:
        return float(found[2]) * {"s": 1, "m": 60, "h": 3600}[found[3]]
    if price_per_hour is None:
        raise ValueError(f"--budget {text}: needs --price-per-hour, what all workers together cost")
    return float(found[2]) / price_per_hour * 3600


class RunSettings(Frozen):
    """One run over one table."""

    input: str = Field(min_length=1, description="Parquet file, folder, glob, or URI of one")
    output: str = Field(
        min_length=1,
        description="folder or URI that masks, rejects, receipts and run summaries go to",
    )
    segment: SegmentSettings = SegmentSettings()
    model: ModelSettings = ModelSettings()
    shard_rows: int = Field(256, ge=1, le=1_000_000, description="most rows of a shard")
    shard_bytes: int = Field(
        256_000_000,
        ge=1,
        description="most bytes of a shard, compressed; a worker holds two shards",
    )
    batch_rows: int = Field(64, ge=1, le=4096, description="most queries decoded together")
    workers: int | None = Field(
        None, ge=1, le=1024, description="worker processes; None: one per GPU, else one per core"
    )
    scheduler: str | None = Field(
        None, description="address of a standing Dask scheduler, tcp://host:port or tls://host:port"
    )
    budget_seconds: float | None = Field(
        None, gt=0, description="begin no shard after so long; what is left is for the next run"
    )
    wait: bool = Field(
        False, description="wait for another run on this output to end, instead of leaving off"
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description=(
            "how often a shard whose worker died is tried again; 0: rows that kill are not"
            " looked for"
        ),
    )

    @field_validator("input", "output")
    @classmethod
    def _places_without_credentials(cls, uri: str) -> str:
        return _without_credentials(uri)
