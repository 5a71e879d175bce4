"""Readers of texts: Interfile headers, parameter files, tables, lists, configurations."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import torch

from sirf_diffusion.files.interfile import (
    InterfileError,
    read_exam_info,
    read_image,
    read_projection_data,
    read_projection_data_geometry,
    write_image,
    write_projection_data,
)
from sirf_diffusion.files.outputs import OutputError, OutputFolder
from sirf_diffusion.files.parfile import ParFile, ParFileError
from sirf_diffusion.files.parfile.run import ParRun
from sirf_diffusion.geometry.exam import ExamInfo, Radionuclide
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner

from .mutations import changed_bytes, changed_json, changed_lines, encoded
from .reader import Reader, check_grid, check_image, promise

SCANNER = Scanner("small ring", 2, 16, 90.0, 5.0, 8.0, 4.0, max_num_non_arccorrected_bins=9)
GRID = ImageGeometry((3, 7, 7), (4.0, 12.0, 12.0))
_EXAM = ExamInfo(
    "head_in", "supine", "PT", time_frames=((0.0, 60.0),), radionuclide=Radionuclide("^18^Fluorine", 6586.2, 0.967),
    calibration_factor=2.0, energy_window=(425.0, 650.0),
)  # fmt: skip


class _Text(Reader):
    """Lines of a key, a sign and a value."""

    sign: ClassVar[str] = ":="
    words: ClassVar[tuple[str, ...]] = ()

    def content(self, rng: Random) -> bytes:
        """Mostly lines changed, else bytes."""
        sample = rng.choice(self.samples)
        if rng.random() < 0.25:
            return changed_bytes(rng, sample.encode())
        return encoded(changed_lines(rng, sample, self.sign, self.words))


class ImageHeader(_Text):
    """Headers of images: STIR's, Siemens', and Interfile 3.3."""

    name, file, errors = "image header", "image.hv", (InterfileError,)
    words = ("image.v", "short.v", "image.hv", "float", "signed integer", "bit", "BIGENDIAN", "{1,2,3}", "x", "PT")

    def prepare(self) -> list[str]:
        """Three headers."""
        image = torch.arange(147.0).reshape(3, 7, 7)
        write_image(self.path, image, GRID, exam=_EXAM)
        write_image(self.folder / "short", image, GRID, "short")
        stir, short = (path.read_text() for path in (self.path, self.folder / "short.hv"))
        siemens = stir.replace("scaling factor (mm/pixel)", "scale factor (mm/pixel)").replace(
            "imagedata byte order", "image data byte order"
        )
        old = (
            "!INTERFILE :=\n!imaging modality := nucmed\n!version of keys := 3.3\n!total number of images := 3\n"
            "!number of slices := 3\nprocess status := reconstructed\n!name of data file := image.v\n"
            "imagedata byte order := LITTLEENDIAN\n!matrix size [1] := 7\n!matrix size [2] := 7\n"
            "!number format := short float\n!number of bytes per pixel := 4\nscaling factor (mm/pixel) [1] := 4\n"
            "scaling factor (mm/pixel) [2] := 4\nslice thickness (pixels) := 3\n!END OF INTERFILE :=\n"
        )
        return [stir, short, siemens, old]

    def read(self) -> None:
        """Exam information and image."""
        exam = read_exam_info(self.path)
        promise(len(exam.time_frames) <= 10_000, "more time frames than any scan has")
        image, geometry = read_image(self.path)
        check_image(image, geometry)
        check_grid(geometry)


class ProjectionDataHeader(_Text):
    """Headers of projection data."""

    name, file, errors = "projection data header", "data.hs", (InterfileError,)
    words = ("data.s", "short.s", "Siemens mMR", "ECAT 962", "{ 2,1,1}", "{ 0,-1,1}", "view", "segment", "Emission")

    def prepare(self) -> list[str]:
        """Several layouts."""
        layout = ProjDataGeometry.from_scanner(SCANNER, span=1, max_ring_difference=1, num_tangential_positions=9)
        single = ProjDataGeometry.from_scanner("Siemens mMR", span=1, max_ring_difference=0, num_views=2)
        write_projection_data(self.path, torch.ones(layout.shape), layout, exam=_EXAM)
        write_projection_data(self.folder / "short.hs", torch.ones(layout.shape), layout, "short")
        write_projection_data(self.folder / "single.hs", torch.ones(single.shape), single, "short")
        return [(self.folder / f"{name}.hs").read_text() for name in ("data", "short", "single")]

    def read(self) -> None:
        """Exam information, layout and data."""
        read_exam_info(self.path)
        geometry = read_projection_data_geometry(self.path)
        promise(geometry.num_bins > 0, "no bins")
        promise(bool(geometry.tangential_positions().isfinite().all()), "bins nowhere")
        promise(bool(geometry.view_angles().isfinite().all()), "views in no direction")
        data, found = read_projection_data(self.path)
        check_image(data, found)


class ParameterFile(_Text):
    """Parameter files of STIR, and the data that they name."""

    name, file, errors = "parameter file", "osmaposl.par", (ParFileError, InterfileError)
    words = (
        "data.hs", "mu.hv", "osmaposl.par", "Ray Tracing", "Matrix", "None", "Chained", "From ProjData", "Python",
        "Diffusion Score", "Quadratic", "Diffusion Sampler", "{0.3, 0.2}", "Separable Gaussian",
        "PoissonLogLikelihoodWithLinearModelForMeanAndProjData",
    )  # fmt: skip

    def prepare(self) -> list[str]:
        """OSMAPOSL, and OSSPS with a score prior; data and their normalisation."""
        from sirf_diffusion.interop.stir.registry import built_in_names

        self.names = built_in_names()
        layout = ProjDataGeometry.from_scanner(SCANNER, span=1, max_ring_difference=0, num_tangential_positions=9)
        for name in ("data", "norm"):
            write_projection_data(self.folder / f"{name}.hs", torch.ones(layout.shape), layout)
        write_image(self.folder / "mu.hv", torch.full(GRID.shape, 0.01), GRID)
        objective = """\
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
  input file := {folder}/data.hs
  maximum absolute segment number to process := -1
  zero end planes of segment 0 := 0
  prior type := {prior}
  projector pair type := Matrix
  Projector Pair Using Matrix Parameters :=
    Matrix type := Ray Tracing
    Ray tracing matrix parameters :=
      number of rays in tangential direction to trace for each bin := 10
    End Ray tracing matrix parameters :=
  End Projector Pair Using Matrix Parameters :=
  Bin Normalisation type := From ProjData
  Bin Normalisation From ProjData :=
    normalisation projdata filename := {folder}/norm.hs
  End Bin Normalisation From ProjData :=
  recompute sensitivity := 1
  zoom := 1
  XY output image size (in pixels) := 7
  Z output image size (in pixels) := 3
end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
output filename prefix := out
number of subsets := 2
number of subiterations := 4
start at subiteration number := 1
save estimates at subiteration intervals := 4
"""
        objective = objective.replace("{folder}", str(self.folder))
        plain = objective.replace("{prior}", """Quadratic
    Quadratic Prior Parameters :=
      penalisation factor := 1
    END Quadratic Prior Parameters :=""")
        score = objective.replace("{prior}", """Diffusion Score
    Diffusion Score Parameters :=
      noise level := {0.3, 0.2}
      penalisation factor := 0.2
      model filename := brain
    END Diffusion Score Parameters :=""")
        return [
            f"OSMAPOSLParameters :=\n{plain}initial estimate := {self.folder}/mu.hv\nEND :=\n",
            f"OSSPSParameters :=\n{score}relaxation parameter := 1\nEND :=\n",
        ]

    def read(self) -> None:
        """As ``stir-diffusion check`` and as ``recon --par`` do it."""
        from sirf_diffusion.engines.embedded.acquisition import AcquisitionError
        from sirf_diffusion.engines.embedded.par_acquisition import read_acquisition
        from sirf_diffusion.interop.stir.check import check

        if self.path.stat().st_size % 3 == 0:  # it takes long
            check(self.path, names=self.names).format()
        run = ParRun.of(ParFile.read(self.path))
        promise(1 <= run.num_updates < 2**31 and len(run.subset_order) == run.num_subsets, "an endless run")
        run.files()
        try:
            acquisition, _ = read_acquisition(run)
        except AcquisitionError:
            return
        check_grid(acquisition.geometry)


class Manifest(_Text):
    """Tables of images for ``data build``: CSV."""

    name, file, errors, sign = "manifest CSV", "manifest.csv", (ValueError,), ","
    words = ("train", "validation", "subject", "image", "mr", "n/a", "sub-01", "participant_id")

    def prepare(self) -> list[str]:
        """Commas, semicolons, tabs."""
        (self.folder / "sub-01" / "pet").mkdir(parents=True)
        (self.folder / "sub-01" / "pet" / "sub-01_pet.nii.gz").touch()
        table = "subject,image,mr,split\n1,a.nii,b.nii,train\n2,c.nii,,test\n3,d.hv,,\n"
        people = "participant_id\tage\tsplit\nsub-01\t9\ttrain\n"
        return [table, table.replace(",", ";"), table.replace(",", "\t"), people]

    def read(self) -> None:
        """The images of the table."""
        from sirf_diffusion.training.data.manifest import read_manifest
        from sirf_diffusion.training.data.volumes import SPLITS

        inputs = read_manifest(self.path)
        promise(inputs, "a table of nothing")
        for one in inputs:
            promise(isinstance(one.image, Path) and one.split in ("", *SPLITS), f"an input {one!r:.200}")
            promise("\0" not in str(one.image), "the name of a file that no system has")


class ManifestJSON(Manifest):
    """Tables of images in JSON."""

    name, file = "manifest JSON", "manifest.json"

    def prepare(self) -> list[Any]:
        """A list of objects."""
        super().prepare()
        one = {"subject": "1", "image": "a.nii", "mr": "b.nii", "split": "train"}
        return [[one, {"image": "c.nii", "ct": "d", "split": "test"}], [{"participant_id": "01", "age": 3}]]

    def content(self, rng: Random) -> bytes:
        """A changed list, or changed bytes."""
        sample = rng.choice(self.samples)
        return changed_bytes(rng, json.dumps(sample).encode()) if rng.random() < 0.2 else changed_json(rng, sample)


class ListFile(_Text):
    """Lists of ``recon-many``, up to the options of their lines."""

    name, file, errors, sign = "list of recon-many", "list.txt", (ValueError,), "--"
    words = ("out a", "method dds", "seed 3", "set num_steps=3", "samples 2", "'", "set x=" + "(" * 100 + ")" * 100)

    def prepare(self) -> list[str]:
        """Options of several lines."""
        from sirf_diffusion.cli import build_parser

        self.parser = build_parser()
        line = "--prompts p.hs --method {} --set num_steps=3 --set 'eta=0.5' --samples 2 --seed 1 --out {}\n"
        return ["# studies\n\n" + line.format("dds", "a") + line.format("lisch", "'b c'")]

    def read(self) -> None:
        """Every line's options and settings, as `recon` takes them."""
        from sirf_diffusion.cli.recon import read_list
        from sirf_diffusion.cli.recon_options import parse_settings

        for job in read_list(self.path):
            promise(job.out and job.options, "a line without options")
            try:
                with redirect_stderr(StringIO()):
                    arguments = self.parser.parse_args(["recon", *job.options])
            except SystemExit:
                continue
            parse_settings(arguments.settings)


class Configuration(_Text):
    """TOML configurations of ``train``."""

    name, file, errors, sign = "training configuration", "train.toml", (ValueError,), "="
    words = ("[32, 64]", "[true, false]", '"edm"', '"ve"', "[[1]]", "{a=1}", "1979-05-27", "0b11", "[noise]", "[" * 999)

    def prepare(self) -> list[str]:
        """The defaults, and a short one."""
        from sirf_diffusion.training.configuration import default_text

        short = '[network]\nchannels = [32, 64]\nattention_levels = [false, true]\n[schedule]\nname = "ve"\n[noise]\n'
        lines = [line for line in default_text().split("\n") if line and not line.startswith("#")]
        return ["\n".join(line.partition("  #")[0] for line in lines), short + 'prediction = "eps"\n[run]\n']

    def read(self) -> None:
        """Configuration, and that its steps and rates are numbers."""
        from sirf_diffusion.training.configuration import read_configuration

        recipe = read_configuration(self.path).recipe
        promise(0 <= recipe.rate(0) <= 1 and 0 < recipe.num_steps <= 2**40, f"a rate of {recipe.rate(0)}")
        json.dumps(recipe.to_dict(), allow_nan=False)


class Record(Reader):
    """The record, and all else in the folder of a result, by which it is known again."""

    name, file, errors = "record.json", "record.json", (OutputError,)
    _SETTINGS: ClassVar[dict[str, Any]] = {"method": "dds", "files": {"prompts": "p.hs"}, "values": {"eta": 0.5}}

    def prepare(self) -> list[Any]:
        """A record, the settings of an unfinished run, the journal of one that was cut off."""
        self.out = self.folder / "out"
        (self.out / ".unfinished").mkdir(parents=True)
        (self.out / "image.v").touch()
        (self.out / ".unfinished" / "run.safetensors").touch()
        both = {"files": ["image.v", "a/b.v"], "earlier": ["image.v", "c.v"]}
        return [{"settings": self._SETTINGS, **both, "seconds": {"total": 1.5}}]

    def content(self, rng: Random) -> bytes:
        """A changed record, or changed bytes."""
        text = json.dumps(self.samples[0], indent=2).encode()
        return changed_bytes(rng, text) if rng.random() < 0.2 else changed_json(rng, self.samples[0])

    def read(self) -> None:
        """As the record of a result, and as the settings of an unfinished run."""
        content = self.path.read_bytes()
        (self.out / "record.json").write_bytes(content)
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            content = json.dumps(json.loads(content)["settings"]).encode()
        (self.out / ".unfinished" / "settings.json").write_bytes(content)
        folder, problems = OutputFolder(self.out, self._SETTINGS), []
        complete = self.out / ".complete"
        complete.mkdir(exist_ok=True)
        for file in (complete / "journal.json", complete / "record.json"):
            file.write_bytes(self.path.read_bytes())
        for action in (folder.check, folder._earlier_files, lambda: folder.unfinished({}), folder._put_into_place):
            try:
                action()
            except OutputError as problem:
                problems.append(problem)
        (self.out / ".unfinished").mkdir(exist_ok=True)
        (self.out / ".unfinished" / "run.safetensors").touch()
        if problems:
            raise problems[0]
