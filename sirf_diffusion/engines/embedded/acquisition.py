"""One acquisition: the measured counts and everything the likelihood needs beside them, checked before it is used."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...environment import select_device
from ...geometry.exam import ExamInfo, position_words
from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from .acquisition_model import AcquisitionModel, attenuation_factors, check_projection_data, without_rounding
from .attenuation import check_attenuation_units
from .poisson import PoissonObjective
from .projector import Projector

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


class AcquisitionError(ValueError):
    """Data that no reconstruction can be made from; names the file, what was found and what was expected."""


@dataclass(frozen=True)
class Acquisition:
    """Measured counts with the expected model ``q = m (G x + a)``, in STIR's conventions.

    Raises AcquisitionError if a value or a shape makes no sense; when the objective is made, if attenuation seems to be
    given twice.

    Parameters
    ----------
    prompts, projdata
        Counts ``[sinograms, views, tangential positions]``: finite, not negative, not all zero; and their layout.
    geometry
        Grid of the image to be reconstructed.
    multiplicative
        Factors ``m`` of the shape of the prompts: detection efficiencies, usually at most 1, with attenuation unless
        ``attenuation`` is given. All ones if omitted.
    additive
        Additive term ``a``: expected scatter and randoms *divided by* ``m``, as STIR and SIRF keep it. Zero if omitted.
    attenuation, attenuation_geometry
        Image of linear attenuation coefficients in 1/cm and its grid; its factors ``exp(-G mu)`` multiply ``m``.
    attenuation_in_factors
        Whether ``multiplicative`` holds attenuation already; then that of the image is not applied again. None: it
        must not, which is checked with the data's own evidence.
    related_views
        How many views share a subset by symmetry at most, see :class:`~.projector.Projector`.
    sources, exam
        File names for messages and for the record, by the names of the fields above; exam information of the prompts.
    """

    prompts: Tensor
    projdata: ProjDataGeometry
    geometry: ImageGeometry
    multiplicative: Tensor | None = None
    additive: Tensor | None = None
    attenuation: Tensor | None = None
    attenuation_geometry: ImageGeometry | None = None
    attenuation_in_factors: bool | None = None
    related_views: int = 4
    sources: dict[str, str] = field(default_factory=dict)
    exam: ExamInfo = field(default_factory=ExamInfo)
    _projectors: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for what in ("prompts", "multiplicative", "additive", "attenuation"):
            if (values := getattr(self, what)) is not None:
                try:
                    object.__setattr__(self, what, self._checked(what, values))
                except ValueError as error:
                    raise AcquisitionError(str(error)) from error
        if float(self.prompts.sum(dtype=torch.float64)) == 0:
            raise AcquisitionError(f"{self._name('prompts')}: the total of the counts is zero; nothing was measured")
        if self.multiplicative is not None and float(self.multiplicative.max()) == 0:
            raise AcquisitionError(
                f"{self._name('multiplicative')}: all factors are zero, so no count could be detected"
            )

    @classmethod
    def from_files(
        cls,
        prompts: PathLike,
        *,
        multiplicative: PathLike | None = None,
        additive: PathLike | None = None,
        attenuation: PathLike | None = None,
        attenuation_in_factors: bool | None = None,
        geometry: ImageGeometry | None = None,
        voxel_size: tuple[float, float] | None = None,
    ) -> Acquisition:
        """Read STIR Interfile headers.

        ``prompts``, ``multiplicative`` and ``additive`` are projection data (``.hs``) whose layouts must agree,
        ``attenuation`` an image (``.hv``) in 1/cm. The grid of the reconstruction is ``geometry``, else that of the
        attenuation image, else `default_geometry` with the in-plane ``voxel_size`` (y, x) in mm.
        """
        from ...files.interfile import read_image, read_projection_data

        counts, projdata = read_projection_data(prompts)
        files = {"prompts": prompts, "multiplicative": multiplicative, "additive": additive, "attenuation": attenuation}
        sources = {what: os.fspath(path) for what, path in files.items() if path is not None}
        terms: dict[str, Any] = {}
        for what in [name for name in ("multiplicative", "additive") if name in sources]:
            terms[what], layout = read_projection_data(sources[what])
            if differences := projdata.differences(layout):
                raise AcquisitionError(f"{sources[what]} does not match {prompts}: {'; '.join(differences)}")
        if attenuation is not None:
            terms["attenuation"], terms["attenuation_geometry"] = read_image(attenuation)
        geometry = geometry or terms.get("attenuation_geometry") or default_geometry(projdata, voxel_size)
        terms |= {"attenuation_in_factors": attenuation_in_factors, "sources": sources}
        return cls(counts, projdata, geometry, exam=exam_of_files(sources), **terms)

    def objective(self, num_subsets: int = 1, device: torch.device | str = "cpu") -> PoissonObjective:
        """The Poisson log-likelihood of the embedded engine; the projector is made once per device.

        Raises ValueError if the views cannot be divided into so many subsets, or the image cannot be seen by any bin.
        """
        device = torch.device(device)
        if device.type == "cuda":
            select_device(str(device))  # says it if there is none
        if str(device) not in self._projectors:
            self._projectors[str(device)] = self._acquisition_model(device)
        model = self._projectors[str(device)]
        objective = PoissonObjective(model, self.prompts.to(device), num_subsets, files=self.sources, exam=self.exam)
        if float(objective.sensitivity().max()) <= 0:
            raise AcquisitionError(f"the image {self.geometry} lies outside what {self._name('prompts')} can see")
        return objective

    def _acquisition_model(self, device: torch.device) -> AcquisitionModel:
        projector = Projector(self.geometry, self.projdata, device, related_views=self.related_views)
        factors = None if self.multiplicative is None else self.multiplicative.to(device)
        if self.attenuation is not None and self._applies_attenuation(factors):
            same = self.attenuation_geometry == self.geometry
            mu_projector = projector if same else Projector(self.attenuation_geometry, self.projdata, device)
            attenuating = attenuation_factors(self.attenuation.to(device), mu_projector)
            if factors is not None and self.attenuation_in_factors is None:
                self._check_given_once(factors, attenuating)
            factors = attenuating if factors is None else factors * attenuating
        additive = None if self.additive is None else self.additive.to(device)
        return AcquisitionModel(projector, multiplicative_factors=factors, additive_term=additive)

    def check_attenuation(self) -> None:
        """Whether attenuation seems to be given twice, as when the objective is made; costs a projection.

        Raises AcquisitionError if so, and `attenuation_in_factors` does not say that all is well.
        """
        if None not in (self.multiplicative, self.attenuation) and self.attenuation_in_factors is None:
            projector = Projector(self.attenuation_geometry, self.projdata)
            self._check_given_once(self.multiplicative, attenuation_factors(self.attenuation, projector))

    def _applies_attenuation(self, factors: Tensor | None) -> bool:
        if not self.attenuation_in_factors:
            return True
        if factors is None:
            raise AcquisitionError(
                "attenuation is said to be in the multiplicative factors, but there are none: give them, or leave "
                "attenuation_in_factors (--attenuation-in-factors) out"
            )
        logger.info("the attenuation image %s is not applied: the factors hold it", self._name("attenuation"))
        return False

    def _check_given_once(self, factors: Tensor, attenuating: Tensor) -> None:
        power, error = power_of_attenuation(factors, attenuating)
        # 1 must be e^3 times as likely as 0 (or -1).
        factors_file, image = self._name("multiplicative"), self._name("attenuation")
        if abs(power) <= 0.5 + 3 * error**2:
            if power > 0.2 + 3 * error:
                logger.warning(
                    "%s falls a little like the attenuation of %s (power %.2f; 0 without attenuation, 1 with it): it "
                    "must not hold that of another or moved image",
                    *(factors_file, image, power),
                )
            return
        if power < 0:
            raise AcquisitionError(
                f"{factors_file} seems to hold attenuation *correction*: it grows like exp(+mu) along the rays through "
                f"{image} (power {power:.2f}). Factors multiply the expected counts, give their reciprocals; if they "
                "are right, say that they hold no attenuation (--attenuation-in-factors no)"
            )
        raise AcquisitionError(
            f"attenuation seems to be given twice: {factors_file} falls like the attenuation of {image} (power "
            f"{power:.2f}; without attenuation it would be about 0), and the image would come out several times too "
            "hot. Say --attenuation-in-factors yes (the image is then not applied) or no (it is), or leave "
            "--attenuation out"
        )

    def _name(self, what: str) -> str:
        return self.sources.get(what, what)

    def _checked(self, what: str, values: Tensor) -> Tensor:
        name = self._name(what)
        if what != "attenuation":
            expected = ("raw counts, before any correction",) if what == "prompts" else ()
            return check_projection_data(values, self.projdata, name, *expected)
        if self.attenuation_geometry is None or tuple(values.shape) != self.attenuation_geometry.shape:
            raise AcquisitionError(f"{name}: the image needs its own grid, attenuation_geometry")
        values = without_rounding(values, name)
        check_attenuation_units(values, name)
        return values


def exam_of_files(sources: Mapping[str, str]) -> ExamInfo:
    """Exam information of the prompts; warns of other files whose headers have the patient lie otherwise."""
    from ...files.interfile import read_exam_info

    exam = read_exam_info(sources["prompts"])
    lies = position_words(exam)
    for what in ("multiplicative", "additive", "attenuation"):
        other = read_exam_info(sources[what]) if what in sources else ExamInfo()
        if (other.orientation, other.rotation) != ("unknown", "unknown") and position_words(other) != lies:
            logger.warning(
                "the patient lies '%s' in %s, but '%s' in %s. Values are taken as they lie in the files, as STIR takes "
                "them; if the headers are right, they are those of another position",
                *(", ".join(position_words(other)), sources[what], ", ".join(lies), sources["prompts"]),
            )
    return exam


def power_of_attenuation(factors: Tensor, attenuating: Tensor) -> tuple[float, float]:
    r"""Power ``p`` of the attenuation in multiplicative factors, by the fit

    .. math:: \log m = p \log a + c_0 + c_2 r^2 + c_4 r^4

    About 1 if they hold attenuation ``a``, about 0 if they do not, about -1 if they are its correction. The terms in
    the distance ``r`` from the axis are for efficiencies, which depend on it as attenuation does.

    Parameters
    ----------
    factors, attenuating
        Projection data ``[sinograms, views, tangential positions]``. Factors of zero, or below 1e-6 of their median,
        are of dead bins and left out.

    Returns
    -------
    tuple
        The power and its standard error; infinite without any attenuation.
    """
    alive = factors > 1e-6 * factors[factors > 0].median()
    r = torch.linspace(-1, 1, factors.shape[2], dtype=torch.float64, device=factors.device).expand(factors.shape)[alive]
    x, y = attenuating[alive].clamp_min(1e-30).double().log(), factors[alive].double().log()
    columns = torch.stack((x, torch.ones_like(r), r**2, r**4), 1)
    normal = columns.T @ columns
    inverse = torch.linalg.pinv(normal, hermitian=True)
    fit = inverse @ (columns.T @ y)
    if float(inverse[0, 0]) <= 0:
        return 0.0, math.inf
    return float(fit[0]), float(((y - columns @ fit).square().mean() * inverse[0, 0]).sqrt())


def default_geometry(projdata: ProjDataGeometry, voxel_size: tuple[float, float] | None = None) -> ImageGeometry:
    """The grid to reconstruct on when no image gives one: the whole field of view.

    As many planes as the scanner has direct and cross planes (``2 rings - 1``), half the ring spacing apart; of one
    ring alone one as thick as the ring, since half of its rays would not meet a thinner one. An odd square of voxels
    that covers the tangential positions, of the in-plane ``voxel_size`` (y, x) in mm, usually the one that the network
    was trained at; the scanner's default bin size if omitted.
    """
    scanner = projdata.scanner
    radius = min(float(projdata.tangential_positions().abs().max()), scanner.effective_ring_radius)
    dy, dx = voxel_size or (scanner.default_bin_size, scanner.default_bin_size)
    ny, nx = (2 * math.floor(radius / d) + 1 for d in (dy, dx))
    dz = scanner.ring_spacing / min(scanner.num_rings, 2)
    return ImageGeometry((2 * scanner.num_rings - 1, ny, nx), (dz, dy, dx))
