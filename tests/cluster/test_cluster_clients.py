"""Clients of Dask: what local workers listen on and see, which clusters are refused, what a job of Slurm runs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import distributed
import psutil
import pytest
import torch

import wanlab
from tests.cluster.points import children, spec_of
from wanlab import sweeps
from wanlab.errors import WanlabError
from wanlab.models import Model
from wanlab.sweeps import _clients


def test_all_listen_on_the_loopback_device(client: Any) -> None:
    info = client.scheduler_info()
    assert len(info["workers"]) == 2
    for pid in {os.getpid(), *children()}:
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in ("127.0.0.1", "::1")


def test_workers_see_what_they_should(client: Any, tmp_path: Path) -> None:
    def see() -> tuple[str | None, str | None, int]:
        return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()

    assert set(client.run(see).values()) == {("", "1", 1)}
    assert "PYTHONHASHSEED" not in os.environ or os.environ["PYTHONHASHSEED"]
    assert {w["nthreads"] for w in client.scheduler_info()["workers"].values()} == {1}


@pytest.mark.parametrize(
    ("address", "is_safe"),
    [
        ("tcp://127.0.0.1:8786", True),
        ("tcp://127.8.9.1:1", True),
        ("tcp://[::1]:8786", True),
        ("tcp://localhost:8786", True),
        ("tls://203.0.113.9:8786", True),
        ("inproc://203.0.113.9/1/2", True),
        ("tcp://0.0.0.0:8786", False),
        ("tcp://[::]:8786", False),
        ("tcp://203.0.113.9:8786", False),
        ("tcp://127.0.0.1.example.org:8786", False),
        ("ucx://203.0.113.9:1", False),
        ("ws://203.0.113.9:1", False),
        ("", False),
    ],
)
def test_addresses(address: str, is_safe: bool) -> None:
    assert _clients._is_safe(address) is is_safe


def test_a_scheduler_that_anybody_reaches_is_refused(tiny: Model, tmp_path: Path) -> None:
    grid = wanlab.grid(spec_of(tiny), seed=[1, 2])
    options = {"cls": distributed.Scheduler, "options": {"host": "0.0.0.0", "dashboard_address": "127.0.0.1:0"}}
    with (
        distributed.SpecCluster(workers={}, scheduler=options, silence_logs=logging.ERROR) as cluster,
        distributed.Client(cluster, set_as_default=False) as open_to_all,
        pytest.raises(WanlabError, match=r"can run code.*tls"),
    ):
        sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=open_to_all)


def test_a_worker_of_several_threads_is_refused(tmp_path: Path) -> None:
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster, set_as_default=False) as wide,
        pytest.raises(WanlabError, match=r"2 tasks at once.*nthreads 1"),
    ):
        _clients.checked(wide)


def test_mistakes_say_what_is_right(near: Any, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = wanlab.grid(spec_of(tiny), seed=[1])
    for executor in ("dask", 3, "tcp://127.0.0.1:1"):
        with pytest.raises(WanlabError, match="local_cluster"):
            sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=executor)
    with pytest.raises(WanlabError, match="3 workers for 2 GPUs"), sweeps.local_cluster(3, gpus=[0, 1]):
        pass
    with pytest.raises(WanlabError, match="twice"), sweeps.local_cluster(gpus=[0, 0]):
        pass
    with pytest.raises(WanlabError, match="workers = 0"), sweeps.local_cluster(0):
        pass
    with pytest.raises(WanlabError, match="threads = True"), sweeps.local_cluster(1, gpus=[], threads=True):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(WanlabError, match=r'pip install "wanlab\[cluster\]"'):
        sweeps.run_sweep(grid, tmp_path, model=tiny, device="cpu", executor=near)


def test_gpus_are_counted_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-1b, 5")
    assert _clients._layout(None, [0, 2]) == (["2", "5"], 2)
    assert _clients._layout(None, ["GPU-77"]) == (["GPU-77"], 1)
    with pytest.raises(WanlabError, match="no GPU 3"):
        _clients._layout(None, [3])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert _clients._layout(None, None) == (["2", "GPU-1b", "5"], 3)
    assert _clients._layout(2, None) == (["2", "GPU-1b"], 2)
    assert _clients._layout(2, []) == ([], 2)
    with pytest.raises(WanlabError, match="4 workers, and 3 GPUs"):
        _clients._layout(4, None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _clients._layout(None, None) == ([], 2)


def test_a_job_of_slurm_is_one_worker_with_one_gpu(tmp_path: Path) -> None:
    """The script that dask-jobqueue would submit; its scheduler listens with TLS."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    options = {"queue": "gpu", "cores": 8, "memory": "64GB", "walltime": "08:00:00", "silence_logs": logging.ERROR}
    with jobqueue.SLURMCluster(**options, **sweeps.slurm_options(tmp_path)) as cluster:
        *directives, command = (line for line in cluster.job_script().splitlines() if line)
        assert cluster.scheduler_address.startswith("tls://")
        keys = list(tmp_path.iterdir())
        assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
        with distributed.Client(cluster, set_as_default=False) as client:
            assert _clients.checked(client) is client
    assert {"#SBATCH --gres=gpu:1", "#SBATCH -p gpu", "#SBATCH --cpus-per-task=8"} <= set(directives)
    words = command.split()
    asked = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}  # the last one counts
    assert asked["--nthreads"] == "1"
    assert asked["--resources"] == "GPU=1"
    assert asked["--preload"] == "wanlab.sweeps._worker"
    assert asked["--protocol"] == "tls://"
    assert words[words.index("-m") + 1] == "distributed.cli.dask_worker"
    assert {str(path) for path in keys} == {asked[f"--tls-{name}"] for name in ("ca-file", "cert", "key")}
    with pytest.raises(WanlabError, match="no folder"):
        sweeps.slurm_options(tmp_path / "none")
    with pytest.raises(WanlabError, match="gpus = 2"):
        sweeps.slurm_options(tmp_path, gpus=2)
