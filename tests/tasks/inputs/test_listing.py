"""Which files of an input are read, and what is told of the others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from tests.support.tables import png, write_input
from wordmask.schemas.queries import InputError
from wordmask.schemas.settings import RunSettings, SegmentSettings
from wordmask.tasks.storage import Store
from wordmask.tasks.table.footers import Input, input_files


def table(path: Path, query: str = "a thing") -> Path:
    write_input(path, [{"image": png(), "query": query}])
    return path


def listed(input: Path | str, *roots: str, refuse: bool = True, output: str = "/nowhere") -> Input:
    settings = RunSettings(
        input=str(input), output=output, segment=SegmentSettings(allow_roots=roots)
    )
    return input_files(settings, Store.open(output), refuse=refuse)


def names(found: Input) -> list[str]:
    return [file.name for file in found.files]


def told(found: Input) -> dict[str, tuple[str, ...]]:
    return {each.why: each.names for each in found.left_out}


def link(path: Path, target: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def test_links_into_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    for number in range(2):
        table(tmp_path / f"repo/blobs/{number}")
        link(tmp_path / f"repo/snapshots/5f2a/data/{number}.parquet", f"../../../blobs/{number}")
    table(tmp_path / "repo/snapshots/5f2a/data/plain.parquet")
    found = listed(tmp_path / "repo/snapshots/5f2a")
    assert names(found) == ["data/0.parquet", "data/1.parquet", "data/plain.parquet"]
    assert found.left_out == ()


@pytest.mark.parametrize("pattern", ["in", "in/*", "in/**", "in/*/*.parquet"])
def test_links_to_folders_are_followed_below_allowed_roots_only(
    tmp_path: Path, pattern: str
) -> None:
    table(tmp_path / "far/deep/a.parquet")
    table(tmp_path / "in/own/b.parquet")
    link(tmp_path / "in/link", tmp_path / "far/deep")
    found = listed(tmp_path / pattern)
    assert names(found) == ["own/b.parquet"]
    left = "link/a.parquet" if pattern == "in/*/*.parquet" else "link"
    assert told(found) == {
        "links that lead out of the input; name their folder with --allow-root": (left,)
    }
    allowed = listed(tmp_path / pattern, str(tmp_path / "far"))
    assert names(allowed) == ["link/a.parquet", "own/b.parquet"]


@pytest.mark.parametrize("pattern", ["in", "in/**"])
def test_no_file_is_read_twice_and_no_circle_without_end(tmp_path: Path, pattern: str) -> None:
    table(tmp_path / "in/day/a.parquet")
    link(tmp_path / "in/latest", "day")
    link(tmp_path / "in/day/up", "..")
    link(tmp_path / "in/b.parquet", "day/a.parquet")
    link(tmp_path / "far/self", "../far")
    link(tmp_path / "in/far", "../far")
    found = listed(tmp_path / pattern, str(tmp_path))
    assert names(found) == ["day/a.parquet"]
    assert told(found) == {
        "links to what is read under its own name": ("b.parquet", "day/up", "latest"),
        "links that lead in a circle": ("far/self",),
    }


def test_a_link_and_its_target_that_a_pattern_names_are_one_file(tmp_path: Path) -> None:
    table(tmp_path / "in/a.parquet")
    link(tmp_path / "in/b.parquet", "a.parquet")
    assert names(listed(tmp_path / "in/*.parquet")) == ["a.parquet"]
    assert names(listed(tmp_path / "in/b*")) == ["b.parquet"]
    table(tmp_path / "days/1/c.parquet")
    link(tmp_path / "days/last", "1")
    assert names(listed(tmp_path / "days/*/c.parquet")) == ["1/c.parquet"]


def test_a_table_behind_a_link_that_leads_nowhere_is_a_bad_file(tmp_path: Path) -> None:
    table(tmp_path / "in/a.parquet")
    link(tmp_path / "in/b.parquet", ".git/annex/objects/x/1f")
    with pytest.raises(InputError, match=r"b\.parquet: .* leads nowhere .* `git annex get`"):
        listed(tmp_path / "in")


def test_a_link_whose_file_changed_is_another_file(tmp_path: Path) -> None:
    table(tmp_path / "blobs/1")
    link(tmp_path / "in/a.parquet", tmp_path / "blobs/1")
    before = listed(tmp_path / "in").files
    os.utime(tmp_path / "blobs/1", (1, 1))
    assert listed(tmp_path / "in").files[0].fingerprint != before[0].fingerprint


@pytest.mark.parametrize("place", ["local", "s3"])
def test_parquet_is_known_by_its_bytes_whatever_the_name(
    tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    for name in ("part-00000", "UPPER.PARQUET", "x.parq", "y.snappy"):
        table(tmp_path / "in" / name)
    (tmp_path / "in/cut").write_bytes((tmp_path / "in/x.parq").read_bytes()[:-9])
    (tmp_path / "in/readme").write_text("rows")
    (tmp_path / "in/empty").touch()
    (tmp_path / "in/photo.jpg").write_bytes(b"\xff\xd8\xff")
    input = str(tmp_path / "in")
    if place == "s3":
        input = uploaded(tmp_path / "in", f"{request.getfixturevalue('s3')}/listing-bytes")
    found = listed(input)
    assert names(found) == ["UPPER.PARQUET", "part-00000", "x.parq", "y.snappy"]
    assert told(found) == {
        "truncated, or still being written: it begins as Parquet, but does not end so": ("cut",),
        "not Parquet": ("readme",),
        "empty: it has 0 bytes": ("empty",),
        "no tables by their names (.jpg)": ("photo.jpg",),
    }


def uploaded(folder: Path, uri: str) -> str:
    store = Store.open(uri)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.write_bytes(path.relative_to(folder).as_posix(), path.read_bytes())
    return uri


def test_hidden_files_and_folders_are_skipped_in_silence(tmp_path: Path) -> None:
    for name in ("a.parquet", "_tmp/b.parquet", ".c.parquet", "_d.parquet", "_key=1/e.parquet"):
        table(tmp_path / name)
    for name in ("_SUCCESS", ".a.parquet.crc", "f.parquet._COPYING_", "sub_$folder$"):
        (tmp_path / name).touch()
    found = listed(tmp_path)
    assert names(found) == ["_key=1/e.parquet", "a.parquet"]
    assert found.left_out == ()


def test_what_is_left_out_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    os.mkfifo(tmp_path / "pipe.parquet")
    found = listed(tmp_path)
    assert [str(each) for each in found.left_out] == [
        "5 files, no tables by their names (.txt): 0.txt, 1.txt, 2.txt, ...",
        "1 file, pipes, sockets or devices: pipe.parquet",
    ]


def test_an_input_without_a_table_says_what_there_is(tmp_path: Path) -> None:
    link(tmp_path / "in/a.parquet", table(tmp_path / "far/a.parquet"))
    with pytest.raises(InputError, match=r"no Parquet file there; 1 file, links .* --allow-root"):
        listed(tmp_path / "in")


def test_files_that_dvc_has_not_fetched_are_told_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.dvc").write_text("outs:\n")
    with pytest.raises(InputError, match=r"DVC; fetch .* `dvc pull`: a\.parquet\.dvc"):
        listed(tmp_path)


def test_records_of_runs_in_the_input_are_not_told(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    index = f"indexes/{'0f' * 16}.parquet"
    for name in ("runs/1.json", "receipts/ab.json", "leases/0000000001.json", index):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = listed(tmp_path, output=str(tmp_path))
    assert names(found) == ["a.parquet"]
    assert found.left_out == ()


BAD = {
    "empty.parquet": (b"", "empty: it has 0 bytes"),
    "lfs.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "`git lfs pull`"),
    "annex.parquet": (b"/annex/objects/SHA256E-s1--0", "`git annex get`"),
    "csv.parquet": (b"image,query\n", "it is not Parquet"),
    "gzip.parquet": (b"\x1f\x8b\x08\0", "gzip, not Parquet"),
    "cut.parquet": (None, "truncated, or still being written"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_among_good_ones_is_named_with_its_remedy(tmp_path: Path, name: str) -> None:
    good = table(tmp_path / "good.parquet").read_bytes()
    data, words = BAD[name]
    (tmp_path / name).write_bytes(good[:-20] if data is None else data)
    with pytest.raises(InputError, match=rf"{name}: .*{words}.* --skip-bad-files"):
        listed(tmp_path)
    found = listed(tmp_path, refuse=False)
    assert [(file.name, bool(file.problem)) for file in found.files] == sorted(
        [("good.parquet", False), (name, True)]
    )


def test_a_folder_that_may_not_be_listed_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "a.parquet")
    (tmp_path / "shut").mkdir()
    listdir = os.listdir

    def refuse(path: str) -> list[str]:
        if path.endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)  # root may list every folder
    with pytest.raises(InputError, match=r"shut: .* cannot be listed \(Permission denied\)"):
        listed(tmp_path)


def test_a_pattern_of_any_depth_reads_the_folders_that_it_matches(tmp_path: Path) -> None:
    for name in ("d.parquet", "d1/x.parquet", "far/d2/d3/y.parquet", "other/z.parquet"):
        table(tmp_path / "in" / name)
    link(tmp_path / "in/other/gone.parquet", "nowhere")
    found = listed(tmp_path / "in/**/d*")
    assert names(found) == ["d.parquet", "d1/x.parquet", "far/d2/d3/y.parquet"]


def test_a_link_that_a_pattern_names_is_read_where_its_target_is_not(tmp_path: Path) -> None:
    table(tmp_path / "in/day/store/x.parquet")
    link(tmp_path / "in/day/current/x.parquet", "../store/x.parquet")
    link(tmp_path / "in/day/again", "..")
    table(tmp_path / "far/current/y.parquet")
    link(tmp_path / "in/link", "../far")
    found = listed(tmp_path / "in/**/current/*.parquet", str(tmp_path))
    assert names(found) == ["day/current/x.parquet", "link/current/y.parquet"]
    assert names(listed(tmp_path / "in/**/current/*")) == ["day/current/x.parquet"]


@pytest.mark.parametrize("pattern", ["in/a*", "in/**/a*"])
def test_a_link_from_one_matched_folder_into_another_is_read_once(
    tmp_path: Path, pattern: str
) -> None:
    table(tmp_path / "in/a2/x.parquet")
    link(tmp_path / "in/a1/y.parquet", "../a2/x.parquet")
    link(tmp_path / "in/a2/up", "..")
    found = listed(tmp_path / pattern)
    assert names(found) == ["a2/x.parquet"]
    assert told(found)["links to what is read under its own name"] == ("a1/y.parquet",)


def test_names_that_are_not_utf8_can_be_told(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).touch()
    (left,) = listed(tmp_path).left_out
    assert "caf" in left.model_dump_json()
    assert left.names == (r"caf\xe9.jpg",)
    os.rename(tmp_path / "a.parquet", tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    table(tmp_path / "a.parquet")
    link(tmp_path / os.fsdecode(b"\xe9t\xe9.parquet"), os.fsdecode(b"far/\xe9t\xe9"))
    linked, _, named = listed(tmp_path, refuse=False).files
    assert [linked.name, named.name] == [r"\xe9t\xe9.parquet", r"caf\xe9.parquet"]
    assert "rename it" in str(named.problem)
    for file in (linked, named):
        f"{file.uri} {file.problem}".encode()


def test_a_bad_file_of_another_partition_refuses_no_run(tmp_path: Path) -> None:
    table(tmp_path / "day=1/a.parquet")
    link(tmp_path / "day=2/b.parquet", "nowhere")
    settings = RunSettings(input=str(tmp_path), output="/nowhere", where=("day=1",))
    assert names(input_files(settings, Store.open("/nowhere"))) == ["day=1/a.parquet"]
    link(tmp_path / "day=1/c.parquet", "nowhere")
    with pytest.raises(InputError, match=r"day=1/c\.parquet"):
        input_files(settings, Store.open("/nowhere"))


def test_a_file_that_may_not_be_read_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.parquet", "shut.parquet"):
        table(tmp_path / name)
    open_file = LocalFileSystem.open

    def refuse(fs: LocalFileSystem, path: str, *how: Any, **options: Any) -> Any:
        if path.endswith("shut.parquet"):
            raise PermissionError(13, "Permission denied", path)
        return open_file(fs, path, *how, **options)

    monkeypatch.setattr(LocalFileSystem, "open", refuse)  # root may read every file
    with pytest.raises(InputError, match=r"shut\.parquet: .* not be read \(Permission"):
        listed(tmp_path)
    good, bad = listed(tmp_path, refuse=False).files
    assert (good.problem, bad.readable) == (None, False)
