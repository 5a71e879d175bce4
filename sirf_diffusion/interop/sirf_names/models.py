"""Acquisition and sensitivity models with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

import torch
from torch import Tensor

from ...engines.embedded.acquisition_model import AcquisitionModel as LinearModel
from ...engines.embedded.acquisition_model import attenuation_factors
from ...engines.embedded.projector import Projector
from .containers import error, missing
from .data import AcquisitionData, ImageData
from .processors import SeparableGaussianImageFilter

SMALLEST_EFFICIENCY = 1e-20


class AcquisitionSensitivityModel:
    """Detection efficiencies and attenuation: the factor ``S`` of each bin.

    Parameters
    ----------
    src
        Bin efficiencies (:class:`AcquisitionData`); or an attenuation image in 1/cm, with an acquisition model as
        ``other_src``; or a first model, to be chained with a second one.
    other_src
        See above.
    """

    __getattr__ = missing

    def __init__(
        self,
        src: AcquisitionData | ImageData | AcquisitionSensitivityModel,
        other_src: AcquisitionModelUsingRayTracingMatrix | AcquisitionSensitivityModel | None = None,
    ) -> None:
        chained = isinstance(src, AcquisitionSensitivityModel) and isinstance(other_src, AcquisitionSensitivityModel)
        if isinstance(src, ImageData) and not isinstance(other_src, AcquisitionModelUsingRayTracingMatrix):
            raise error("an attenuation image needs an acquisition model as second argument, for its projection")
        if not (chained or isinstance(src, (ImageData, AcquisitionData))):
            raise error(
                f"wrong source {type(src).__name__} for AcquisitionSensitivityModel: give AcquisitionData, an "
                "attenuation image with an acquisition model, or two sensitivity models (manufacturer files need SIRF)"
            )
        # SIRF keeps what it computes of them: what becomes of the efficiencies or the image later does not matter.
        self._src, self._other = src if chained else src.clone(), other_src
        self._factors: Tensor | None = None

    def set_up(self, ad: AcquisitionData) -> None:
        if isinstance(self._src, AcquisitionSensitivityModel):
            self._src.set_up(ad)
            self._other.set_up(ad)
            self._factors = self._src.factors * self._other.factors
        elif isinstance(self._src, ImageData):
            projector = Projector(self._src.geometry, ad.geometry, torch.device("cpu"))
            self._factors = attenuation_factors(self._src.tensor, projector)
        else:
            ad._check_same(self._src)
            self._factors = self._src.tensor

    @property
    def factors(self) -> Tensor:
        """``S`` as a tensor of the data's shape."""
        if self._factors is None:
            raise error("AcquisitionSensitivityModel.set_up() call missing")
        return self._factors

    def unnormalise(self, ad: AcquisitionData) -> None:
        """Multiply data by ``S`` in place."""
        ad.fill(self.forward(ad))

    def normalise(self, ad: AcquisitionData) -> None:
        """Divide data by ``S`` in place."""
        ad.fill(self.invert(ad))

    def forward(self, ad: AcquisitionData) -> AcquisitionData:
        """Data multiplied by ``S``."""
        return ad * AcquisitionData.of(self.factors, ad.geometry)

    def invert(self, ad: AcquisitionData) -> AcquisitionData:
        """Data divided by ``S`` (by 1e-20 where ``S`` is 0)."""
        return ad / AcquisitionData.of(self.factors.clamp_min(SMALLEST_EFFICIENCY), ad.geometry)


class AcquisitionModelUsingRayTracingMatrix:
    """The model ``y = S (G P x + a) + b`` of SIRF, with this engine's projector for ``G``.

    ``P`` is a Gaussian filter, ``a`` the additive and ``b`` the background term.
    """

    __getattr__ = missing

    def __init__(self) -> None:
        self._num_lors = 2
        self._additive: AcquisitionData | None = None
        self._background: AcquisitionData | None = None
        self._sensitivity: AcquisitionSensitivityModel | None = None
        self._processor: SeparableGaussianImageFilter | None = None
        self._model: LinearModel | None = None
        self._templates: tuple[AcquisitionData, ImageData] | None = None
        self._num_subsets, self._subset_num = 1, 0

    def set_num_tangential_LORs(self, value: int) -> None:
        """Accepted for scripts written for STIR's ray tracing.

        This engine integrates over the width of a bin in closed form, the limit of many rays; the number has no effect
        on it.
        """
        if value < 1:
            raise error(f"number of tangential LORs must be at least 1, found {value}")
        self._num_lors = int(value)

    def get_num_tangential_LORs(self) -> int:
        return self._num_lors

    def set_additive_term(self, at: AcquisitionData) -> None:
        """``a``: background divided by ``S``."""
        self._additive = self._checked(at)

    def set_background_term(self, bt: AcquisitionData) -> None:
        """``b``: background in counts."""
        self._background = self._checked(bt)

    def set_acquisition_sensitivity(self, asm: AcquisitionSensitivityModel) -> None:
        if not isinstance(asm, AcquisitionSensitivityModel):
            raise error(f"acquisition sensitivity must be an AcquisitionSensitivityModel, found {type(asm).__name__}")
        self._sensitivity, self._model = asm, None

    def set_image_data_processor(self, processor: SeparableGaussianImageFilter) -> None:
        """``P``: the scanner's resolution."""
        if not isinstance(processor, SeparableGaussianImageFilter):
            raise error(
                f"only SeparableGaussianImageFilter can be a resolution model here, found {type(processor).__name__}"
            )
        self._processor, self._model = processor, None

    def get_additive_term(self) -> AcquisitionData:
        """``a``, zero if it was not set."""
        return self._additive if self._additive is not None else self.range_geometry().get_uniform_copy(0)

    def get_background_term(self) -> AcquisitionData:
        """``b``, zero if it was not set."""
        return self._background if self._background is not None else self.range_geometry().get_uniform_copy(0)

    def get_constant_term(self) -> AcquisitionData:
        constant = self.linear_model.constant_term
        template = self.range_geometry()
        return template.get_uniform_copy(0) if constant is None else template.with_values(constant)

    def set_up(self, acq_templ: AcquisitionData, img_templ: ImageData) -> None:
        if not isinstance(acq_templ, AcquisitionData) or not isinstance(img_templ, ImageData):
            raise error(f"set_up needs AcquisitionData and ImageData, found {type(acq_templ)} and {type(img_templ)}")
        self._templates = (acq_templ, img_templ)
        if self._sensitivity is not None:
            self._sensitivity.set_up(acq_templ)
        self._model = LinearModel(
            Projector(img_templ.geometry, acq_templ.geometry, torch.device("cpu")),
            multiplicative_factors=None if self._sensitivity is None else self._sensitivity.factors,
            additive_term=None if self._additive is None else self._additive.tensor,
            background_term=None if self._background is None else self._background.tensor,
        )
        if self._processor is not None:
            self._model.psf = self._processor.blur(img_templ.geometry)

    @property
    def linear_model(self) -> LinearModel:
        """The engine's own model, for this package's reconstructors."""
        if self._model is None:
            raise error("AcquisitionModel.set_up() call missing, or sensitivity or processor were changed after it")
        self.refresh(self._model)
        return self._model

    def kept(self) -> AcquisitionModelUsingRayTracingMatrix:
        """The model as SIRF's objective functions keep it: its terms are those of now.

        An additive term alone may be refilled later; together with a background term both are copied.
        """
        model = AcquisitionModelUsingRayTracingMatrix()
        model._sensitivity, model._additive, model._background = self._sensitivity, self._additive, self._background
        if self._background is not None:
            model._background = self._background.clone()
            model._additive = None if self._additive is None else self._additive.clone()
        return model

    def refresh(self, model: LinearModel) -> None:
        """Take up the present values of the additive and background terms, which may change after ``set_up``."""
        constant = None if self._background is None else self._background.tensor
        if self._additive is not None:
            additive, factors = self._additive.tensor, model.multiplicative_factors
            scaled = additive if factors is None else additive * factors
            constant = scaled if constant is None else constant + scaled
        model.constant_term = constant

    @property
    def num_subsets(self) -> int:
        """Subsets of views for :meth:`direct`, :meth:`adjoint` and the defaults of the projections."""
        return self._num_subsets

    @num_subsets.setter
    def num_subsets(self, value: int) -> None:
        if value < 1:
            raise ValueError(f"num_subsets must be at least 1, found {value}")
        self._num_subsets, self._subset_num = int(value), 0

    @property
    def subset_num(self) -> int:
        return self._subset_num

    @subset_num.setter
    def subset_num(self, value: int) -> None:
        if not 0 <= value < self._num_subsets:
            raise ValueError(f"subset_num must be in 0..{self._num_subsets - 1}, found {value}")
        self._subset_num = int(value)

    def forward(
        self,
        image: ImageData,
        subset_num: int | None = None,
        num_subsets: int | None = None,
        out: AcquisitionData | None = None,
    ) -> AcquisitionData:
        """``S (G P x + a) + b``; with subsets, ``S a + b`` in the views of the others."""
        views, template, model = self._views(subset_num, num_subsets), self.range_geometry(), self.linear_model
        if views is None:
            projected = model.forward(image.tensor)
        else:
            constant = model.constant_term
            projected = torch.zeros_like(template.tensor) if constant is None else constant.clone()
            projected[:, list(views)] += model.linear(image.tensor, views)
        return template.with_values(projected, out)

    def backward(
        self,
        ad: AcquisitionData,
        subset_num: int | None = None,
        num_subsets: int | None = None,
        out: ImageData | None = None,
    ) -> ImageData:
        """``P' G' S y``, of the views of a subset."""
        views = self._views(subset_num, num_subsets)
        data = ad.tensor if views is None else ad.tensor[:, list(views)]
        return self.domain_geometry().with_values(self.linear_model.adjoint(data, views), out)

    def direct(self, image: ImageData, out: AcquisitionData | None = None) -> AcquisitionData:
        """Forward projection of a model without background, for CIL."""
        self._require_linear()
        return self.forward(image, out=out)

    def adjoint(self, ad: AcquisitionData, out: ImageData | None = None) -> ImageData:
        """Back-projection of a model without background, for CIL."""
        self._require_linear()
        return self.backward(ad, out=out)

    def get_linear_acquisition_model(self) -> AcquisitionModelUsingRayTracingMatrix:
        """The same model without ``a`` and ``b``."""
        linear = AcquisitionModelUsingRayTracingMatrix()
        linear._sensitivity, linear._processor, linear._num_lors = self._sensitivity, self._processor, self._num_lors
        linear.set_up(*self._set_up_templates())
        return linear

    def is_linear(self) -> bool:
        return all(term is None or term.norm() == 0 for term in (self._additive, self._background))

    def is_affine(self) -> bool:
        return True

    def range_geometry(self) -> AcquisitionData:
        return self._set_up_templates()[0]

    def domain_geometry(self) -> ImageData:
        return self._set_up_templates()[1]

    def _require_linear(self) -> None:
        if not self.is_linear():
            raise error("this acquisition model has a background: use get_linear_acquisition_model()")

    def _checked(self, term: AcquisitionData) -> AcquisitionData:
        if not isinstance(term, AcquisitionData):
            raise error(f"expected AcquisitionData, found {type(term).__name__}")
        if self._templates is not None:
            self._templates[0]._check_same(term)
        return term

    def _set_up_templates(self) -> tuple[AcquisitionData, ImageData]:
        if self._templates is None:
            raise error("AcquisitionModel.set_up() call missing")
        return self._templates

    def _views(self, subset_num: int | None, num_subsets: int | None) -> tuple[int, ...] | None:
        number = self._num_subsets if num_subsets is None else num_subsets
        subset = self._subset_num if subset_num is None else subset_num
        return self.linear_model.projector.subset_views(subset if number > 1 else None, number)
