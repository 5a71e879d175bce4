"""Many independent computations: one after the other, in local processes, or on a Dask cluster.

Nothing here knows what is computed. A worker that dies costs the computations that it had in hand, which are made
again elsewhere.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Protocol

logger = logging.getLogger(__name__)

#: A computation that kills its worker this often is given up.
MOST_ATTEMPTS = 3


class Execution(Protocol):
    """Somewhere to compute, with ``num_workers`` at a time."""

    @property
    def num_workers(self) -> int: ...

    def results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """``function(job)`` of every job, in the order they are done; an exception of one ends all."""
        ...


class InThisProcess:
    """One after the other, here."""

    num_workers = 1

    def results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """See :class:`Execution`."""
        for job in jobs:
            yield function(job)


class LocalProcesses:
    """Processes of this machine, which share its cores.

    Parameters
    ----------
    num_workers
        How many; each computes with its share of the cores.
    """

    def __init__(self, num_workers: int) -> None:
        if num_workers < 1:
            raise ValueError(f"--workers must be at least 1, found {num_workers}")
        self.num_workers = num_workers

    def results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """See :class:`Execution`; functions and jobs must be picklable.

        Raises
        ------
        RuntimeError
            If workers keep dying.
        """
        left = dict(enumerate(jobs))
        deaths = 0
        while left:
            before = len(left)
            try:
                yield from self._pass(function, left)
            except BrokenProcessPool as error:
                deaths = deaths + 1 if len(left) == before else 1
                if deaths >= MOST_ATTEMPTS:
                    raise RuntimeError(
                        f"workers died {deaths} times in a row with nothing done (out of memory? fewer --workers); "
                        f"{len(left)} computations are missing"
                    ) from error
                logger.warning("a worker died: its computations are made again (%d left)", len(left))

    def _pass(self, function: Callable[[Any], Any], left: dict[int, Any]) -> Iterator[Any]:
        """One pool of processes, until all is done or one of them dies; takes what is done out of ``left``."""
        threads = max(1, (os.cpu_count() or 1) // self.num_workers)
        # Forked children would inherit the state of the parent's threads.
        pool = ProcessPoolExecutor(self.num_workers, get_context("spawn"), _share_cores, (threads,))
        try:
            futures = {pool.submit(function, job): number for number, job in left.items()}
            while futures:
                done, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in done:
                    number = futures.pop(future)
                    result = future.result()
                    del left[number]
                    yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class DaskCluster:
    """The workers of a Dask scheduler.

    Parameters
    ----------
    address
        Of the scheduler, as ``tcp://host:8786``.
    timeout
        How long to wait for it.

    Raises
    ------
    ImportError
        If Dask is not installed.
    ValueError
        If the workers have another version of this package.
    OSError
        If there is no scheduler at the address.
    """

    def __init__(self, address: str, timeout: str = "10s") -> None:
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError('--cluster needs Dask: pip install "sirf-diffusion[cluster]"') from error
        self.client = Client(address, timeout=timeout)
        found = set(self.client.run(_version).values())
        if found - {_version()}:
            raise ValueError(f"--cluster {address}: workers have versions {sorted(found)}, here is {_version()}")

    @property
    def num_workers(self) -> int:
        """Workers that are there now, at least 1: others may come later."""
        return max(1, len(self.client.ncores()))

    def results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """See :class:`Execution`; the scheduler gives the jobs of a worker that is gone to the others."""
        from dask.distributed import as_completed

        # Jobs travel with their tasks: data that were scattered to workers would be lost with them.
        futures = [self.client.submit(function, job, pure=False, retries=MOST_ATTEMPTS - 1) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            self.client.cancel(futures)


def make_execution(num_workers: int = 1, cluster: str | None = None) -> Execution:
    """The place that the command line's options ask for."""
    if cluster is not None:
        if num_workers != 1:
            raise ValueError("--workers is for this machine: a cluster has the workers that it has")
        return DaskCluster(cluster)
    return LocalProcesses(num_workers) if num_workers != 1 else InThisProcess()


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _version() -> str:
    from sirf_diffusion import __version__

    return __version__
