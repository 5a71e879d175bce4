"""Posterior samples that several processes make: who makes which, and one record of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from ..geometry.checks import check_count


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


def merged_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record of all samples, but for what is said of their mean; see `Study.merge`."""
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
