"""Clients of Dask: worker processes on this machine, how to start workers elsewhere, and what is safe to talk to."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wanlab.errors import WanlabError, shorten

HOST = "127.0.0.1"
GPU = "GPU"
"""The resource of a worker that has a GPU; a run takes one."""
_SETUP = "wanlab.sweeps._worker"
_SAFE = ("tls", "inproc")
_CONFIG = {
    "distributed.nanny.pre-spawn-environ": {},  # it would be left in this process' environment
    "distributed.scheduler.worker-ttl": None,  # reading weights may keep a worker from answering for minutes
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.comm.timeouts.connect": "60s",
}


def distributed() -> Any:
    """The package; raises WanlabError where it is missing."""
    try:
        import distributed
    except ImportError as error:
        raise WanlabError(
            f"Sweeps on several processes need the package distributed ({error})",
            remedy='pip install "wanlab[cluster]"',
        ) from None
    return distributed


@contextmanager
def local_cluster(
    workers: int | None = None, gpus: Sequence[int | str] | None = None, threads: int | None = None
) -> Iterator[Any]:
    """Worker processes on this machine, as the `distributed.Client` that `run_sweep(executor=...)` takes.

        with sweeps.local_cluster(gpus=[0, 1]) as client:
            wanlab.run_sweep(grid, out, executor=client)

    gpus: one worker for each, which sees that GPU alone; by default as many as there are workers, and all if their
    number is not given either; [] for workers on the CPU. workers: by default 2 where there are no GPUs.
    threads: of a worker's CPU operations, by default the machine's cores divided among the workers. With other numbers
    of threads sums may be rounded differently: give the same one where bits are compared.

    Workers that die are replaced. They listen on the loopback device only, and end with the context. A script that
    calls this needs `if __name__ == "__main__":`. Raises WanlabError without the package `distributed`.
    """
    dask, (seen, number) = distributed(), _layout(workers, gpus)
    threads = _positive("threads", threads) if threads is not None else max(1, (os.cpu_count() or 1) // number)
    before = dict(os.environ)
    with _config():
        cluster = dask.SpecCluster(
            workers={i: _worker(dask, seen[i] if seen else "", threads) for i in range(number)},
            scheduler={
                "cls": dask.Scheduler,
                "options": {"host": HOST, "port": 0, "dashboard": False, "dashboard_address": f"{HOST}:0"},
            },
            silence_logs=logging.ERROR,
        )
        with cluster, dask.Client(cluster, set_as_default=False) as client:
            try:
                yield client
            finally:
                for name in set(os.environ) - set(before):
                    if name == "PYTHONHASHSEED":  # a Nanny sets it for its children
                        del os.environ[name]


def _config() -> Any:
    import dask

    return dask.config.set(_CONFIG)


def _layout(workers: int | None, gpus: Sequence[int | str] | None) -> tuple[list[str], int]:
    """The names of the GPUs that the workers see, one each, and the number of workers."""
    number = None if workers is None else _positive("workers", workers)
    if gpus is None:
        import torch

        there = torch.cuda.device_count()
        if number is not None and 0 < there < number:
            raise WanlabError(
                f"{number} workers, and {there} GPUs", remedy="Give a worker a GPU; gpus=[] for workers on the CPU"
            )
        gpus = range(there if number is None else min(there, number))
    elif number is not None and gpus and len(gpus) != number:
        raise WanlabError(f"{number} workers for {len(gpus)} GPUs", remedy="Give one of the two, or a worker each")
    return _names(gpus), len(gpus) or number or 2


def _names(gpus: Sequence[int | str]) -> list[str]:
    """GPUs as CUDA_VISIBLE_DEVICES names them; numbers count those that this process sees."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    found = []
    for gpu in gpus:
        if isinstance(gpu, bool) or not isinstance(gpu, int | str) or (isinstance(gpu, int) and gpu < 0):
            raise WanlabError(f"{shorten(gpu)} is no GPU", remedy="Give numbers, such as gpus=[0, 1]")
        if isinstance(gpu, int) and visible and gpu >= len(visible):
            raise WanlabError(f"There is no GPU {gpu}", choices=range(len(visible)))
        found.append(visible[gpu] if isinstance(gpu, int) and visible else str(gpu))
    if len(set(found)) < len(found):
        raise WanlabError(f"A GPU is named twice: {', '.join(found)}", remedy="One worker uses a GPU")
    return found


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WanlabError(f"{name} = {shorten(value)}", remedy="Give a whole number from 1 on")
    return value


def _worker(dask: Any, gpu: str, threads: int) -> dict[str, Any]:
    return {
        "cls": dask.Nanny,
        "options": {
            "nthreads": 1,
            "memory_limit": 0,  # that of a child, such as a notebook's kernel, is not counted
            "host": HOST,
            "dashboard": False,
            "dashboard_address": f"{HOST}:0",
            "resources": {GPU: 1} if gpu else None,
            "env": {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
            "silence_logs": logging.ERROR,
            "preload": [_SETUP],
        },
    }


def slurm_options(folder: str | os.PathLike[str], *, gpus: int = 1) -> dict[str, Any]:
    """Arguments of `dask_jobqueue.SLURMCluster` under which a job is one worker with one GPU, as a sweep needs it.

        cluster = SLURMCluster(queue="gpu", cores=8, memory="64GB", walltime="08:00:00", **sweeps.slurm_options("."))
        cluster.scale(jobs=4)
        with Client(cluster) as client:
            wanlab.run_sweep(grid, out, executor=client)

    The scheduler speaks TLS with a key made for this cluster alone, which its workers read from `folder`, as the user:
    it has to be on the shared disk, as `out` and the weights are. gpus=0: workers on the CPU.
    Raises WanlabError for a folder that is not there, and without what the extra `slurm` installs.
    """
    if not os.path.isdir(folder):
        raise WanlabError(f"There is no folder {shorten(str(folder))}", remedy="Name one on the disk that all share")
    if isinstance(gpus, bool) or gpus not in (0, 1):
        raise WanlabError(
            f"gpus = {shorten(gpus)}", choices=(0, 1), remedy="Ask for more workers: cluster.scale(jobs=4)"
        )
    words = ["--nthreads", "1", "--preload", _SETUP, "--no-dashboard"]
    return {
        "processes": 1,
        "protocol": "tls://",
        "security": _security(),
        "shared_temp_directory": os.path.abspath(folder),
        "job_extra_directives": ["--gres=gpu:1"] if gpus else [],
        "worker_extra_args": [*words, "--resources", f"{GPU}=1"] if gpus else words,
    }


def _security() -> Any:
    try:
        return distributed().Security.temporary()
    except ImportError as error:
        raise WanlabError(f"Keys cannot be made ({error})", remedy='pip install "wanlab[cluster,slurm]"') from None


def checked(client: Any) -> Any:
    """The client, if sweeps may run on it.

    Raises WanlabError for anything else, for workers that run several tasks at once, and for traffic that others could
    write into: what it carries is run as code.
    """
    dask = distributed()
    if not isinstance(client, dask.Client):
        raise WanlabError(
            f"The executor is {shorten(client, 80)}",
            choices=('"local"', "a distributed.Client"),
            remedy="with wanlab.sweeps.local_cluster(2) as client: run_sweep(..., executor=client)",
        )
    if client.asynchronous:
        raise WanlabError("The client is an asynchronous one", remedy="Make it with Client(...), not asynchronous=True")
    info = client.scheduler_info()
    for address in _addresses(client, info):
        if not _is_safe(address):
            raise WanlabError(
                f"Whoever reaches {address} can run code in this sweep's processes",
                remedy='Start scheduler and workers with --host 127.0.0.1, or with TLS: Client("tls://...", '
                "security=...), for a cluster made in Python security=Security.temporary() and protocol='tls://'",
            )
    for worker in info["workers"].values():
        if worker["nthreads"] != 1:
            raise WanlabError(
                f"A worker runs {worker['nthreads']} tasks at once, which would share one GPU",
                remedy="Start workers with --nthreads 1, or threads_per_worker=1",
            )
    return client


def _addresses(client: Any, info: Any) -> Iterator[str]:
    """Where the scheduler and its workers are reached, and where they listen as far as that can be seen."""
    yield client.scheduler.address
    yield info["address"]
    for address, worker in info["workers"].items():
        yield address
        if worker.get("nanny"):
            yield worker["nanny"]
    listeners = getattr(getattr(client.cluster, "scheduler", None), "listeners", ())
    for listener in listeners:
        with contextlib.suppress(AttributeError):  # of a kind that has none
            yield listener.listen_address


def _is_safe(address: str) -> bool:
    scheme, _, rest = address.rpartition("://")
    if scheme in _SAFE:
        return True
    host = rest.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def enter(folder: str) -> None:
    """Go to the folder that the sweep was started in: relative paths and its workspace are found from there."""
    if os.path.isdir(folder):
        if os.getcwd() != folder:
            os.chdir(folder)
        return
    raise WanlabError(f"This worker sees no folder {folder}", remedy="Start the sweep in one that all share")
