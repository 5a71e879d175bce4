"""Many independent computations: one after the other, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from .. import __version__
from ..files.workers import in_processes

logger = logging.getLogger(__name__)

#: Deaths of workers in a row, with nothing done between them, after which the rest is given up.
MOST_DEATHS = 3


@dataclass(frozen=True)
class Execution:
    """Where to compute: in processes of this machine, which share its cores (1: this one), or on a Dask scheduler's
    workers, ``cluster`` being its address, as ``tcp://host:8786``.

    Raises ImportError without Dask, ValueError for workers of another version of this package, and OSError if there is
    no scheduler at the address.
    """

    num_workers: int = 1
    cluster: str | None = None
    timeout: str = "10s"
    client: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ValueError(f"--workers must be at least 1, found {self.num_workers}")
        if self.cluster is None:
            return
        if self.num_workers != 1:
            raise ValueError("--workers is for this machine: a cluster has the workers that it has")
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError('--cluster needs Dask: pip install "sirf-diffusion[cluster]"') from error
        client = Client(self.cluster, timeout=self.timeout)
        found = set(client.run(_version).values())
        if found - {__version__}:
            raise ValueError(f"--cluster {self.cluster}: workers have versions {sorted(found)}, here is {__version__}")
        object.__setattr__(self, "client", client)
        object.__setattr__(self, "num_workers", max(1, len(client.ncores())))

    def results(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[Any]:
        """``function(job)`` of every job, in the order in which they are done; both are picklable.

        What a worker that dies had in hand is computed again. An exception of one computation ends all.

        Raises
        ------
        ChildProcessError
            If workers keep dying.
        """
        if self.num_workers == 1 and self.client is None:
            yield from map(function, jobs)
            return
        left, deaths = dict(enumerate(jobs)), 0
        while left:
            before = len(left)
            try:
                for number, result in self._pass(function, left):
                    del left[number]
                    yield result
            except BrokenProcessPool as error:
                deaths = deaths + 1 if len(left) == before else 1
                if deaths >= MOST_DEATHS:
                    raise ChildProcessError(
                        f"workers died {deaths} times in a row with nothing done (too little memory? fewer --workers); "
                        f"{len(left)} computations are missing"
                    ) from error
                logger.warning("a worker died: its computations are made again (%d left)", len(left))

    def _pass(self, function: Callable[[Any], Any], jobs: dict[int, Any]) -> Iterator[tuple[int, Any]]:
        """Numbers and results, until all is done or a worker dies; a Dask scheduler has others do its work."""
        if self.client is None:
            return in_processes(self.num_workers, function, jobs)
        from joblib import Parallel, delayed, parallel_config

        with parallel_config(backend="dask", n_jobs=self.num_workers, client=self.client):
            parallel = Parallel(batch_size=1, return_as="generator_unordered")
        return parallel(delayed(_numbered)(function, number, job) for number, job in list(jobs.items()))


def _numbered(function: Callable[[Any], Any], number: int, job: Any) -> tuple[int, Any]:
    return number, function(job)


def _version() -> str:
    return __version__
