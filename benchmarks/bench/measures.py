"""The numbers of one run, and those that need several realisations of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.cases import Case
from sirf_diffusion.reconstructors.diffusion.chain import balanced, posterior_sd
from sirf_diffusion.study.metrics import bias_and_sd, contrast_recovery, contrast_to_noise, image_quality
from sirf_diffusion.study.vois import interval_factor

NOMINAL_COVERAGE = 0.95


def image_measures(image: Tensor, case: Case) -> dict[str, float]:
    """Numbers of one image against the truth.

    ``nrmse``, ``psnr``, ``ssim`` of the whole image; ``crc KIND`` contrast recovery of each lesion;
    ``variability SIZE`` standard deviation of the means of the background's ROIs of a size, divided by their mean;
    ``mean REGION`` relative error of the mean over grey and white matter; ``petric_whole``, ``petric_background`` (root
    mean square error over head and white matter) and ``petric_voi`` (the largest error of a region's mean), all
    divided by the mean over white matter, as in PETRIC but against the truth.
    """
    truth, masks = case.truth.double(), case.masks
    x = image.double()
    found = dict(image_quality(x, truth).as_dict())
    for kind in case.lesions:
        found[f"crc {kind}"] = contrast_recovery(x[None], truth, masks[kind], masks[f"around {kind}"])
    for size, labels in case.rois.items():
        means = torch.stack([x[labels == label].mean() for label in range(1, int(labels.max()) + 1)])
        found[f"variability {size}"] = float(means.std() / means.mean())
    for region in ("grey", "white"):
        if region in masks:
            found[f"mean {region}"] = float(x[masks[region]].mean() / truth[masks[region]].mean() - 1)
    background = masks.get("white", masks["head"])
    norm = float(truth[background].mean())
    for name, mask in (("whole", masks["head"]), ("background", background)):
        found[f"petric_{name}"] = float((x - truth)[mask].square().mean().sqrt()) / norm
    regions = [masks[name] for name in ("grey", "white", *case.lesions) if name in masks]
    found["petric_voi"] = max(abs(float((x - truth)[mask].mean())) for mask in regions) / norm if regions else math.nan
    return found


def posterior_measures(samples: Tensor, case: Case, noises: str) -> tuple[dict[str, float], Tensor]:
    """How well the spread of samples tells the error of their mean, inside the head.

    ``coverage`` is the share of voxels whose true value lies in the interval that would hold 95 % of them if samples
    and truth came from one normal distribution, ``mean +- t sqrt(1 + 1 / S) SD`` with Student's ``t`` of ``S - 1``
    degrees of freedom (few samples need wide intervals), and without the root for samples with balanced ``noises``,
    whose mean has no error of its own. ``coverage_sd`` is that of ``mean +- 1.96 SD``. ``spread`` is the root mean
    square SD divided by the root mean square error. ``samples_nrmse`` is the mean NRMSE of single samples.

    Returns
    -------
    tuple
        The numbers, and the histogram ``[S + 1]`` of how many samples lie below the truth: see `expected_ranks`.
    """
    number, truth = len(samples), case.truth.double()
    x = samples.double()
    head = case.masks["head"]
    mean, sd = x.mean(0), posterior_sd(x, noises)
    error = (truth - mean).abs()[head]
    width = interval_factor(number, noises, NOMINAL_COVERAGE)
    measures = {
        "coverage": float((error <= width * sd[head]).double().mean()),
        "coverage_sd": float((error <= 1.96 * sd[head]).double().mean()),
        "spread": float(sd[head].square().mean().sqrt() / error.square().mean().sqrt()),
        "samples_nrmse": sum(float((s - truth).norm() / truth.norm()) for s in x) / number,
    }
    ranks = torch.bincount((x < truth).sum(0)[head], minlength=number + 1)
    return measures, ranks


def expected_ranks(number: int, noises: str) -> list[float]:
    """Shares ``[number + 1]`` of a calibrated rank histogram: flat for independent samples, lower at the ends for
    balanced ones, which are never all on one side. Normal distributions are taken for those.
    """
    if noises == "independent":
        return [1 / (number + 1)] * (number + 1)
    draws = torch.randn((number + 1, 200_000), generator=torch.Generator().manual_seed(0))
    ranks = torch.bincount((balanced(draws[1:]) < draws[0]).sum(0), minlength=number + 1)
    return (ranks / ranks.sum()).tolist()


def likelihood_measures(objective: Any, image: Tensor, truth: Tensor) -> dict[str, float]:
    """``log_likelihood``; ``likelihood_z``, its distance from what the truth's is expected to be, in SDs of that; and
    ``likelihood_above_truth``, the difference from that of the truth itself. Positive: the noise is fitted too.
    """
    value = float(objective.value(image))
    expected, deviation = objective.expected_log_likelihood(truth)
    return {
        "log_likelihood": value,
        "likelihood_z": (value - expected) / deviation,
        "likelihood_above_truth": value - float(objective.value(truth)),
    }


def ensemble_measures(images: Tensor, case: Case) -> dict[str, float]:
    """Bias and standard deviation over realisations ``[R, z, y, x]`` (R of 2 and more), and lesions' CNR.

    ``bias`` and ``sd`` relative to the truth's energy, ``bias^2 + sd^2`` being the mean squared NRMSE inside the head.
    Both are corrected for the number of realisations, so that few and many give the same on average: the mean of few
    still holds noise, which is no bias. ``cnr KIND`` with the spread between realisations.
    """
    number = len(images)
    found = bias_and_sd(images, case.truth, case.masks["head"])
    variance = found.sd**2 * number / (number - 1)
    measures = {"bias": math.sqrt(max(found.bias**2 - variance / number, 0.0)), "sd": math.sqrt(variance)}
    for kind in case.lesions:
        measures[f"cnr {kind}"] = contrast_to_noise(images, case.masks[kind], case.masks[f"around {kind}"])
    return measures


def mean_measures(rows: list[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each number over the rows that have it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    means = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])]
        if values:
            means[name] = sum(values) / len(values)
    return means
