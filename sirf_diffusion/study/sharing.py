"""The posterior samples of one reconstruction, made in several processes: who makes which, and one result of all.

Each share estimates intensity scale and likelihood target by itself, from the same data in the same way: its samples
are to rounding those of one process, for that little work more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from ..environment import select_device
from ..geometry.checks import check_count
from ..reconstructors.diffusion.chain import posterior_sd
from ..reconstructors.methods import get_method
from .reconstruction import Reconstruction, bind, judge, trace_of
from .sources import Source


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


def merge(
    shares: Sequence[Reconstruction], source: Source, model: Any, *, guidance: float = 0.0, device: str = "auto"
) -> Reconstruction:
    """One reconstruction from shares of its samples.

    Parameters
    ----------
    shares
        Results of `sirf_diffusion.study.reconstruction.reconstruct_from` with different ``members`` and the same of
        all else; each sample once, in any order.
    source, model, guidance, device
        As there, the model loaded: for the likelihood of the mean, and the check whether the model knows such images.

    Returns
    -------
    Reconstruction
        Image, samples and uncertainty as of one process. The record's costs are sums over all processes, seconds
        among them; ``shares`` tells which made what.

    Raises
    ------
    ValueError
        If samples are missing or there twice.
    """
    shares = sorted(shares, key=lambda share: share.record["members"][0])
    first, records = shares[0], [share.record for share in shares]
    members = [member for record in records for member in record["members"]]
    if members != list(range(first.record["num_samples"])):
        raise ValueError(f"shares must have samples 0 to {first.record['num_samples'] - 1} once each, found {members}")
    samples = torch.cat([share.samples for share in shares])
    values, torch_device = first.record["values"], select_device(device)
    objective = source.objective(first.record["num_subsets"], torch_device)
    image = samples.mean(0)
    method = get_method(first.record["method"])
    bound = bind(model, method, source, values, first.record["intensity_scale"], first.anatomical, guidance)
    record = {key: value for key, value in first.record.items() if key != "members"}
    for key in ("projections", "seconds"):
        record[key] = {name: sum(r[key][name] for r in records) for name in record[key]}
    record["network_evaluations"] = sum(r["network_evaluations"] for r in records)
    record["trace"] = [_joined(steps) for steps in zip(*(r["trace"] for r in records), strict=True)]
    record["shares"] = [{key: r[key] for key in ("members", "seconds", "device")} for r in records]
    record |= judge(record, objective, bound, image.to(torch_device), samples, adapted=False)
    return Reconstruction(
        image,
        first.geometry,
        record,
        samples,
        posterior_sd(samples, values["noise"]) if len(samples) > 1 else None,
        trace_of(record["trace"]),
        first.anatomical,
    )


def _joined(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One step of the trace: numbers of each sample one after the other, costs added."""
    joined = dict(steps[0])
    for key in ("log_likelihood_before", "log_likelihood_after", "num_inner"):
        if joined[key] is not None:
            joined[key] = [number for step in steps for number in step[key]]
    for key in ("forward", "back", "network_evaluations", "seconds"):
        joined[key] = sum(step[key] for step in steps)
    return joined
