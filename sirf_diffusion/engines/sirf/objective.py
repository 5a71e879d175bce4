"""A SIRF objective function as an :class:`~sirf_diffusion.engines.objective.Objective`."""

from __future__ import annotations

import logging
import math
import operator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geometry.checks import check_count
from ...geometry.exam import ExamInfo
from ..list_mode import ValueRepair, constant_of_highest_likelihood
from ..objective import Evaluation, check_single, exam_info_of_written, mark, total_sensitivity
from ..toolkit import CAUSES, ToolkitObjective, check_prompts, finite, sum_of
from .convert import Scratch, image_geometry, to_image, to_tensor, view_of
from .data import KnownData
from .evaluation import DATA_NEEDED, SirfEvaluation
from .inspection import is_of_sinograms, model_of, require_set_up, set_up_model, without_prior

logger = logging.getLogger(__name__)

# Subset sensitivities beyond this are fetched from STIR, which has them anyway, each time.
SENSITIVITY_CACHE_BYTES = 1 << 29


class SirfObjective(ToolkitObjective):
    r"""The log-likelihood in a ``sirf.STIR.ObjectiveFunction``, from sinograms or list mode, with or without TOF.

    .. math:: L(x) = \sum_i y_i \log q_i - q_i, \qquad \nabla_k L(x) = A_k^T (y / q) - A_k^T 1

    Every objective function gives gradients (``get_backprojection_of_acquisition_ratio`` less the subset's
    sensitivity) and ``L`` of all data. With the acquisition data, ``L`` of subsets and its expectation over noise are
    there too, and value and gradient share one forward projection. A penalty attached to the objective function is
    left out of all of them: reconstructors take theirs as an argument.

    The caller's images are never written to, nor are SIRF's storage scheme and verbosity changed. Three images are
    allocated, with known acquisition data one set of projection data besides.

    Parameters
    ----------
    obj
        Objective function after its ``set_up``. Its number of subsets must not change afterwards.
    acquisition_data
        The ``AcquisitionData`` that were given to ``obj``, which SIRF does not hand back. Objective functions made
        by ``sirf_diffusion.get_engine("sirf")`` remember them, so it need not be given for those. Not for list mode.
    acquisition_model
        The ``AcquisitionModel`` that was given to ``obj``; read from ``obj`` where it was made by SIRF's Python class
        for sinograms.

    Raises
    ------
    TypeError
        If ``obj`` is not a Poisson log-likelihood of SIRF.
    RuntimeError
        If ``obj`` has not been set up.
    ValueError
        If acquisition data or model are not those of ``obj``: then values differ at a uniform image.
    """

    def __init__(self, obj: Any, acquisition_data: Any = None, acquisition_model: Any = None) -> None:
        for method in ("get_backprojection_of_acquisition_ratio", "get_subset_sensitivity", "value"):
            if not callable(getattr(obj, method, None)):
                raise TypeError(
                    f"obj must be a Poisson log-likelihood of sirf.STIR, found {type(obj).__name__} without {method}()"
                )
        if acquisition_data is not None and hasattr(obj, "set_cache_path"):
            raise ValueError("acquisition_data is for objective functions of sinograms; list mode takes none")
        self.obj = obj
        #: The model as SIRF's Python class, which has its terms; what SIRF hands back has not.
        self._model = acquisition_model or getattr(obj, "known_acquisition_model", None)
        model = acquisition_model if acquisition_model is not None else model_of(obj)
        require_set_up(obj, check_count("num_subsets", int(obj.get_num_subsets())))
        self._template = obj.get_subset_sensitivity(0)
        super().__init__(int(obj.get_num_subsets()), image_geometry(self._template))
        self._image, self._result = Scratch(self._template.clone()), Scratch(self._template.clone())
        self._uniform: Tensor | None = None
        self._repair = ValueRepair.none() if is_of_sinograms(obj) else None
        with without_prior(obj) as factor:
            if factor:
                logger.warning("the penalty of the objective function is left out: give it to the reconstructor")
        if acquisition_data is None:
            acquisition_data = getattr(obj, "known_acquisition_data", None)
        self._data: KnownData | None = None
        if acquisition_data is not None:
            self._use(acquisition_data, model)

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        """Value and gradient on demand. ``x [..., z, y, x]`` must not be changed in place before they are taken.

        One forward and one back projection for both if the acquisition data are known and the value is taken first,
        else two and one.

        Raises
        ------
        ValueError
            If the image does not fit or is not finite, or what SIRF computes of it is not.
        NotImplementedError
            On asking for the value of a subset if the acquisition data are not known.
        """
        point = SirfEvaluation(self, self._checked(x, subset), subset)
        return Evaluation(point.value, point.gradient)

    def value(self, x: Tensor, subset: int | None = None) -> Tensor:
        """``L(x)``, float64, one number per image; of a subset only if the acquisition data are known."""
        return SirfEvaluation(self, self._checked(x, subset), subset).value(keep=False)

    def gradient(self, x: Tensor, subset: int | None = None) -> Tensor:
        """``A^T (y / q - 1)``, shape of ``x``; of subset ``k`` alone, not multiplied by ``num_subsets``."""
        x = self._checked(x, subset)
        if x.dim() > 3:
            return SirfEvaluation(self, x, subset).gradient()
        with self.counter.timed():
            return self._generic_gradient(x, subset)

    def sensitivity(self, subset: int | None = None) -> Tensor:
        """``A^T 1``, ``[z, y, x]``, as SIRF computed it in ``set_up``: no projection is made here."""
        if subset not in self._sensitivities:
            if subset is None:
                found = torch.zeros(self.geometry.shape)
                for k in range(self.num_subsets):
                    found += self._subset_sensitivity(k)
            else:
                self._check_subset(subset)
                found = self._subset_sensitivity(subset)
                if 4 * found.numel() * self.num_subsets > SENSITIVITY_CACHE_BYTES:
                    return found
            self._sensitivities[subset] = found
        return self._sensitivities[subset]

    def _subset_sensitivity(self, subset: int) -> Tensor:
        found = finite(to_tensor(self.obj.get_subset_sensitivity(subset)), "SIRF's sensitivity")
        if not bool((found > 0).any()):
            raise ValueError(f"subset {subset} of {self.num_subsets} sees no voxel: the data have not so many views")
        return found

    def uniform_image(self) -> Tensor:
        r"""Constant where the sensitivity is positive, zero elsewhere; computed once.

        With known acquisition data :math:`c = \sum (y - b) / \sum s`. Otherwise the constant of highest likelihood,
        where :math:`\langle \nabla L(c), 1 \rangle = 0`, to 0.1 % of the sensitivity: the same if there is no
        background, and a few gradients of all data.
        """
        self.check_unchanged()
        if self._uniform is None:
            total, mask = total_sensitivity(self), (self.sensitivity() > 0).float()
            self._uniform = constant_of_highest_likelihood(self, mask, total) * mask
        return self._uniform.clone()

    def expected_log_likelihood(self, x: Tensor) -> tuple[float, float]:
        """Mean and standard deviation, over noise, of the truth's ``L`` if ``x [z, y, x]`` predicts counts as it does.

        One forward projection. See :func:`~sirf_diffusion.engines.embedded.poisson.poisson_divergence`.

        Raises
        ------
        NotImplementedError
            If the acquisition data are not known.
        """
        check_single(x)
        if self._data is None:
            raise NotImplementedError("the expected log-likelihood " + DATA_NEEDED)
        with self.counter.timed():
            self.counter.forward += 1
            return self._data.expected_log_likelihood(self._image.fill(self._checked(x)))

    def to_tensor(self, image: Any) -> Tensor:
        """A SIRF image on the objective's grid as a tensor of its own."""
        found = image_geometry(image)
        if not found.is_near(self.geometry):
            raise ValueError(
                f"the image lies on {found}, the objective function on {self.geometry}: zoom_image_as_template() it"
            )
        return to_tensor(image)

    def to_image(self, x: Tensor) -> Any:
        """A new ``sirf.STIR.ImageData`` with geometry and ExamInfo as the image that ``obj`` was set up with."""
        return to_image(x, self._template)

    @property
    def engine(self) -> dict[str, str]:
        """SIRF."""
        from sirf import __version__

        return {"name": "sirf", "version": str(__version__)}

    def marks(self) -> dict[str, float]:
        return {} if self._data is None else {"prompts_mark": mark(self._data.counts_by_bin)}

    def exam_info(self) -> ExamInfo:
        """That of the acquisition data if they are known, else of the image that ``obj`` was set up with."""
        return self._exam

    @cached_property
    def _exam(self) -> ExamInfo:
        if self._data is not None:
            from sirf.STIR import error

            with suppress(error):  # a subset of data cannot be written
                # SIRF's images made of data do not have it.
                return exam_info_of_written(self._data.prompts.write, "data.hs")
        found, known = exam_info_of_written(self._template.write), getattr(self.obj, "known_exam", None)
        if known is None or known.orientation == "unknown":
            return found
        return replace(found, orientation=known.orientation, rotation=known.rotation)

    def _toolkit_data(self) -> Any:
        from .stand_in import toolkit_data

        prompts = None if self._data is None else self._data.prompts
        return toolkit_data(self.obj, prompts, self._model, self.to_image)

    def _use(self, acquisition_data: Any, model: Any) -> None:
        """Take up the data if they are what ``obj`` computes with; learns the background on the way."""
        if model is None:
            raise ValueError("acquisition_model must be given with acquisition_data: it cannot be read from obj")
        set_up_model(model, acquisition_data, self._template)
        data = KnownData(acquisition_data, model, self.num_subsets)
        sensitivity = self.sensitivity()
        total, mask = float(sensitivity.sum(dtype=torch.float64)), (sensitivity > 0).float()
        check_prompts(data.counts_by_bin)
        if total <= 0 or data.counts <= 0:
            raise ValueError(f"nothing to reconstruct: {data.counts:g} counts, sum of the sensitivity {total:g}")
        level = data.counts / total
        with self.counter.timed():
            self._image.fill(level * mask)
            ours, expected, impossible = data.check_at(self._image.image)
            background = expected - level * total
            theirs = self._value_of_obj()
            self.counter.forward += 2
        if not math.isfinite(expected):
            raise ValueError(f"the acquisition model expects counts that are not finite: {CAUSES}")
        if not abs(ours - theirs) <= 1e-4 * max(data.counts, abs(theirs)):
            raise ValueError(
                "acquisition_data or acquisition_model are not those of the objective function: at a uniform image "
                f"they give {ours:.8g}, the objective function {theirs:.8g}. Leave them out, or give the right ones"
            )
        self._check_sensitivity(data)
        if impossible:
            logger.warning("%d bins have counts where none are expected: set the prompts of dead bins to 0", impossible)
        if data.counts <= background:
            raise ValueError(
                f"the expected background exceeds the {data.counts:g} measured counts by {background - data.counts:g}"
            )
        self._uniform = (data.counts - max(background, 0.0)) / total * mask
        self._data, self._seen = data, (level * mask, ours, theirs)
        self._prompts_sum = sum_of(data.counts_by_bin)
        self._note_terms()

    def _check_sensitivity(self, data: KnownData) -> None:
        """Raise ValueError if the acquisition model back-projects otherwise than at the set-up of ``obj``."""
        for subset in (0, None):  # a parameter file may ask for equal shares instead of sensitivities of subsets
            with self.counter.timed():
                now, kept = data.sensitivity(subset, self._result.image), self.sensitivity(subset)
                self.counter.back += self._share(subset)
            if float((now - kept).abs().sum()) <= 1e-3 * float(kept.sum()):
                return
        raise ValueError(
            "the acquisition model has another sensitivity than the objective function kept of its set-up: set the "
            "objective function up again after the last change of the model, such as set_image_data_processor"
        )

    def _terms_of_model(self) -> list[Any]:
        """Additive and background term, sensitivity and image grid, as the acquisition model has them now."""
        return [getattr(self._model, name, None) for name in ("at", "bt", "asm", "img_templ")]

    def _note_terms(self) -> None:
        """Keep the terms, and a few thousand values of those in memory, which may be filled anew."""
        self._terms = self._terms_of_model()
        views = (view_of(term)[0] for term in self._terms[:2] if term is not None)
        self._views = [view for view in views if view is not None]
        self._sums = [sum_of(view) for view in self._views]

    def _check_model(self) -> None:
        """Raise RuntimeError if the acquisition model no longer computes as the objective function does.

        That keeps terms of its set-up, which may have been exchanged since, or filled anew: by another frame, or the
        next iteration of a scatter estimate. A model that is set up for other images changes what both compute.
        """
        if self._data is None:
            return
        if sum_of(self._data.counts_by_bin) != self._prompts_sum:
            raise RuntimeError("the prompts were filled anew: make the objective, or the reconstructor, anew as well")
        same = all(map(operator.is_, self._terms_of_model(), self._terms))
        if same and [sum_of(view) for view in self._views] == self._sums:
            return
        uniform, *before = self._seen
        with self.counter.timed():
            now = self._data.check_at(self._image.fill(uniform))[0], self._value_of_obj()
            self.counter.forward += 2
        if not np.allclose(now, before, rtol=1e-6, atol=1e-6 * self._data.counts):
            raise RuntimeError(
                "additive term, background, sensitivity or image grid of the acquisition model changed after the "
                "objective function was set up, which keeps the earlier ones: make an objective function anew, and a "
                "model for each frame and grid"
            )
        self._note_terms()

    def _value_of_obj(self) -> float:
        """``L`` of the scratch image, without the attached penalty."""
        with without_prior(self.obj):
            return float(self.obj.value(self._image.image))

    def _sirfs_value(self, x: Tensor) -> float:
        self._image.fill(x)
        self.counter.forward += 1
        return self._value_of_obj()

    def _generic_value(self, x: Tensor) -> float:
        value = self._sirfs_value(x)
        if self._repair is None:
            self._repair = ValueRepair.find(self, self._sirfs_value)
        return self._repair(value, x, self.sensitivity())

    def _generic_gradient(self, x: Tensor, subset: int | None) -> Tensor:
        """Gradient of one image by STIR's own loop."""
        self._image.fill(x)
        total, subsets = self.sensitivity(subset), range(self.num_subsets) if subset is None else (subset,)
        for number, k in enumerate(subsets):
            self.obj.get_backprojection_of_acquisition_ratio(self._image.image, k, out=self._result.image)
            part, _ = self._result.values()
            total = total.add_(part) if number else part - total
        self.counter.forward += len(subsets) / self.num_subsets
        self.counter.back += len(subsets) / self.num_subsets
        return finite(total, "SIRF's gradient")

    def _parts(self) -> tuple[Any, float]:
        known = [getattr(self.obj, f"known_acquisition_{name}", None) for name in ("data", "model")]
        return [id(part) for part in known], sum_of(to_tensor(self.obj.get_subset_sensitivity(0), copy=False))

    def check_unchanged(self) -> None:
        if int(self.obj.get_num_subsets()) != self.num_subsets:
            raise RuntimeError(
                f"the objective function had {self.num_subsets} subsets and has {int(self.obj.get_num_subsets())} now: "
                "set it up and make a new objective of it"
            )
        self._check_model()
        super().check_unchanged()
