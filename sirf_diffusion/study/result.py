"""A reconstruction as it is handed out and written."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files.atomic import new_hdf5
from ..files.frames import split_frame
from ..files.outputs import OutputFolder
from ..files.versions import KEY
from ..geometry.checks import check_choice, check_real
from ..geometry.exam import ExamInfo, position_of
from ..geometry.images import ImageGeometry
from ..reconstructors.references import bibtex
from .bids import bids_fields
from .report import Trace, report_figure
from .vois import voi_table, write_vois

#: Formats of images, see `Reconstruction.save`.
FORMATS = ("hv", "nifti", "both")


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
        Standard deviation ``[z, y, x]``: that of the samples, times the factor in ``record["intervals"]`` with which
        ``image +- 1.96 uncertainty`` covers 95 %, or times 1 if that is not known; None for fewer than two samples.
    trace
        Log-likelihood by step.
    anatomical
        The anatomical image that the network saw, on the image's grid; None without one.
    exam
        Patient position, time frames, radionuclide and calibration of the data.
    labels
        VOIs ``[z, y, x]``, whole numbers, 0 for none.
    """

    image: Tensor
    geometry: ImageGeometry
    record: dict[str, Any]
    samples: Tensor | None = None
    uncertainty: Tensor | None = None
    trace: Trace | None = None
    anatomical: Tensor | None = None
    exam: ExamInfo = field(default_factory=ExamInfo)
    labels: Tensor | None = None

    @property
    def vois(self) -> list[dict[str, Any]]:
        """Size, mean and interval of each VOI, see `voi_table`; nothing without labels."""
        if self.labels is None:
            return []
        noises, unit = self.record["values"].get("noise", "independent"), self.record.get("unit", "image units")
        factor = (self.record.get("intervals") or {}).get("vois")
        return voi_table(self.labels, self.image, self.geometry, self.samples, noises, unit, factor)

    def calibrated(self, factor: float | None = None) -> Reconstruction:
        """In Bq/ml: multiplied by a factor, or by the calibration factor in the header of the data.

        Nothing is corrected for decay or branching ratio besides. What was measured in image units, such as the
        intensity scale of the record, stays so.

        Raises
        ------
        ValueError
            If the factor is not positive, or there is none in the header.
        """
        source = "given" if factor is not None else "header of the data"
        factor = self.exam.calibration_factor if factor is None else factor
        if factor is None:
            raise ValueError("the header of the data has no calibration factor: give it as a number")
        check_real("the calibration factor", factor, open_below=True)
        images = {name: getattr(self, name) for name in ("image", "samples", "uncertainty")}
        return replace(
            self,
            **{name: None if values is None else values * factor for name, values in images.items()},
            record=self.record | {"unit": "Bq/ml", "calibration": {"factor": factor, "source": source}},
            exam=replace(self.exam, calibration_factor=1.0),
        )

    def save(
        self,
        folder: OutputFolder,
        image_format: str = "hv",
        like: str | os.PathLike[str] | None = None,
        *,
        bids: bool = False,
    ) -> None:
        """Write image, report and record, and of a method that samples, the samples and their standard deviation.

        Parameters
        ----------
        folder
            Where to.
        image_format
            ``"hv"`` (Interfile), ``"nifti"`` (``.nii.gz``, in the scanner's coordinates as the patient lay) or
            ``"both"``.
        like
            A DICOM series of the same patient and study: the image is written as a series of that study too.
        bids
            Write a BIDS JSON file beside each NIfTI image.
        """
        check_writers(image_format, like, bids)
        with folder.staged(self.record) as staging:
            self._write_image(staging / "reconstruction", self.image, image_format)
            if self.uncertainty is not None:
                self._write_image(staging / "uncertainty", self.uncertainty, image_format)
            if bids:
                self._write_bids(staging)
            if self.samples is not None:
                write_samples(
                    staging / "samples.h5",
                    self.samples,
                    self.geometry,
                    seed=self.record["seed"],
                    method=self.record["method"],
                    unit=self.record.get("unit", "image units"),
                    patient_position=(self.exam.orientation, self.exam.rotation),
                    time_frames_s=self.exam.time_frames,
                    radionuclide=self.exam.radionuclide.name,
                )
            (staging / "references.bib").write_text(bibtex(self.record["references"]), encoding="utf-8")
            if vois := self.vois:
                write_vois(staging / "vois.csv", vois)
            if like is not None:
                from ..patient.writing import write_dicom

                units = "BQML" if self.record.get("unit") == "Bq/ml" else "PROPCNTS"
                write_dicom(staging / "dicom", self.image, self.geometry, self.exam, like, units=units)
            check = self.record["distribution"]
            known = "" if check is None else "\n" + check["message"]
            report_figure(
                staging / "report.png",
                self.image,
                self.geometry,
                uncertainty=self.uncertainty,
                trace=self.trace,
                anatomical=self.anatomical,
                title=self.record["title"] + known,
                unit=self.record.get("unit", ""),
                exam=self.exam,
            )

    def _write_image(self, stem: Path, image: Tensor, image_format: str) -> None:
        from ..files.interfile import write_image

        if image_format != "nifti":
            write_image(stem.with_suffix(".hv"), image, self.geometry, exam=self.exam)
        if image_format != "hv":
            from ..patient.writing import write_nifti

            write_nifti(stem.with_suffix(".nii.gz"), image, self.geometry, self.exam)

    def _write_bids(self, staging: Path) -> None:
        what = {"reconstruction": "Reconstructed image", "uncertainty": "Posterior standard deviation"}
        fields = bids_fields(self.record, self.exam)
        for image in staging.glob("*.nii.gz"):
            name = image.name.removesuffix(".nii.gz")
            text = json.dumps(fields | {"Description": f"{what[name]}: {self.record['title']}"}, indent=2)
            (staging / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def write_samples(path: Path, samples: Tensor, geometry: ImageGeometry | None, **about: Any) -> None:
    """Write samples ``[S, z, y, x]`` as HDF5; ``about`` becomes attributes, ``unit`` among them.

    Samples that are not on a grid of STIR's have none, and ``about`` says how they lie.
    """
    with new_hdf5(path) as file:
        file.attrs.update({"format": "sirf-diffusion samples", KEY: 1})
        data = file.create_dataset("samples", data=samples.numpy(), compression="gzip", chunks=True)
        if geometry is not None:
            about |= {"axes": "sample, z, y, x", "voxel_size_mm": geometry.voxel_size, "origin_mm": geometry.origin}
        data.attrs.update(about)


def check_writers(image_format: str, like: str | os.PathLike[str] | None = None, bids: bool = False) -> None:
    """Whether `Reconstruction.save` will be able to write so, before anything is computed.

    Raises
    ------
    ImportError
        If a package is missing.
    ValueError
        For an unknown format, a reference series that cannot be read, or BIDS without NIfTI.
    """
    from ..patient.dicom import read_tags
    from ..patient.image import UnusableImage, optional

    check_choice("the format of images", image_format, FORMATS)
    if image_format != "hv":
        optional("nibabel", "NIfTI")
    elif bids:
        raise ValueError("BIDS knows NIfTI images only: add --format nifti, or both")
    if like is not None:
        optional("pydicom", "DICOM")
        if not (series := split_frame(like)[0]).exists():
            raise FileNotFoundError(f"the reference series {like} (--like): no such file or folder")
        try:
            read_tags(series)
        except UnusableImage as problem:
            raise UnusableImage(f"the reference series {like} (--like): {problem}") from problem


def check_position(exam: ExamInfo | None, image_format: str, like: str | os.PathLike[str] | None = None) -> None:
    """ValueError if the patient lay as Interfile alone can say, and other files are to be written."""
    if image_format != "hv" or like is not None:
        try:
            position_of(exam)
        except ValueError as problem:
            hint = "write Interfile alone (--format hv, without --like), which keeps it"
            raise ValueError(f"{problem}: {hint}") from None
