"""A night on Slurm: Dask workers as jobs of a batch queue, one GPU each.

Needs dask-jobqueue (`pip install dask-jobqueue`).

A job with several GPUs takes `processes` of SLURMCluster, as many as it has GPUs, two `cores` for
each, and `--gres=gpu:N`: each process takes one of them.

Run on a login node: `python deploy/slurm.py s3://lake/queries/ s3://lake/masks/ --jobs 4
--partition gpu`. Further options go to `wordmask run`. Scheduler, workers and run talk by TLS, with
a certificate that is made for this night: others use the network too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WORDMASK = Path(sys.executable).parent / "wordmask"
FAILURES = {
    # a worker's death is told at once: the run counts them
    "distributed.scheduler.allowed-failures": 0,
    # a worker that starts again in its job takes longer than Dask's 15 seconds
    "distributed.deploy.lost-worker-timeout": "1 day",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--jobs", type=int, default=1, help="Dask workers, each a job with one GPU")
    parser.add_argument("--partition", required=True)
    parser.add_argument("--walltime", default="06:00:00")
    parser.add_argument("--memory", default="64GB", help="of a job")
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path.home(),
        help="folder that this node and those of the jobs see, for certificates",
    )
    args, options = parser.parse_known_args()

    import dask

    with dask.config.set(FAILURES), started(args) as (cluster, certificates):
        cluster.scale(jobs=args.jobs)
        cluster.wait_for_workers(
            1
        )  # the queue's time is none of the run's: it takes up further workers as they come
        command = [
            str(WORDMASK),
            "run",
            args.input,
            args.output,
            "--scheduler",
            cluster.scheduler_address,
            *options,
        ]
        sys.exit(subprocess.call(command, env=os.environ | certificates))


@contextmanager
def started(args: argparse.Namespace) -> Iterator[tuple[Any, dict[str, str]]]:
    """A scheduler on this node without workers, and the variables that name its certificates."""
    from dask_jobqueue import SLURMCluster
    from distributed import Security

    security = Security.temporary()
    with TemporaryDirectory(
        prefix=".wordmask-", dir=args.shared
    ) as private:  # which nobody else can enter
        pems = {
            "CA_FILE": security.tls_ca_file,
            "CLIENT__CERT": security.tls_client_cert,
            "CLIENT__KEY": security.tls_client_key,
        }
        for name, pem in pems.items():
            Path(private, name).write_text(pem)
        with SLURMCluster(
            queue=args.partition,
            cores=2,
            processes=1,
            memory=args.memory,
            walltime=args.walltime,
            job_extra_directives=["--gres=gpu:1"],
            worker_extra_args=["--resources", "GPU=1"],
            job_script_prologue=["export MALLOC_ARENA_MAX=1"],
            protocol="tls://",
            security=security,
            shared_temp_directory=private,
        ) as cluster:
            yield (
                cluster,
                {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(Path(private, name)) for name in pems},
            )


if __name__ == "__main__":
    main()
