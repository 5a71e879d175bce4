"""Posterior samples that several processes make: who makes which, and one record of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from ..geometry.checks import check_count
from ..models.grid import checked_box
from .execution import Execution
from .reconstruction import Study
from .result import Reconstruction

logger = logging.getLogger(__name__)


def run_shared(study: Study, execution: Execution) -> Reconstruction:
    """Reconstruct with the posterior samples shared out: the result of ``study.run()``, to rounding.

    Raises
    ------
    ValueError
        As `check_shared`.
    """
    check_shared(study)
    options = {f.name: getattr(study, f.name) for f in fields(study) if f.init} | {"callbacks": ()}
    jobs = [
        options | {"members": members, "checkpoint": _checkpoint_of(study, members)}
        for members in share_out(study.num_samples, execution.num_workers)
    ]
    shares = []
    for share in execution.results(_run, jobs):
        logger.info("samples %s of %d are done", share.record["members"], study.num_samples)
        shares.append(share)
    return merge(study, shares)


def check_shared(study: Study) -> None:
    """ValueError for a method that draws no samples, or one that adapts one network to all of them."""
    if not study.chosen.samples:
        raise ValueError(f"--workers and --cluster share posterior samples out; {study.method} gives one image")
    if study.adaptation is not None or study.chosen.own_adaptation is not None:
        raise ValueError(
            "--workers and --cluster: all samples adapt one network together, so that they cannot be shared out; leave "
            "the options out"
        )


def merge(study: Study, shares: Sequence[Reconstruction]) -> Reconstruction:
    """One reconstruction from those of a study with different ``members``; each sample once, in any order.

    Each share estimated intensity scale and likelihood target by itself, from the same data in the same way. The
    record's costs are sums over all of them, seconds among them; its ``shares`` tell which made what.

    Raises
    ------
    ValueError
        If samples are missing or there twice.
    """
    shares = sorted(shares, key=lambda share: share.record["members"][0])
    record, anatomical = _merged([share.record for share in shares]), shares[0].anatomical
    samples = torch.cat([share.samples for share in shares])
    device = torch.device(record["device"])
    objective = study.read.objective(record["num_subsets"], device)
    bound = study.bound(objective, record["intensity_scale"], anatomical, box=checked_box(record["model"]["box"]))
    return study.result(objective, bound, samples.mean(0).to(device), samples, record, anatomical)


def share_out(num_samples: int, num_workers: int) -> list[range]:
    """Neighbouring samples for each worker, as even as can be; no more shares than samples.

    Examples
    --------
    >>> share_out(5, 2)
    [range(0, 3), range(3, 5)]
    """
    number = min(check_count("num_samples", num_samples), num_workers)
    ends = [-(-num_samples * k // number) for k in range(number + 1)]
    return [range(a, b) for a, b in pairwise(ends)]


def _merged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    members = [member for record in records for member in record["members"]]
    if members != list(range(records[0]["num_samples"])):
        raise ValueError(f"shares must have samples 0 to {records[0]['num_samples'] - 1} once each, found {members}")
    merged = {key: value for key, value in records[0].items() if key != "members"}
    for key in ("projections", "seconds"):
        merged[key] = {name: sum(r[key][name] for r in records) for name in merged[key]}
    merged["network_evaluations"] = sum(r["network_evaluations"] for r in records)
    merged["trace"] = [_joined(steps) for steps in zip(*(r["trace"] for r in records), strict=True)]
    merged["shares"] = [{key: r[key] for key in ("members", "seconds", "device")} for r in records]
    return merged


def _joined(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One step of the trace: numbers of each sample one after the other, costs added."""
    joined = dict(steps[0])
    for key in ("log_likelihood_before", "log_likelihood_after", "num_inner"):
        if joined[key] is not None:
            joined[key] = [number for step in steps for number in step[key]]
    for key in ("forward", "back", "network_evaluations", "seconds"):
        joined[key] = sum(step[key] for step in steps)
    return joined


def _checkpoint_of(study: Study, members: range) -> Path | None:
    if study.checkpoint is None:
        return None
    path = Path(study.checkpoint)
    return path.with_name(f"{path.stem}-{members[0]}-{members[-1]}{path.suffix}")


def _run(options: dict[str, Any]) -> Reconstruction:
    return Study(**options).run()
