"""The suites: which cases, counts, realisations and methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.bench.cases import CaseSpec
from benchmarks.bench.mismatch import MISMATCHES
from benchmarks.bench.table import LINES
from benchmarks.bench.truth import Given

_ALL = tuple(LINES)
_DETERMINISTIC_VARIANTS = (0.25, 0.5, 2.0, 4.0)


@dataclass(frozen=True)
class Suite:
    """Sizes of a benchmark.

    Parameters
    ----------
    name, about
        On the command line, and what it is.
    kinds
        Kinds of cases, see :class:`~benchmarks.bench.cases.CaseSpec`.
    prompts
        Expected counts per plane.
    subjects, tuning_subjects
        Reported on, and tuned on.
    tuning_kind
        Kind of the tuning cases: a shift is met untuned.
    num_realisations, num_samples
        Noise realisations of each case; posterior samples of methods that draw some.
    tuning_samples
        Posterior samples during the search.
    budget
        Candidates that the search may try for each method and count level.
    methods
        Names of lines.
    variants
        Factors on the first tuned parameter for the curves of bias against standard deviation.
    num_variant_realisations
        Realisations of those.
    overrides
        By line, fixed settings that differ from the table's.
    given
        The user's own truth.
    """

    name: str
    about: str
    kinds: tuple[str, ...] = ("slice",)
    prompts: tuple[float, ...] = (5e4, 2e5, 1e6)
    subjects: tuple[int, ...] = (9002, 9003, 9004)
    tuning_subjects: tuple[int, ...] = (801, 802, 803)
    tuning_kind: str = "slice"
    num_realisations: int = 10
    num_samples: int = 5
    tuning_samples: int = 2
    budget: int = 12
    methods: tuple[str, ...] = _ALL
    variants: tuple[float, ...] = _DETERMINISTIC_VARIANTS
    num_variant_realisations: int = 4
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    given: Given | None = None

    def of_truth(self, given: Given, prompts: Sequence[float] | None) -> Suite:
        """The same methods and searches, with the user's own truth reported on instead of the subjects."""
        kind = "volume" if given.grids()[0].shape[0] > 1 else "slice"
        tuning = (801,) if kind == "volume" else self.tuning_subjects
        return replace(self, name=given.kind, about=f"the image {given.truth}", kinds=(given.kind,), subjects=(9000,),
                       prompts=tuple(prompts or self.prompts), tuning_kind=kind, tuning_subjects=tuning,
                       given=given)  # fmt: skip

    def smaller(self, num_subjects: int | None = None, num_realisations: int | None = None) -> Suite:
        """The same with fewer subjects, reported on and tuned on, or fewer realisations.

        Raises
        ------
        ValueError
            If there are not so many, or less than one is wanted.
        """
        for name, wanted, most in (
            ("subjects", num_subjects, len(self.subjects)),
            ("realisations", num_realisations, self.num_realisations),
        ):
            if wanted is not None and not 1 <= wanted <= most:
                raise ValueError(f"suite {self.name} has 1 to {most} {name}, asked for {wanted}")
        realisations = num_realisations or self.num_realisations
        return replace(
            self,
            subjects=self.subjects[:num_subjects],
            tuning_subjects=self.tuning_subjects[:num_subjects],
            num_realisations=realisations,
            num_variant_realisations=min(realisations, self.num_variant_realisations),
        )

    def cases(self) -> list[CaseSpec]:
        """Cases that are reported on."""
        return [CaseSpec(k, s, p, self.given) for k in self.kinds for p in self.prompts for s in self.subjects]

    def tuning_cases(self, prompts: float) -> list[CaseSpec]:
        """Cases that parameters are chosen on, for one count level."""
        return [CaseSpec(self.tuning_kind, s, prompts) for s in self.tuning_subjects]


_SHIFTS = ("fdg", "amyloid-positive", "amyloid-negative", "dpa714", "low-resolution", "high-resolution", "large-lesion",
           "atrophy")  # fmt: skip

_MISMATCH = Suite(
    "mismatch",
    "slices of two subjects with an error of the system model each (attenuation, motion, scatter, resolution, scale, "
    "detectors), parameters tuned without knowing",
    kinds=("slice", *(kind for kind in MISMATCHES if kind != "stir-data")),
    prompts=(2e5,),
    subjects=(9002, 9003),
    num_realisations=4,
    methods=("mlem", "map-rdp", "map-score", "dds", "hqs", "lisch"),
    variants=(),
)

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "one slice at one count level, few methods: under 10 minutes on two cores",
            prompts=(2e5,),
            subjects=(9002,),
            tuning_subjects=(801,),
            num_realisations=4,
            num_samples=4,
            budget=6,
            methods=("mlem", "mlem-filter", "map-quadratic", "map-rdp", "map-rdp-kappa", "map-patch", "map-bowsher",
                     "map-pls", "map-score", "dds", "hqs", "lisch", "lisch-mr"),
            variants=(0.5, 2.0),
            num_variant_realisations=2,
        ),
        Suite("2d", "slices of three subjects at three count levels, all methods: about a day on two cores"),
        Suite(
            "3d",
            "23 planes with oblique segments at two count levels: half a day on two cores",
            kinds=("volume",),
            prompts=(5e4, 2e5),
            subjects=(9002,),
            tuning_subjects=(801,),
            tuning_kind="volume",
            tuning_samples=1,
            budget=6,
            methods=("mlem", "osem", "mlem-filter", "map-quadratic", "map-rdp", "map-rdp-kappa", "map-patch",
                     "map-bowsher", "map-pls", "map-score", "dds", "hqs", "lisch", "dds-mr", "lisch-mr"),
            variants=(),
        ),
        Suite(
            "ood",
            "slices that differ from the training images (tracer, resolution, anatomy), parameters tuned without "
            "knowing: half a day on two cores",
            kinds=_SHIFTS,
            prompts=(2e5,),
            subjects=(9002, 9003),
            num_realisations=10,
            methods=("mlem", "mlem-filter", "map-rdp", "map-rdp-kappa", "map-bowsher", "map-pls", "map-score", "dds",
                     "hqs", "lisch", "dds-mr", "lisch-mr", "ddip", "steerable"),
            variants=(),
        ),
        _MISMATCH,
        replace(
            _MISMATCH,
            name="mismatch-stir",
            about="the same on data that the real STIR projected, by another system model; needs STIR",
            kinds=("slice", "stir-data"),
        ),
    )
}  # fmt: skip
