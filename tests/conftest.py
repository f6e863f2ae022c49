"""Fixtures for all tests."""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

# Two processes share the tests; and a process whose OpenMP has started threads cannot be forked.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch import distributed
from torch.utils.data import BatchSampler, DataLoader

WORLD = 2

# Numbers drawn while test files are imported, and below those drawn by a test, are the same in every run.
torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` are skipped without one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def run_in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps logs and checkpoints out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def loaders_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves these classes patched when a data module raises, and the next test with a loader would fail."""
    for kind in (DataLoader, BatchSampler):
        for name in ("__init__", "__setattr__", "__delattr__"):
            monkeypatch.setattr(kind, name, getattr(kind, name))


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test that fails by chance would fail for somebody else."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and results stay comparable between machines."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def packages_are_searched_once() -> Iterator[None]:
    """Every trainer looks through all installed packages for callbacks, which takes longer than a step."""
    with mock.patch("lightning.fabric.utilities.registry.entry_points", cache(metadata.entry_points)):
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real data sets; tests that need it skip without it."""
    folder = os.environ.get("SUPERCM_DATA")
    if not folder:
        pytest.skip("SUPERCM_DATA is not set")
    return Path(folder)


def _join(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("default")  # those of Lightning for several processes are no errors
    distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Callable[..., list[Any]]]:
    """Runs a module-level function in two processes joined by gloo; gives their results by rank.

    The processes live as long as the session, and are forked where they can be, so that they need not import torch.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Joining blocks until both are there, so each process takes exactly one of the two tasks, then and later.
    method = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"
    with get_context(method).Pool(WORLD) as pool:
        pool.starmap(_join, [(rank, port) for rank in range(WORLD)], chunksize=1)

        def run(function: Callable[..., Any], *args: Any) -> list[Any]:
            tasks = [(function, args, Path.cwd())] * WORLD
            results = pool.starmap_async(_by_rank, tasks, chunksize=1).get(timeout=300)
            return [result for _, result in sorted(results, key=lambda pair: pair[0])]

        yield run


def _by_rank(function: Callable[..., Any], args: tuple[Any, ...], folder: Path) -> tuple[int, Any]:
    os.chdir(folder)
    distributed.barrier()
    # How a launcher such as torchrun tells Lightning that the processes are there.
    with mock.patch.dict(os.environ, {"LOCAL_RANK": str(distributed.get_rank())}):
        return distributed.get_rank(), function(*args)
