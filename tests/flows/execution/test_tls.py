"""A standing Dask cluster over TLS, with the variables for certificates that the docs name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster
from distributed.security import Security

from tests.support.fakes import FACTORY, REVISION
from tests.support.tables import png, write_input
from wordmask.flows.execution.cluster import TLS_VARIABLES, ClusterError, open_cluster
from wordmask.flows.segment import segment
from wordmask.schemas.settings import RunSettings


def certificates(folder: Path) -> dict[str, Any]:
    """Return Dask's configuration where the environment names a fresh certificate for everyone.

    The certificate is its own authority.
    """
    made = Security.temporary()
    folder.mkdir()
    environ = {}
    for variable, pem in zip(
        TLS_VARIABLES, (made.tls_ca_file, made.tls_client_cert, made.tls_client_key), strict=True
    ):
        file = folder / f"{variable.lower()}.pem"
        file.write_text(pem)
        environ |= {
            variable.replace("CLIENT", role): str(file)
            for role in ("SCHEDULER", "WORKER", "CLIENT")
        }
    return dask.config.merge(dask.config.config, dask.config.collect(paths=[], env=environ))


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return certificates(tmp_path_factory.mktemp("tls") / "owner")


@pytest.fixture(scope="module")
def encrypted(owner: dict[str, Any]) -> Iterator[str]:
    options = {
        "n_workers": 1,
        "threads_per_worker": 2,
        "processes": False,
        "dashboard_address": None,
        "host": "127.0.0.1",
    }
    with dask.config.set(owner):
        cluster = LocalCluster(protocol="tls://", security=Security(), **options)
    with cluster:
        yield cluster.scheduler_address


@pytest.mark.usefixtures("prefect_api")
def test_a_run_through_an_encrypted_scheduler(
    tmp_path: Path, encrypted: str, owner: dict[str, Any]
) -> None:
    assert encrypted.startswith("tls://")
    table = write_input(
        tmp_path / "in.parquet", [{"image": png(i), "query": f"thing {i}"} for i in range(4)]
    )
    settings = RunSettings(
        input=table, output=str(tmp_path / "out"), shard_rows=2, scheduler=encrypted
    )
    with dask.config.set(owner):
        assert segment(settings, factory=FACTORY).masks == 4


def test_a_client_without_the_right_certificate_is_told_which_variables_name_it(
    tmp_path: Path, encrypted: str
) -> None:
    stranger = certificates(tmp_path / "stranger")
    for config, why in (
        ({}, "no certificate of the client is named"),
        (stranger, "certificate does not match"),
    ):
        with pytest.raises(
            ClusterError, match=f"{encrypted}: .*{why}.*Check {', '.join(TLS_VARIABLES)}"
        ):
            refused(encrypted, config)
    with pytest.raises(ClusterError, match="one with TLS is named tls://HOST:PORT"):
        refused(encrypted.replace("tls://", "tcp://"), {})


def refused(address: str, config: dict[str, Any]) -> None:
    with (
        dask.config.set(config),
        open_cluster(RunSettings(input="in", output="out", scheduler=address), REVISION, FACTORY),
    ):
        pass
