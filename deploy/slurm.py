"""A night on Slurm: Dask workers as jobs of a batch queue, one GPU each, by dask-jobqueue (`pip install dask-jobqueue`).

Run on a login node: `python deploy/slurm.py s3://lake/queries/ s3://lake/masks/ --jobs 4 --partition gpu`. Further options go to
`wordmask run`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

WORDMASK = Path(sys.executable).parent / "wordmask"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--jobs", type=int, default=1, help="Dask workers, each a job with one GPU")
    parser.add_argument("--partition", required=True)
    parser.add_argument("--walltime", default="06:00:00")
    parser.add_argument("--memory", default="64GB", help="of a job")
    args, options = parser.parse_known_args()

    from dask_jobqueue import SLURMCluster

    with SLURMCluster(
        queue=args.partition,
        cores=2,
        processes=1,
        memory=args.memory,
        walltime=args.walltime,
        job_extra_directives=["--gres=gpu:1"],
        worker_extra_args=["--resources", "GPU=1"],
        job_script_prologue=["export MALLOC_ARENA_MAX=1"],
    ) as cluster:
        cluster.scale(jobs=args.jobs)
        cluster.wait_for_workers(1)  # the queue's time is none of the run's: it takes up further workers as they come
        command = [str(WORDMASK), "run", args.input, args.output, "--scheduler", cluster.scheduler_address, *options]
        sys.exit(subprocess.call(command))


if __name__ == "__main__":
    main()
