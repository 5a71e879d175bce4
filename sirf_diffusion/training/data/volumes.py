"""Training volumes in HDF5: what a file holds. One group per volume, chunks of whole planes, checksums.

Layout, schema version 1::

    /                       attributes: format, schema_version, created_by, voxel_size, axes, intensity_rule, settings
    /volumes/00000          attributes: subject, split, tracer, source, intensity_scale, data_sha256, notes, ...
        emission   float16  [z, y, x], divided by its intensity scale: about 1 in emitting tissue
        mask       uint8    emission, smoothed by 8 mm, above 0.1
        anatomy    float16  optional: MR, or CT as density, divided by its own scale (attribute ``modality``)
        mu         float16  optional: attenuation in 1/cm
        labels     uint8    optional (uint16 if there are more than 255): tissues (attribute ``names``)
        lesions    uint8    optional: 1 hot and 3 cold in the MR, 2 hot and 4 cold not in the MR
    /rejected               number, source, reason: inputs that were left out

Subjects and sources are keyed hashes: there is no name, no path and no patient identifier in a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...geometry.gaussian import gaussian_smooth
from ...geometry.images import ImageGeometry
from ...models.conditioning import scaled_anatomical
from ...models.intensity import FWHM_MM, INTENSITY_RULES, hot_object, intensity_scale
from ...patient.image import UnusableImage

FORMAT = "sirf-diffusion training volumes"
SCHEMA_VERSION = 1
#: How arrays lie in the patient: STIR's axes of a patient who is scanned head first and supine.
AXES = "[z, y, x]: z to the feet, y to the back, x to the patient's left (STIR, head first, supine)"
SPLITS = ("train", "validation", "test")
#: Emission above this, after smoothing, is in the mask.
MASK_THRESHOLD = 0.1
#: Smallest ratio of the hottest voxel to the mean that no tracer explains; float16 ends at 65504.
_IMPLAUSIBLE_PEAK = 20_000.0
#: Arrays of a volume and their types.
#: Types that each array may have: of labels the smaller one that holds them.
DTYPES = {
    "emission": ("f2",), "anatomy": ("f2",), "mu": ("f2",), "mask": ("u1",), "labels": ("u1", "u2"), "lesions": ("u1",),
}  # fmt: skip


@dataclass
class Volume:
    """One volume, ready to be written.

    Attributes
    ----------
    arrays
        By data set name; ``emission`` and ``mask`` are always there.
    subject, source
        Keyed hashes, or the numbers of simulated subjects.
    split
        Wanted split, or empty: decided when the file is put together.
    modality
        What ``anatomy`` is: ``MR`` or ``CT``; empty without one.
    notes, details
        What was done to the image that a reader should know; more attributes to write.
    label_names
        Names of the values of ``labels`` from 1 on.
    """

    arrays: dict[str, NDArray[Any]]
    voxel_size: tuple[float, float, float]
    subject: str
    source: str
    intensity_scale: float
    tracer: str = ""
    split: str = ""
    modality: str = ""
    notes: list[str] = field(default_factory=list)
    label_names: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_image(cls, emission: NDArray[np.float32], voxel_size: tuple[float, float, float], **others: Any) -> Volume:
        """Scale an emission image ``[z, y, x]`` (image units, non-negative) and find its mask."""
        image = torch.from_numpy(np.ascontiguousarray(emission, np.float32))
        geometry = ImageGeometry(tuple(image.shape), voxel_size)
        try:
            scale = intensity_scale(image, geometry)
        except ValueError as error:
            raise UnusableImage("no activity", str(error)) from error
        peak = float(image.max()) / scale
        if peak > _IMPLAUSIBLE_PEAK:
            raise UnusableImage(f"the hottest voxel is {peak:.0f} times the mean of the emitting voxels")
        image = image / scale
        smoothed = gaussian_smooth(image, geometry, FWHM_MM)
        arrays = {"emission": image.numpy(), "mask": (smoothed > MASK_THRESHOLD).numpy()}
        volume = cls(arrays, voxel_size, others.pop("subject"), others.pop("source"), scale, **others)
        if hot_object(smoothed, geometry)[1] > 0:
            volume.notes.append(f"a hot object of {peak:.0f} times the rest: scaled by the rest")
        return volume

    def add_anatomy(self, anatomy: NDArray[np.float32], modality: str) -> None:
        """Scale an anatomical image on the same grid by the rule that reconstructions use, and keep it."""
        image = torch.from_numpy(np.ascontiguousarray(anatomy, np.float32)).clamp(min=0)
        try:
            scaled = scaled_anatomical(image, ImageGeometry(tuple(image.shape), self.voxel_size))
        except ValueError as error:
            raise UnusableImage("no signal where the emission image is", str(error)) from error
        self.arrays["anatomy"] = scaled.clamp(max=6e4).numpy()
        self.modality = modality


def write_group(group: Any, volume: Volume) -> None:
    """Write a volume into an empty HDF5 group."""
    digests = {"emission": "", "anatomy": ""}
    for name, kinds in DTYPES.items():
        if name not in volume.arrays:
            continue
        kind = kinds[-1] if volume.arrays[name].max() > 255 else kinds[0]
        values = np.ascontiguousarray(volume.arrays[name], dtype=kind)
        if name in digests:
            digests[name] = hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()
        planes = int(np.clip(2**20 // max(values[0].nbytes, 1), 1, len(values)))
        group.create_dataset(
            name, data=values, chunks=(planes, *values.shape[1:]), compression="gzip", compression_opts=1,
            shuffle=True, fletcher32=True,
        )  # fmt: skip
    group.attrs.update({name: getattr(volume, name) for name in ("subject", "source", "tracer", "split", "modality")})
    group.attrs.update(volume.details)
    group.attrs.update({"voxel_size": volume.voxel_size, "intensity_scale": volume.intensity_scale})
    group.attrs.update({f"{name.replace('emission', 'data')}_sha256": digest for name, digest in digests.items()})
    group.attrs["notes"] = "; ".join(volume.notes)
    if volume.label_names:
        group["labels"].attrs["names"] = list(volume.label_names)
    for axis, letter in enumerate("zyx"):
        others = tuple(k for k in range(3) if k != axis)
        occupancy = volume.arrays["mask"].mean(axis=others, dtype=np.float64).astype(np.float32)
        group.attrs[f"occupancy_{letter}"] = occupancy


def root_attributes(kind: str, voxel_size: tuple[float, float, float]) -> dict[str, Any]:
    """Attributes of the file itself, but for its settings."""
    from ... import __version__

    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created_by": f"sirf-diffusion {__version__}",
        "kind": kind,
        "voxel_size": voxel_size,
        "axes": AXES,
        "intensity_rule": INTENSITY_RULES[0],
    }
