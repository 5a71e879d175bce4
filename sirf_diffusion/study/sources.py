"""Where a reconstruction's likelihood comes from: data of the embedded engine, an objective, a parameter file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import __version__
from ..engines import Objective, as_objective
from ..engines.embedded.acquisition import Acquisition
from ..engines.embedded.acquisition_model import largest_num_subsets
from ..geometry.images import ImageGeometry
from ..patient.readers import patient_position
from ..patient.resampling import Position


class Source(Protocol):
    """What :func:`~sirf_diffusion.study.reconstruction.reconstruct_from` needs.

    Attributes
    ----------
    geometry
        Image grid.
    engine
        Name and version of the engine, for the record.
    patient_position
        How the patient lay, if the data tell; places anatomical images.
    """

    @property
    def geometry(self) -> ImageGeometry: ...

    @property
    def engine(self) -> dict[str, str]: ...

    @property
    def patient_position(self) -> Position | None: ...

    def objective(self, num_subsets: int, device: torch.device) -> Objective:
        """The log-likelihood, with the largest number of subsets up to ``num_subsets`` that the data allow."""
        ...

    def describe(self) -> dict[str, Any]:
        """The data, for the record."""
        ...


@dataclass(frozen=True)
class AcquisitionSource:
    """Data for the embedded engine."""

    acquisition: Acquisition

    @property
    def geometry(self) -> ImageGeometry:
        return self.acquisition.geometry

    @property
    def engine(self) -> dict[str, str]:
        return {"name": "embedded", "version": __version__}

    @property
    def patient_position(self) -> Position | None:
        return _position_in(self.acquisition.sources.get("prompts"))

    def objective(self, num_subsets: int, device: torch.device) -> Objective:
        return self.acquisition.objective(largest_num_subsets(self.acquisition.projdata.num_views, num_subsets), device)

    def describe(self) -> dict[str, Any]:
        acquisition = self.acquisition
        return {
            "files": acquisition.sources,
            "scanner": acquisition.projdata.scanner.name,
            "projection_data_shape": acquisition.projdata.shape,
            "prompts": float(acquisition.prompts.sum(dtype=torch.float64)),
            **_describe_grid(acquisition.geometry),
        }


@dataclass(frozen=True)
class ObjectiveSource:
    """An objective as it is; its number of subsets serves all methods.

    Parameters
    ----------
    likelihood
        Whatever ``sirf_diffusion.as_objective`` accepts.
    """

    likelihood: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "likelihood", as_objective(self.likelihood))

    @property
    def geometry(self) -> ImageGeometry:
        return self.likelihood.geometry

    @property
    def engine(self) -> dict[str, str]:
        return engine_of(self.likelihood)

    @property
    def patient_position(self) -> Position | None:
        return None

    def objective(self, num_subsets: int, device: torch.device) -> Objective:
        return self.likelihood

    def describe(self) -> dict[str, Any]:
        return _describe_grid(self.geometry)


@dataclass
class StirParSource:
    """A parameter file whose objective function STIR makes.

    Parameters
    ----------
    run
        The file, a :class:`~sirf_diffusion.files.parfile.run.ParRun`.
    """

    run: Any
    first_image: Tensor = field(init=False)
    _made: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        from ..interop.stir.par import stir_objective

        self._made, image = stir_objective(self.run, self.run.num_subsets)
        self.first_image = self._made.to_tensor(image)

    @property
    def geometry(self) -> ImageGeometry:
        return self._made.geometry

    @property
    def engine(self) -> dict[str, str]:
        return engine_of(self._made)

    @property
    def patient_position(self) -> Position | None:
        return _position_in(files_of(self.run).get("input file"))

    def objective(self, num_subsets: int, device: torch.device) -> Objective:
        from ..interop.stir.par import stir_objective

        number = num_subsets
        if number != self.run.num_subsets:  # what the file says is STIR's to judge
            number = largest_num_subsets(self._num_views(), num_subsets)
        if number != self._made.num_subsets:
            self._made, _ = stir_objective(self.run, number)
        return self._made

    def describe(self) -> dict[str, Any]:
        return {"files": files_of(self.run), **_describe_grid(self.geometry)}

    def _num_views(self) -> int:
        obj = self._made.stir_objective
        if hasattr(obj, "get_proj_data"):
            return int(obj.get_proj_data().get_num_views())
        return self.run.num_subsets


def engine_of(objective: Objective) -> dict[str, str]:
    """Name and version of the engine behind an objective."""
    module = type(objective).__module__
    if module.startswith("sirf_diffusion.engines.stir"):
        from ..interop.stir.par import stir_version

        return {"name": "stir", "version": stir_version()}
    if module.startswith("sirf_diffusion.interop.sirf"):
        from sirf import __version__ as sirf_version

        return {"name": "sirf", "version": str(sirf_version)}
    if module.startswith("sirf_diffusion.engines.embedded"):
        return {"name": "embedded", "version": __version__}
    return {"name": f"{module}.{type(objective).__qualname__}", "version": ""}


def files_of(run: Any) -> dict[str, str]:
    """Files that a parameter file names in its objective function, by key, and the file itself."""
    names = ("input file", "list mode filename", "additive sinogram", "normalisation projdata filename",
             "attenuation image filename")  # fmt: skip
    found = {key.name: key.value for _, key in run.par.objective().walk() if key.name in names and key.value}
    initial = {} if run.initial_estimate is None else {"initial estimate": run.initial_estimate}
    return {"parameter file": run.par.path, **found, **initial}


def _position_in(header: str | None) -> Position | None:
    return None if header is None or not header.lower().endswith(".hs") else patient_position(Path(header))


def _describe_grid(geometry: ImageGeometry) -> dict[str, Any]:
    return {"image_shape": geometry.shape, "voxel_size_mm": geometry.voxel_size, "origin_mm": geometry.origin}
