"""Data of SIRF's and STIR's objective functions, projected by the embedded engine."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...files.interfile import InterfileError, read_projection_data_geometry
from ...files.parfile import ParFile, ParFileError
from ...geometry.projdata import ProjDataGeometry
from ..em import early_em_image
from ..objective import EARLY_UPDATES, Evaluation
from .acquisition_model import AcquisitionModel
from .par_acquisition import ADVICE, related_views
from .poisson import PoissonObjective
from .projector import Projector

logger = logging.getLogger(__name__)

#: Most that both projections of an early image, and of points, may differ, relative to the toolkit's (L2).
LARGEST_DIFFERENCE, LARGEST_OF_POINTS = 0.005, 0.1


@dataclass(frozen=True)
class ToolkitData:
    """What a toolkit's objective function is made of, with sinograms in the order 0, +1, -1, ...

    Parameters
    ----------
    write
        Writes the data's Interfile header under a name.
    matrix
        The toolkit's projection matrix as a key of a parameter file, ``matrix type := ...`` with its block.
    prompts, factors, background
        Counts, multiplicative factors (None: 1), background in counts (None: 0); ``[..., sinogram, view, tangential]``.
    project
        Counts that the toolkit expects of an image ``[z, y, x]``, without background.
    max_segment
        Segments beyond it are not in these tensors.
    """

    write: Callable[[str], Any]
    matrix: str
    prompts: Tensor
    factors: Tensor | None
    background: Tensor | None
    project: Callable[[Tensor], Tensor]
    max_segment: int | None = None

    def layout(self) -> ProjDataGeometry:
        """Of the tensors; ValueError for data that the embedded engine does not read."""
        with tempfile.TemporaryDirectory() as folder:
            name = f"{folder}/data.hs"
            self.write(name)
            try:
                read = read_projection_data_geometry(name)
            except InterfileError as problem:
                raise refusal(str(problem).replace(name, "the acquisition data")) from problem
        segments = [s for s in read.segments if self.max_segment is None or abs(s.num) <= self.max_segment]
        return ProjDataGeometry(**{**vars(read), "segments": tuple(segments)})

    def related_views(self) -> int:
        """How many views share a subset; ValueError for another matrix than ray tracing as the embedded engine's."""
        text = f"OSMAPOSLParameters :=\n{self.matrix}\nEND :=\n"
        try:
            return related_views(ParFile.parse(text, "projection matrix", strict=False).root)
        except ParFileError as problem:
            raise refusal(str(problem).removesuffix(ADVICE)) from problem


class StandInObjective(PoissonObjective):
    """The log-likelihood of a toolkit's objective function, by the embedded engine's projector on ``device``.

    Images go in and out as the toolkit's. Raises ValueError where the embedded engine has no counterpart, or if the
    projections of an early image differ by more than `LARGEST_DIFFERENCE`.

    Parameters
    ----------
    toolkit
        The objective of the toolkit's own projector.
    data
        What it is made of.
    """

    def __init__(self, toolkit: Any, data: ToolkitData, device: str | torch.device = "cpu") -> None:
        layout, views = data.layout(), data.related_views()
        try:
            projector = Projector(toolkit.geometry, layout, device, related_views=views)
            prompts, factors, background = (
                None if values is None else values.reshape(layout.shape)
                for values in (data.prompts, data.factors, data.background)
            )
            model = AcquisitionModel(projector, factors, background_term=background)
            super().__init__(model, prompts, toolkit.num_subsets, exam=toolkit.exam_info())
        except ValueError as problem:
            raise refusal(problem) from problem
        self.toolkit = toolkit
        self.difference = self._compare(data.project)
        logger.info(
            "the embedded engine projects instead of %s; projections of an early image differ by %.2g %%",
            toolkit.engine["name"],
            100 * self.difference,
        )

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        """As of `PoissonObjective`; RuntimeError if the toolkit's object was given other data since."""
        self.toolkit.check_unchanged()
        return super().at(x, subset)

    def to_tensor(self, image: Any) -> Tensor:
        """A toolkit's image as a tensor ``[z, y, x]``."""
        return self.toolkit.to_tensor(image).to(self.device)

    def to_image(self, x: Tensor) -> Any:
        """A new image of the toolkit."""
        return self.toolkit.to_image(x.cpu())

    def early_image(self) -> Tensor:
        """In these subsets, as the toolkit's, so that scale and box of the object are those that it would give."""
        if self._early is None:
            self._early = early_em_image(self, EARLY_UPDATES)
        return self._early

    @property
    def engine(self) -> dict[str, str]:
        """The toolkit, whose data these are, and the projector."""
        return {
            **self.toolkit.engine,
            "projector": f"embedded {__version__}",
            "projector_difference": f"{self.difference:.2g}",
        }

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **self.toolkit.describe()}

    def _compare(self, project: Callable[[Tensor], Tensor]) -> float:
        early, differences = self.early_image(), []
        # An early image is too smooth to show a filter within the toolkit's model.
        images = ("points", _points(early), LARGEST_OF_POINTS), ("an early image", early, LARGEST_DIFFERENCE)
        for name, image, limit in images:
            with self.counter.timed():
                theirs = project(image.cpu()).double().reshape(-1)
                ours = self.model.linear(image).cpu().double().reshape(-1)
                self.counter.forward += 2
            differences.append(float((ours - theirs).norm() / theirs.norm()))
            if not differences[-1] <= limit:
                raise refusal(
                    f"its projection of {name} differs by {100 * differences[-1]:.2g} % (L2) from that of "
                    f"{self.toolkit.engine['name']}, more than {100 * limit:g} %. Few rays "
                    "(set_num_tangential_LORs(10) traces more), and filters within the acquisition model do so"
                )
        return differences[-1]


def _points(like: Tensor) -> Tensor:
    """Three voxels inside the field of view."""
    image = torch.zeros_like(like)
    for share in (0.32, 0.5, 0.62):
        image[tuple(int(share * n) for n in like.shape)] = 1
    return image


def refusal(why: object) -> ValueError:
    """The error that says why the toolkit must project."""
    return ValueError(f"the embedded projector cannot stand in: {why}. Leave projector='embedded' (--projector) out")
