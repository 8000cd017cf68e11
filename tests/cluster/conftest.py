"""Clients of Dask, a model that is in no catalogue, and that no process outlives the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import distributed
import pytest

import wanlab
from tests.cluster.points import children
from tests.tiny import tiny_wan
from wanlab import sweeps
from wanlab.models import Model


@pytest.fixture(scope="module", autouse=True)
def _nobody_stays() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with sweeps.local_cluster(2, gpus=[], threads=1) as found:
        yield found


@pytest.fixture
def near() -> Iterator[Any]:
    """A worker that is a thread of this process."""
    found = distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", set_as_default=False
    )
    with found:
        yield found
        found.cluster.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model that is in no catalogue."""
    return wanlab.load(tiny_wan(tmp_path_factory.mktemp("tiny"))[1], device="cpu")
