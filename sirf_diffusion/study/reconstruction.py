"""Reconstruct an acquisition by a method's name, and keep everything that says how the image was made."""

from __future__ import annotations

import logging
import os
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engines.embedded.acquisition import Acquisition
from ..engines.objective import NativeImages, Objective
from ..environment import select_device, software_versions
from ..files.outputs import OutputFolder, jsonable
from ..geometry.images import ImageGeometry
from ..reconstructors.build import adaptation_for, build_reconstructor
from ..reconstructors.diffusion.chain import posterior_sd
from ..reconstructors.methods import NUM_SAMPLES, Method, get_method
from .fitness import check_distribution
from .guide import Guide
from .report import Trace, report_figure
from .sources import AcquisitionSource, ObjectiveSource, Source

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
    anatomical
        The anatomical image that the network saw, on the image's grid; None without one.
    """

    image: Tensor
    geometry: ImageGeometry
    record: dict[str, Any]
    samples: Tensor | None = None
    uncertainty: Tensor | None = None
    trace: Trace | None = None
    anatomical: Tensor | None = None

    def save(self, folder: OutputFolder) -> None:
        """Write image, report and record, and of a method that samples, the samples and their standard deviation."""
        from ..files.interfile import write_image

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
                anatomical=self.anatomical,
                title=self._heading(),
            )

    def _heading(self) -> str:
        """Title of the figure, and what is known of the model's fitness."""
        check = self.record["distribution"]
        return self.record["title"] + ("" if check is None else "\n" + textwrap.fill(check["message"], 90))

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
    anatomical: Any = None,
    guidance: float = 0.0,
    register_to: str | None = None,
    adaptation: Any = None,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Reconstruction:
    """Reconstruct with the embedded engine; see :func:`reconstruct_objective` for others.

    Parameters
    ----------
    acquisition
        The data.
    method
        A name from `sirf_diffusion.reconstructors.methods.METHODS`.
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
        Image to start from ``[z, y, x]``; if omitted, MAP methods start from an epoch of OSEM, others from a uniform
        image.
    anatomical, guidance, register_to
        For a model that was trained with MR or CT images, see `sirf_diffusion.study.guide.Guide`.
    adaptation
        Fits the network to the data, for methods that draw posterior samples: ``"ddip"``, ``"steerable"`` or an object
        such as `sirf_diffusion.reconstructors.adaptation.ddip.DDIPAdaptation`, which has the adapter afterwards; the
        method's own if omitted.
    callbacks
        Called with a ``StepRecord`` after each step; ``StopIteration`` ends the run.

    Raises
    ------
    ValueError
        For an unknown method, setting, model or device, and for settings that make no sense.
    """
    return reconstruct_from(
        AcquisitionSource(acquisition),
        method,
        model=model,
        num_samples=num_samples,
        seed=seed,
        device=device,
        settings=settings,
        quick=quick,
        initial=initial,
        anatomical=anatomical,
        guidance=guidance,
        register_to=register_to,
        adaptation=adaptation,
        callbacks=callbacks,
    )


def reconstruct_objective(objective: Any, method: str = "lisch", **options: Any) -> Reconstruction:
    """Reconstruct on the log-likelihood of any engine.

    Parameters
    ----------
    objective
        Whatever ``sirf_diffusion.as_objective`` accepts: an objective function of STIR's Python module, of SIRF or of
        the embedded engine that has been set up. Its subsets are used as they are.
    method
        A name from `sirf_diffusion.reconstructors.methods.METHODS`.
    options
        The other arguments of :func:`reconstruct_from`.
    """
    return reconstruct_from(ObjectiveSource(objective), method, **options)


def reconstruct_from(
    source: Source,
    method: str = "lisch",
    *,
    model: Any = None,
    num_samples: int | None = None,
    seed: int = 0,
    device: str = "auto",
    settings: Mapping[str, Any] | None = None,
    quick: bool = False,
    initial: Tensor | None = None,
    anatomical: Any = None,
    guidance: float = 0.0,
    register_to: str | None = None,
    num_subsets: int | None = None,
    subset_order: Sequence[int] | None = None,
    prior: Any = None,
    adaptation: Any = None,
    members: Sequence[int] | None = None,
    callbacks: Iterable[Callable[[Any], None]] = (),
) -> Reconstruction:
    """Reconstruct what a source offers; the parameters not listed are those of :func:`reconstruct`.

    Parameters
    ----------
    source
        Data and engine.
    num_subsets
        Instead of the method's own number.
    subset_order
        Of ``osem``: order of the subsets.
    prior
        Of ``map-rdp``: the penalty instead of the relative difference prior that its settings describe.
    members
        Make only these of the samples ``0 ... num_samples - 1``; `sirf_diffusion.study.sharing.merge` puts such results
        together.
    """
    chosen = get_method(method)
    values = chosen.with_settings(settings or {}, volume=source.geometry.shape[0] > 1, quick=quick)
    if num_samples is not None and not chosen.samples:
        raise ValueError(f"{method} gives one image, not samples: leave the number of samples out")
    if num_samples is None and chosen.samples:
        num_samples = NUM_SAMPLES
    adaptation = adaptation_for(chosen, adaptation)
    torch_device = select_device(device)
    score_model = load_model_for(chosen, model, torch_device)
    guide, placed = Guide(anatomical, guidance, register_to), None
    guide.check(method, score_model)
    early = None
    if chosen.name != "osem":
        early = _Early.of(source, torch_device)
        if chosen.num_subsets % 2 and getattr(adaptation, "needs_target", False):
            early = early.with_target(source, torch_device)
            adaptation.offer_target(early.target)
        logger.info("intensity scale %.6g image units", early.scale)
    objective = source.objective(num_subsets or chosen.num_subsets, torch_device)
    if initial is None and early is not None and chosen.name.startswith("map-"):
        # Nearer to the optimum than a uniform image by many iterations, and paid for already.
        initial = early.image
    if score_model is not None:
        placed = guide.place(source, early.image)
        score_model = bind(
            score_model, chosen, source, values, early.scale, None if placed is None else placed.values, guidance
        )
    steps: list[dict[str, Any]] = []
    reconstructor = build_reconstructor(
        method,
        objective,
        values,
        model=score_model,
        intensity_scale=1.0 if early is None else early.scale,
        num_samples=num_samples or 1,
        seed=seed,
        subset_order=subset_order,
        prior=prior,
        adaptation=adaptation,
        callbacks=(lambda step: steps.append(step.to_dict()), *callbacks),
    )
    if members is not None:
        if not chosen.samples:
            raise ValueError(f"{method} gives one image, not samples: leave members out")
        reconstructor.restrict_to(members)
    reconstructor.set_up(None if initial is None else initial.to(objective.device))
    reconstructor.process()

    image = _as_tensor(objective, reconstructor.get_output())
    samples = _as_tensors(objective, reconstructor.get_samples()).detach().cpu() if chosen.samples else None
    record = {
        "method": method,
        "seed": seed,
        "num_samples": num_samples,
        **({} if members is None else {"members": list(members)}),
        "values": values,
        "intensity_scale": None if early is None else early.scale,
        **_cost(reconstructor.record, early),
        "num_subsets": objective.num_subsets,
        "data": source.describe(),
        "engine": source.engine,
        "device": str(torch_device),
        "model": None if score_model is None else _describe_model(score_model),
        "anatomical": None if placed is None else {**placed.record, "guidance": guidance},
        "prior": None if prior is None else prior.settings,
        "software": software_versions(),
        "trace": steps,
    }
    judged = score_model if members is None else None  # some of the samples do not stand for all
    record |= judge(record, objective, judged, image, samples, adapted=adaptation is not None)
    return Reconstruction(
        image.detach().cpu(),
        source.geometry,
        jsonable(record),
        samples,
        posterior_sd(samples, values["noise"]) if samples is not None and len(samples) > 1 else None,
        trace_of(steps),
        None if placed is None else placed.values,
    )


def bind(
    model: Any,
    method: Method,
    source: Source,
    values: Mapping[str, Any],
    scale: float,
    anatomical: Tensor | None,
    guidance: float,
) -> Any:
    """A score model on the grid of a source, as a method's ``values`` say, shown the anatomical image if there is."""
    shown: dict[str, Any] = {} if anatomical is None else {"anatomical": anatomical}
    if guidance != 0:
        shown["guidance"] = guidance
    return model.for_data(
        source,
        sampling=method.samples,
        planes=values["planes"],
        intensity_scale=scale,
        extent=values["extent"],
        **shown,
    )


def judge(
    record: Mapping[str, Any], objective: Objective, model: Any, image: Tensor, samples: Tensor | None, adapted: bool
) -> dict[str, Any]:
    """What a record says of the image handed out: title, log-likelihood, and whether the model knows such images."""
    method = get_method(record["method"])
    # One projection more than the method made, and not counted as its own.
    log_likelihood = float(objective.value(image))
    distribution = None
    if model is not None:
        remedy = f"adapt the model to the data: {'--adapt' if method.samples else '--method'} ddip"
        if adapted:
            remedy = "the model was adapted: compare with an unadapted run"
        distribution = check_distribution(
            model, image, samples=samples, objective=objective, log_likelihood=log_likelihood, remedy=remedy
        ).to_dict()
    of_samples = f", mean of {len(samples)} samples (seed {record['seed']})" if samples is not None else ""
    return {
        "title": f"{method.title}{of_samples}, log-likelihood {log_likelihood:.7g}",
        "log_likelihood": log_likelihood,
        "distribution": distribution,
    }


def trace_of(steps: Sequence[Mapping[str, Any]]) -> Trace | None:
    """What can be drawn: likelihoods after the data steps, or else those before them; None without any."""
    key = "log_likelihood_after" if any(s["log_likelihood_after"] for s in steps) else "log_likelihood_before"
    known = [s for s in steps if s[key]]
    if not known:
        return None
    targets = [s["target"] for s in known]
    return Trace(
        step=tuple(s["step"] for s in known),
        log_likelihood=tuple(sum(s[key]) / len(s[key]) for s in known),
        target=None if None in targets else tuple(targets),
        before_data_step=key == "log_likelihood_before",
    )


def load_model_for(method: Method, model: Any, device: torch.device | str = "cpu", precision: str = "float32") -> Any:
    """The score model that a method needs, loaded if it is a name or a file; None if it needs none.

    Without one, the bundled `~sirf_diffusion.models.storage.DEFAULT_MODEL`.

    Raises
    ------
    ValueError
        If the file is not a model.
    """
    if not method.uses_model:
        if model is not None:
            logger.info("%s uses no score model; the one given is left aside", method.name)
        if precision != "float32":
            logger.info("%s uses no network; the precision %s has no effect", method.name, precision)
        return None
    from ..models import ScoreModel
    from ..models.storage import DEFAULT_MODEL

    if model is None:
        logger.info("no score model given: %s, the default", DEFAULT_MODEL)
        model = DEFAULT_MODEL
    return ScoreModel.load(model, str(device), precision) if isinstance(model, (str, os.PathLike)) else model


@dataclass(frozen=True)
class _Early:
    """A few OSEM updates: the intensity scale, a first image, the truth's likelihood if needed, and what they cost."""

    scale: float
    image: Tensor
    forward: float
    back: float
    seconds: float
    target: float | None = None

    @classmethod
    def of(cls, source: Source, device: torch.device) -> _Early:
        from ..models import intensity_scale
        from ..reconstructors.em.osem import OSEM

        objective = source.objective(_EARLY_SUBSETS, device)
        # As many updates whatever the subsets that the source has: fewer would give too small a scale.
        osem = OSEM(objective, num_iterations=-(-_EARLY_SUBSETS // objective.num_subsets))
        image = _as_tensor(osem.objective, osem.process().get_output())
        cost = osem.record["projections"]
        scale = intensity_scale(image, source.geometry)
        return cls(scale, image, cost["forward"], cost["back"], osem.record["seconds"]["total"])

    def with_target(self, source: Source, device: torch.device) -> _Early:
        """With the log-likelihood that the truth is expected to have; None where the data cannot be halved."""
        from ..reconstructors.diffusion.split_half import truth_log_likelihood

        objective = source.objective(2, device)
        if objective.num_subsets % 2:
            return self
        began, before = time.perf_counter(), replace(objective.counter)
        target, after = truth_log_likelihood(objective), objective.counter
        return replace(
            self,
            target=target,
            forward=self.forward + after.forward - before.forward,
            back=self.back + after.back - before.back,
            seconds=self.seconds + time.perf_counter() - began,
        )


def _as_tensor(objective: Objective, image: Any) -> Tensor:
    return objective.to_tensor(image) if isinstance(objective, NativeImages) else image


def _as_tensors(objective: Objective, images: Any) -> Tensor:
    if isinstance(objective, NativeImages):
        return torch.stack([objective.to_tensor(image) for image in images])
    return images


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


def _describe_model(model: Any) -> dict[str, Any]:
    return {
        "sha256": model.hash,
        "voxel_size_mm": model.voxel_size,
        "planes": model.planes,
        "precision": model.precision,
        "metadata": model.metadata,
    }
