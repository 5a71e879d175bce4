"""One image enhanced: read, enhanced, and written in its own format with a record and a report."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..environment import software_versions
from ..files.documents import digest
from ..files.outputs import OutputFolder
from ..files.weights import WeightsFileError, WeightsFormat
from ..geometry.checks import check_finite
from ..geometry.exam import ExamInfo
from ..models.enhancement import EnhancementModel
from ..patient.derived import OriginalImage
from ..reconstructors.enhancement import Enhanced, Enhancer
from ..reconstructors.references import bibtex
from .report import figure_of_views
from .result import check_writers, write_samples

logger = logging.getLogger(__name__)

#: How images lie that the network sees, whatever the file's axes.
_AS_TRAINED = ExamInfo(orientation="head_in", rotation="supine")
#: Share by which total activity may change: of held-out phantoms it is 0.3 %.
_ACTIVITY_KEPT = 0.05
_CHECKPOINT = WeightsFormat("a checkpoint of an enhancement", "sirf_diffusion_enhancement_run", "give --restart")
REFERENCES = ("Jiang2023",)


@dataclass(frozen=True)
class Enhancement:
    """What is to be enhanced and how; fields as of `~sirf_diffusion.reconstructors.enhancement.Enhancer`."""

    image: Path
    model: EnhancementModel
    ct: Path | None = None
    dose_ratio: float | None = None
    num_steps: int | None = None
    num_samples: int = 0
    seed: int = 0
    without_ct: bool = False
    axial_fwhm: float | None = None
    image_format: str = "same"
    like: Path | None = None

    def settings(self) -> dict[str, Any]:
        """What the result depends on."""
        names = ("image", "ct", "num_steps", "num_samples", "seed", "without_ct", "axial_fwhm", "image_format",
                 "like")  # fmt: skip
        named = {name: getattr(self, name) for name in names}
        files = {"image": self.image, "ct": self.ct}
        contents = {name: digest(path) for name, path in files.items() if path is not None}
        return named | {"dose_ratio": self.dose_ratio or "auto", "model": self.model.hash, "contents": contents}

    def run(self, folder: OutputFolder, *, restart: bool = False, progress: Any = lambda: None) -> dict[str, Any]:
        """Enhance into a folder that is held; returns the record. A stopped run goes on after its last sample.

        Raises ValueError if image, CT image or settings cannot be used, and OutputError as the folder does.
        """
        started = time.perf_counter()
        original = OriginalImage.read(self.image)
        values, geometry = original.values, original.geometry
        if self.like is not None and original.source.kind != "Interfile":
            raise ValueError(f"--like is for Interfile: {self.image} is {original.source.kind}, and stays in its place")
        if self.image_format != "nifti":
            original.check_writer()
        check_writers("hv" if self.image_format == "same" else "nifti", self.like)
        model, ct, about = self.model, None, None
        if self.ct is not None:
            ct, about = original.ct(self.ct)
            model = model.guided_by(ct)
        state = folder.unfinished({}, restart=restart) / "run.safetensors"
        voxels = values.numel()
        folder.check_space(4 * voxels * (3 + 3 * self.num_samples))
        enhancer = Enhancer(
            model, self.dose_ratio, num_steps=self.num_steps, num_samples=self.num_samples, seed=self.seed,
            without_ct=self.without_ct, axial_fwhm=self.axial_fwhm, progress=progress,
        )  # fmt: skip
        result = enhancer.enhance(values, geometry, *self._kept(state, geometry.shape))
        before, after = (float(x.sum(dtype=torch.float64)) for x in (values, result.image))
        if not abs(after - before) <= _ACTIVITY_KEPT * abs(before):
            logger.warning(
                "total activity changed by %+.1f %%, expected less than %g %%: this model does not suit this image",
                *(100 * (after / before - 1) if before else math.inf, 100 * _ACTIVITY_KEPT),
            )
        record = {
            "title": f"enhanced from a dose of {result.dose:.3g} of the standard",
            "dose_ratio": result.dose, "dose_ratio_from": "given" if self.dose_ratio else "noise of the image",
            "start_step": result.start_step, "steps": enhancer.num_steps, "samples": self.num_samples,
            "intensity_scale": result.intensity_scale,
            "model": {"sha256": model.hash, "tracer": model.config.tracer, "noise": model.config.architecture.noise},
            "format": original.source.kind, "ct": about, "references": list(REFERENCES),
            "activity": {"before": before, "after": after},
            "software": software_versions(), "seconds": time.perf_counter() - started,
        }  # fmt: skip
        with folder.staged(record) as staging:
            self._write(staging, original, result, ct, record["title"])
        return record

    def _kept(self, path: Path, shape: tuple[int, ...]) -> tuple[Tensor | None, Any]:
        """Samples of an earlier run, and what keeps the samples of this one."""
        if not self.num_samples:
            return None, None

        def keep(samples: Tensor) -> None:
            _CHECKPOINT.write(path, {"samples": samples}, {})

        if not path.exists():
            return None, keep
        _, tensors, _ = _CHECKPOINT.read(path)
        samples = tensors.get("samples")
        if samples is None or tuple(samples.shape[1:]) != shape or len(samples) > self.num_samples:
            raise WeightsFileError(f"{path} does not fit this run: give --restart")
        check_finite(samples, str(path))
        return samples, keep

    def _write(self, staging: Path, original: OriginalImage, result: Enhanced, ct: Tensor | None, title: str) -> None:
        image_format = "same" if original.source.kind == "NIfTI" else self.image_format
        images = {"enhanced": (result.image, title), "uncertainty": (result.sd, "standard deviation of samples")}
        for name, (image, what) in images.items():
            if image is None:
                continue
            if image_format != "nifti":
                original.write(staging / original.name(name), image, f"sirf-diffusion: {what}")
            if image_format != "same":
                original.convert(staging / f"{name}.nii.gz", image)
        if self.like is not None:
            original.convert(staging / "dicom", result.image, self.like, f"sirf-diffusion: {title}")
        if result.samples is not None:
            samples, grid, place = original.stored_samples(result.samples)
            write_samples(staging / "samples.h5", samples, grid, seed=self.seed, unit="image units", **place)
        (staging / "references.bib").write_text(bibtex(REFERENCES), encoding="utf-8")
        values, image = original.values, result.image
        peak = float(image.flatten()[:: max(1, image.numel() // 10**6)].quantile(0.998)) or 1.0
        rows = [("before", values, "gray_r", 0.0, peak), ("after", image, "gray_r", 0.0, peak),
                ("after - before", image - values, "RdBu_r", -peak / 2, peak / 2)]  # fmt: skip
        if result.sd is not None:
            rows.append(("standard deviation", result.sd, "magma", 0.0, float(result.sd.max()) or 1.0))
        if ct is not None:
            rows.append(("CT", ct, "gray", 0.0, float(ct.max()) or 1.0))
        figure_of_views(staging / "report.png", rows, original.geometry, title, exam=_AS_TRAINED)
