"""Rigid registration of an anatomical image to an emission or attenuation image, with what is needed to distrust it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .readers import SourceImage
from .rigid_matcher import NO_MOTION, RigidMatcher, rigid_matrix

logger = logging.getLogger(__name__)

#: A start from elsewhere must come back to within this distance, mean over the patient, mm.
MAX_DISAGREEMENT = 5.0
MAX_ROTATION, MAX_SHIFT = 30.0, 50.0
#: Nats. An MR and a PET of one head share 0.4 to 0.7, images of different things less than this.
MIN_INFORMATION = 0.1
#: Where the other starts begin: turned about the axes (degrees) and moved (mm).
_OTHER_STARTS = (((5.0, -5.0, 6.0), (7.0, -6.0, 8.0)), ((-6.0, 5.0, -5.0), (-7.0, 7.0, -6.0)))


@dataclass(frozen=True)
class Registration:
    """A rigid motion that puts the moving image onto the fixed one, and how far it is to be trusted.

    Attributes
    ----------
    rotation_deg
        Euler angles about the patient's axes x, y, z (to the left, to the back, to the head).
    shift_mm
        Motion (x, y, z) of ``centre``.
    centre
        The fixed image's centre of mass, about which is turned, LPS mm.
    metric_before, metric_after
        Mutual information of the two images in nats; None before if they did not overlap.
    disagreement_mm
        Greatest mean distance, over the fixed image's patient, between this result and those of the other starts.
    warnings
        Reasons to distrust it; empty if there are none.
    """

    rotation_deg: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    centre: tuple[float, float, float]
    metric_before: float | None
    metric_after: float
    disagreement_mm: float
    warnings: tuple[str, ...] = ()

    @property
    def matrix(self) -> NDArray[np.float64]:
        """``[4, 4]``: LPS coordinates of a point in the moving image to where it belongs, in those of the fixed one."""
        return np.linalg.inv(rigid_matrix(self.rotation_deg, self.shift_mm, self.centre))

    def describe(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "rotation_deg_xyz": [round(v, 4) for v in self.rotation_deg],
            "shift_mm_xyz": [round(v, 4) for v in self.shift_mm],
            "centre_mm_lps": [round(v, 4) for v in self.centre],
            "matrix_lps": self.matrix.round(8).tolist(),
            "mutual_information_before": self.metric_before,
            "mutual_information_after": self.metric_after,
            "disagreement_of_starts_mm": round(self.disagreement_mm, 3),
            "warnings": list(self.warnings),
        }

    def applied_to(self, image: SourceImage) -> SourceImage:
        """The moving image in its new place; values are left as they are."""
        return replace(image, affine=self.matrix @ image.affine)


def register(fixed: SourceImage, moving: SourceImage) -> Registration:
    r"""Find the rigid motion with the greatest mutual information (Mattes et al. 2003, doi:10.1109/TMI.2003.809072).

    Three resolutions (16, 8 and 4 mm), all voxels of a box around the patient in the fixed image, 32 bins. It begins
    where the files say that the images lie and, where that is another place, with their centres of mass on each other;
    the better result is taken. From there it is disturbed by about 10 mm and 9 degrees, twice, and has to come back:
    for images that have nothing in common it does not. Deterministic for a given number of threads.

    Parameters
    ----------
    fixed
        Emission image (an early OSEM image will do) or attenuation image.
    moving
        MR or CT image.

    Returns
    -------
    Registration
        With a warning, which is logged as well, for each reason to distrust it.

    Raises
    ------
    ImportError
        Without SimpleITK.
    ValueError
        If less than 40 mm of the patient are seen along an axis, or no motion makes the two overlap.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise ImportError('registration needs SimpleITK: pip install "sirf-diffusion[dicom]"') from error
    matcher = RigidMatcher(sitk, fixed, moving)
    before = matcher.metric(NO_MOTION)
    parameters, after = max((matcher.optimise(start) for start in matcher.starts(before)), key=_information)
    again = [matcher.optimise(matcher.disturbed(parameters, *other), fine=False) for other in _OTHER_STARTS]
    parameters, after = max([(parameters, after), *again], key=_information)
    if after == -math.inf:
        raise ValueError(
            "registration failed: the anatomical image covers less than half of the patient in the emission or "
            "attenuation image; align it beforehand"
        )
    if before is not None and after <= before:
        parameters, after = NO_MOTION, before
    disagreement = max(matcher.distance(parameters, other) for other, _ in again)
    result = Registration(
        tuple(math.degrees(v) for v in parameters[:3]),
        tuple(float(v) for v in parameters[3:]),
        matcher.centre,
        before,
        after,
        disagreement,
    )
    result = replace(result, warnings=tuple(_doubts(result)))
    _log(result)
    return result


def _information(candidate: tuple[tuple[float, ...], float]) -> float:
    return candidate[1]


def _doubts(result: Registration) -> list[str]:
    doubts = []
    before, after = result.metric_before, result.metric_after
    lost = result.disagreement_mm > MAX_DISAGREEMENT
    # Images that were aligned already do not improve either, but other starts come back to where they were.
    if lost and before is not None and after <= before:
        doubts.append(f"no motion improved the mutual information of {before:.4f}")
    if after < MIN_INFORMATION:
        doubts.append(f"the mutual information is only {after:.4f}: the images have little in common")
    if lost:
        doubts.append(f"starts from elsewhere ended {result.disagreement_mm:.1f} mm away: it is not well determined")
    if (largest := max(map(abs, result.rotation_deg))) > MAX_ROTATION:
        doubts.append(f"a rotation of {largest:.0f} degrees is implausible")
    # Where the two did not overlap they are from different scanners, and any distance is possible.
    if before is not None and (distance := math.hypot(*result.shift_mm)) > MAX_SHIFT:
        doubts.append(f"a shift of {distance:.0f} mm is implausible")
    return doubts


def _log(result: Registration) -> None:
    logger.info(
        "registration: rotation %s degrees, shift %s mm (x, y, z), mutual information %s -> %.4f, other starts within "
        "%.1f mm",
        " ".join(f"{v:.2f}" for v in result.rotation_deg),
        " ".join(f"{v:.2f}" for v in result.shift_mm),
        "none" if result.metric_before is None else f"{result.metric_before:.4f}",
        result.metric_after,
        result.disagreement_mm,
    )
    if result.warnings:
        logger.warning("do not trust this registration: %s. Look at report.png", "; ".join(result.warnings))
