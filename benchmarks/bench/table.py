"""The methods that are compared, one line each: how it is built, what is searched for it, what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sirf_diffusion.reconstructors.methods import ADAPTATIONS, METHODS


@dataclass(frozen=True)
class Range:
    """A parameter that the search may change.

    Parameters
    ----------
    start, low, high
        First value and limits.
    factor
        First step: the value is multiplied or divided by it.
    whole
        Whether values are whole numbers.
    """

    start: float
    low: float
    high: float
    factor: float = 2.0
    whole: bool = False

    def moved(self, value: float, factor: float) -> float:
        """The value times a factor, within the limits; a whole number moves by at least one."""
        new = value * factor
        if self.whole:
            new = round(new)
            if new == value:
                new = value + (1 if factor > 1 else -1)
        return type(self.start)(min(max(new, self.low), self.high))


@dataclass(frozen=True)
class Line:
    """One method of the comparison.

    Parameters
    ----------
    name, title
        In files and on the command line, and in figures.
    builder
        Name of the function in `builders.BUILDERS` that makes the reconstructor.
    settings
        Fixed settings, and ``speed`` where that is not the default.
    search
        Parameters that are tuned, by the name of the setting. Empty: nothing is tuned. The first one is varied for
        the curve of bias against standard deviation.
    samples
        Whether it draws posterior samples, whose mean is the estimate.
    models
        Roles of the score models it needs: ``"score"``, ``"conditional"``.
    oracle
        Whether the target is the likelihood of the truth, which no real scan offers.
    planes
        Kinds of cases it can do: ``"slice"``, ``"volume"``.
    """

    name: str
    title: str
    builder: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Range] = field(default_factory=dict)
    samples: bool = False
    models: tuple[str, ...] = ()
    oracle: bool = False
    planes: tuple[str, ...] = ("slice", "volume")

    @property
    def needs_mr(self) -> bool:
        """Whether it is guided by an MR image."""
        return "conditional" in self.models or self.builder in ("bowsher", "pls")

    @property
    def fixed(self) -> dict[str, Any]:
        """All settings that are not searched, and what they default to in methods of the command line."""
        if self.builder not in METHODS:
            return dict(self.settings)
        method = METHODS[self.builder]
        own, speed = method.own_adaptation, self.settings.get("speed")
        usual = method.with_settings({}, speed=speed)
        adaptation = {} if own is None else {"adaptation": ADAPTATIONS[own.name].defaults()}
        in_volumes = method.with_settings({}, volume=True, speed=speed)
        volumes = {name: value for name, value in in_volumes.items() if value != usual[name]}
        return {**adaptation, **usual, "volumes": volumes, **self.settings}


_STRENGTH = {"penalisation_factor": Range(1.0, 1e-3, 1e3)}
_SCORE = {"samples": True, "models": ("score",)}
_GUIDED = {"samples": True, "models": ("conditional",)}
_ACCURATE = {"speed": "accurate"}
_DDS = {"anchor_strength": Range(5.0, 0.01, 1e3), "smoothing": Range(8.0, 1.0, 40.0, 1.5)}
_HQS = {"beta": Range(12.0, 0.05, 1e3)}

_LINES = (
    Line("mlem", "MLEM, best iteration", "mlem", search={"num_iterations": Range(10, 1, 100, 1.6, whole=True)}),
    Line("osem", "OSEM, best iteration", "osem", search={"num_iterations": Range(1, 1, 20, 2.0, whole=True)}),
    Line(
        "mlem-filter",
        "MLEM and Gaussian filter",
        "filtered",
        search={"fwhm": Range(5.0, 0.5, 20.0, 1.4), "num_iterations": Range(20, 1, 100, 1.6, whole=True)},
    ),
    Line("map-quadratic", "MAP-EM, quadratic", "quadratic", {"num_iterations": 60}, _STRENGTH),
    Line("map-rdp", "MAP, RDP", "rdp", {"num_iterations": 30, "kappa": False}, _STRENGTH),
    Line("map-rdp-kappa", "MAP, RDP with kappa", "rdp", {"num_iterations": 30, "kappa": True}, _STRENGTH),
    Line("map-patch", "MAP-EM, patches", "patch", {"num_iterations": 60},
         {"penalisation_factor": Range(0.06, 1e-3, 1e3), "delta": Range(0.1, 1e-3, 10.0, 3.0)}),
    Line("map-bowsher", "MAP-EM, Bowsher (MR)", "bowsher", {"num_iterations": 60},
         {**_STRENGTH, "num_neighbours": Range(3, 1, 8, 1.5, whole=True)}),
    Line("map-pls", "MAP, parallel level sets (MR)", "pls", {"num_iterations": 30, "alpha": 0.1},
         {**_STRENGTH, "eta": Range(0.03, 1e-3, 1.0, 3.0)}),
    Line("dip", "deep image prior", "dip", search={"num_iterations": Range(120, 5, 2000, 1.6, whole=True)}),
    Line("pnp-nlm", "plug-and-play, non-local means", "nlm", {"num_iterations": 20, "num_inner": 3},
         {"penalisation_factor": Range(1.0, 1e-3, 1e3, 3.0), "noise_level": Range(0.2, 0.02, 2.0)}, planes=("slice",)),
    Line("map-score", "MAP-EM, score prior", "map-score", {"num_iterations": 60},
         {"noise_level": Range(0.4, 0.03, 2.0), "penalisation_factor": Range(0.4, 1e-3, 1e2)}, models=("score",)),
    Line("naive", "naive score", "naive", {"num_steps": 200}, {"strength": Range(0.05, 1e-4, 1e2, 3.0)}, **_SCORE),
    Line("dps", "DPS", "dps", {"num_steps": 200}, {"strength": Range(400.0, 1.0, 1e5, 2.5)}, **_SCORE),
    Line("dds-published", "DDS as published", "dds",
         {"speed": "accurate", "num_steps": 100, "eta": 0.1, "num_inner": 4, "anchor_exponent": 0.0, "smoothing": 0.0,
          "axial_rdp": 1.0, "reference_steps": 0},
         {"anchor_strength": Range(10.0, 0.01, 1e3)}, **_SCORE),
    Line("dds", "DDS, tuned", "dds", {}, {**_DDS, "num_inner": Range(4, 1, 20, 1.5, whole=True)}, **_SCORE),
    Line("hqs", "HQS (DiffPIR)", "hqs", {}, _HQS, **_SCORE),
    Line("lisch", "LiSch, statistical target", "lisch", **_SCORE),
    Line("dds-accurate", "DDS, tuned, accurate", "dds", _ACCURATE,
         {**_DDS, "num_inner": Range(3, 1, 20, 1.5, whole=True)}, **_SCORE),
    Line("hqs-accurate", "HQS (DiffPIR), accurate", "hqs", _ACCURATE, _HQS, **_SCORE),
    Line("lisch-accurate", "LiSch, statistical target, accurate", "lisch", _ACCURATE, **_SCORE),
    Line("lisch-50", "LiSch as published, 50 MLEM iterations", "lisch",
         {"speed": "accurate", "num_em_iterations": 50.0, "schedule_exponent": 1.0, "anchor_strength": 0.0}, **_SCORE),
    Line("lisch-oracle", "LiSch, likelihood of the truth", "lisch", oracle=True, **_SCORE),
    Line("dds-mr", "DDS, MR-guided", "dds", {"role": "conditional"},
         {"anchor_strength": Range(5.0, 0.01, 1e3), "guidance": Range(0.25, 0.02, 2.0)}, **_GUIDED),
    Line("lisch-mr", "LiSch, MR-guided", "lisch", {"role": "conditional"},
         {"guidance": Range(0.25, 0.02, 2.0)}, **_GUIDED),
    *(Line(name, METHODS[name].title, name, **_SCORE) for name in ("ddip", "steerable")),
    Line("deft", "DEFT, supervised", "deft", planes=("slice",), **_SCORE),
)  # fmt: skip

LINES: dict[str, Line] = {line.name: line for line in _LINES}


def get_line(name: str) -> Line:
    """The line of this name.

    Raises
    ------
    ValueError
        If there is none, with those that there are.
    """
    if name not in LINES:
        raise ValueError(f"unknown method {name!r}; choose from {', '.join(LINES)}")
    return LINES[name]
