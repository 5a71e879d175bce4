"""The named MAP methods: penalties whose strengths are relative to the image's intensity scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...engines import as_objective
from ...engines.objective import Objective
from ...models.intensity import intensity_scale as estimate_intensity_scale
from ...priors import Penalty, RelativeDifferencePenalty, ScorePenalty
from ...priors.score import MEMORY, NOISE_LEVEL, PENALISATION_FACTOR
from ..settings import Settings, count, flag, make, real
from ..view import as_score_model, bound, extent_setting, planes_setting
from .mapem import MAPEM

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel
    from ..records import StepRecord


@dataclass(frozen=True)
class RelativeDifferenceSettings(Settings):
    """Of `RelativeDifferenceMAP`."""

    num_iterations: int = count(
        30, "passes through the data; at 30 it is within a fraction of a percent of the optimum", quick=12
    )
    penalisation_factor: float = real(
        2.0,
        "strength (a voxel of a volume has 26 neighbours, not 8); the factor that STIR would be given is this divided "
        "by the intensity scale",
        volumes=0.3,
    )
    gamma: float = real(2.0, "edge preservation")
    epsilon: float = real(
        0.005, "in units of the intensity scale; keeps the prior smooth where activity is zero", open_below=True
    )


class RelativeDifferenceMAP(MAPEM):
    """MAP-EM with the relative difference prior (Nuyts et al. 2002), by BSREM.

    Parameters
    ----------
    objective
        Poisson log-likelihood; 14 subsets suit it.
    prior
        Another penalty than the settings describe.
    intensity_scale
        ``c``, image units; estimated from the objective's early image if omitted.
    callbacks
        As for `MAPEM`.
    """

    method: ClassVar[str] = "map-rdp"
    title: ClassVar[str] = "MAP-EM, RDP"
    about: ClassVar[str] = "MAP-EM with the relative difference prior (BSREM)"
    references: ClassVar[tuple[str, ...]] = ("Nuyts2002", "Ahn2003", "Twyman2023")
    num_subsets: ClassVar[int] = 14

    @classmethod
    def parts(cls) -> tuple[type[Settings], ...]:
        return (RelativeDifferenceSettings,)

    def __init__(
        self,
        objective: Objective,
        *,
        prior: Penalty | None = None,
        intensity_scale: float | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
        **settings: Any,
    ) -> None:
        objective = as_objective(objective)
        volumes = ("volumes",) if objective.geometry.shape[0] > 1 else ()
        (chosen,) = make(self.parts(), settings, self.method, *volumes)
        if prior is None:
            scale = intensity_scale or estimate_intensity_scale(objective.early_image(), objective.geometry)
            strength, gamma, epsilon = chosen.penalisation_factor, chosen.gamma, chosen.epsilon
            prior = relative_difference_penalty(objective, strength, scale, gamma, epsilon)
        super().__init__(objective, prior, chosen.num_iterations, callbacks=callbacks)


def relative_difference_penalty(
    objective: Objective,
    strength: float,
    intensity_scale: float,
    gamma: float = 2.0,
    epsilon: float = 0.005,
    **options: Any,
) -> RelativeDifferencePenalty:
    """The penalty of ``u = x / c``; its value is homogeneous of degree one, hence ``beta = strength / c``."""
    beta = strength / intensity_scale
    epsilon *= intensity_scale
    return RelativeDifferencePenalty(objective.geometry, beta, gamma=gamma, epsilon=epsilon, **options)


@dataclass(frozen=True)
class ScoreSettings(Settings):
    """Of `ScoreMAP`."""

    num_iterations: int = count(60, "network evaluations", quick=30)
    num_inner: int = count(1, "EM updates for each of them")
    penalisation_factor: float = real(
        PENALISATION_FACTOR, "strength, which depends neither on counts nor on units; 0.2 without memory"
    )
    noise_level: float = real(
        NOISE_LEVEL,
        "noise level of the denoiser: small is sharp and rough, large is smooth and biased; 0.3 without memory",
        open_below=True,
    )
    memory: bool = flag(MEMORY, "whether the noise found is kept and shown to the denoiser again (plug-and-play)")
    planes: str | None = planes_setting()
    extent: float | None = extent_setting()


class ScoreMAP(MAPEM):
    """MAP-EM with the score model as prior, see `ScorePenalty`: one image, the same each time.

    Parameters
    ----------
    objective
        Poisson log-likelihood.
    model
        Score model, or its name or file; bound here (`ScoreModel.for_data`) if it is not.
    callbacks
        As for `MAPEM`.
    """

    method: ClassVar[str] = "map-score"
    title: ClassVar[str] = "MAP-EM, score prior"
    about: ClassVar[str] = "MAP-EM with the score model as prior, at one noise level"
    references: ClassVar[tuple[str, ...]] = ("Romano2017", "DePierro1995")
    uses_model: ClassVar[bool] = True

    @classmethod
    def parts(cls) -> tuple[type[Settings], ...]:
        return (ScoreSettings,)

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel | str | Path,
        *,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
        **settings: Any,
    ) -> None:
        objective = as_objective(objective)
        (chosen,) = make(self.parts(), settings, self.method)
        model = bound(as_score_model(model), objective, chosen.planes, chosen.extent)
        prior = ScorePenalty(model, chosen.noise_level, chosen.penalisation_factor, memory=chosen.memory)
        super().__init__(objective, prior, chosen.num_iterations, num_inner=chosen.num_inner, callbacks=callbacks)
