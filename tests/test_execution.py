"""Many computations: wherever they are made, each is made, also when workers die."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from bench_cases import TINY, tiny_case
from execution_jobs import always_die, die_once, fail, square, threads
from fresh import FRESH

from benchmarks.bench import Campaign, campaign
from sirf_diffusion.cli import main
from sirf_diffusion.study.execution import Execution


def test_in_this_process_keeps_the_order():
    assert list(Execution().results(square, [3, 1, 2])) == [9, 1, 4]


def test_a_local_worker_that_dies_loses_nothing(tmp_path, caplog):
    jobs = [(n, str(tmp_path)) for n in range(6)]
    assert sorted(Execution(2).results(die_once, jobs)) == [n * n for n in range(6)]
    assert "a worker died" in caplog.text


@pytest.mark.parametrize(
    ("job", "error", "words"), [(always_die, ChildProcessError, "workers died 3 times"), (fail, ValueError, "no 1")]
)
def test_what_cannot_be_computed_ends_all(job, error, words):
    with pytest.raises(error, match=words):
        list(Execution(2).results(job, [1]))


def _threads_of_a_command(told):
    import numpy as np

    assert main(["recon", "--threads", "4", "--prompts", "absent.hs", "--out", "absent"]) == 2
    np.ones((9, 9)) @ np.ones((9, 9))
    told.send((os.environ["OMP_NUM_THREADS"], threads(0), *Execution(2).results(threads, [1, 2])))


def test_threads_are_limited_in_every_library_and_shared_by_workers():
    here, there = FRESH.Pipe()
    process = FRESH.Process(target=_threads_of_a_command, args=(there,))
    process.start()
    assert here.poll(100)
    told, own, *workers = here.recv()
    process.join()
    assert told == "4"
    assert len(own) > 1
    assert set(own) == {4}
    assert [set(pools) for pools in workers] == [{2}, {2}]


@pytest.fixture
def cluster():
    """Two worker processes of Dask on this machine."""
    distributed = pytest.importorskip("dask.distributed", reason='needs pip install "dask[distributed]"')
    local = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, protocol="tcp"
    )
    yield local
    local.close()


def test_on_a_cluster_a_killed_worker_loses_nothing(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "make_case", tiny_case)
    suite = replace(TINY, methods=("mlem", "map-quadratic"), variants=())
    execution = Execution(cluster=cluster.scheduler_address)
    processes = execution.client.run(os.getpid)
    killed = []
    here = Campaign(suite, tmp_path / "here", {}).run()

    runs = tmp_path / "there" / "runs"

    def kill_in_the_middle() -> None:
        while not killed:
            time.sleep(0.01)
            busy = [worker for worker, jobs in execution.client.processing().items() if jobs]
            if busy and runs.is_dir() and len(list(runs.iterdir())) >= 4:
                killed.append(processes[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    there = Campaign(suite, tmp_path / "there", {}, execution).run()
    killer.join()
    execution.client.close()

    assert {p.name for p in runs.iterdir()} == {p.name for p in (tmp_path / "here" / "runs").iterdir()}
    for a, b in zip(here.results, there.results, strict=True):
        assert a.spec == b.spec
        assert torch.allclose(a.image, b.image, rtol=1e-4, atol=1e-4 * float(a.image.max()))
    assert killed


def test_no_scheduler_is_said():
    pytest.importorskip("dask.distributed")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9"):
        Execution(cluster="tcp://127.0.0.1:9", timeout="1s")
