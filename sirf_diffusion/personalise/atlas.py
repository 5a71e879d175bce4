"""A 4D atlas as a file, as images, and on a patient's anatomy."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.atomic import atomic_path
from ..files.interfile import write_image
from ..geometry.exam import HEAD_FIRST_SUPINE, ExamInfo
from ..geometry.images import ImageGeometry
from ..patient.deformable import Quality, head_of, register_deformable
from ..patient.image import SourceImage
from ..patient.resampling import grid_over, resample, stir_grid
from ..training.data.volume_file import VolumeFile
from ..training.data.volume_parts import PartStore
from ..training.data.volumes import Volume

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Atlas:
    """Mean frames ``[time, z, y, x]`` in mean shape, each subject first divided by the mean of all its frames.

    ``voxel_size`` ``(z, y, x)`` in mm; ``mr`` and ``labels`` ``[z, y, x]`` if the subjects had them; ``curves`` is the
    mean of each label ``[label, time]``, or of the whole object where there are none.
    """

    frames: Array
    voxel_size: tuple[float, float, float]
    mr: Array | None = None
    labels: NDArray[np.uint16] | None = None

    @property
    def geometry(self) -> ImageGeometry:
        """Grid of the frames."""
        return ImageGeometry(tuple(self.frames.shape[1:]), self.voxel_size)

    @property
    def curves(self) -> dict[int, list[float]]:
        """Time-activity curve by label; 0 is the whole object where there are no labels."""
        if self.labels is None:
            whole = head_of(self.frames.mean(0))
            return {0: [float(f[whole].mean()) for f in self.frames]}
        return {
            int(k): [float(f[self.labels == k].mean()) for f in self.frames] for k in np.unique(self.labels) if k > 0
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, tracer: str = "") -> None:
        """Write a file of training volumes, one for each frame: also a bank for `personalise`, if there are MRs."""
        store = PartStore(path, "atlas", {}, self.voxel_size, key=bytes(32), overwrite=overwrite, restart=True)
        with store.held():
            keys = []
            for number, image in enumerate(self.frames):
                volume = Volume.from_image(
                    image, self.voxel_size, subject=f"atlas, frame {number}", source="atlas", tracer=tracer,
                    split="train", details={"frame": number},
                )  # fmt: skip
                if self.mr is not None:
                    volume.add_anatomy(self.mr, "MR")
                if self.labels is not None:
                    volume.arrays["labels"] = self.labels
                keys.append((f"{number:05d}", f"frame {number}"))
                store.write(keys[-1][0], volume)
            store.assemble(keys, (1.0, 0.0, 0.0), 0)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Atlas:
        """Of a file that `save` wrote; a ValueError for another."""
        file = VolumeFile(path, memory_mb=1e5)
        numbers = [int(d.get("", -1)) for d in file.details("frame")]
        if numbers != list(range(len(file))):
            raise ValueError(f"{path} is no atlas: its volumes are not frames 0, 1, ... in their order")
        frames = [file.volume(k).float().numpy() * file.infos[k].intensity_scale for k in range(len(file))]
        mr = file.volume(0, "anatomy").float().numpy() if file.infos[0].has_anatomy else None
        try:
            labels = file.volume(0, "labels").numpy()
        except KeyError:
            labels = None
        return cls(np.stack(frames), file.voxel_size, mr, labels)

    def onto(self, image: SourceImage, geometry: ImageGeometry) -> tuple[Array, Quality]:
        """Frames on a patient's grid, deformed onto an image of the patient and in its units; and how well that went.

        ``image`` is PET of the same tracer, such as an OSEM image of all frames; ``geometry`` is its grid.
        """
        grid = grid_over(image, self.voxel_size)
        values = np.clip(resample(image, grid), 0, None)
        found = register_deformable(values, self.frames.mean(0), self.voxel_size)
        frames = np.stack([np.clip(found.warp(frame), 0, None) for frame in self.frames])
        mean = frames.mean(0)
        frames *= float((mean * values).sum() / (mean * mean).sum())
        sources = [replace(image, values=frame, affine=grid.affine) for frame in frames]
        # resample has values [i, j, k] of the affine's columns, which are the grid's z, y and x
        own = stir_grid(geometry, image.position or HEAD_FIRST_SUPINE)
        return np.stack([resample(source, own) for source in sources]), found.quality

    def write_images(
        self,
        folder: str | os.PathLike[str],
        frames: Array | None = None,
        geometry: ImageGeometry | None = None,
        exam: ExamInfo | None = None,
    ) -> list[Path]:
        """Mean and frames as Interfile (``mean.hv``, ``frame-00.hv`` ...), and ``curves.csv``; returns the paths.

        ``frames`` and their ``geometry``: those of `onto` instead, in that patient's units, which the curves have not:
        they are left out; ``exam`` says how that patient lay.
        """
        folder, written, own = Path(folder), [], frames is None
        folder.mkdir(parents=True, exist_ok=True)
        frames, geometry = (self.frames, self.geometry) if frames is None else (frames, geometry)
        named = {"mean": frames.mean(0)} | {f"frame-{k:02d}": f for k, f in enumerate(frames)}
        for name, image in named.items():
            written.append(folder / f"{name}.hv")
            write_image(written[-1], torch.from_numpy(np.ascontiguousarray(image)), geometry, exam=exam)
        if not own:
            (folder / "curves.csv").unlink(missing_ok=True)  # of an earlier run
            return written
        with atomic_path(folder / "curves.csv") as temporary:
            rows = [",".join(["label", *(f"frame {k}" for k in range(len(self.frames)))])]
            rows += [",".join([str(label), *(f"{v:.6g}" for v in curve)]) for label, curve in self.curves.items()]
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return [*written, folder / "curves.csv"]
