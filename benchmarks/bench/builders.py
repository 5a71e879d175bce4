"""From a line of the table to a reconstructor that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.bench.deep_image_prior import DeepImagePrior
from benchmarks.bench.guided import DPSReconstructor, NaiveReconstructor
from benchmarks.bench.patch import PatchPenalty
from benchmarks.bench.problem import Problem
from sirf_diffusion.engines.embedded.acquisition_model import GaussianBlur
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import object_box
from sirf_diffusion.priors import BowsherPenalty, ParallelLevelSetsPenalty, QuadraticPenalty, ScorePenalty, kappa_image
from sirf_diffusion.reconstructors import MAPEM, MLEM, OSEM, Reconstructor
from sirf_diffusion.reconstructors.em.map_methods import relative_difference_penalty
from sirf_diffusion.reconstructors.methods import METHODS, build_reconstructor

_BSREM_SUBSETS, _OSEM_SUBSETS = 14, 9


@dataclass(frozen=True)
class Draws:
    """How many posterior samples, and from which seed."""

    num_samples: int
    seed: int


Builder = Callable[[Problem, dict[str, Any], Draws], Reconstructor]


def build(name: str, problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    """The reconstructor of a builder's name, set up; a name of ``METHODS`` that is not listed here is built as such."""
    reconstructor = BUILDERS.get(name, _by_name(name))(problem, dict(settings), draws)
    is_map = isinstance(reconstructor, MAPEM)
    reconstructor.set_up(problem.early.get_output() if is_map else None)
    return reconstructor


class FilteredMLEM(MLEM):
    """MLEM, and a Gaussian filter of ``fwhm`` mm over its last image."""

    method = "mlem-filter"

    def __init__(self, objective: Any, num_iterations: int, fwhm: float) -> None:
        super().__init__(objective, num_iterations)
        self.settings["fwhm"] = fwhm
        self._blur = GaussianBlur(objective.geometry, fwhm, objective.device)

    def _run(self) -> Tensor:
        return self._blur(super()._run())


class NonLocalMeans:
    """Non-local means as the denoiser of a prior: what it takes away of an image of noise level ``sigma``."""

    def __init__(self, geometry: ImageGeometry, intensity_scale: float) -> None:
        self.geometry, self.intensity_scale = geometry, intensity_scale

    def residual(self, x: Tensor, sigma: float) -> Tensor:
        """``x - c D(x / c)`` in image units."""
        from sirf_diffusion.training.evaluation.validation import non_local_means

        slices = (x / self.intensity_scale).reshape(-1, 1, *x.shape[-2:])
        (clean,) = non_local_means(slices, sigma, (0.7,))
        return x - self.intensity_scale * clean.reshape(x.shape)


def _mlem(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return MLEM(problem.objective(), **settings)


def _osem(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return OSEM(problem.objective(_OSEM_SUBSETS), **settings)


def _filtered(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return FilteredMLEM(problem.objective(), **settings)


def _quadratic(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    factor = settings.pop("penalisation_factor") / problem.scale**2
    return MAPEM(problem.objective(), QuadraticPenalty(problem.case.geometry, factor), **settings)


def _rdp(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    objective = problem.objective(_BSREM_SUBSETS)
    strength = settings.pop("penalisation_factor")
    # Of unit mean square where the image is, so that strengths with and without kappa are of one size.
    kappa = kappa_image(objective, problem.early.get_output()) if settings.pop("kappa") else None
    if kappa is not None:
        emitting = problem.early.get_output() > 0.1 * problem.scale
        kappa = kappa / kappa[emitting].square().mean().sqrt()
    return MAPEM(
        objective, relative_difference_penalty(objective, strength, problem.scale, 2.0, 0.005, kappa=kappa), **settings
    )


def _patch(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    factor, delta = settings.pop("penalisation_factor") / problem.scale, settings.pop("delta") * problem.scale
    return MAPEM(problem.objective(), PatchPenalty(problem.case.geometry, factor, delta), **settings)


def _bowsher(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    factor = settings.pop("penalisation_factor") / problem.scale**2
    prior = BowsherPenalty(problem.case.geometry, factor, problem.mr, num_neighbours=settings.pop("num_neighbours"))
    return MAPEM(problem.objective(), prior, **settings)


def _pls(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    alpha, eta = settings.pop("alpha") * problem.scale, settings.pop("eta") * float(problem.mr.max())
    factor = settings.pop("penalisation_factor") / problem.scale
    prior = ParallelLevelSetsPenalty(problem.case.geometry, factor, problem.mr, alpha, eta)
    return MAPEM(problem.objective(_BSREM_SUBSETS), prior, **settings)


def _dip(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return DeepImagePrior(problem.objective(), intensity_scale=problem.scale, seed=draws.seed, **settings)


def _nlm(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    denoiser = NonLocalMeans(problem.case.geometry, problem.scale)
    prior = ScorePenalty(denoiser, settings.pop("noise_level"), settings.pop("penalisation_factor"), memory=False)
    return MAPEM(problem.objective(), prior, **settings)


def _naive(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return NaiveReconstructor(problem.objective(), problem.model(), **vars(draws), **settings)


def _dps(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
    return DPSReconstructor(problem.objective(), problem.model(), **vars(draws), **settings)


def _by_name(name: str) -> Builder:
    """The builder of a method of the command line."""

    def make(problem: Problem, settings: dict[str, Any], draws: Draws) -> Reconstructor:
        method = METHODS[name]
        role, guidance = settings.pop("role", "score"), settings.pop("guidance", 0.0)
        speed, volume = settings.pop("speed", None), problem.case.geometry.shape[0] > 1
        settings = method.with_settings(settings, volume=volume, speed=speed)
        options: dict[str, Any] = {"anatomical": problem.mr, "guidance": guidance} if role == "conditional" else {}
        options["sampling"] = method.samples
        options["coarse_above"] = settings.get("coarse_above")
        if settings.get("crop"):
            options["box"] = object_box(problem.early.get_output(), problem.case.geometry)
        model = problem.model(role, settings.get("planes"), **options) if method.uses_model else None
        return build_reconstructor(
            name,
            problem.objective(method.num_subsets),
            settings,
            model=model,
            intensity_scale=problem.scale,
            num_samples=draws.num_samples,
            seed=draws.seed,
        )

    return make


BUILDERS: dict[str, Builder] = {
    "mlem": _mlem,
    "osem": _osem,
    "filtered": _filtered,
    "quadratic": _quadratic,
    "rdp": _rdp,
    "patch": _patch,
    "bowsher": _bowsher,
    "pls": _pls,
    "dip": _dip,
    "nlm": _nlm,
    "naive": _naive,
    "dps": _dps,
}
