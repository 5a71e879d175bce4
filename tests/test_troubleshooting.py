"""Every message of ``docs/troubleshooting.md`` is raised by what this file does for it, and is all that is shown."""

import errno
import os
import re
import shutil
import signal
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
import torch
from par_files import par_text
from small_scan import SmallScan, write_conditional_model, write_small_model, write_small_scan

import sirf_diffusion
from sirf_diffusion.cli import main, stir
from sirf_diffusion.data import load_example
from sirf_diffusion.files.interfile import read_image, read_projection_data, write_image, write_projection_data
from sirf_diffusion.files.lock import LOCK, locked
from sirf_diffusion.files.outputs import OutputFolder
from sirf_diffusion.files.weights import WeightsFormat, write_tensors
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir.python_blocks import ALLOW
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.lora import Adapter, AdapterConfig
from sirf_diffusion.study.execution import Execution

pytestmark = pytest.mark.usefixtures("undrawn")
PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
ROW = re.compile(r"^\| `(?P<message>[^`]+)` \| .+ \| .+ \|$", re.MULTILINE)


@dataclass
class Person:
    """Someone who gives a command with one thing wrong."""

    scan: SmallScan
    model: Path
    folder: Path
    patch: pytest.MonkeyPatch

    def command(self, *words: object, main=main) -> int:
        """Exit code of a command; what is refused writes nothing, but what a build has found out of its inputs."""
        before = self.files()
        code = main([str(word) for word in words])
        assert code != 2 or self.files() == before
        return code

    def files(self) -> dict[Path, bytes]:
        paths = [path for path in self.folder.rglob("*") if path.is_file() and path.parent.suffix != ".parts"]
        return {path: path.read_bytes() for path in paths}

    def recon(self, *more: object, **changed: object) -> int:
        """``sirf-diffusion recon`` of the small scan with other options; None leaves one out."""
        options = {"method": "osem", "out": self.folder / "out"} | changed
        if options["method"] == "dds":
            options = {"model": self.model, "samples": 1, "set": "num_steps=2"} | options
        return self.command("recon", *self.scan.words(**options), *more)

    def running(self, action) -> int:
        """``recon`` in which something happens."""
        self.patch.setattr("sirf_diffusion.study.reconstruction.Study.run", lambda *_, **__: action())
        return self.recon()

    def guided(self, anatomical: object, *more: object) -> int:
        """With a model that sees an anatomical image."""
        model = write_conditional_model(self.folder / "guided.safetensors")
        return self.recon(*more, method="dds", model=model, anatomical=anatomical)

    def image(self, option: str = "attenuation", origin: tuple[float, float] = (0, 0), factor: float = 1) -> int:
        """With an attenuation or initial image that was changed; the origin is along the axis and across it."""
        image, grid = read_image(self.scan.mu_hv)
        grid = ImageGeometry(grid.shape, grid.voxel_size, (origin[0], origin[1], origin[1]))
        write_image(self.folder / "image.hv", factor * (image + (option == "initial")), grid)
        return self.recon(**{option: self.folder / "image.hv"})

    def projections(self, name: str = "prompts", change=None, data=None, header=None) -> int:
        """With projection data whose values, bytes of the data file, or header (old, new text) were changed."""
        path, (values, layout) = self.folder / "data.hs", read_projection_data(getattr(self.scan, f"{name}_hs"))
        write_projection_data(path, values if change is None else change(values), layout)
        if data is not None:
            path.with_suffix(".s").write_bytes(data(path.with_suffix(".s").read_bytes()))
        if header is not None:
            path.write_text(path.read_text().replace(*header))
        return self.recon(**{name: path})

    def brain(self, inverse: bool = False) -> int:
        """The bundled slice, whose factors hold the attenuation, or the correction for it."""
        example = load_example("brain2d").folder
        values, layout = read_projection_data(example / "multiplicative.hs")
        path = self.folder / "factors.hs"
        write_projection_data(path, torch.where(values > 0, 1 / values, 0) if inverse else values, layout)
        mu = example / "mu.hv"
        return self.recon(prompts=example / "prompts.hs", multiplicative=path, additive=None, attenuation=mu)

    def par(self, *more: object, engine: str = "embedded", **changes: object) -> int:
        """``recon --par`` of a parameter file."""
        path = self.write("my.par", par_text(self.scan.prompts_hs, "image", **changes))
        words = ["--par", path, "--method", "osem", "--out", self.folder / "out", "--engine", engine]
        return self.command("recon", *words, *more)

    def stir(self, *words: str, prefix: str = "image", **changes: object) -> int:
        """A command of ``stir-diffusion`` on a parameter file."""
        path = self.write("my.par", par_text(self.scan.prompts_hs, prefix, **changes))
        return self.command(*words, path, main=stir.main)

    def write(self, name: str = "text.txt", content: str = "something else\n") -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path

    def without(self, module: str) -> "Person":
        """Make a module impossible to import."""
        for name in [name for name in sys.modules if name.partition(".")[0] == module]:
            self.patch.delitem(sys.modules, name)
        self.patch.setitem(sys.modules, module, None)
        return self


def nan(data):
    return data[:28] + torch.tensor([float("nan")]).numpy().tobytes() + data[32:]


def nifti_without_place(person):
    import nibabel
    import numpy as np

    image = nibabel.Nifti1Image(np.random.default_rng(1).random((9, 9, 9), np.float32), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(image, person.folder / "mr.nii")
    return person.folder / "mr.nii"


def overflowing(person):
    path, model = person.folder / "huge.safetensors", ScoreModel.load(person.model)
    for parameter in model.network.parameters():
        parameter.fill_(1e30)
    model.save(path)
    return path


def other_hdf5(person):
    h5py.File(person.folder / "a.h5", "w").close()
    return person.command("train", "--data", person.folder / "a.h5", "--out", person.folder / "m.safetensors")


def newer(person):
    tensors, metadata = WeightsFormat("a file").read_any(person.model)
    metadata = {name: value.replace('"format_version": 1', '"format_version": 9') for name, value in metadata.items()}
    write_tensors(person.folder / "newer.safetensors", tensors, metadata)
    return person.recon(method="dds", model=person.folder / "newer.safetensors")


def cut(person):
    path = person.folder / "cut.safetensors"
    path.write_bytes(person.model.read_bytes()[:-64])
    return person.recon(method="dds", model=path)


def other_adapter(person):
    other = ScoreModel.load(write_small_model(person.folder / "other.safetensors", voxel_size=5.0))
    Adapter(other, AdapterConfig(rank=1)).save(person.folder / "adapter.safetensors")
    return person.recon("--adapter", person.folder / "adapter.safetensors", method="dds")


def other_objects(person):
    torch.save({"a": types.SimpleNamespace()}, person.folder / "whole.pt")
    return person.command("models", "import", person.folder / "whole.pt", "--out", person.folder / "m.safetensors")


def held(person):
    (person.folder / "out").mkdir()
    with locked(person.folder / "out" / LOCK, ValueError):
        return person.recon()


def other_result(person):
    assert person.recon() == 0
    return person.recon(method="map-rdp")


def unfinished(person):
    with OutputFolder(person.folder / "out", {"method": "dds"}).held() as folder:
        shutil.copy(person.model, folder.unfinished({}) / "0.safetensors")
    return person.recon()


def full_disk(person):
    usage = shutil.disk_usage(person.folder)
    person.patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    return person.recon()


def no_gpu(person):
    person.patch.setattr(torch.cuda, "is_available", lambda: False)
    return person.recon(device="cuda")


def old_processor(person):
    person.patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    return person.recon(method="dds", precision="bfloat16", device="cpu")


def dying_workers(person):
    from concurrent.futures.process import BrokenProcessPool

    def die(*_):
        raise BrokenProcessPool

    person.patch.setattr("sirf_diffusion.study.execution.in_processes", die)
    return person.running(lambda: list(Execution(2).results(abs, [1])))


PYTHON = """prior type := Python
Python Parameters :=
  module := mine
  class := Prior
  penalisation factor := 1
END Python Parameters :="""
MISSPELT = "prior type := Difusion Score\nDifusion Score Parameters :=\nEND Difusion Score Parameters :="
QUADRATIC = "prior type := Quadratic\nQuadratic Prior Parameters :=\nEND Quadratic Prior Parameters :="
ECAT = "Bin Normalisation type := From ECAT8\nBin Normalisation From ECAT8 :=\nEnd Bin Normalisation From ECAT8 :="


def no_space(p):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    p.patch.setattr(os, "fsync", full)
    return p.recon()


TRIGGERS = {
    # Files
    "cannot read header ...: No such file or directory": lambda p: p.recon(prompts=p.folder / "nothing.hs"),
    "not an Interfile header (the first line must be '!INTERFILE :=')": lambda p: p.recon(prompts=p.write()),
    "its data file ... does not exist (expected ... bytes, found none)": lambda p: p.projections(
        header=("data.s", "elsewhere.s")
    ),
    "is too short: expected ... bytes (... values of ... bytes after an offset of ...), found ...": lambda p: (
        p.projections(data=lambda data: data[:-100])
    ),
    "values that are not finite (NaN or infinite": lambda p: p.projections(data=nan),
    "values that are negative, the first one in bin ...; expected raw counts, before any correction": lambda p: (
        p.projections(change=lambda values: values - 1)
    ),
    "the total of the counts is zero; nothing was measured": lambda p: p.projections(change=torch.zeros_like),
    "it has ... time frames: choose one by NAME#1 to NAME#...": lambda p: p.projections(
        header=("number of time frames := 1", "number of time frames := 2")
    ),
    "environment variable '...' is not set": lambda p: p.projections(header=("data.s", "${NOWHERE}/data.s")),
    "which looks like 1/m, Hounsfield units or percent": lambda p: p.image(factor=1e4),
    "looks like 1/mm": lambda p: p.image(factor=0.1),
    "has no calibration factor; give it as a number": lambda p: p.recon(calibration="header"),
    "its orientation is unknown (no qform, no sform)": lambda p: p.guided(nifti_without_place(p)),
    "unknown kind of file: Interfile, NIfTI, DICOM files or folders and ECAT7 are read": lambda p: p.guided(p.write()),
    "none of the ... inputs can be used: no file was written": lambda p: p.command(
        "data", "build", p.write(), "--out", p.folder / "built.h5"
    ),
    "holds no training volumes: make some by 'sirf-diffusion data build'": other_hdf5,
    "made by a newer version of sirf-diffusion (... 9, this one reads up to 1): update it": newer,
    # Results
    "is not empty and holds no record.json of this program": lambda p: p.recon(out=p.write("out/thesis.tex").parent),
    "holds another result: ... differ": other_result,
    "holds an unfinished run that differs": unfinished,
    "is in use by process ... on ...: wait for it, or give another folder": held,
    "is a file; give a folder": lambda p: p.recon(out=p.write()),
    "cannot be written: ... in ...": lambda p: p.recon(out=p.write() / "below"),
    "the result needs about ... MB, ... MB are free; make room": full_disk,
    "No space left on device: free some space and give the same command again": no_space,
    # Models
    "is neither a bundled model nor a file; bundled models:": lambda p: p.recon(method="dds", model="liver"),
    "it is not a complete safetensors file": cut,
    "it is not a safetensors file, or its header of ... bytes exceeds": lambda p: p.recon(
        method="dds", model=p.write("a.safetensors")
    ),
    "cannot be read as plain weights: it is damaged, or holds other objects than tensors": other_objects,
    "adapter ... was made for another model": other_adapter,
    "this model was trained with anatomical images (MR or CT) and there is none": lambda p: p.guided(None),
    "uses no score model, which an anatomical image could guide": lambda p: p.recon(anatomical=p.scan.mr_hv),
    "network gives values that are not finite": lambda p: p.recon(method="dds", model=overflowing(p)),
    "unusual: ...; adapt the model to the data: --adapt ddip": lambda p: p.recon(
        "--set", "num_inner=1", method="dds", set="num_steps=20"
    ),
    # Geometry
    "does not match ...: segments: ... against": lambda p: p.recon(
        prompts=write_small_scan(p.folder / "other", planes=3).prompts_hs
    ),
    "attenuation seems to be given twice": lambda p: p.brain(),
    "seems to hold attenuation *correction*": lambda p: p.brain(inverse=True),
    "the expected background exceeds the ... measured counts": lambda p: p.projections("additive", lambda v: 100 * v),
    "bins have counts where the model expects none": lambda p: p.projections(
        "multiplicative", lambda values: values * (values > 0.8)
    ),
    "image outside the scanner: its axial centre is ... mm from the scanner's": lambda p: p.image("initial", (5e3, 0)),
    "is shifted in plane; rays are traced for images centred on the scanner's axis only": lambda p: p.image(
        "initial", (0, 20)
    ),
    "does not divide the ... views, in ... groups of related views, evenly": (
        lambda p: p.par(subsets=7, subiterations=7)
    ),
    "time-of-flight data ('TOF mashing factor := ...')": lambda p: p.projections(
        header=("!END OF", "TOF mashing factor := 5\n!END OF")
    ),
    "the image is resampled for the network": lambda p: p.recon(
        method="dds", model=write_small_model(p.folder / "m.safetensors", voxel_size=3.0)
    ),
    "registration needs at least ... mm of the patient along each axis": lambda p: p.guided(
        p.scan.mr_hv, "--register", "emission"
    ),
    # STIR and SIRF
    "the programs are not compiled for this Python and this version of the package": lambda p: p.stir(
        "run", "OSMAPOSL"
    ),
    "has no such prior. STIR would go on WITHOUT it": lambda p: p.stir("check", objective=MISSPELT),
    "the file runs the Python module '...', which can do anything that you can": lambda p: p.stir(
        "check", objective=PYTHON
    ),
    "KOSMAPOSL would give the priors kernel coefficients instead of activity": lambda p: p.stir("run", "KOSMAPOSL"),
    "the folder ... does not exist; STIR makes none": lambda p: p.stir("check", prefix="nowhere/image"),
    "not a parameter file: expected '<Name>Parameters :=' in the first line": lambda p: p.command(
        "recon", "--par", p.write("my.par"), "--out", p.folder / "out"
    ),
    "--engine stir: STIR's Python module does not import": lambda p: p.without("stir").par(engine="stir"),
    "STIR's Python module is not installed: the embedded engine reads the parameter file": lambda p: p.without(
        "stir"
    ).par(engine="auto"),
    "engine 'sirf' was asked for, but sirf.STIR cannot be imported": lambda p: p.without("sirf").running(
        lambda: sirf_diffusion.get_engine("sirf")
    ),
    "the embedded engine has no counterpart of the normalisation": lambda p: p.par(objective=ECAT),
    "with the ... of the file STIR's OSEM images differ by several per cent": lambda p: p.par(rays=1),
    "is left out: --method ... brings its own (--keep-prior keeps it)": lambda p: p.par(objective=QUADRATIC),
    "with --par the parameter file names the data; leave it out": lambda p: p.par("--additive", p.scan.additive_hs),
    # Running
    "has no setting '...'; it has": lambda p: p.recon(set="beta=3"),
    "must be an integer of at least": lambda p: p.recon(set="num_iterations=abc"),
    "gives one image, not samples": lambda p: p.recon(samples=3),
    "share posterior samples out; ... gives one image": lambda p: p.recon(workers=2),
    "unknown device '...'": lambda p: p.recon(device="abacus"),
    "sees no CUDA device; use cpu": no_gpu,
    "has no instructions for bfloat16: expect it to be slower than float32": old_processor,
    "out of memory (": lambda p: p.running(lambda: torch.empty(2**60)),
    "workers died ... times in a row with nothing done": dying_workers,
    "--cluster needs Dask": lambda p: p.without("dask").recon(method="dds", cluster="tcp://localhost:1"),
    "stopped by SIGTERM": lambda p: p.running(lambda: os.kill(os.getpid(), signal.SIGTERM)),
    "is a fault of sirf-diffusion itself": lambda p: p.running(lambda: {}["a"]),
}


@pytest.fixture
def person(small_scan, small_model, tmp_path, monkeypatch):
    """Somebody in an empty folder, without anything compiled, who allows no Python."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIRF_DIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ALLOW, raising=False)
    return Person(small_scan, small_model, tmp_path, monkeypatch)


def test_every_message_has_a_trigger_and_every_trigger_a_message():
    messages = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert sorted(messages) == sorted(TRIGGERS)


@pytest.mark.parametrize("message", ROW.findall(PAGE.read_text(encoding="utf-8")))
def test_message(person, message, capsys, caplog):
    code = TRIGGERS[message](person)
    told = capsys.readouterr()
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.search(pattern, told.err + told.out + caplog.text), told.err + told.out + caplog.text
    assert "Traceback" not in told.err
    if re.search(pattern, told.err):
        assert code == {"stopped by SIGTERM": 143, "is a fault of sirf-diffusion itself": 1}.get(message, 2)
        assert told.err.strip().count("\n") == 0
    else:
        assert code == (2 if " error" in told.out else 0)
