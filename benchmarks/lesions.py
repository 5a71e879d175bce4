r"""Detection of lesions, their contrast at matched noise, and lesions that are not there, by method and count level.

::

    python -m benchmarks.lesions run OUT --prompts 2e5 --slices 100 --methods map-rdp=1 map-rdp=2 map-rdp=4 lisch
    python -m benchmarks.lesions table OUT

A slice has twelve lesions (two each of 5, 7 and 10 mm, hot and cold, at places that differ from slice to slice), and is
scanned without them, too, each with its own noise: two pairs of places of every kind, told apart by an observer who
knows the place. *NPW* is the non-prewhitening observer, whose template is the mean signal; *CHO* the channelised
Hotelling observer: four differences of Gaussians, the covariance of both classes, trained on one half of the subjects
and applied to the other. AUC has an interval of 95 % from 1,000 bootstrap samples of the pairs.
``NAME=STRENGTH`` sets a method's tuned setting. What was made is kept, and a run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter, label
from scipy.stats import rankdata
from torch import Tensor

from benchmarks.bench.acquisition import centred, mmr_slice
from benchmarks.bench.builders import Draws, build
from benchmarks.bench.cases import GREY_MATTER, Case, CaseSpec, case_of
from benchmarks.bench.cli import CONDITIONAL_MODEL
from benchmarks.bench.domain_shift import anatomy_of
from benchmarks.bench.problem import Problem
from benchmarks.bench.table import get_line
from benchmarks.bench.tables import print_head, print_row
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.files.progress import progress_bar
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.simulation import TracerContrast, simulate_activity
from sirf_diffusion.simulation.lesions import soft_ellipsoid

Array = NDArray[np.float64]

DIAMETERS, FACTORS = (5.0, 7.0, 10.0), {"hot": 1.8, "cold": 0.3}
KINDS = tuple((factor, diameter) for factor in FACTORS for diameter in DIAMETERS)
FIRST_SUBJECT, SLICES_PER_SUBJECT, OF_A_KIND = 9100, 5, 2
_APART_MM, _MARGIN_MM, _PSF_MM, _VOXEL = 22.0, 8.0, 4.0, 2.0
#: Voxels beside the place that the observer looks at; FWHM in mm of the Gaussians whose differences are channels.
_REACH, _CHANNELS = 7, (3.0, 6.0, 10.0, 16.0, 26.0)
#: A place without a lesion where the image, smoothed by so many mm, is off by this share has one invented.
_INVENTED_MM, _INVENTED = 5.0, 0.5
_BOOTSTRAP = 1000


@lru_cache(maxsize=2)
def _plane(subject: int) -> tuple[Tensor, Tensor, Tensor, NDArray[np.bool_]]:
    """Activity and attenuation of a slice without lesions, its MR, and where lesions may lie."""
    anatomy = anatomy_of(subject)
    plane = int(np.random.default_rng([45, subject]).integers(56, 76))
    activity = GREY_MATTER * simulate_activity(
        anatomy, 0, TracerContrast(reversed_share=0.0, max_lesions=0), psf_fwhm=_PSF_MM
    )
    images = (activity, anatomy.mu, anatomy.t1, (anatomy.brain > 0.5).astype(np.float32))
    *rest, brain = (centred(torch.from_numpy(v[plane : plane + 1].copy()), (128, 128)) for v in images)
    return (*rest, binary_erosion(brain[0].numpy() > 0.5, iterations=round(_MARGIN_MM / _VOXEL)))  # type: ignore[return-value]


def _places(allowed: NDArray[np.bool_], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many places (row, column), each as far from the others as it must be; drawn anew where they do not fit."""
    rows, columns = np.indices(allowed.shape)
    while True:
        free, places = allowed.copy(), []
        while free.any() and len(places) < number:
            places.append(rng.choice(np.argwhere(free)))
            free &= np.hypot(rows - places[-1][0], columns - places[-1][1]) * _VOXEL > _APART_MM
        if len(places) == number:
            return np.stack(places)


def scan_pair(number: int, prompts: float) -> tuple[Case, Case, NDArray[np.int64]]:
    """Cases with and without lesions, and the places ``[kind, one of it, (row, column)]`` of `KINDS`."""
    subject, rng = FIRST_SUBJECT + number // SLICES_PER_SUBJECT, np.random.default_rng([46, number])
    activity, mu, mr, allowed = _plane(subject)
    places = _places(allowed, len(KINDS) * OF_A_KIND, rng).reshape(len(KINDS), OF_A_KIND, 2)
    change = np.ones(allowed.shape)
    for (factor, diameter), of_a_kind in zip(KINDS, places, strict=True):
        for row, column in of_a_kind:
            radius = diameter / 2 / _VOXEL
            lesion = soft_ellipsoid((1, *allowed.shape), (0, row, column), (1.0, radius, radius), FACTORS[factor])
            change[lesion.box[1:]] *= 1 + (FACTORS[factor] - 1) * lesion.membership[0]
    change = torch.from_numpy(gaussian_filter(change, _PSF_MM / 2.3548 / _VOXEL)).float()
    geometry, projdata = mmr_slice()
    masks = {"head": activity > 0.05 * GREY_MATTER}
    with_lesions, without = (
        case_of(CaseSpec(f"{name}-{number}", subject, prompts), geometry, projdata, image, mu, mr, masks)
        for name, image in (("lesions", activity * change), ("none", activity))
    )
    return with_lesions, without, places


def measure(out: Path, method: str, prompts: float, slices: int, samples: int, models: dict[str, ScoreModel]) -> None:
    """Reconstruct what is missing, and keep what the observer sees."""
    name, _, strength = method.partition("=")
    line = get_line(name)
    usual = {} if line.builder in METHODS else {key: searched.start for key, searched in line.search.items()}
    settings = {**line.settings, **usual} | ({next(iter(line.search)): float(strength)} if strength else {})
    for number in progress_bar(slices, f"{method}, {prompts:g}", "slice", iterable=range(slices)):
        path = out / f"{method}-{prompts:g}" / f"{number:04d}.npz"
        if path.is_file():
            continue
        *cases, places = scan_pair(number, prompts)
        kept: dict[str, Array] = {}
        for which, case in zip(("present", "absent"), cases, strict=True):
            problem = Problem(case, 0, models, torch.device("cpu"))
            draws = Draws(samples if line.samples else 1, number)
            image = build(line.builder, problem, settings, draws).process().get_output()
            for what, x in (("", image), (" truth", case.truth)):
                patches = [_patch(x[0].double().numpy(), place) for place in places.reshape(-1, 2)]
                kept[which + what] = np.stack(patches).reshape(*places.shape[:2], *patches[0].shape)
        kept["invented"] = np.array(_num_invented(image[0].double().numpy(), cases[1].truth[0].double().numpy()))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **kept)  # type: ignore[arg-type]


def _patch(image: Array, place: Sequence[int]) -> Array:
    row, column = place
    return image[row - _REACH : row + _REACH + 1, column - _REACH : column + _REACH + 1] / GREY_MATTER


def _num_invented(image: Array, truth: Array) -> int:
    smooth, right = (gaussian_filter(x, _INVENTED_MM / 2.3548 / _VOXEL) for x in (image, truth))
    off = (np.abs(smooth - right) > _INVENTED * right) & (truth > 0.3 * GREY_MATTER)
    return int(label(off)[1])


def auc(present: Array, absent: Array, rng: np.random.Generator) -> tuple[float, float, float]:
    """Area under the ROC curve of two sets of scores, and its bootstrap interval of 95 %."""

    def area(p: Array, a: Array) -> float:
        ranks = rankdata(np.concatenate([p, a]))[: len(p)]
        return float(ranks.sum() - len(p) * (len(p) + 1) / 2) / (len(p) * len(a))

    drawn = rng.integers(len(present), size=(_BOOTSTRAP, len(present)))
    low, high = np.quantile([area(present[i], absent[i]) for i in drawn], (0.025, 0.975))
    return area(present, absent), float(low), float(high)


def scores(present: Array, absent: Array, signal: Array, subjects: NDArray[np.int64]) -> dict[str, tuple[Array, Array]]:
    """What the observers make of patches ``[pairs, y, x]``."""
    flat = [x.reshape(len(x), -1) for x in (present, absent)]
    template = signal.ravel() - signal.mean()
    found = {"NPW": (flat[0] @ template, flat[1] @ template)}
    seen = [x @ _channels() for x in flat]
    both = [np.zeros(len(present)), np.zeros(len(present))]
    for half in (0, 1):
        test, train = subjects % 2 == half, subjects % 2 != half
        covariance = sum(np.cov(x[train].T) for x in seen) / 2
        weights = np.linalg.solve(covariance, seen[0][train].mean(0) - seen[1][train].mean(0))
        for score, x in zip(both, seen, strict=True):
            # Each half's observer has a scale and an offset of its own.
            score[test] = (x[test] - seen[1][train].mean(0)) @ weights / np.sqrt(weights @ covariance @ weights)
    return found | {"CHO": (both[0], both[1])}


def _channels() -> Array:
    axis = np.arange(-_REACH, _REACH + 1) * _VOXEL
    square = axis[:, None] ** 2 + axis**2
    gaussians = [np.exp(-4 * np.log(2) * square / width**2) for width in _CHANNELS]
    gaussians = [g / g.sum() for g in gaussians]
    return np.stack([(a - b).ravel() for a, b in pairwise(gaussians)], 1)


def table(out: Path) -> None:
    """Print what was measured."""
    print_head(
        *("prompts, method", "pairs", "lesion", "AUC, NPW", "AUC, CHO"),
        *("contrast recovery", "noise", "invented, per slice"),
    )
    axis = np.arange(-_REACH, _REACH + 1) * _VOXEL
    distance = np.hypot(axis[:, None], axis)
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        files = sorted(folder.glob("*.npz"))
        needed = 2 * SLICES_PER_SUBJECT
        if len(files) < needed:
            print(f"{folder.name}: {len(files)} slices; {needed} are needed for two halves", file=sys.stderr)
            continue
        subjects = np.repeat([int(path.stem) // SLICES_PER_SUBJECT for path in files], OF_A_KIND)
        data = [dict(np.load(path, allow_pickle=False)) for path in files]
        kept = {name: np.stack([d[name] for d in data]) for name in data[0]}
        for k, (factor, diameter) in enumerate(KINDS):
            present, absent, true, plain = (
                np.concatenate(kept[name][:, k]) for name in ("present", "absent", "present truth", "absent truth")
            )
            inner, around = distance <= max(diameter / 2, _VOXEL), (distance > diameter / 2 + 4) & (distance <= 13)
            contrasts = [x[:, inner].mean(1) / x[:, around].mean(1) - 1 for x in (present, absent, true, plain)]
            recovery = (contrasts[0] - contrasts[3]).mean() / (contrasts[2] - contrasts[3]).mean()
            noise = (absent[:, inner].mean(1) / plain[:, inner].mean(1)).std()
            rng = np.random.default_rng(47)
            areas = {
                name: "{:.3f} ({:.3f} to {:.3f})".format(*auc(*pair, rng))
                for name, pair in scores(present, absent, (true - plain).mean(0), subjects).items()
            }
            lesion, numbers = f"{factor}, {diameter:g} mm", (f"{recovery:.2f}", f"{noise:.3f}")
            invented = f"{kept['invented'].mean():.2f}"
            print_row(folder.name, len(present), lesion, areas["NPW"], areas["CHO"], *numbers, invented)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--methods", nargs="+", default=["map-rdp=2", "lisch"], metavar="NAME[=STRENGTH]")
    parser.add_argument("--prompts", type=float, nargs="+", default=[5e4, 2e5, 1e6])
    parser.add_argument(
        "--slices", type=int, default=100, help="each has two pairs of every kind; default: %(default)s"
    )
    parser.add_argument("--samples", type=int, default=5, help="whose mean is the image; default: %(default)s")
    parser.add_argument("--model", default="brain", metavar="NAME|FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.what == "run":
        named = {"score": options.model, "conditional": CONDITIONAL_MODEL}
        models = {role: ScoreModel.load(name, precision="auto") for role, name in named.items()}
        for prompts in options.prompts:
            for method in options.methods:
                measure(options.out, method, prompts, options.slices, options.samples, models)
    table(options.out)


if __name__ == "__main__":
    main()
