"""What is reconstructed: simulated subjects with lesions, at given counts, measured as often as one likes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import domain_shift
from benchmarks.bench.acquisition import centred, mmr_slice, simulate_acquisition
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import get_scanner

if TYPE_CHECKING:
    from benchmarks.bench.truth import Given

#: Subjects from here on are reported on; those of `TUNING_SUBJECTS` choose parameters. No model is trained on either.
FIRST_REPORTED_SUBJECT = 9000
TUNING_SUBJECTS = range(800, 900)

GREY_MATTER = 20.0
LESION_RADIUS = 7.0
HOT, COLD = 1.8, 0.3
#: Lesions by their place in the list: uptake, and whether they show in the MR image.
LESIONS = {
    "hot, in the MR": (HOT, True),
    "hot, not in the MR": (HOT, False),
    "cold, in the MR": (COLD, True),
    "cold, not in the MR": (COLD, False),
}
#: Voxels of a lesion of the domain-shift suite below which it is not measured.
SMALLEST_LESION = 5
#: Values of the domain-shift suite's maps of tissues: one plus the position in `HeadAnatomy.tissues`.
_LABELS = {"grey": 1, "white": 2}


@dataclass(frozen=True)
class CaseSpec:
    """Which case: everything that its simulation depends on.

    Parameters
    ----------
    kind
        ``"slice"``, ``"volume"``, or the name of a case of the suites of domain shifts and of mismatches.
    subject
        Seed of the simulated subject.
    prompts
        Expected counts per plane.
    given
        The user's own truth.
    """

    kind: str
    subject: int
    prompts: float
    given: Given | None = None

    @property
    def name(self) -> str:
        """Name in files and tables."""
        return f"{self.kind}-{self.subject}-{short(self.prompts)}"


def short(counts: float) -> str:
    """A number of counts as in ``2e5`` and ``1.2e5``, all its digits."""
    return np.format_float_scientific(counts, trim="-", exp_digits=1).replace("e+", "e")


@dataclass(frozen=True)
class Case:
    """A scan to be: truth, anatomy, regions, and the factors and background of the data; no counts yet.

    Parameters
    ----------
    spec
        Where it comes from.
    truth, mr
        Emission and MR image ``[z, y, x]``.
    masks
        Regions ``[z, y, x]``, bool: ``head``, ``grey``, ``white``, and for each lesion ``kind`` and ``around kind``.
    multiplicative, additive
        As in `sirf_diffusion.engines.embedded.acquisition.Acquisition`.
    rois
        Labels ``[z, y, x]`` of regions of the background by their size, 0 for none.
    expected
        Counts that the scanner expects, where these are not those of its model ``multiplicative (G truth + additive)``.
    scale_error
        Factor by which models are bound to a wrong intensity scale.
    """

    spec: CaseSpec
    geometry: ImageGeometry
    projdata: ProjDataGeometry
    truth: Tensor
    mr: Tensor
    masks: dict[str, Tensor]
    multiplicative: Tensor
    additive: Tensor
    rois: dict[str, Tensor] = field(default_factory=dict)
    expected: Tensor | None = None
    scale_error: float = 1.0

    @property
    def lesions(self) -> list[str]:
        """Kinds of the lesions that are there."""
        return [name for name in self.masks if f"around {name}" in self.masks]

    def counts(self, mean: Tensor, realisation: int) -> Tensor:
        """Poisson counts of one realisation, given what is expected."""
        spec = self.spec
        seed = [43, *spec.kind.encode(), spec.subject, int(spec.prompts), realisation]
        return torch.from_numpy(np.random.default_rng(seed).poisson(mean.double().cpu().numpy()).astype(np.float32))


def make_case(spec: CaseSpec, projdata: ProjDataGeometry | None = None) -> Case:
    """Simulate a case: the same specification, the same bits. ``projdata`` is another layout for a slice or a volume.

    Raises
    ------
    ImportError
        If nilearn (the ``train`` extra) is not installed.
    ValueError
        If a model may have been trained on this subject, or the kind is unknown.
    """
    if spec.given is not None:
        return spec.given.case(spec)
    if spec.subject < FIRST_REPORTED_SUBJECT and spec.subject not in TUNING_SUBJECTS:
        raise ValueError(f"subject {spec.subject} may have been trained on: take {FIRST_REPORTED_SUBJECT} and above")
    from .mismatch import MISMATCHES, mismatched

    if spec.kind not in ("slice", "volume", *MISMATCHES):
        return _shifted_case(spec)
    geometry, own = volume_grids() if spec.kind == "volume" else mmr_slice()
    truth, mu, mr, masks = _subject(spec.subject, geometry.shape)
    case = case_of(spec, geometry, projdata or own, truth, mu, mr, masks)
    return mismatched(spec.kind, case, mu) if spec.kind in MISMATCHES else case


def case_of(
    spec: CaseSpec,
    geometry: ImageGeometry,
    projdata: ProjDataGeometry,
    truth: Tensor,
    mu: Tensor,
    mr: Tensor,
    masks: dict[str, Tensor],
) -> Case:
    """A case from its images: attenuation, uneven efficiencies and 30 % background, scaled to the counts."""
    acquisition = simulate_acquisition(truth, mu, geometry, projdata, prompts=spec.prompts * geometry.shape[0])
    masks = {name: mask for name, mask in masks.items() if bool(mask.any())}
    return Case(spec, geometry, projdata, truth, mr, masks, acquisition.multiplicative, acquisition.additive)


def volume_grids() -> tuple[ImageGeometry, ProjDataGeometry]:
    """Twelve rings of a Siemens mMR with three segments of span 7: 23 planes of 128 x 128 voxels of 2 mm in plane."""
    mmr = dataclasses.replace(get_scanner("Siemens mMR"), name="twelve rings of a Siemens mMR", num_rings=12)
    segments = (Segment(0, -3, 3, 23), Segment(1, 4, 10, 15), Segment(-1, -10, -4, 15))
    return ImageGeometry((23, 128, 128), (mmr.ring_spacing / 2, 2.0, 2.0)), ProjDataGeometry(mmr, segments, 42, 128)


@lru_cache(maxsize=4)
def _subject(subject: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Truth, attenuation, MR and regions of some planes of a subject."""
    from scipy.ndimage import gaussian_filter

    from sirf_diffusion.simulation import TracerContrast, simulate_activity

    rng = np.random.default_rng([44, subject])
    anatomy = domain_shift.anatomy_of(subject)
    first = int(rng.integers(56, 76)) - shape[0] // 2
    planes = slice(first, first + shape[0])
    activity = GREY_MATTER * simulate_activity(
        anatomy, 0, TracerContrast(reversed_share=0.0, max_lesions=0), psf_fwhm=4.0
    )
    mr, brain = anatomy.t1.copy(), anatomy.brain
    change, memberships = np.ones_like(activity), {}
    for name, centre in _lesion_sites(rng, activity, brain, first + shape[0] // 2, anatomy.voxel_size).items():
        factor, shows = LESIONS[name]
        distance = _distance(centre, activity.shape, anatomy.voxel_size)
        membership = 1 / (1 + np.exp(np.clip((distance / LESION_RADIUS - 1) / 0.08, -30, 30)))
        change *= 1 + (factor - 1) * membership
        if shows:
            mr *= 1 - 0.4 * membership
        memberships[name] = distance
    activity = activity * gaussian_filter(change, 4.0 / 2.3548 / anatomy.voxel_size).astype(np.float32)

    clear = np.ones(activity.shape, bool)
    for distance in memberships.values():
        clear &= distance > 1.3 * LESION_RADIUS
    masks = {
        "head": sum(anatomy.tissues.values()) > 0.5,
        "grey": (anatomy.tissues["grey"] > 0.8) & clear,
        "white": (anatomy.tissues["white"] > 0.8) & clear,
    }
    for name, distance in memberships.items():
        masks[name] = distance < 0.8 * LESION_RADIUS
        near = (distance > 1.4 * LESION_RADIUS) & (distance < 2.2 * LESION_RADIUS)
        masks[f"around {name}"] = near & (brain > 0.8) & clear
    fitted = {name: centred(torch.from_numpy(mask[planes]).float(), shape[1:]) > 0 for name, mask in masks.items()}
    images = (centred(torch.from_numpy(v[planes]).float(), shape[1:]) for v in (activity, anatomy.mu, mr))
    return (*images, fitted)  # type: ignore[return-value]


def _lesion_sites(
    rng: np.random.Generator, activity: np.ndarray, brain: np.ndarray, plane: int, voxel_size: float
) -> dict[str, tuple[int, int, int]]:
    """Centres in the plane, inside the brain, apart from each other, where uptake is even without the lesion."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    inner = binary_erosion(brain[plane] > 0.5, iterations=max(1, round(LESION_RADIUS / voxel_size)))
    narrow, wide = (
        gaussian_filter(activity[plane], w / voxel_size) for w in (0.5 * LESION_RADIUS, 1.6 * LESION_RADIUS)
    )
    unevenness = np.abs(narrow / np.maximum(wide, 1e-6) - 1) + 0.05 * rng.random(narrow.shape)
    unevenness[~inner] = np.inf
    sites = {}
    rows, columns = np.indices(narrow.shape)
    for name in LESIONS:
        row, column = np.unravel_index(int(np.argmin(unevenness)), narrow.shape)
        if not np.isfinite(unevenness[row, column]):
            break
        sites[name] = (plane, int(row), int(column))
        unevenness[np.hypot(rows - row, columns - column) * voxel_size < 3.2 * LESION_RADIUS] = np.inf
    return sites


def _distance(centre: tuple[int, int, int], shape: tuple[int, ...], voxel_size: float) -> np.ndarray:
    """Distance from a voxel in mm."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return voxel_size * np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)))


def _shifted_case(spec: CaseSpec) -> Case:
    """A case of the domain-shift suite."""
    from .mismatch import MISMATCHES

    if spec.kind not in domain_shift.CASES:
        known = ", ".join(("slice", "volume", *domain_shift.CASES, *MISMATCHES))
        raise ValueError(f"unknown kind of case {spec.kind!r}; known are {known}")
    found = domain_shift.simulate_case(spec.kind, spec.subject, prompts=spec.prompts)
    scan, masks = found.acquisition, _masks_of(found.labels, found.lesions)
    return Case(spec, scan.geometry, scan.projdata, found.truth, found.mr, masks, scan.multiplicative, scan.additive)


def _masks_of(labels: Tensor, lesions: Tensor) -> dict[str, Tensor]:
    """Regions from maps of tissues and of lesions."""
    from scipy.ndimage import distance_transform_edt

    from sirf_diffusion.simulation.lesions import LESION_KINDS

    clear = lesions == 0
    masks = {"head": labels > 0}
    masks |= {name: (labels == value) & clear for name, value in _LABELS.items()}
    brain = masks["grey"] | masks["white"]
    for kind, value in LESION_KINDS.items():
        lesion = lesions == value
        around = (torch.from_numpy(distance_transform_edt(~lesion.numpy())) < 6) & brain
        if int(lesion.sum()) >= SMALLEST_LESION and bool(around.any()):
            masks[kind], masks[f"around {kind}"] = lesion, around
    return masks
