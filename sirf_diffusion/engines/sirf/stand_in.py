"""Data and acquisition model of a SIRF objective function, for the embedded engine to project."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..embedded.stand_in import ToolkitData, refusal
from .convert import to_tensor
from .inspection import is_of_sinograms


def toolkit_data(obj: Any, prompts: Any, model: Any, to_image: Callable[[Tensor], Any]) -> ToolkitData:
    """The data; ValueError for list mode, and for what the embedded engine has no counterpart of."""
    import sirf.STIR as pet

    if not is_of_sinograms(obj):
        raise refusal("list mode data have no sinograms")
    if prompts is None or model is None:
        raise refusal(
            "SIRF does not hand back acquisition data and model: as_objective(obj, acquisition_data=..., "
            "acquisition_model=..., projector='embedded'), or make obj with sirf_diffusion.get_engine('sirf')"
        )
    if not isinstance(model, pet.AcquisitionModelUsingRayTracingMatrix):
        raise refusal(f"the model is {type(model).__name__}, not AcquisitionModelUsingRayTracingMatrix")
    if prompts.shape[0] > 1:
        raise refusal("these are time-of-flight data")
    factors = None if model.asm is None else to_tensor(model.asm.forward(prompts.get_uniform_copy(1)))
    background = None if model.bt is None else to_tensor(model.bt)
    if model.at is not None:
        additive = to_tensor(model.at) if factors is None else factors * to_tensor(model.at)
        background = additive if background is None else background + additive

    def write(name: str) -> None:
        try:
            prompts.write(name)
        except pet.error as problem:  # of AcquisitionData.get_subset, for example
            raise refusal("SIRF cannot write these data, whose geometry is read from their file") from problem

    return ToolkitData(
        write,
        f"matrix type := Ray Tracing\n{model.get_matrix().get_info()}",
        to_tensor(prompts),
        factors,
        background,
        lambda x: to_tensor(model.get_linear_acquisition_model().forward(to_image(x), 0, 1)),
    )
