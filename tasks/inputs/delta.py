"""The files of a Delta table at its current version, by its log."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
from botocore.session import get_session  # type: ignore[import-untyped]

from wordmask.schemas.queries import InputError
from wordmask.tasks.inputs.partitions import Partition
from wordmask.tasks.storage import Store, storage_options

if TYPE_CHECKING:
    from deltalake import DeltaTable

NEEDS_LIBRARY = "reading it needs `pip install 'wordmask[delta]'`"
REWRITE = "write the version that you mean as Parquet files of its own"


def delta_files(source: Store, folder: str) -> tuple[int, dict[str, Partition]]:
    """Return the current version of a Delta table, and the partitions of its files by path.

    Args:
        source: a store of its file system.
        folder: its path there.

    Raises:
        InputError: the library is not installed, the log cannot be read, or it says that rows of
            files are deleted or columns renamed, which the files by themselves do not show.
    """
    table = _open(source, folder)
    _require_plain(table, folder)
    actions = pa.table(table.get_add_actions(flatten=False))
    paths = [_path_of(name, folder) for name in actions.column("path").to_pylist()]
    return table.version(), dict(zip(paths, _partitions(actions), strict=True))


def _open(source: Store, folder: str) -> DeltaTable:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError
    except ImportError:
        raise InputError(f"input {folder}: is a Delta table; {NEEDS_LIBRARY}") from None
    place = folder
    if not source.is_local:
        place = source.at(folder).uri
    try:
        return DeltaTable(place, storage_options=_store_options(place))
    except (DeltaError, TableNotFoundError, OSError) as error:
        raise InputError(
            f"input {folder}: is a Delta table whose log cannot be read ({error}). Mend it, or"
            f" {REWRITE}"
        ) from None


def _store_options(uri: str) -> dict[str, str] | None:
    """Return what deltalake needs to reach a store as s3fs does, None for other stores."""
    of_s3fs = storage_options(uri)
    if not of_s3fs:
        return None
    session = get_session()
    options = {"AWS_REGION": session.get_config_variable("region") or "us-east-1"}
    if of_s3fs["endpoint_url"]:
        options |= {"AWS_ENDPOINT_URL": of_s3fs["endpoint_url"], "AWS_ALLOW_HTTP": "true"}
    credentials = session.get_credentials()
    if credentials is None:
        return options | {"AWS_SKIP_SIGNATURE": "true"}
    keys = credentials.get_frozen_credentials()
    options |= {"AWS_ACCESS_KEY_ID": keys.access_key, "AWS_SECRET_ACCESS_KEY": keys.secret_key}
    if keys.token:
        options["AWS_SESSION_TOKEN"] = keys.token
    return options


def _require_plain(table: DeltaTable, folder: str) -> None:
    """Check that the table is the rows and columns of its files, as they are."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise InputError(
            f"input {folder}: is a Delta table with column mapping ({mapping}): its files have"
            f" other names of columns. {REWRITE.capitalize()}"
        )
    features = table.protocol().reader_features or ()
    if "deletionVectors" in features and _has_deleted_rows(table):
        raise InputError(
            f"input {folder}: is a Delta table with deletion vectors: its files hold deleted rows."
            f" Run REORG TABLE ... APPLY (PURGE) on it, or {REWRITE}"
        )


def _has_deleted_rows(table: DeltaTable) -> bool:
    from deltalake.exceptions import DeltaError

    try:
        return any(batch.num_rows for batch in table.deletion_vectors())
    except DeltaError:  # of one that cannot be read
        return True


def _path_of(name: str, folder: str) -> str:
    """Return the path of a file by its name in the log, which is encoded as in a URL."""
    name = unquote(name)
    if "://" in name or name.startswith("/"):
        raise InputError(
            f"input {folder}: is a Delta table whose log names a file outside of it ({name}), as"
            f" shallow clones do. {REWRITE.capitalize()}"
        )
    return f"{folder}/{name}"


def _partitions(actions: pa.Table) -> list[dict[str, str | None]]:
    """Return the partition of each file as text, whatever type the table gives its columns."""
    if "partition" not in actions.column_names:
        return [{} for _ in range(actions.num_rows)]
    partition = actions.column("partition").combine_chunks()
    texts = {
        field.name: partition.field(field.name).cast(pa.string()).to_pylist()
        for field in partition.type
    }
    return [{key: values[row] for key, values in texts.items()} for row in range(len(partition))]
