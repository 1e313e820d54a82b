"""Tables of a lake in an input: folders whose log says which files are the table now.

Files that the log of a Delta table has removed lie in its folder until they are vacuumed, so that
the folder is no pile of files: the log is read. Iceberg and Hudi tables are refused.
"""

from __future__ import annotations

from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings
from wordmask.tasks.inputs.delta import delta_files
from wordmask.tasks.inputs.listing import Listing, list_input
from wordmask.tasks.inputs.partitions import Partition, partition_of
from wordmask.tasks.storage import Store

DELTA_LOG, HUDI_LOG = "_delta_log", ".hoodie"
ICEBERG_LOG, ICEBERG_SUFFIX = "metadata", ".metadata.json"
ICEBERG_DATA = "data"
NOT_THERE = "not there, though the Delta table's log names it"

Partitions = dict[str, Partition]


def list_tables(settings: RunSettings, output: Store) -> tuple[Listing, Partitions]:
    """Return the files of a run's input that are tables now, and the partition of each by path.

    Raises:
        InputError: as `read_partitions`.
    """
    source = Store.open(settings.input)
    listing = list_input(source, output, settings.segment.allow_roots)
    return read_partitions(listing, source)


def read_partitions(listing: Listing, source: Store) -> tuple[Listing, Partitions]:
    """Return the files that are tables now, and the partition of each by path.

    The partition of a file in a Delta table is that of the log, all others are in folders' names.

    Raises:
        InputError: a Delta table cannot be read, or there is one of Iceberg or Hudi.
    """
    partitions: Partitions = {}
    for path, _ in listing.tables:
        partitions[path] = partition_of(listing.name(path))
    if [*partitions] == [source.root]:
        return listing, partitions  # who names a single file means that file
    for folder in _delta_folders(listing, source):
        listing = _current(listing, source, folder, partitions)
    return listing, partitions


def _current(listing: Listing, source: Store, folder: str, partitions: Partitions) -> Listing:
    """Return a listing without files that are not in a Delta table's current version."""
    version, current = delta_files(source, folder)
    removed = [path for path in partitions if _is_in(path, folder) and path not in current]
    for path in removed:
        del partitions[path]
    why = f"not in version {version} of the Delta table"
    left = listing.left | dict.fromkeys(removed, why)
    tables = [entry for entry in listing.tables if entry[0] in partitions]
    bad = dict(listing.bad)
    for path, partition in current.items():
        if path in partitions:
            partitions[path] = partition
        elif _is_in(path, listing.base) and not listing.is_pattern:
            try:  # it may have been added since the folder was listed
                tables.append((path, source.at(path).info()))
                partitions[path] = partition
            except FileNotFoundError:
                bad[path] = NOT_THERE
    return listing._replace(tables=sorted(tables), left=left, bad=bad)


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _delta_folders(listing: Listing, source: Store) -> list[str]:
    """Return the Delta tables that files of an input belong to."""
    delta = {_parent(path) for path in listing.hidden if _name(path) == DELTA_LOG}
    hudi = {_parent(path) for path in listing.hidden if _name(path) == HUDI_LOG}
    iceberg = {_parent(_parent(path)) for path in listing.left if _is_iceberg_log(path)}
    for folder in _folders_above(listing):
        if source.fs.exists(f"{folder}/{DELTA_LOG}"):
            delta.add(folder)
        elif source.fs.exists(f"{folder}/{HUDI_LOG}"):
            hudi.add(folder)
        elif source.fs.glob(f"{folder}/{ICEBERG_LOG}/*{ICEBERG_SUFFIX}"):
            iceberg.add(folder)
    for folder in sorted(hudi | iceberg - delta):
        kind = "an Iceberg"
        if folder in hudi:
            kind = "a Hudi"
        raise InputError(
            f"input {folder}: is {kind} table: its folder holds files of several versions. Write"
            " the version that you mean as Parquet files of its own, and give these"
        )
    return sorted(delta)


def _is_iceberg_log(path: str) -> bool:
    return path.endswith(ICEBERG_SUFFIX) and _name(_parent(path)) == ICEBERG_LOG


def _folders_above(listing: Listing) -> set[str]:
    """Return the folders that may be tables of which the listing shows a part only."""
    folders = {listing.base}
    if listing.is_pattern:
        folders |= {_parent(path) for path, _ in listing.tables}
    above = {_without_partitions(folder) for folder in folders}
    above |= {_parent(folder) for folder in above if _name(folder) == ICEBERG_DATA}
    if not listing.is_pattern:
        above.discard(listing.base)
    return above


def _without_partitions(folder: str) -> str:
    while "=" in _name(folder):
        folder = _parent(folder)
    return folder


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _name(path: str) -> str:
    return path.rpartition("/")[2]
