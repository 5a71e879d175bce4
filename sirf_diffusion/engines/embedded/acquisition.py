"""One acquisition: the measured counts and everything the likelihood needs beside them, checked before it is used."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry

PathLike = str | os.PathLike[str]


class AcquisitionError(ValueError):
    """Data that no reconstruction can be made from; names the file, what was found and what was expected."""


@dataclass(frozen=True)
class Acquisition:
    r"""Measured counts with the expected model ``q = m (G x + a)``, in STIR's conventions.

    Parameters
    ----------
    prompts
        Counts ``[sinograms, views, tangential positions]``: finite, not negative, not all zero.
    projdata
        Their layout.
    geometry
        Grid of the image to be reconstructed.
    multiplicative
        Factors ``m`` of the shape of the prompts: detection efficiencies, usually at most 1, with attenuation unless
        ``attenuation`` is given. All ones if omitted.
    additive
        Additive term ``a``: expected scatter and randoms *divided by* ``m``, as STIR and SIRF keep it. Zero if omitted.
    attenuation, attenuation_geometry
        Image of linear attenuation coefficients in 1/cm and its grid; its factors ``exp(-G mu)`` multiply ``m``.
    related_views
        How many views share a subset by symmetry at most, see :class:`~.projector.Projector`.
    sources
        File names for messages and for the record, by the names of the fields above.

    Raises
    ------
    AcquisitionError
        If a value or a shape makes no sense.
    """

    prompts: Tensor
    projdata: ProjDataGeometry
    geometry: ImageGeometry
    multiplicative: Tensor | None = None
    additive: Tensor | None = None
    attenuation: Tensor | None = None
    attenuation_geometry: ImageGeometry | None = None
    related_views: int = 4
    sources: dict[str, str] = field(default_factory=dict)
    _projectors: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_values("prompts", self.prompts, "raw counts, before any correction")
        if float(self.prompts.sum(dtype=torch.float64)) == 0:
            raise AcquisitionError(f"{self._name('prompts')}: the total of the counts is zero; nothing was measured")
        for what, values in (("multiplicative", self.multiplicative), ("additive", self.additive)):
            if values is not None:
                self._check_shape(what, values)
                self._check_values(what, values, "values of zero or more")
        if self.multiplicative is not None and float(self.multiplicative.max()) == 0:
            raise AcquisitionError(
                f"{self._name('multiplicative')}: all factors are zero, so no count could be detected"
            )
        if self.attenuation is not None:
            self._check_attenuation()

    @classmethod
    def from_files(
        cls,
        prompts: PathLike,
        *,
        multiplicative: PathLike | None = None,
        additive: PathLike | None = None,
        attenuation: PathLike | None = None,
        geometry: ImageGeometry | None = None,
        voxel_size: tuple[float, float] | None = None,
    ) -> Acquisition:
        """Read STIR Interfile headers.

        Parameters
        ----------
        prompts, multiplicative, additive
            Projection data, ``.hs``; the layouts must agree.
        attenuation
            Image ``.hv`` in 1/cm.
        geometry
            Grid of the reconstruction; that of the attenuation image, or `default_geometry`, if omitted.
        voxel_size
            In-plane voxel size (y, x) in mm for `default_geometry`.
        """
        from ...files.interfile import read_image, read_projection_data

        counts, projdata = read_projection_data(prompts)
        sources = {"prompts": os.fspath(prompts)}
        terms: dict[str, Tensor | None] = {"multiplicative": None, "additive": None}
        for what, path in (("multiplicative", multiplicative), ("additive", additive)):
            if path is None:
                continue
            terms[what], layout = read_projection_data(path)
            sources[what] = os.fspath(path)
            if differences := projdata.differences(layout):
                raise AcquisitionError(f"{path} does not match {prompts}: {'; '.join(differences)}")
        mu, mu_geometry = (None, None) if attenuation is None else read_image(attenuation)
        if attenuation is not None:
            sources["attenuation"] = os.fspath(attenuation)
        if geometry is None:
            geometry = mu_geometry or default_geometry(projdata, voxel_size)
        return cls(
            counts,
            projdata,
            geometry,
            multiplicative=terms["multiplicative"],
            additive=terms["additive"],
            attenuation=mu,
            attenuation_geometry=mu_geometry,
            sources=sources,
        )

    def objective(self, num_subsets: int = 1, device: torch.device | str = "cpu") -> Any:
        """The Poisson log-likelihood of the embedded engine; the projector is made once per device.

        Raises
        ------
        ValueError
            If the views cannot be divided into so many subsets, or the image cannot be seen by any bin.
        """
        from .poisson import PoissonObjective

        device = torch.device(device)
        if str(device) not in self._projectors:
            self._projectors[str(device)] = self._acquisition_model(device)
        objective = PoissonObjective(self._projectors[str(device)], self.prompts.to(device), num_subsets=num_subsets)
        if float(objective.sensitivity().max()) <= 0:
            raise AcquisitionError(f"the image {self.geometry} lies outside what {self._name('prompts')} can see")
        return objective

    def _acquisition_model(self, device: torch.device) -> Any:
        from .acquisition_model import AcquisitionModel, attenuation_factors
        from .projector import Projector

        projector = Projector(self.geometry, self.projdata, device, related_views=self.related_views)
        factors = None if self.multiplicative is None else self.multiplicative.to(device)
        if self.attenuation is not None:
            same = self.attenuation_geometry == self.geometry
            mu_projector = projector if same else Projector(self.attenuation_geometry, self.projdata, device)
            try:
                attenuating = attenuation_factors(self.attenuation.to(device), mu_projector)
            except ValueError as error:
                raise AcquisitionError(f"{self._name('attenuation')}: {error}") from error
            factors = attenuating if factors is None else factors * attenuating
        additive = None if self.additive is None else self.additive.to(device)
        return AcquisitionModel(projector, multiplicative_factors=factors, additive_term=additive)

    def _name(self, what: str) -> str:
        return self.sources.get(what, what)

    def _check_shape(self, what: str, values: Tensor) -> None:
        if values.shape != self.prompts.shape:
            raise AcquisitionError(
                f"{self._name(what)} has shape {tuple(values.shape)}, but {self._name('prompts')} has "
                f"{tuple(self.prompts.shape)} (sinograms, views, tangential positions); they must agree"
            )

    def _check_values(self, what: str, values: Tensor, expected: str) -> None:
        if what == "prompts" and tuple(values.shape) != self.projdata.shape:
            raise AcquisitionError(
                f"{self._name(what)} has shape {tuple(values.shape)}, its layout says {self.projdata.shape}"
            )
        if not torch.isfinite(values).all():
            number = int((~torch.isfinite(values)).sum())
            raise AcquisitionError(
                f"{self._name(what)} holds {number} values that are NaN or infinite; expected {expected}"
            )
        if float(values.min()) < 0:
            number = int((values < 0).sum())
            raise AcquisitionError(
                f"{self._name(what)} holds {number} negative values (the least is {float(values.min()):.4g}); "
                f"expected {expected}"
            )

    def _check_attenuation(self) -> None:
        if self.attenuation_geometry is None or tuple(self.attenuation.shape) != self.attenuation_geometry.shape:
            raise AcquisitionError(f"{self._name('attenuation')}: the image needs its own grid, attenuation_geometry")
        self._check_values("attenuation", self.attenuation, "attenuation coefficients in 1/cm")


def default_geometry(projdata: ProjDataGeometry, voxel_size: tuple[float, float] | None = None) -> ImageGeometry:
    """The grid to reconstruct on when no image gives one: the whole field of view.

    As many planes as the scanner has direct and cross planes (``2 rings - 1``, half the ring spacing apart), and an
    odd square of voxels that covers the tangential positions.

    Parameters
    ----------
    projdata
        Layout of the data.
    voxel_size
        In-plane voxel size (y, x) in mm, usually the one that the network was trained at; the scanner's default bin
        size if omitted.
    """
    scanner = projdata.scanner
    radius = min(float(projdata.tangential_positions().abs().max()), scanner.effective_ring_radius)
    dy, dx = voxel_size or (scanner.default_bin_size, scanner.default_bin_size)
    ny, nx = (2 * math.floor(radius / d) + 1 for d in (dy, dx))
    return ImageGeometry((2 * scanner.num_rings - 1, ny, nx), (scanner.ring_spacing / 2, dy, dx))
