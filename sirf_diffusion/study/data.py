"""What a study is made from: an acquisition, STIR's Interfile data, an objective of any engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..engines import PROJECTORS, Objective, as_objective
from ..engines.embedded.acquisition import Acquisition
from ..engines.embedded.subsets import basic_views, largest_num_subsets
from ..geometry.exam import ExamInfo
from ..geometry.images import ImageGeometry

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Data:
    """Data that were read.

    Parameters
    ----------
    objective
        The log-likelihood with a number of subsets, on a device: this number if it must be ``exact`` (the third
        argument, False if omitted), else the largest one up to it that divides the views.
    geometry
        Image grid.
    attenuation
        Attenuation image and its grid, if they are known: an anatomical image can be registered to it.
    options
        What the data's files say of the run, by the names of `sirf_diffusion.study.reconstruction.Study`: ``initial``,
        ``num_subsets``, ``subset_order``, ``prior``.
    exam
        What is known of the examination.
    """

    objective: Callable[..., Objective]
    geometry: ImageGeometry
    attenuation: tuple[Tensor, ImageGeometry] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    exam: ExamInfo | None = None


@dataclass(frozen=True)
class InterfileData:
    """Names of Interfile headers for the embedded engine, read when a reconstruction begins.

    Parameters
    ----------
    prompts, multiplicative, additive, attenuation, attenuation_in_factors
        See `Acquisition.from_files`.
    initial
        Image to start from; its grid is that of the result.
    """

    prompts: PathLike
    multiplicative: PathLike | None = None
    additive: PathLike | None = None
    attenuation: PathLike | None = None
    initial: PathLike | None = None
    attenuation_in_factors: bool | None = None

    def read(self, voxel_size: tuple[float, float] | None = None) -> Data:
        """Read the files; ``voxel_size`` (y, x) in mm is that of the grid if no image gives one."""
        from ..files.interfile import read_image

        initial, geometry = (None, None) if self.initial is None else read_image(self.initial)
        acquisition = Acquisition.from_files(
            self.prompts,
            multiplicative=self.multiplicative,
            additive=self.additive,
            attenuation=self.attenuation,
            attenuation_in_factors=self.attenuation_in_factors,
            geometry=geometry,
            voxel_size=voxel_size,
        )
        return data_of(acquisition, initial=initial)


def data_of(given: Any, *, projector: str = PROJECTORS[0], device: str | torch.device = "cpu", **options: Any) -> Data:
    """Data of an acquisition, an example with one, or of what ``as_objective`` takes; ``options`` are those of `Data`.

    ``projector`` and ``device`` are those of ``as_objective``.

    Raises
    ------
    TypeError
        For anything else.
    """
    given = getattr(given, "acquisition", given)
    if not isinstance(given, Acquisition):
        likelihood = as_objective(given, projector=projector, device=device)

        def as_it_is(num_subsets: int, device: torch.device, exact: bool = False) -> Objective:
            # Its subsets are the caller's choice and serve all methods.
            if exact and num_subsets != likelihood.num_subsets:
                raise ValueError(f"the objective has {likelihood.num_subsets} subsets, not num_subsets={num_subsets}")
            return likelihood

        return Data(as_it_is, likelihood.geometry, options=options, exam=likelihood.exam_info())

    def objective(num_subsets: int, device: torch.device, exact: bool = False) -> Objective:
        if not exact:
            basic = basic_views(given.geometry, given.projdata, given.related_views)
            num_subsets = largest_num_subsets(basic, num_subsets)
        return given.objective(num_subsets, device)

    mu = None if given.attenuation is None else (given.attenuation, given.attenuation_geometry)
    return Data(objective, given.geometry, mu, options, given.exam)
