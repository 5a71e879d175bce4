"""The methods by name, with the settings that a run uses unless told otherwise: the one place where they are kept.

Strengths are relative to the image's intensity scale ``c`` (see `sirf_diffusion.models.intensity_scale`), so that one
value serves images whose units differ: an image ``x`` is penalised as ``u = x / c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method of the command line.

    Parameters
    ----------
    name
        Name on the command line and in results.
    title
        Name in figures.
    about
        One line for ``--help``.
    uses_model
        Whether a score model is needed.
    samples
        Whether it draws posterior samples; otherwise it gives one image.
    num_subsets
        Wanted number of subsets; the largest one below it that divides the views evenly is used.
    settings
        Defaults of what can be set; None stands for a value chosen by the data.
        Those of all score models: ``planes`` (see `ScoreModel.on`; None as `ScoreModel.planes_for` says) and
        ``extent``, the side in mm of the central square that the network covers, for small objects in a large field of
        view.
    volumes
        Other defaults for volumes, unless they are seen as transverse slices only.
    quick
        Other values for a quick look.
    adaptation
        Name of the adaptation of the network that belongs to it, see `ADAPTATIONS`.
    """

    name: str
    title: str
    about: str
    uses_model: bool = False
    samples: bool = False
    num_subsets: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    volumes: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    adaptation: str | None = None

    def with_settings(self, given: Mapping[str, Any], *, volume: bool = False, quick: bool = False) -> dict[str, Any]:
        """Defaults, replaced by what was given.

        Raises
        ------
        ValueError
            If a setting is unknown, with those that there are.
        """
        if unknown := sorted(set(given) - set(self.settings)):
            known = ", ".join(f"{k}={v}" for k, v in self.settings.items())
            raise ValueError(f"{self.name} has no setting {unknown[0]!r}; it has {known}")
        in_volumes = self.volumes if volume and given.get("planes") != "transverse" else {}
        return {**self.settings, **in_volumes, **(self.quick if quick else {}), **given}


_LISCH = {
    "num_steps": 40,
    "eta": 1.0,
    "noise": "balanced",
    "step_size": 1.8,
    "target": None,
    "num_em_iterations": None,
    "smoothing": 0.0,
    "schedule_exponent": 0.0,
    "anchor_strength": 2.5,
    "planes": None,
    "extent": None,
}

# What a model of slices gets wrong in one plane it may get right in the next: there anchors are strong. In three
# orientations errors reach over several planes, and the data move them together. Orientations that take turns share the
# noise levels, so that there are more of them.
_LISCH_VOLUMES = {"num_steps": 60, "anchor_strength": 0.4}

_METHODS = (
    Method(
        "osem",
        "OSEM",
        "maximum likelihood, stopped early",
        num_subsets=9,
        settings={"num_iterations": 1},
    ),
    Method(
        "map-rdp",
        "MAP-EM, RDP",
        "MAP-EM with the relative difference prior (BSREM)",
        num_subsets=14,
        settings={"num_iterations": 30, "penalisation_factor": 2.0, "gamma": 2.0, "epsilon": 0.005},
        volumes={"penalisation_factor": 0.3},  # 26 neighbours instead of 8
        quick={"num_iterations": 12},
    ),
    Method(
        "map-score",
        "MAP-EM, score prior",
        "MAP-EM with the score model as prior, at one noise level",
        uses_model=True,
        settings={
            "num_iterations": 60,
            "num_inner": 1,
            "penalisation_factor": 0.2,
            "sigma": 0.2,
            "planes": None,
            "extent": None,
        },
        quick={"num_iterations": 30},
    ),
    Method(
        "dds",
        "DDS",
        "diffusion sampling, proximal data steps towards each denoised image",
        uses_model=True,
        samples=True,
        settings={
            "num_steps": 40,
            "eta": 1.0,
            "noise": "balanced",
            "num_inner": 3,
            "anchor_strength": 5.0,
            "anchor_exponent": 1.0,
            "axial_rdp": 1.0,
            "smoothing": 8.0,
            "planes": None,
            "extent": None,
        },
        volumes={"num_steps": 60, "anchor_strength": 0.6},
        quick={"num_steps": 15},
    ),
    Method(
        "hqs",
        "HQS",
        "diffusion sampling, half-quadratic splitting with a closed-form EM data step",
        uses_model=True,
        samples=True,
        settings={
            "num_steps": 40,
            "eta": 1.0,
            "noise": "balanced",
            "num_inner": 3,
            "beta": 12.0,
            "planes": None,
            "extent": None,
        },
        volumes={"num_steps": 60, "beta": 5.0},
        quick={"num_steps": 15},
    ),
    Method(
        "lisch",
        "LiSch",
        "diffusion sampling to a likelihood schedule; no strength to tune",
        uses_model=True,
        samples=True,
        # The end of the schedule is estimated from two halves of the data; the sampling itself uses all of them.
        num_subsets=2,
        settings=_LISCH,
        volumes=_LISCH_VOLUMES,
        quick={"num_steps": 15},
    ),
    Method(
        "ddip",
        "DDIP",
        "the network is fitted to the data while it denoises an MLEM image (--adapt-set)",
        uses_model=True,
        samples=True,
        num_subsets=2,
        settings={
            "num_steps": 40,
            "eta": 0.85,
            "noise": "balanced",
            "sigma_start": 0.7,
            "final_step": True,
            "target": None,
            "smoothing": 8.0,
            "planes": None,
            "extent": None,
        },
        volumes={"num_steps": 60},
        quick={"num_steps": 15},
        adaptation="ddip",
    ),
    Method(
        "steerable",
        "Steerable",
        "lisch with a network that is steered towards the data (--adapt-set)",
        uses_model=True,
        samples=True,
        num_subsets=2,
        settings=_LISCH,
        volumes=_LISCH_VOLUMES,
        quick={"num_steps": 15},
        adaptation="steerable",
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}


@dataclass(frozen=True)
class AdaptationChoice:
    """An adaptation of the network by its name on the command line, with its defaults; see `NetworkAdaptation`."""

    name: str
    about: str
    settings: Mapping[str, Any]

    def with_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults, replaced by what was given; ValueError for an unknown setting."""
        if unknown := sorted(set(given) - set(self.settings)):
            known = ", ".join(f"{k}={v}" for k, v in self.settings.items())
            raise ValueError(f"the adaptation {self.name} has no setting {unknown[0]!r}; it has {known}")
        return {**self.settings, **given}


ADAPTATIONS: dict[str, AdaptationChoice] = {
    choice.name: choice
    for choice in (
        AdaptationChoice(
            "ddip",
            "EM targets, and the network fitted to them; the projector is not differentiated",
            {
                "coupling": "hqs", "rank": 4, "biases": True, "learning_rate": 1e-3, "num_rounds": 1, "num_inner": 1,
                "num_updates": 5, "beta": 1.0, "smoothing": 8.0, "total_variation": 0.0, "every": 2,
                "sigma_max": 3.0, "carry_optimiser": False, "cap": True,
            },
        ),
        AdaptationChoice(
            "steerable",
            "low-rank changes towards what the method's data step makes of the denoised image",
            {
                "coupling": "data-step", "rank": 4, "biases": True, "learning_rate": 2e-3, "num_rounds": 1,
                "num_inner": 1, "num_updates": 3, "beta": 1.0, "smoothing": 8.0, "total_variation": 0.0, "every": 2,
                "sigma_max": 3.0, "carry_optimiser": True, "cap": True,
            },
        ),
    )
}  # fmt: skip

#: Posterior samples of the sampling methods.
NUM_SAMPLES = 5
QUICK_NUM_SAMPLES = 2


def get_method(name: str) -> Method:
    """The method of this name.

    Raises
    ------
    ValueError
        If there is none, with those that there are.

    Examples
    --------
    >>> get_method("lisch").samples
    True
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose from {', '.join(METHODS)}")
    return METHODS[name]
