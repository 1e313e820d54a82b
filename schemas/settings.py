"""Settings of runs: frozen, checked when made, and the one place where an option is declared.

The command line (`wordmask.flows.cli.options`), the flow's parameters, schedules and
docs/options.md are made from these classes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from wordmask.schemas.redaction import redacted, uri_without_credentials

# Pillow refuses more than twice its MAX_IMAGE_PIXELS, whatever is set here.
PILLOW_PIXELS = 178_956_970

# Rows of a shard that may end as model_error whatever their share.
FEW_MODEL_ERRORS = 4


@dataclass(frozen=True)
class Flag:
    """How the command line shows a field, where that does not follow from the field itself."""

    name: str | None = None  # "--image-column"; from the field's name unless given
    metavar: str | None = None
    envvar: str | None = None
    offered: bool = True


# For a field that only code and a flow's parameters set.
NO_FLAG = Flag(offered=False)


class Frozen(BaseModel):
    """Base of all settings and records: immutable, and an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True
    )


class Columns(Frozen):
    """Names of the input's columns. Only `image` and `query` must exist."""

    image: Annotated[str, Flag("--image-column")] = Field(
        "image", description="Column of images: struct<bytes, path>, binary, or URI string."
    )
    query: Annotated[str, Flag("--query-column")] = Field(
        "query", description="Column of expressions."
    )
    row_id: Annotated[str, Flag("--row-id-column")] = Field(
        "row_id", description="Column of unique row ids, if there is one."
    )
    spatial_refs: Annotated[str, NO_FLAG] = Field(
        "spatial_refs",
        description="Column of lists of points (x, y) and boxes (x_min, y_min, x_max, y_max) in"
        " 0..1 of the image.",
    )
    mode: Annotated[str, NO_FLAG] = Field("mode", description='Column of "one" or null.')


class SegmentSettings(Frozen):
    """Settings that decide which masks come out."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Number format of the model."
    )
    refiner_iterations: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Refinement steps; 0 keeps the coarse mask. Default: the model's own.",
    )
    early_stop: bool = Field(
        True, description="Leave off refining masks that have settled, or take every step."
    )
    grammar: bool = Field(
        True, description="Decode well-formed paths only, or freely as published."
    )
    deterministic: bool = Field(
        False,
        description="A row's mask depends on that row alone, to the last digit, whatever is beside"
        " it. Slower.",
    )
    path_style: Literal["exact", "smooth"] = Field(
        "exact",
        description="Outlines of masks: pixel for pixel, or curves (needs"
        " `pip install 'wordmask[smooth]'`).",
    )
    columns: Columns = Columns()
    carry: tuple[str, ...] = Field(
        (), description="Further input column to copy into the masks. May be given again."
    )
    max_image_pixels: int = Field(
        100_000_000, ge=1, le=PILLOW_PIXELS, description="Larger images are rejected."
    )
    max_image_bytes: int = Field(100_000_000, ge=1, description="Larger image files are rejected.")
    allow_https: bool = Field(
        False, description="Fetch images from https:// URIs, of public servers."
    )
    allow_roots: Annotated[tuple[str, ...], Flag("--allow-root")] = Field(
        (),
        description="Folder or URI below which images may lie, besides the input's own. May be"
        " given again.",
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
        """Return the settings of the segmenter: the answer to a row depends on no others."""
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
        """Return 16 hex digits of everything that can change a row of the output."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class ModelSettings(Frozen):
    """The model and where it runs. The revision found is part of the shards' identity."""

    model: str = Field(
        "demo",
        description="demo, a local folder, or a hub repository such as"
        " moondream/moondream3-preview.",
    )
    refiner: str | None = Field(
        None, description="Where the refiner's weights are, if not with the model's."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub repository.")
    device: str | None = Field(
        None, description="cpu, cuda or cuda:N. Default: a GPU if there is one."
    )


def _without_credentials(uri: str) -> str:
    if uri_without_credentials(uri) != uri:
        raise ValueError(
            f"{redacted(uri)} holds a password, a signature or another credential, which receipts"
            " would show. Give credentials in the environment, as botocore finds them"
        )
    return uri


class RunSettings(Frozen):
    """One run over one table."""

    input: str = Field(
        min_length=1, description="Parquet file, folder, glob, or URI of one (s3://...)."
    )
    output: str = Field(
        min_length=1, description="Folder or URI for masks, rejects, receipts and runs."
    )
    model: ModelSettings = ModelSettings()
    segment: SegmentSettings = SegmentSettings()
    shard_rows: int = Field(256, ge=1, le=1_000_000, description="Most rows of a shard.")
    shard_bytes: int = Field(
        256_000_000,
        ge=1,
        description="Most bytes of a shard's rows in the table, compressed. A worker holds two"
        " shards.",
    )
    batch_rows: int = Field(64, ge=1, le=4096, description="Most queries decoded together.")
    workers: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Worker processes. Default: one per GPU, else one per core.",
    )
    scheduler: Annotated[str | None, Flag(metavar="tcp://HOST:PORT")] = Field(
        None, description="Use a standing Dask cluster."
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description="How often a shard is tried again whose worker died. 0: rows that kill are not"
        " looked for.",
    )
    max_model_errors: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of a shard's rows that may end as model_error, above which the shard"
        f" fails; up to {FEW_MODEL_ERRORS} rows always may.",
    )
    max_gaps: int = Field(
        0,
        ge=0,
        description="Most rows that a run may be published without, as their shards failed. They"
        " are named, the exit code is 3, and the next run takes them up.",
    )
    allow_missing_files: bool = Field(
        False,
        description="Also publish where files with more than a tenth of the newest published run's"
        " rows are gone from the input.",
    )
    where: Annotated[tuple[str, ...], Flag(metavar="KEY=VALUE")] = Field(
        (),
        description="Read only files of this partition, in folders KEY=VALUE. May be given again:"
        " of one key any may hold, of several all must.",
    )
    skip_bad_files: bool = Field(
        False,
        description="Leave out input files that cannot be used, and name them, instead of refusing"
        " the run.",
    )
    budget_seconds: Annotated[float | None, NO_FLAG] = Field(
        None,
        gt=0,
        description="End within so many seconds of the flow's start; --budget in `wordmask run`.",
    )
    wait: bool = Field(False, description="Wait for another run on this output to end.")
    check_images: bool = Field(
        False,
        description="Ask for etag or time of each image behind a URI, one request each, and compute"
        " rows anew whose image changed.",
    )
    recompute: bool = Field(
        False, description="Compute all rows anew, also those that need not be. Takes no budget."
    )
    user_agent: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="What https servers are told of who asks; name a contact where they want one."
        " Default: wordmask and its version.",
    )
    requests_per_host: int = Field(
        4, ge=1, le=256, description="Most https requests of a worker to one host at a time."
    )

    @field_validator("where")
    @classmethod
    def _conditions(cls, where: tuple[str, ...]) -> tuple[str, ...]:
        for condition in where:
            key, separator, _ = condition.partition("=")
            if not key or not separator:
                raise ValueError(f"{condition!r}: must be KEY=VALUE, such as split=train")
        return where

    @field_validator("user_agent")
    @classmethod
    def _user_agent_of_one_line(cls, text: str | None) -> str | None:
        if text is not None and not (text.isascii() and text.isprintable()):
            raise ValueError(f"{text!r}: must be one line of ASCII characters")
        return text

    @field_validator("recompute")
    @classmethod
    def _recompute_without_budget(cls, recompute: bool, info: ValidationInfo) -> bool:
        if recompute and info.data.get("budget_seconds") is not None:
            raise ValueError(
                "takes no budget: every run would begin again at the first row. Leave the budget"
                " out, or give a new output, which a budget fills night by night"
            )
        return recompute

    @field_validator("input", "output")
    @classmethod
    def _uris_without_credentials(cls, uri: str) -> str:
        return _without_credentials(uri)
