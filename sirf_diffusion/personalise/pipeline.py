"""One patient's model: a bank of other subjects and the patient's MR in, a model file out; each stage goes on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.outputs import jsonable
from ..files.work import work_folder
from ..geometry.checks import check_count, check_flag, check_real, check_seed
from ..geometry.images import voxels_agree
from ..models.expected_image import bytes_of, expected_image
from ..models.score_model import ScoreModel
from ..models.storage import load_model, save_model
from ..patient.deformable import Limits
from ..study.execution import Execution
from ..training.data.augmentation import Augmentation
from ..training.data.volume_file import VolumeFile
from ..training.evaluation.validation import validation_set
from ..training.recipes import Recipe
from ..training.trainer import RunOptions, train
from .members import Member, Target, carry_over, warped_images
from .pseudo import build_pseudo_pets

logger = logging.getLogger(__name__)

#: What a run keeps in its folder.
_KEPT = ("members", "members.h5", "members.h5.parts", "pseudo.h5", "pseudo.h5.parts", "training", "tuned.safetensors")
#: Of an anatomy whose place is known: it is neither mirrored nor turned far.
_AUGMENTATION = Augmentation(
    flip=0.0, axial_flip=0.0, rotation=6.0, scale=0.03, shift=0.05, intensity=(0.7, 1.4), gamma=(0.75, 1.35)
)


@dataclass(frozen=True)
class PersonalOptions:
    """How a model is made for one patient.

    Parameters
    ----------
    pseudo_pets
        Mixtures to train on; one in nine is kept for validation.
    least_members
        Subjects of the bank that must be registered well; with fewer no model is made.
    transverse
        Train on transverse slices alone, for data of single planes: three times as many of them in the same time. Of
        the two other orientations, that a volume is seen in, the model learns nothing.
    rank
        Of the changes of the weights (LoRA); 0: all weights are trained.
    quick_registration
        Register on voxels twice as large: an eighth of the time, and less sharp.
    """

    pseudo_pets: int = 90
    least_members: int = 6
    steps: int = 1200
    batch_size: int = 8
    learning_rate: float = 4e-4
    transverse: bool = False
    rank: int = 0
    seed: int = 0
    quick_registration: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_count("pseudo_pets", self.pseudo_pets, 9, 10_000)
        check_count("least_members", self.least_members, 2)
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size, 1, 4096)
        check_real("learning_rate", self.learning_rate, 0.0, 1.0)
        for name in ("transverse", "quick_registration"):
            check_flag(name, getattr(self, name))
        check_count("rank", self.rank, 0, 4096)
        check_seed("seed", self.seed)


@dataclass(frozen=True)
class Personalised:
    """The model file, what became of each member of the bank, and the folder with what was made on the way."""

    model: Path
    members: list[Member]
    work: Path


def personalise(
    bank: str | os.PathLike[str],
    mr: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = "brain-fdg-mr",
    options: PersonalOptions | None = None,
    execution: Execution | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
    restart: bool = False,
    progress: Callable[[str, int], Callable[[], None]] = lambda stage, total: lambda: None,
) -> Personalised:
    """Make a score model for one patient's anatomy (after Webber et al. 2025, TRPMS): it needs no MR when it is used.

    The MRs of a bank of PET and MR are registered to the patient's; the PETs are carried along, mixed, and a model of
    a population is trained further on the mixtures. Its network is shown the mean of the PETs beside the noisy image,
    in training that of the members that a mixture has nothing of. A run that was stopped goes on where it was, to the
    same bits.

    Parameters
    ----------
    bank
        HDF5 file of ``sirf-diffusion data build`` (with MRs) or ``data phantom``.
    mr
        The patient's MR: NIfTI, Interfile, or a folder with one DICOM series; of the bank's weighting.
    model
        Model of the population, a name or a file, on the voxel size of the bank. One that takes an MR has learnt to use
        an anatomy.
    execution, device
        Where registrations and mixtures are computed; device of the training.
    work_dir
        Folder for all that is kept on the way; default ``<out>.personalise`` beside the model file ``out``.
    progress
        Given a stage's name and the number of its parts, returns what is called after each part.

    Raises
    ------
    ValueError
        If a file cannot be used, too few members can be registered, the model is one patient's or has other voxels than
        the bank, or the work folder holds another run.
    """
    options, out = options or PersonalOptions(), Path(out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"the model is a file whose name ends in .safetensors, found {out}")
    if not out.parent.is_dir():
        raise FileNotFoundError(2, "the folder of the model does not exist: make it first", str(out))
    file, start = VolumeFile(bank), ScoreModel.load(model)
    if start.architecture is None:
        raise ValueError(f"{model} does not tell its network: it cannot be trained further")
    if start.expected_image is not None:
        raise ValueError(f"{model} was made for one patient: personalise a model of a population")
    if not voxels_agree(file.voxel_size, start.voxel_size):
        raise ValueError(
            f"the bank {bank} has voxels of {file.voxel_size} mm, the model {model} of {start.voxel_size} mm: build "
            "the bank with the model's voxel size"
        )
    names = [text.split(",")[0] for text in (file.tracer, start.metadata["tracer"])]
    if names[0] != names[1] and all(name.startswith("[") for name in names):  # not of "many tracers"
        logger.warning("the bank is of %s, the model of %s: take a bank of the model's tracer", *names)
    if not file.has_anatomy:
        raise ValueError(f"the bank {bank} has no MRs: build it with --mr")
    target = Target.read(mr, file.voxel_size)
    recipe = recipe_of(start, options, max(target.mr.shape))
    settings = {
        "bank": file.fingerprint, **target.identity, "model": start.hash, "options": asdict(options),
    }  # fmt: skip
    work = Path(work_dir) if work_dir is not None else out.with_name(out.name + ".personalise")
    with work_folder(work, settings, _KEPT, result=out, restart=restart):
        members = carry_over(
            file, target, work / "members.h5", least=options.least_members, limits=options.limits,
            quick=options.quick_registration, execution=execution, progress=progress("members", len(file)),
        )  # fmt: skip
        pseudo = work / "pseudo.h5"
        build_pseudo_pets(
            work / "members.h5", pseudo, file.voxel_size, options.pseudo_pets, seed=options.seed,
            tracer=file.tracer, execution=execution, progress=progress("pseudo-PETs", options.pseudo_pets),
        )  # fmt: skip
        tuned = work / "tuned.safetensors"
        train(
            recipe, tuned, data=pseudo, init=model, work_dir=work / "training", device=device,
            options=RunOptions(checkpoint_every=50),
        )  # fmt: skip
        expected = torch.stack([image.float() for image in warped_images(work / "members.h5")]).mean(0)
        _stamp(tuned, out, settings | {"place": target.place}, members, expected)
    return Personalised(out, members, work)


def recipe_of(start: ScoreModel, options: PersonalOptions, extent: int) -> Recipe:
    """The training that a personalisation is, on images with sides of up to ``extent`` voxels."""
    sides = (48,) if start.spatial_dims == 3 else (96, 96, 128)
    crops = tuple(-(-min(side, extent) // start.multiple) * start.multiple for side in sides)
    orientations = start.architecture.num_class_embeds or start.architecture.num_networks
    return Recipe(
        "personalised", "", replace(start.architecture, in_channels=2), crops=crops,
        batch_size=options.batch_size, cycles=(options.steps,), learning_rate=options.learning_rate,
        warmup_steps=min(50, options.steps), condition_dropout=0.05, ema_decay=0.995, log_sigma_mean=-0.4,
        seed=options.seed, decay="cosine", augmentation=_AUGMENTATION,
        schedule=start.schedule, prediction=start.prediction, time_input=start.time_input, rank=options.rank,
        planes=(0,) if options.transverse or not (orientations == 3 or start.spatial_dims == 3) else (0, 1, 2),
        validate_every=max(1, options.steps // 2),
    )  # fmt: skip


def denoising_curves(work: Path, models: Mapping[str, str | os.PathLike[str]]) -> dict[str, dict[float, float]]:
    """Denoising errors of models on the pseudo-PETs that were kept from the training, by noise level."""
    curves = {}
    for name, path in models.items():
        model = ScoreModel.load(path)
        recipe = replace(recipe_of(model, PersonalOptions(), 128), architecture=model.architecture)
        found = validation_set(work / "pseudo.h5", recipe)
        curves[name] = found.network_errors(model.network, model.prediction, model.time_input)
    return curves


def _stamp(tuned: Path, out: Path, settings: Mapping[str, Any], members: list[Member], expected: Tensor) -> None:
    """The trained model with what it was made for in it: members, and the image that it expects."""
    network, config, _ = load_model(tuned)
    made_for = {
        **{key: value for key, value in settings.items() if key.startswith("mr_")},
        "place": settings["place"],
        "bank": settings["bank"],
        "members": sum(not m.reason for m in members),
        "left_out": sum(bool(m.reason) for m in members),
        "options": settings["options"],
    }
    training = config.training | {"personalised": jsonable(made_for)}
    config = replace(config, training=training, expected_image=expected_image(bytes_of(expected), training))
    save_model(out, network.state_dict(), config, weights_dtype="float16")
