"""Reconstruct an acquisition by a method's name, and keep everything that says how the image was made."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .acquisition import Acquisition
from .environment import select_device, software_versions
from .evaluation.report import Trace, report_figure
from .images import ImageGeometry
from .outputs import OutputFolder, jsonable
from .reconstructors.build import build_reconstructor
from .reconstructors.defaults import NUM_SAMPLES, Method, get_method, largest_num_subsets

logger = logging.getLogger(__name__)

_EARLY_SUBSETS = 14


@dataclass(frozen=True)
class Reconstruction:
    """An image, its posterior samples and the record of the run.

    Parameters
    ----------
    image
        The estimate ``[z, y, x]`` in image units: the mean of the samples where there are several.
    geometry
        Its grid.
    record
        Settings, intensity scale, engine, model, seed, cost, likelihood trace, versions; JSON values.
    samples
        Posterior samples ``[S, z, y, x]``; None for a method that gives one image.
    uncertainty
        Standard deviation of the samples ``[z, y, x]``; None for fewer than two.
    trace
        Log-likelihood by step.
    """

    image: Tensor
    geometry: ImageGeometry
    record: dict[str, Any]
    samples: Tensor | None = None
    uncertainty: Tensor | None = None
    trace: Trace | None = None

    def save(self, folder: OutputFolder) -> None:
        """Write image, report and record, and of a method that samples, the samples and their standard deviation."""
        from .engines.embedded.interfile import write_image

        with folder.staged(self.record) as staging:
            write_image(staging / "reconstruction.hv", self.image, self.geometry)
            if self.uncertainty is not None:
                write_image(staging / "uncertainty.hv", self.uncertainty, self.geometry)
            if self.samples is not None:
                self._write_samples(staging / "samples.h5")
            report_figure(
                staging / "report.png",
                self.image,
                self.geometry,
                uncertainty=self.uncertainty,
                trace=self.trace,
                title=self.record["title"],
            )

    def _write_samples(self, path: Path) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            data = file.create_dataset("samples", data=self.samples.numpy(), compression="gzip", chunks=True)
            data.attrs["axes"] = "sample, z, y, x"
            data.attrs["voxel_size_mm"] = self.geometry.voxel_size
            data.attrs["origin_mm"] = self.geometry.origin
            data.attrs["seed"] = self.record["seed"]
            data.attrs["method"] = self.record["method"]


def reconstruct(
    acquisition: Acquisition,
    method: str = "lisch",
    *,
    model: Any = None,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    quick: bool = False,
    initial: Tensor | None = None,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Reconstruction:
    """Reconstruct with the embedded engine.

    Parameters
    ----------
    acquisition
        The data.
    method
        A name from `sirf_diffusion.reconstructors.defaults.METHODS`.
    model
        A score model, its bundled name or its file; only for methods that use one.
    num_samples
        Posterior samples, 5 unless given; the image is their mean.
    seed
        Same seed, same machine, same result.
    device
        ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    settings
        The method's own settings that are to differ from its defaults.
    quick
        Use the method's quick settings where ``settings`` gives none.
    initial
        Image to start from ``[z, y, x]``; uniform if omitted.
    callbacks
        Called with a ``StepRecord`` after each step; ``StopIteration`` ends the run.

    Raises
    ------
    ValueError
        For an unknown method, setting, model or device, and for settings that make no sense.
    """
    chosen = get_method(method)
    values = chosen.with_settings(settings or {}, quick=quick)
    if num_samples is not None and not chosen.samples:
        raise ValueError(f"{method} gives one image, not samples: leave the number of samples out")
    if num_samples is None and chosen.samples:
        num_samples = NUM_SAMPLES
    torch_device = select_device(device)
    score_model = load_model_for(chosen, model, torch_device)
    objective = acquisition.objective(
        largest_num_subsets(acquisition.projdata.num_views, chosen.num_subsets), torch_device
    )
    early = None
    if chosen.name != "osem":
        early = _Early.of(acquisition, torch_device)
        logger.info("intensity scale %.6g image units", early.scale)
    if score_model is not None:
        planes = values["planes"] or ("three" if acquisition.geometry.shape[0] > 1 else "transverse")
        score_model = score_model.on(acquisition.geometry, early.scale, planes, extent=values["extent"])
    recorder = _TraceRecorder()
    reconstructor = build_reconstructor(
        method,
        objective,
        values,
        model=score_model,
        intensity_scale=1.0 if early is None else early.scale,
        num_samples=num_samples or 1,
        seed=seed,
        callbacks=(recorder, *callbacks),
    )
    reconstructor.set_up(None if initial is None else initial.to(torch_device))
    reconstructor.process()

    image = reconstructor.get_output()
    # One projection more than the method made, and not counted as its own: the likelihood of the image handed out.
    log_likelihood = float(objective.value(image))
    samples = reconstructor.get_samples().detach().cpu() if chosen.samples else None
    of_samples = f", mean of {num_samples} samples (seed {seed})" if chosen.samples else ""
    record = {
        "method": method,
        "title": f"{chosen.title}{of_samples}, log-likelihood {log_likelihood:.7g}",
        "seed": seed,
        "num_samples": num_samples,
        "values": values,
        "intensity_scale": None if early is None else early.scale,
        "log_likelihood": log_likelihood,
        **_cost(reconstructor.record, early),
        "num_subsets": objective.num_subsets,
        "data": _describe_data(acquisition),
        "engine": {"name": "embedded", "version": __version__},
        "device": str(torch_device),
        "model": None if score_model is None else _describe_model(score_model),
        "software": software_versions(),
        "trace": recorder.steps,
    }
    return Reconstruction(
        image.detach().cpu(),
        acquisition.geometry,
        jsonable(record),
        samples,
        samples.std(0) if samples is not None and len(samples) > 1 else None,
        recorder.trace(),
    )


def load_model_for(method: Method, model: Any, device: torch.device | str = "cpu") -> Any:
    """The score model that a method needs, loaded if it is a name or a file; None if it needs none.

    Raises
    ------
    ValueError
        If a model is needed and none is given, or the file is not a model.
    """
    if not method.uses_model:
        if model is not None:
            logger.info("%s uses no score model; the one given is left aside", method.name)
        return None
    from .models import ScoreModel, list_models

    if model is None:
        raise ValueError(
            f"{method.name} needs a score model (--model): {', '.join(list_models()) or 'a .safetensors file'}"
        )
    return ScoreModel.load(model, device=device) if isinstance(model, (str, os.PathLike)) else model


@dataclass(frozen=True)
class _Early:
    """Intensity scale from one epoch of OSEM, and what it cost."""

    scale: float
    forward: float
    back: float
    seconds: float

    @classmethod
    def of(cls, acquisition: Acquisition, device: torch.device) -> _Early:
        from .models import intensity_scale
        from .reconstructors.osem import OSEM

        num_subsets = largest_num_subsets(acquisition.projdata.num_views, _EARLY_SUBSETS)
        osem = OSEM(acquisition.objective(num_subsets, device), num_iterations=1)
        image = osem.process().get_output()
        cost = osem.record["projections"]
        scale = intensity_scale(image, acquisition.geometry)
        return cls(scale, cost["forward"], cost["back"], osem.record["seconds"]["total"])


class _TraceRecorder:
    """Callback that keeps the numbers of each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    def __call__(self, step: Any) -> None:
        self.steps.append(step.to_dict())

    def trace(self) -> Trace | None:
        """What can be drawn: likelihoods after the data steps, or else those before them; None without any."""
        key = "log_likelihood_after" if any(s["log_likelihood_after"] for s in self.steps) else "log_likelihood_before"
        known = [s for s in self.steps if s[key]]
        if not known:
            return None
        targets = [s["target"] for s in known]
        return Trace(
            step=tuple(s["step"] for s in known),
            log_likelihood=tuple(sum(s[key]) / len(s[key]) for s in known),
            target=None if None in targets else tuple(targets),
            before_data_step=key == "log_likelihood_before",
        )


def _cost(record: dict[str, Any], early: _Early | None) -> dict[str, Any]:
    """Projections, network evaluations and seconds of a run, the estimate of the intensity scale included."""
    projections, seconds = dict(record["projections"]), dict(record["seconds"])
    if early is not None:
        projections["forward"] += early.forward
        projections["back"] += early.back
        seconds["intensity_scale"] = early.seconds
        seconds["total"] += early.seconds
    known = ("projections", "seconds", "method", "settings", "log_likelihood", "trace")
    details = {key: value for key, value in record.items() if key not in known}
    return {"projections": projections, "seconds": seconds, **details}


def _describe_data(acquisition: Acquisition) -> dict[str, Any]:
    geometry = acquisition.geometry
    return {
        "files": acquisition.sources,
        "scanner": acquisition.projdata.scanner.name,
        "projection_data_shape": acquisition.projdata.shape,
        "prompts": float(acquisition.prompts.sum(dtype=torch.float64)),
        "image_shape": geometry.shape,
        "voxel_size_mm": geometry.voxel_size,
        "origin_mm": geometry.origin,
    }


def _describe_model(model: Any) -> dict[str, Any]:
    return {
        "sha256": model.hash,
        "voxel_size_mm": model.voxel_size,
        "planes": model.planes,
        "metadata": model.metadata,
    }
