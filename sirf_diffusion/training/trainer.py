"""Training a score network on slices, resumable to the step."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

from ..environment import limit_threads, select_device
from ..files.lock import LOCK, locked
from ..files.outputs import jsonable
from ..files.progress import progress_bar
from ..geometry.checks import check_choice, check_count
from ..geometry.images import voxels_agree
from ..models.storage import list_models
from .checkpoint import forget_checkpoints, has_checkpoint
from .data.phantom_data import PhantomOptions, build_phantoms
from .data.slice_stream import SliceStream
from .data.volume_file import VolumeFile
from .distillation import Distillation, DistillationLoop
from .distributed import Processes, processes
from .enhancement import EnhancementLoop, enhancement_stages
from .enhancement_recipes import ENHANCEMENT_RECIPES, EnhancementRecipe
from .fine_tuning import fine_tuning
from .loop import RunOptions, TrainingLoop
from .recipes import RECIPES, Recipe
from .state import TrainingState
from .supervised import Supervision

logger = logging.getLogger(__name__)


def train(
    recipe: str | Recipe, out: str | os.PathLike[str], *, data: str | os.PathLike[str] | None = None,
    init: str | os.PathLike[str] | None = None, work_dir: str | os.PathLike[str] | None = None,
    max_steps: int | None = None, threads: int | None = None, resume: bool = True, device: str = "auto",
    options: RunOptions | None = None, supervision: Supervision | None = None,
    distillation: Distillation | None = None,
) -> Path:  # fmt: skip
    """Train a recipe and write its model file.

    Started by ``torchrun``, all processes train together, each on its share of the batches.

    Parameters
    ----------
    recipe
        Name in `RECIPES`, or a `Recipe`.
    data
        HDF5 file of ``sirf-diffusion data build`` or ``data phantom``; None to simulate the recipe's subjects.
    init
        Model to start from, a name or a file; it decides network, schedule and prediction. The recipe's if omitted. Of
        a training for enhancement, an enhancement model of the recipe's architecture.
    work_dir
        Folder for simulated data, checkpoints, logs and figures; default ``<out>.training`` beside the model file.
    max_steps
        Stop after this step in all (of all stages), leaving a checkpoint to resume from; the model file is written as
        it stands, but for a first stage.
    resume
        Continue from the checkpoint in ``work_dir`` if there is one; without, begin anew, and replace ``out``.
    supervision
        Score model, scanner and scans of a supervised training: the file written is that of an h-transform.
    distillation
        The score model that a smaller one learns from; `Distillation.recipe` is the recipe to start with.

    Returns
    -------
    Path
        The model file. With early stopping it has the weights of the best validation, otherwise the last.

    Raises
    ------
    ValueError
        If a value is out of range, the recipe is unknown or does not suit the data, the data cannot be used, or the
        work folder holds another training (`CheckpointError`).
    OSError
        If the folders cannot be written, or have too little space for model and checkpoints.
    """
    out = Path(out)
    if not isinstance(recipe, Recipe):
        known = RECIPES | ENHANCEMENT_RECIPES
        recipe = known[check_choice("recipe", recipe, tuple(sorted(known)))]
    if data is not None:
        recipe = replace(recipe, phantoms=None)
    for name, value, least in (("threads", threads, 1), ("max_steps", max_steps, 0)):
        if value is not None:
            check_count(name, value, least)
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"the model is a file whose name ends in .safetensors, found {out}")
    work = Path(work_dir) if work_dir is not None else out.with_name(out.name + ".training")
    for folder in (work, out.parent):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # cannot be written: now, not at the first checkpoint
            pass
    if threads:
        limit_threads(threads)
    where = select_device(device)
    start = None
    others = [item is not None for item in (init, supervision, distillation)]
    if distillation is not None and sum(others) > 1:
        raise ValueError("a student starts from its teacher and learns from it alone: no --init, no --supervised")
    if isinstance(recipe, EnhancementRecipe):
        if any(others[1:]):
            raise ValueError("an enhancement model is trained on images alone: no --supervised, no --distil")
    elif supervision is not None:
        recipe = supervision.checked(recipe)
    elif distillation is not None:
        recipe = distillation.checked(recipe)
        start = distillation.start(recipe)
    elif recipe.supervised:
        found = recipe.architecture.in_channels
        raise ValueError(f"a network of {found} input images is for a supervised training (--supervised)")
    elif init is not None or recipe.init:
        recipe, start = fine_tuning(recipe, _start_of(recipe) if init is None else os.fspath(init))
    with processes(where) as peers, locked(work / LOCK, ValueError) if peers.first else nullcontext():
        where = peers.device(where)
        if recipe.batch_size % (peers.world * recipe.accumulation):
            raise ValueError(
                f"batch_size = {recipe.batch_size} must be a multiple of processes x accumulation = "
                f"{peers.world} x {recipe.accumulation}"
            )
        kind = supervision.stream if supervision else SliceStream
        source = training_stream(_file(recipe, data, work, peers), recipe, kind)
        options, provenance = options or RunOptions(), {"data": source.fingerprint}
        known = start.told.get("voxel_size") if start else None
        if known and not voxels_agree(source.file.voxel_size, known):
            logger.warning(
                "the data have voxels of %s mm, the model that the training starts from %s: the new one has the data's",
                source.file.voxel_size, known,
            )  # fmt: skip
        left = 2**50 if max_steps is None else max_steps
        if isinstance(recipe, EnhancementRecipe):
            for stage in enhancement_stages(recipe, source, work, out, where, init):
                told = provenance | stage.provenance
                state = TrainingState(stage.recipe, told, where, peers, None, options.compiled, stage.network)
                _run(EnhancementLoop(stage, state, source, stage.work, options), stage.out, left, resume)
                if (left := left - stage.recipe.num_steps) <= 0 and stage.out != out:
                    logger.warning("the first of two stages ends here: there is no model file yet, the same command "
                                   "without --max-steps goes on")  # fmt: skip
                    break
            return out
        provenance |= supervision.provenance() if supervision else {}
        provenance |= {"teacher": distillation.provenance()} if distillation else {}
        network = supervision.network(recipe) if supervision else None
        state = TrainingState(recipe, provenance, where, peers, start, options.compiled, network)
        parts = (state, source, work, options)
        loop = DistillationLoop(distillation, *parts) if distillation else TrainingLoop(*parts)
        _run(supervision.loop(*parts) if supervision else loop, out, left, resume)
    return out


def _run(loop: TrainingLoop, out: Path, last: int, resume: bool) -> None:
    """Train from the checkpoint, or the start, up to a step, and write the model file."""
    state, work, peers = loop.state, loop.work, loop.peers
    _check_space(work, state)
    if resume:
        if not has_checkpoint(work) and out.exists():
            raise ValueError(
                f"{out} exists, and {work} holds no checkpoint of its training: give another name, or --restart to "
                "replace it"
            )
        state.load(work)
    elif peers.first:
        forget_checkpoints(work)
    loop.advance(min(last, loop.recipe.num_steps))
    if peers.first:
        loop.export(out)
    peers.wait()


def training_stream(
    path: str | os.PathLike[str], recipe: Recipe, kind: Callable[..., SliceStream] = SliceStream
) -> SliceStream:
    """What a recipe trains on: the training volumes of a file that ``sirf-diffusion data`` made, all of them checked.

    Raises
    ------
    ValueError
        If the file cannot be used, or the recipe is conditional and the file has no anatomical images.
    """
    file = VolumeFile(path, "train")
    stream = kind(
        file, recipe.crops, recipe.seed, planes=recipe.planes, anatomy=recipe.conditional,
        augmentation=recipe.augmentation, cubes=recipe.architecture.spatial_dims == 3, neighbours=recipe.neighbours,
    )  # fmt: skip
    file.check_values("emission", *(["anatomy"] if recipe.conditional else []))
    return stream


def _start_of(recipe: Recipe) -> str:
    """The bundled model that a recipe starts from."""
    if recipe.init in RECIPES and recipe.init not in list_models():
        raise ValueError(
            f"recipe {recipe.name!r} starts from the model of recipe {recipe.init!r}, which is not bundled: run `train "
            f"--recipe {recipe.init} --out {recipe.init}.safetensors` first and give --init {recipe.init}.safetensors"
        )
    return recipe.init


def _file(recipe: Recipe, data: str | os.PathLike[str] | None, work: Path, peers: Processes) -> Path:
    """The file to train on; the recipe's subjects are simulated by the first process."""
    if data is not None:
        return Path(data)
    if recipe.phantoms is None:
        raise ValueError(f"recipe {recipe.name!r} simulates no subjects: give a data file (--data)")
    path = work / "phantoms.h5"
    if peers.first:
        _simulate(path, recipe.phantoms)
    peers.wait()
    return path


def _check_space(work: Path, state: TrainingState) -> None:
    """Room for three checkpoints (network, average, two moments): two that are kept, and one that is being written."""
    needed = 3 * 4 * sum(p.numel() * p.element_size() for p in state.network.parameters())
    free = shutil.disk_usage(work).free + sum(file.stat().st_size for file in work.glob("checkpoint*.safetensors"))
    if free < needed:
        reason = f"model and checkpoints need {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, reason, str(work))


def _simulate(path: Path, options: PhantomOptions) -> None:
    """The subjects, unless an earlier run made them; a killed simulation goes on where it was."""
    if path.exists():
        found = json.loads(VolumeFile(path).attributes["settings"])
        if any(found.get(key) != value for key, value in jsonable(asdict(options)).items()):
            raise ValueError(
                f"{path} holds other subjects than the recipe asks for: remove it or choose another folder"
            )
        return
    with progress_bar(options.subjects * options.draws, "subjects", "volume") as bar:
        build_phantoms(path, options, progress=bar.update)
