"""Test cases that a model of FDG heads was not trained for: other tracers, another scanner, changed anatomy.

Each case is a function of its name, subject, number of counts and realisation of the noise, and differs from the
reference case of the same subject in what its name says and in nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.simulation.head import Array, HeadAnatomy, simulate_anatomy
from sirf_diffusion.simulation.lesions import Lesion, lesions_in_mr, soft_ellipsoid
from sirf_diffusion.simulation.tracer import draw_activity
from sirf_diffusion.simulation.tracers import TRACERS

from .acquisition import centred, mmr_slice, simulate_acquisition

#: Subjects below this are for training.
FIRST_TUNING_SUBJECT = 800
#: Image units of grey matter.
GREY_MATTER = 20.0
#: Planes of the simulated heads, 2 mm apart, that the slices of consecutive subjects are.
PLANES = (60, 66, 72, 78)
#: FWHM in mm of the reference's blur; training draws it from 3.5 to 5.
REFERENCE_PSF = 4.0


@dataclass(frozen=True)
class DomainShift:
    """What differs from the reference.

    ``tracer`` is a name in `sirf_diffusion.simulation.tracers.TRACERS`. The true image has the scanner's blur
    ``psf_fwhm`` in mm, too: the reconstruction is not to undo it. ``anatomy`` and ``lesions`` change the subject:
    ``f(anatomy) -> anatomy``, and ``f(anatomy, plane) -> lesions`` besides its own. ``trained_on`` is a name in
    `~sirf_diffusion.simulation.perturbations.PERTURBATIONS` if it is the *model* that is out of place: one trained on
    perturbed images meets the reference's data.
    """

    name: str
    title: str
    about: str
    tracer: str = "fdg"
    psf_fwhm: float = REFERENCE_PSF
    anatomy: Callable[[HeadAnatomy], HeadAnatomy] | None = None
    lesions: Callable[[HeadAnatomy, int], list[Lesion]] | None = None
    trained_on: str | None = None


@dataclass(frozen=True)
class Subject:
    """Volumes ``[z, y, x]`` of one subject, voxels of 2 mm, axes as those of `HeadAnatomy`.

    ``activity`` has grey matter at about 1, ``mu`` is in 1/cm; ``labels`` and ``lesions`` (values of `LESION_KINDS`)
    are ``uint8``. ``plane`` is the plane that slices are made of, where a large lesion would be.
    """

    activity: Array
    mu: Array
    mr: Array
    labels: NDArray[np.uint8]
    lesions: NDArray[np.uint8]
    plane: int


@dataclass(frozen=True)
class TestCase:
    """One slice with its data (one ring of a Siemens mMR) and all that is known of it; images are ``[1, y, x]``.

    Grey matter has a ``truth`` of about 20. ``attenuation`` in 1/cm is in ``acquisition.multiplicative`` already. For
    ``labels`` and ``lesions`` see `Subject`.
    """

    __test__ = False  # not a test, whatever pytest makes of its name

    name: str
    subject: int
    prompts: float
    realisation: int
    acquisition: Acquisition
    truth: Tensor
    attenuation: Tensor
    mr: Tensor
    labels: Tensor
    lesions: Tensor

    @property
    def geometry(self) -> ImageGeometry:
        """Grid of the images."""
        return self.acquisition.geometry


def simulate_case(name: str, subject: int, *, prompts: float = 2e5, realisation: int = 0) -> TestCase:
    """One slice of a subject as a low-count acquisition.

    Parameters
    ----------
    name, subject
        A name in `CASES`; subjects from 800 to 8999 are for tuning, those from 9000 on for results.
    prompts, realisation
        Expected counts, 30 % of them background; which noise: the same slice measured again.

    Raises
    ------
    ValueError
        For an unknown name, a training subject, or counts that make no sense.
    ImportError
        If nilearn (the ``train`` extra) is not installed.

    Examples
    --------
    >>> case = simulate_case("amyloid-negative", 800)
    >>> case.truth.shape, round(float(case.acquisition.prompts.sum()), -4)
    (torch.Size([1, 128, 128]), 200000.0)
    """
    volumes = simulate_subject(name, subject)
    geometry, projdata = mmr_slice()

    def plane(values: NDArray) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(values[volumes.plane : volumes.plane + 1]))
        return centred(image, geometry.shape[1:])

    truth, attenuation = GREY_MATTER * plane(volumes.activity), plane(volumes.mu)
    acquisition = simulate_acquisition(
        truth, attenuation, geometry, projdata, prompts=prompts, seed=(subject, realisation)
    )
    images = (truth, attenuation, *(plane(v) for v in (volumes.mr, volumes.labels, volumes.lesions)))
    return TestCase(name, subject, float(prompts), realisation, acquisition, *images)


def write_case(case: TestCase, folder: str | os.PathLike[str]) -> None:
    """Write a case as Interfile, as the bundled examples are, for `load_example` and SIRF; the folder is made."""
    from sirf_diffusion.files.interfile import write_image, write_projection_data

    folder, data = Path(folder), case.acquisition
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("prompts", "multiplicative", "additive"):
        write_projection_data(folder / f"{name}.hs", getattr(data, name), data.projdata)
    for name, image in (("truth", case.truth), ("mu", case.attenuation), ("mr", case.mr)):
        write_image(folder / f"{name}.hv", image, data.geometry)


@lru_cache(maxsize=4)
def simulate_subject(name: str, subject: int) -> Subject:
    """The volumes behind a case; the arguments are those of `simulate_case`."""
    if name not in CASES:
        raise ValueError(f"unknown case {name!r}; choose from {', '.join(CASES)}")
    if subject < FIRST_TUNING_SUBJECT:
        raise ValueError(
            f"subject {subject} is one for training, on which a model is judged too well: take one from "
            f"{FIRST_TUNING_SUBJECT} on for tuning, from 9000 on for results"
        )
    shift, plane = CASES[name], PLANES[subject % len(PLANES)]
    original = anatomy_of(subject)
    _, own = _reference(subject)
    changed = original if shift.anatomy is None else shift.anatomy(original)
    added = [] if shift.lesions is None else shift.lesions(original, plane)
    contrast = TRACERS[shift.tracer].contrast(subject, 0)
    activity, _ = draw_activity(changed, 0, contrast, shift.psf_fwhm, [*own, *added])
    mr, kinds = lesions_in_mr(np.random.default_rng([23, subject, 0]), changed.t1, own, 0.5)
    if added:
        mr, more = lesions_in_mr(np.random.default_rng([23, subject, 1]), mr, added, 1.0)
        kinds = np.where(more > 0, more, kinds)
    return Subject(activity, changed.mu, mr, changed.labels, kinds, plane)


@lru_cache(maxsize=2)
def anatomy_of(subject: int) -> HeadAnatomy:
    """The head that all cases of a subject are made of; not to be changed."""
    return simulate_anatomy(subject)


@lru_cache(maxsize=2)
def _reference(subject: int) -> tuple[Array, list[Lesion]]:
    return draw_activity(anatomy_of(subject), 0, TRACERS["fdg"].contrast(subject, 0), REFERENCE_PSF)


def atrophied(anatomy: HeadAnatomy, width_mm: float = 4.0) -> HeadAnatomy:
    """Parenchyma within ``width_mm`` of the cerebrospinal fluid turned into it: wide ventricles and sulci."""
    from scipy.ndimage import distance_transform_edt

    size = anatomy.voxel_size
    distance = distance_transform_edt(anatomy.tissues["csf"] < 0.5, sampling=size)
    lost = (1 / (1 + np.exp((distance - width_mm) / (0.3 * size)))).astype(np.float32)
    gone = {name: anatomy.tissues[name] * lost for name in ("grey", "white")}
    tissues = {name: share - gone.get(name, np.float32(0)) for name, share in anatomy.tissues.items()}
    fluid = sum(gone.values())
    tissues["csf"] = tissues["csf"] + fluid
    # cerebrospinal fluid has about a quarter of the brain's T1-weighted signal
    return replace(anatomy, tissues=tissues, t1=anatomy.t1 * (1 - 0.73 * fluid))


def large_lesion(anatomy: HeadAnatomy, plane: int) -> list[Lesion]:
    """A tumour of about 5 cm with a cold centre, deep enough in the brain to be whole."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng([43, anatomy.seed])
    depth = gaussian_filter(anatomy.brain[plane], 14 / anatomy.voxel_size)
    candidates = np.flatnonzero(depth > 0.8 * depth.max())
    row, column = np.unravel_index(candidates[rng.integers(candidates.size)], depth.shape)
    radii = rng.uniform(22.0, 28.0) * rng.uniform(0.85, 1.15, 3) / anatomy.voxel_size
    centre, shape = (plane, row, column), anatomy.t1.shape
    share, hot, cold = rng.uniform(0.35, 0.5), rng.uniform(1.8, 2.5), rng.uniform(0.08, 0.15)
    return [soft_ellipsoid(shape, centre, radii, hot), soft_ellipsoid(shape, centre, share * radii, cold)]


CASES = {
    shift.name: shift
    for shift in (
        DomainShift("fdg", "FDG (reference)", "what the model was trained for"),
        DomainShift(
            "amyloid-positive", "amyloid, positive", "grey and white matter alike, by region", "amyloid-positive"
        ),
        DomainShift("amyloid-negative", "amyloid, negative", "white matter brighter than grey", "amyloid-negative"),
        DomainShift("dpa714", "DPA-714", "little contrast within the brain, bright glands and skin", "dpa714"),
        DomainShift("low-resolution", "older scanner", "blur of 8 mm instead of 4", psf_fwhm=8.0),
        DomainShift("high-resolution", "brain scanner", "blur of 2.5 mm instead of 4", psf_fwhm=2.5),
        DomainShift("large-lesion", "large lesion", "a tumour of 5 cm with a cold centre", lesions=large_lesion),
        DomainShift("atrophy", "atrophy", "4 mm of brain lost to wide ventricles and sulci", anatomy=atrophied),
        DomainShift(
            "predictable-perturbation",
            "model of striped images",
            "the model was trained on images with the same stripes, the data have none",
            trained_on="stripes",
        ),
        DomainShift(
            "noise-spikes",
            "model of spiky images",
            "the model was trained on images with spikes at random places, the data have none",
            trained_on="spikes",
        ),
    )
}
