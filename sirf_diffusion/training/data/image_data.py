"""From images in files to a file of training volumes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...files.documents import files_of
from ...files.frames import split_frame
from ...geometry.checks import check_real
from ...patient.image import SourceImage, UnusableImage, density_of_ct
from ...patient.readers import read_source
from ...patient.resampling import PatientGrid, coverage, grid_over, resample
from .manifest import ImageInput, check_fractions, subject_of
from .volume_parts import Outcome, PartStore
from .volumes import Volume

logger = logging.getLogger(__name__)

#: Share of the emission image's box that an anatomical image must cover.
MIN_COVERAGE = 0.5
#: Share of negative activity (of the sum of absolute values) that is set to zero with a note, and not refused.
MAX_NEGATIVE = 0.2


@dataclass(frozen=True)
class ImageOptions:
    """How images become volumes.

    Attributes
    ----------
    voxel_size
        ``(z, y, x)`` in mm, each from 0.5 to 20.
    margin
        Millimetres of air kept around the emission mask; None to keep the whole field of view.
    assumed
        Axes of images that do not tell theirs, such as ``RAS``.
    """

    voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0)
    margin: float | None = 16.0
    tracer: str = ""
    assumed: str | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.voxel_size) != 3:
            raise ValueError(f"voxel_size must be three numbers, found {self.voxel_size}")
        for size in self.voxel_size:
            check_real("voxel_size (mm)", size, 0.5, 20.0)
        if self.margin is not None:
            check_real("margin (mm)", self.margin, 0.0, 1e4)
        check_fractions(self.fractions)


def build_from_images(
    inputs: Sequence[ImageInput], out: str | os.PathLike[str], options: ImageOptions | None = None, *,
    add: bool = False, overwrite: bool = False, restart: bool = False, key: bytes | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Outcome]:  # fmt: skip
    """Write images as training volumes; what cannot be used is listed and left out. A stopped build is continued.

    ``progress`` is called after each image; for the other options see `PartStore`. Returns
    what became of each input, in their order.

    Raises
    ------
    NothingUsable
        If not one image could be used.
    ValueError
        If ``out`` cannot be written to or continued.
    """
    options = options or ImageOptions()
    settings = {"margin": options.margin}
    store = PartStore(
        out, "images", settings, options.voxel_size, add=add, overwrite=overwrite, key=key, restart=restart
    )
    with store.held():
        return _built(store, inputs, options, progress)


def _built(
    store: PartStore, inputs: Sequence[ImageInput], options: ImageOptions, progress: Callable[[], None]
) -> list[Outcome]:
    keyed = []
    for source in inputs:
        others = [source.subject, source.split, source.modality, source.left_out, options.assumed, options.tracer]
        part = store.hashed("\n".join(map(str, [_state(source.image), _state(source.anatomy), *others])))
        keyed.append((part, str(source.image)))
    if store.finished(keyed, options.fractions, options.seed):
        return store.outcomes or []
    for source, (part, name) in zip(inputs, keyed, strict=True):
        if not store.done(part):
            try:
                store.write(part, take_in(source, options, store.hashed))
            except UnusableImage as error:
                logger.info("%s is left out: %s", name, error)
                store.reject(part, error.reason)
        progress()
    return store.assemble(keyed, options.fractions, options.seed)


def take_in(source: ImageInput, options: ImageOptions, hashed: Callable[[str], str]) -> Volume:
    """Read, check, orient, resample and scale one image, with its anatomical image if there is one.

    Raises
    ------
    UnusableImage
        If it cannot be used. An anatomical image that cannot be used is left out, with a note.
    """
    if source.left_out:
        raise UnusableImage(source.left_out)
    image = read_source(source.image, options.assumed)
    if image.modality not in ("", "PT"):
        raise UnusableImage(f"DICOM of modality {image.modality[:16]}, not PT")
    notes: list[str] = []
    image = _without_negatives(image, notes)
    grid = grid_over(image, options.voxel_size)
    if max(grid.shape) > 4000 or np.prod([float(n) for n in grid.shape]) > 1e9:
        raise UnusableImage(f"it would have {' x '.join(map(str, grid.shape))} voxels: are its voxel sizes right?")
    emission = resample(image, grid)
    subject, name = subject_of(source, image.patient), str(source.image.resolve())
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    details = {"source_format": image.kind, "source_voxel_sizes": np.round(sizes, 4)}
    volume = Volume.from_image(
        emission, grid.voxel_size, subject=hashed(subject), source=hashed(name), tracer=options.tracer,
        split=source.split, notes=notes, details=details,
    )  # fmt: skip
    box: tuple[slice, ...] = tuple(slice(0, n) for n in grid.shape)
    if options.margin is not None:
        box = _box(volume.arrays["mask"], [options.margin / v for v in grid.voxel_size])
    if source.anatomy is not None:
        try:
            # scaled before it is cropped, since a reconstruction scales it on its whole field of view
            volume.add_anatomy(_anatomy(source, image, grid, box, options.assumed), source.modality)
        except UnusableImage as error:
            logger.info("%s is left out: %s", source.anatomy, error)
            notes.append(f"{source.modality} left out: {error.reason}")
    volume.arrays = {name: values[box] for name, values in volume.arrays.items()}
    return volume


def _anatomy(
    source: ImageInput, emission: SourceImage, grid: PatientGrid, box: tuple[slice, ...], assumed: str | None
) -> NDArray[np.float32]:
    image, modality = read_source(source.anatomy, assumed), source.modality
    if image.modality not in ("", modality):
        raise UnusableImage(f"DICOM of modality {image.modality[:16]}")
    if emission.is_of_another(image):
        raise UnusableImage("of another patient by PatientID")
    owners = [subject_of(ImageInput(path)) for path in (source.image, source.anatomy)]
    if owners[0] != owners[1] and all(owner.startswith("sub-") for owner in owners):
        raise UnusableImage("of another subject by its name (sub-...)")
    if modality == "CT":
        image = density_of_ct(image)
    covered = coverage(image, grid.cropped(box))
    if covered < MIN_COVERAGE:
        raise UnusableImage(f"it covers {covered:.0%} of the emission image: is it of another patient or space?")
    return resample(image, grid)


def _without_negatives(image: SourceImage, notes: list[str]) -> SourceImage:
    negative = -float(np.minimum(image.values, 0).sum(dtype=np.float64))
    if negative == 0:
        return image
    share = negative / float(np.abs(image.values).sum(dtype=np.float64))
    if share > MAX_NEGATIVE:
        raise UnusableImage(f"{share:.0%} of its activity is negative")
    if share > 1e-3:
        notes.append(f"{share:.1%} of the activity was negative and set to 0")
    return replace(image, values=np.maximum(image.values, 0))


def _box(mask: NDArray[np.bool_], margin: Sequence[float]) -> tuple[slice, ...]:
    """The smallest box around a mask with a margin in voxels."""
    extra = np.ceil(margin).astype(int)
    low, high = (edge(np.nonzero(mask), axis=1) for edge in (np.min, np.max))
    ends = zip(low - extra, high + 1 + extra, mask.shape, strict=True)
    return tuple(slice(max(0, int(a)), min(int(b), n)) for a, b, n in ends)


def _state(path: Path | None) -> str:
    """Names, sizes and times of an image's files: what tells whether it has been dealt with already."""
    if path is None or not split_frame(path)[0].exists():
        return str(path)
    states = [(file, file.stat()) for file in files_of(path)]
    return " ".join([str(path.resolve()), *(f"{file.name} {s.st_size} {s.st_mtime_ns}" for file, s in states)])
