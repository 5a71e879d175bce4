"""Reconstruct an acquisition by a method's name, and keep everything that says how the image was made."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from functools import cached_property, update_wrapper
from typing import Any, ParamSpec

import torch
from torch import Tensor

from ..engines import PROJECTORS
from ..engines.em import inside
from ..engines.objective import NativeImages, Objective
from ..environment import select_device, software_versions
from ..files.outputs import jsonable
from ..geometry.checks import check_choice, check_count, check_real, check_seed
from ..models.grid import Box
from ..models.intervals import IntervalTable
from ..patient.readers import read_labels
from ..reconstructors.base import Reconstructor
from ..reconstructors.checkpoint import CheckpointCallback
from ..reconstructors.diffusion.chain import posterior_sd
from ..reconstructors.methods import NUM_SAMPLES, adaptation_for, build_reconstructor, get_method
from ..reconstructors.references import references
from .data import Data, InterfileData, data_of
from .early import Early, cost_of
from .fitness import FEWEST_STEPS, check_distribution
from .guide import Guide, as_shown, describe_model, load_model_for
from .intervals import interval_record
from .par_data import ParData
from .report import Trace
from .result import Reconstruction
from .vois import place_vois

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")

#: Between two checkpoints of a run that is kept.
CHECKPOINT_SECONDS = 60.0


@dataclass(eq=False)
class Study:
    """One patient's run: what is reconstructed, and how. Options are checked at once, data are read by `run`.

    Parameters
    ----------
    data
        An `Acquisition`; an objective function of SIRF, of STIR's Python module or of the embedded engine that was set
        up (its subsets are used as they are); the name of a parameter file of STIR; or `InterfileData`.
    method
        A name from `sirf_diffusion.reconstructors.methods.METHODS`.
    model
        A score model, its bundled name or its file, for methods that use one; ``brain`` if omitted.
    num_samples
        Posterior samples, 5 unless given; the image is their mean.
    seed
        Same seed, same machine, same result.
    device
        ``"auto"`` (CUDA if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    precision
        Of a network that is loaded here, see `ScoreModel.load`.
    settings
        The method's own settings that are to differ from its defaults.
    quick
        Use the method's quick settings where ``settings`` gives none.
    speed
        ``"accurate"``, ``"balanced"`` or ``"fast"``, of samplers: the settings that ``settings`` does not give.
    initial
        Image to start from ``[z, y, x]``; if omitted, an epoch of OSEM for MAP methods, a uniform image for others.
    anatomical, guidance, register_to
        For a model that was trained with MR or CT images, see `sirf_diffusion.study.guide.Guide`.
    adaptation
        Fits the network to the data, for methods that draw posterior samples: ``"ddip"``, ``"steerable"`` or an object
        such as `sirf_diffusion.DDIPAdaptation`, which has the adapter afterwards; the method's own if omitted.
    num_subsets, subset_order
        Instead of the method's own number; the order is for ``osem``.
    prior
        Of ``map-rdp``: the penalty instead of the relative difference prior that its settings describe.
    members
        Make only these of the samples ``0`` to ``num_samples - 1``; `.shares.merge` puts such results together.
    projector
        Of data of SIRF and STIR: ``"toolkit"`` (default) or ``"embedded"``, see `sirf_diffusion.as_objective`.
    engine, keep_prior, attenuation_in_factors
        For a parameter file, see `sirf_diffusion.study.par_data.ParData`.
    vois
        A label image (`~sirf_diffusion.patient.readers.read_labels`): the mean of each VOI is written with the result.
    callbacks
        Called with a ``StepRecord`` after each step; ``StopIteration`` ends the run.
    checkpoint, checkpoint_every
        File (``.safetensors``) for the state of the run, written every so many seconds, after the last step, and when
        the run is cut off by an exception. If it is there, the run goes on from it.

    Raises
    ------
    ValueError
        For an unknown method, setting, model or device, and for options that make no sense.
    """

    data: Any
    method: str = "lisch"
    _: KW_ONLY
    model: Any = None
    num_samples: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    settings: Mapping[str, Any] | None = None
    quick: bool = False
    speed: str | None = None
    initial: Tensor | None = None
    anatomical: Any = None
    guidance: float = 0.0
    register_to: str | None = None
    adaptation: Any = None
    num_subsets: int | None = None
    subset_order: Sequence[int] | None = None
    prior: Any = None
    members: Sequence[int] | None = None
    projector: str = PROJECTORS[0]
    engine: str | None = None
    keep_prior: bool = False
    attenuation_in_factors: bool | None = None
    vois: str | os.PathLike[str] | None = None
    callbacks: Iterable[Callable[[Any], None]] = ()
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = CHECKPOINT_SECONDS
    chosen: type[Reconstructor] = field(init=False, repr=False)
    values: dict[str, Any] = field(init=False, repr=False)
    score_model: Any = field(init=False, repr=False)
    guide: Guide = field(init=False, repr=False)
    par: ParData | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.chosen = chosen = get_method(self.method)
        if not chosen.samples and not (self.num_samples is None and self.members is None):
            raise ValueError(f"{self.method} gives one image, not samples: leave the number of samples out")
        if chosen.samples:
            self.num_samples = check_count("num_samples", NUM_SAMPLES if self.num_samples is None else self.num_samples)
        check_seed("seed", self.seed)
        if self.num_subsets is not None:
            check_count("num_subsets", self.num_subsets)
        check_choice("projector", self.projector, PROJECTORS)
        check_real("checkpoint_every", self.checkpoint_every)
        self._device = select_device(self.device)
        settings, model = dict(self.settings or {}), self.model
        self.guide = Guide(self.anatomical, self.guidance, self.register_to)
        self._vois = None if self.vois is None else read_labels(self.vois)
        self._placed: Tensor | None = None
        self.par = None
        if isinstance(self.data, (str, os.PathLike)):
            path = os.fspath(self.data)
            options = self.projector, self.keep_prior, self.attenuation_in_factors
            self.par = ParData(path, self.method, self.engine or "auto", *options)
            settings, model, self.guide = self.par.completed(settings, model, self.guide)
            if self.method == "osem" and (self.num_subsets or self.subset_order):
                raise ValueError(f"{path} says the number and order of osem's subsets (--subsets): leave them out")
        elif self.engine is not None or self.keep_prior or self.attenuation_in_factors is not None:
            raise ValueError("engine, keep_prior (--engine, --keep-prior) and attenuation_in_factors are for --par")
        self._settings = settings
        self._adaptation = adaptation_for(chosen, self.adaptation)
        self.speed = chosen.speed_of(self.speed, adapted=self._adaptation is not None)
        self.values = chosen.with_settings(settings, quick=self.quick, speed=self.speed)
        self.score_model = load_model_for(chosen, model, self._device, self.precision)
        self.guide.check(self.method, self.score_model)
        self._intervals = IntervalTable.of(self.score_model)

    def run(self) -> Reconstruction:
        """Reconstruct."""
        began = time.perf_counter()
        chosen, data, device = self.chosen, self.read, self._device
        given = {name: getattr(self, name) for name in ("initial", "num_subsets", "subset_order", "prior")}
        asked = {name: data.options.get(name) if value is None else value for name, value in given.items()}
        values = self._values()
        early = None if chosen.method == "osem" else Early.of(data, device)
        subsets = asked["num_subsets"]
        objective = data.objective(chosen.num_subsets if subsets is None else subsets, device, subsets is not None)
        exam = objective.exam_info()
        self._labels(objective)
        placed = self.guide.place(self.score_model, data, exam, early.image) if early is not None else None
        anatomical = None if placed is None else placed.values
        bound = None if early is None else self.bound(objective, early.scale, anatomical, early.image)
        keepers = [] if self.checkpoint is None else [CheckpointCallback(self.checkpoint, 1, self.checkpoint_every)]
        reconstructor = build_reconstructor(
            self.method,
            objective,
            values,
            model=bound,
            intensity_scale=1.0 if early is None else early.scale,
            num_samples=self.num_samples or 1,
            seed=self.seed,
            subset_order=asked["subset_order"],
            prior=asked["prior"],
            adaptation=self._adaptation,
            callbacks=(*keepers, *self.callbacks),
        )
        if self.members is not None:
            reconstructor.restrict_to(self.members)
        initial = asked["initial"]
        if initial is None and early is not None and chosen.method.startswith("map-"):  # near, and paid for already
            initial = early.image
        reconstructor.resume_from = next((keeper.path for keeper in keepers if keeper.path.is_file()), None)
        try:
            started = time.perf_counter()
            reconstructor.set_up(initial.to(objective.device) if isinstance(initial, Tensor) else initial)
            reconstructor.process()
            began += time.perf_counter() - started  # of a run that goes on, the total has earlier seconds, too
        except BaseException:
            for keeper in keepers:
                keeper.write()
            raise

        image = _as_tensor(objective, reconstructor.get_output())
        samples = None
        if chosen.samples:
            samples = torch.stack([_as_tensor(objective, x).detach().cpu() for x in reconstructor.get_samples()])
        record = {
            "method": self.method,
            "seed": self.seed,
            "num_samples": self.num_samples,
            **({} if self.members is None else {"members": list(self.members)}),
            "speed": self.speed if chosen.has_speeds else None,
            "values": values,
            "intensity_scale": None if early is None else early.scale,
            **cost_of(reconstructor.record, early),
            "num_subsets": objective.num_subsets,
            "data": {**objective.describe(), "exam": asdict(exam)},
            "engine": objective.engine,
            "device": str(device),
            "model": None if bound is None else describe_model(bound, self.guide),
            "anatomical": None if placed is None else {**placed.record, "guidance": self.guide.guidance},
            "prior": None if asked["prior"] is None else asked["prior"].settings,
            "software": software_versions(),
            "trace": reconstructor.record["trace"],
            **{key: reconstructor.record[key] for key in ("h_transform",) if key in reconstructor.record},
            **({} if self.par is None else {"parameter_file": self.par.record()}),
        }
        record["seconds"]["data"] = time.perf_counter() - began - (0 if early is None else early.cost.total)
        # Some of the samples do not stand for all.
        return self.result(objective, None if self.members is not None else bound, image, samples, record, anatomical)

    @cached_property
    def read(self) -> Data:
        """The data; read when first asked for."""
        if self.par is not None:
            return self.par.read()
        if isinstance(self.data, InterfileData):
            return self.data.read(None if self.score_model is None else tuple(self.score_model.voxel_size[1:]))
        return data_of(self.data, projector=self.projector, device=self._device)

    def _labels(self, objective: Objective) -> Tensor | None:
        """VOIs on the image's grid, asked for before the work as well: they may lie elsewhere."""
        if self._placed is None and self._vois is not None:
            seen = inside(objective.sensitivity())
            self._placed = place_vois(self._vois, objective.geometry, objective.exam_info(), seen)
        return self._placed

    def _values(self) -> dict[str, Any]:
        volume = self.read.geometry.shape[0] > 1
        return self.chosen.with_settings(self._settings, volume=volume, quick=self.quick, speed=self.speed)

    def bound(
        self, objective: Objective, scale: float, anatomical: Tensor | None, early_image: Tensor | None = None,
        box: Box | None = None,
    ) -> Any:  # fmt: skip
        """The score model on the grid of the data, as the settings say; in the object's box, or one known already."""
        if self.score_model is None:
            return None
        values = self._values()
        return self.score_model.for_data(
            objective,
            sampling=self.chosen.samples,
            planes=values["planes"],
            extent=values["extent"],
            box="object" if early_image is not None and values.get("crop") else box,
            early_image=early_image,
            intensity_scale=scale,
            anatomical=as_shown(anatomical, self.score_model, objective.geometry),
            guidance=self.guide.guidance or None,
            coarse_above=values.get("coarse_above"),
        )

    def result(
        self,
        objective: Objective,
        bound: Any,
        image: Tensor,
        samples: Tensor | None,
        record: dict[str, Any],
        anatomical: Tensor | None,
    ) -> Reconstruction:
        """What is handed out; ``bound`` is the model that the image is compared with, if any."""
        # One projection more than the method made, and not counted as its own.
        began = time.perf_counter()
        log_likelihood, distribution = float(objective.value(image)), None
        if bound is not None:
            remedy = f"adapt the model to the data: {'--adapt' if self.chosen.samples else '--method'} ddip"
            if self._adaptation is not None:
                remedy = "the model was adapted: compare with an unadapted run"
            if self.quick:
                remedy = "quick settings do not finish: judge a run without them"
            smooth = record["values"].get("num_steps", 0) < FEWEST_STEPS
            found = {"objective": objective, "log_likelihood": log_likelihood, "remedy": remedy}
            distribution = check_distribution(bound, image, samples=samples, smooth=smooth, **found).to_dict()
        of_samples = "" if samples is None else f", mean of {len(samples)} samples (seed {self.seed})"
        record |= {
            "title": f"{self.chosen.title}{of_samples}, log-likelihood {log_likelihood:.7g}",
            "log_likelihood": log_likelihood,
            "distribution": distribution,
            "references": references(self.chosen, record["engine"], self._adaptation, bound, self.guide.guidance),
        }
        record["seconds"]["check"] = record["seconds"].get("check", 0.0) + time.perf_counter() - began
        record["intervals"] = held = None
        if samples is not None and len(samples) > 1:
            record["intervals"] = held = interval_record(self, self._intervals, objective, image, record)
        return Reconstruction(
            image.detach().cpu(),
            objective.geometry,
            jsonable(record),
            samples,
            None if held is None else held["uncertainty_over_sd"] * posterior_sd(samples, record["values"]["noise"]),
            Trace.of(record["trace"]),
            anatomical,
            objective.exam_info(),
            self._labels(objective),
        )


def _with_parameters_of(
    kind: Callable[_P, Study],
) -> Callable[[Callable[..., Reconstruction]], Callable[_P, Reconstruction]]:
    return lambda function: update_wrapper(function, kind, assigned=(), updated=())  # type: ignore[return-value]


@_with_parameters_of(Study)
def reconstruct(*arguments: Any, **options: Any) -> Reconstruction:
    """Reconstruct ``data`` by a method: ``reconstruct(data, "lisch", model="brain-fdg")``; parameters as of `Study`."""
    if unknown := sorted(options.keys() - {item.name for item in fields(Study)}):
        raise TypeError(f"reconstruct takes no {', '.join(unknown)}: a method's own settings go into settings={{...}}")
    return Study(*arguments, **options).run()


def _as_tensor(objective: Objective, image: Any) -> Tensor:
    return objective.to_tensor(image) if isinstance(objective, NativeImages) else image
