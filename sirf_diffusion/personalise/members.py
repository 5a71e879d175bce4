"""The PETs of a bank of subjects, carried onto one patient's anatomy by registering their MRs to the patient's."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry.images import ImageGeometry
from ..models.conditioning import scaled_anatomical
from ..models.expected_image import place_of
from ..patient.anatomical import AnatomicalImage
from ..patient.deformable import REVISION, Deformation, Limits, register_deformable
from ..patient.image import UnusableImage
from ..patient.resampling import grid_over, resample
from ..study.execution import Execution
from ..training.data.volume_file import VolumeFile, rejected_inputs
from ..training.data.volume_parts import NothingUsable, PartStore
from ..training.data.volumes import Volume
from .figures import member_figure

logger = logging.getLogger(__name__)

#: Air kept around the patient's head, mm.
_MARGIN = 16.0


@dataclass(frozen=True)
class Target:
    """The patient's MR on the grid that everything is carried to: ``mr`` ``[z, y, x]``, mean 1 over the head.

    Axes as those of training volumes (STIR's, head first, supine); ``voxel_size`` in mm; ``identity`` is what a model
    remembers of the MR, see `AnatomicalImage.identity`, and ``place`` where the grid lies, see
    `~sirf_diffusion.models.expected_image.place_of`.
    """

    mr: NDArray[np.float32]
    voxel_size: tuple[float, float, float]
    identity: dict[str, str]
    place: dict[str, Any]

    @classmethod
    def read(cls, mr: str | os.PathLike[str] | AnatomicalImage, voxel_size: tuple[float, float, float]) -> Target:
        """From a file or DICOM folder; a ValueError if it cannot be used or is a CT."""
        image = mr if isinstance(mr, AnatomicalImage) else AnatomicalImage.read(mr)
        if image.image.modality not in ("", "MR"):
            raise ValueError(f"{image.source} is of modality {image.image.modality}: expected an MR as the bank's")
        grid = grid_over(image.image, voxel_size)
        values = torch.from_numpy(np.array(resample(image.image, grid))).clamp(min=0)
        try:
            scaled = scaled_anatomical(values, ImageGeometry(tuple(values.shape), voxel_size)).numpy()
        except ValueError as error:
            raise ValueError(f"the MR {image.source} cannot be used: {error}") from error
        margin = np.ceil(_MARGIN / np.asarray(voxel_size)).astype(int)
        inside = np.argwhere(scaled > 0.2)
        low, high = np.maximum(inside.min(0) - margin, 0), inside.max(0) + 1 + margin
        box = tuple(map(slice, low.tolist(), high.tolist()))
        mr = np.ascontiguousarray(scaled[box])
        place = place_of(replace(image.image, values=mr, affine=grid.cropped(box).affine))
        return cls(mr, voxel_size, image.identity, place)


@dataclass(frozen=True)
class Member:
    """What became of a member of the bank: its number, why it was left out (empty if used), and measurements."""

    number: int
    reason: str
    quality: dict[str, float]


def carry_over(
    bank: VolumeFile,
    target: Target,
    out: Path,
    *,
    least: int,
    limits: Limits | None = None,
    quick: bool = False,
    execution: Execution | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Member]:
    """Write ``out``, a file of training volumes: each good member's PET and MR on the patient's grid.

    A member whose registration fails, see `~sirf_diffusion.patient.deformable.Quality`, is left out with the reason.
    A build that was stopped goes on. Figures of all members lie in the folder ``members`` beside ``out``.

    ``limits`` are what a registration must keep; ``quick`` registers on voxels twice as large, see
    `register_deformable`. Raises ValueError if fewer than ``least`` subjects have a good member.
    """
    execution, parts = execution or Execution(), out.with_name(out.name + ".parts")
    if out.exists():
        shutil.rmtree(parts, ignore_errors=True)
        for _ in range(len(bank)):
            progress()
    else:
        figures = out.parent / "members"
        figures.mkdir(exist_ok=True)
        settings = {"bank": bank.fingerprint, "quick": quick, "registration": REVISION, **target.identity}
        # Nothing here is a name: a key that everybody knows makes the same file again.
        store = PartStore(out, "warped", settings, target.voxel_size, key=bytes(32))
        with store.held():
            jobs = []
            for index in range(len(bank)):
                if store.done(_key(index)):
                    progress()
                else:
                    jobs.append(index)
            work = partial(_take_member, store, bank, target, limits or Limits(), quick, figures)
            for _ in execution.results(work, jobs):
                progress()
            try:
                store.assemble([(_key(k), bank.infos[k].name) for k in range(len(bank))], (1.0, 0.0, 0.0), 0)
            except NothingUsable as error:
                raise ValueError(_too_few([Member(o.number, o.reason, {}) for o in error.outcomes], least)) from error
    members, subjects = outcomes(out), {info.subject for info in VolumeFile(out).infos}
    if len(subjects) < least:
        raise ValueError(_too_few(members, least, len(subjects)))
    return members


def outcomes(path: Path) -> list[Member]:
    """What became of each member of the bank, from the file that `carry_over` wrote."""
    file = VolumeFile(path)
    left_out = {number: reason for number, _, reason in rejected_inputs(path)}
    used = iter(file.details("quality_"))
    total = len(file) + len(left_out)
    return [
        Member(number, left_out[number], {}) if number in left_out else Member(number, "", next(used))
        for number in range(1, total + 1)
    ]


def _take_member(
    store: PartStore, bank: VolumeFile, target: Target, limits: Limits, quick: bool, figures: Path, index: int
) -> None:
    """Register one member and keep what comes of it."""
    info, key = bank.infos[index], _key(index)
    if info.modality != "MR":
        store.reject(key, f"{info.modality or 'nothing'} instead of an MR")
        return
    emission, mr = (bank.volume(index, name).float().numpy() for name in ("emission", "anatomy"))
    try:
        found = register_deformable(target.mr, mr, target.voxel_size, judged=emission, quick=quick)
        reasons = found.quality.reasons(limits)
        member_figure(figures / f"{key}.png", target.mr, found, mr, emission, index + 1, reasons)
        if reasons:
            raise UnusableImage("; ".join(reasons))
        store.write(key, _volume(found, emission, mr, info, target.voxel_size))
    except ValueError as error:
        logger.warning("member %d of the bank is left out: %s", index + 1, error)
        store.reject(key, str(error))


def _volume(found: Deformation, emission: Any, mr: Any, info: Any, voxel_size: tuple[float, float, float]) -> Volume:
    volume = Volume.from_image(
        np.clip(found.warp(emission), 0, None), voxel_size, subject=info.subject, source=info.name, tracer=info.tracer,
        details={f"quality_{name}": value for name, value in found.quality.to_dict().items()},
    )  # fmt: skip
    volume.add_anatomy(found.warp(mr), "MR")
    return volume


def warped_images(path: Path) -> list[Tensor]:
    """PET of all members on the patient's grid ``[z, y, x]`` float16, each divided by its own scale."""
    file = VolumeFile(path, memory_mb=1e6)
    return [file.volume(k) for k in range(len(file))]


def _key(index: int) -> str:
    return f"{index:05d}"


def _too_few(members: list[Member], least: int, subjects: int = 0) -> str:
    good = sum(not m.reason for m in members)
    if good >= least:
        return f"the {good} good members of the bank are of {subjects} subjects, expected at least {least}"
    reasons = list(dict.fromkeys(f"member {m.number}: {m.reason}" for m in members if m.reason))
    return (
        f"only {good} of {len(members)} members of the bank could be registered to this MR, expected at least {least}: "
        f"no model is made. Is it a T1-weighted head as the bank's are? {'; '.join(reasons[:3])}"
    )
