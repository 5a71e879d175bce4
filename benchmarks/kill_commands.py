"""What ``python -m benchmarks kills`` kills: every command that runs long or writes, on the small data of the tests.

A command is a function of a folder, run in a process of its own, and what of its result is compared: nothing before it
is there for good.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.structure import ROOT
from sirf_diffusion.cli import main, stir
from sirf_diffusion.files.outputs import OutputFolder

Products = dict[str, bytes]

_PAR = """\
OSMAPOSLParameters :=
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
  input file := {scan}/prompts.hs
  projector pair type := Matrix
    Projector Pair Using Matrix Parameters :=
      Matrix type := Ray Tracing
        Ray Tracing Matrix Parameters :=
          number of rays in tangential direction to trace for each bin := 10
        End Ray Tracing Matrix Parameters :=
    End Projector Pair Using Matrix Parameters :=
  additive sinogram := {scan}/additive.hs
  XY output image size (in pixels) := 21
  use subset sensitivities := 1
{prior}end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
number of subsets := 4
number of subiterations := 200
save estimates at subiteration intervals := 200
output filename prefix := {scan}/unused
END :=
"""
_PRIOR = """\
  prior type := Quadratic
    Quadratic Prior Parameters :=
      penalisation factor := 0.1
    END Quadratic Prior Parameters :=
"""
TRAINING = """\
[data]
crops = [16]
[optimiser]
batch_size = 4
cycles = [30]
precision = "float32"
[validation]
every = 20
[network]
channels = [8, 8]
attention_levels = [false, false]
num_res_blocks = 1
norm_num_groups = 4
num_head_channels = 8
[run]
checkpoint_every = 1
"""
#: The same for an h-transform, and for an enhancement model.
_STEERED = TRAINING.replace("[16]", "[32]\nplanes = [0]").replace("work]", "work]\nin_channels = 5")
_SMALL = TRAINING.replace("[16]", "[32]").replace("[30]", "[20]\nautoencoder_steps = 20")
_LATENT = _SMALL.replace("work]", "work]\nspatial_dims = 2") + """\
[enhancement]
noise = "gaussian"
compression = 2
autoencoder_channels = 8
patch = 16
"""


@dataclass(frozen=True)
class Command:
    """A command: what runs it in a folder and gives its exit code, what is there before, and what comes of it."""

    name: str
    run: Callable[[Path], int]
    products: Callable[[Path], Products]
    prepare: Callable[[Path], Any] = lambda folder: None


def commands(data: Path, write: bool = True) -> list[Command]:
    """All that can be run here; ``data`` is a folder for what they read, which is written unless it is there."""
    files = small_files(data, write)
    recon = partial_words("recon", *files["scan"].options, "--checkpoint-every", "0")
    model = ("--model", files["model.safetensors"])
    dds = (*model, "--method", "dds", "--samples", "2")
    par = partial_words("recon", "--par", files["osem.par"], "--checkpoint-every", "0")
    par_osem = ("--method", "osem", "--set", "num_iterations=40")
    overwrite = recon(*dds, "--set", "num_steps=15", "--overwrite")
    phantom = ("data", "phantom", "--subjects", "4", "--body", "head-parametric")
    pictures = (*files["images"], "--key", files["key"])
    training = ("--data", files["volumes.h5"], "--config", files["train.toml"])
    foreign = (files["unet.pt"], "--config", files["unet.json"], "--schedule", "ddpm", "--prediction", "eps")
    judged = (files["model.safetensors"], "--data", files["volumes.h5"])
    steered = ("--supervised", "--init", files["base.safetensors"], "--scanner", files["ring.hs"])
    with_ct = ("--model", files["enhance.safetensors"], "--dose-ratio", "0.1", "--samples", "4", "--steps", "10")
    frames = ("--subjects", files["early.nii"], files["late.nii"], "--voxel-size", "8", "--rounds", "1")
    found = [
        Command("recon osem", recon("--method", "osem", "--set", "num_iterations=40"), images),
        Command("recon map-rdp", recon("--method", "map-rdp", "--set", "num_iterations=40"), images),
        Command("recon lisch", recon(*model, "--samples", "2", "--set", "num_steps=15"), images),
        Command("recon ddip", recon(*model, "--method", "ddip", "--samples", "2", "--set", "num_steps=4"), images),
        Command("recon --workers", recon(*dds, "--set", "num_steps=40", "--workers", "2"), images),
        Command("recon --overwrite", overwrite, images, recon(*dds, "--seed", "5", "--set", "num_steps=3")),
        Command("recon --par, embedded", par("--engine", "embedded", *par_osem), images),
        Command("recon-many", _recon_many(files), lambda folder: images(folder, "a", "b")),
        Command("demo", _main("demo", "--quick", "--data", files["scan"].folder, *model), images),
        Command("data phantom", _main(*phantom, "--voxel-size", "8", "--workers", "2", out="p.h5"), whole("p.h5")),
        Command("data build", _main("data", "build", *pictures, out="b.h5"), whole("b.h5")),
        Command("train", _main("train", *training, out="m.safetensors"), whole("m.safetensors")),
        Command("train --supervised", _main("train", *training[:2], *steered, "--config", files["steered.toml"],
                out="h.safetensors"), whole("h.safetensors")),
        Command("train --latent", _main("train", *training[:2], "--latent", "--config", files["latent.toml"],
                out="l.safetensors"), whole("l.safetensors")),
        Command("enhance", _main("enhance", files["images"][0], *with_ct), images),
        Command("personalise", _personalise(files), whole("p.safetensors")),
        Command("atlas", _atlas(frames), lambda folder: whole("a.h5")(folder) | images(folder)),
        Command(
            "models import", _main("models", "import", *foreign, "--overwrite", out="i.safetensors"),
            whole("i.safetensors"),
        ),
        Command("models evaluate", _main("models", "evaluate", *judged, "--size", "16"), _card),
        Command("benchmarks run", _benchmark, _runs),
    ]  # fmt: skip
    if find_spec("stir"):
        found.append(Command("recon --par, stir", par("--engine", "stir", *par_osem), images))
        scan = ("scan", str(files["map.par"]), "--factors", "0.1,0.2,0.3", "--out")
        found.append(Command("stir-diffusion scan", lambda folder: stir.main([*scan, str(folder / "out")]), _points))
    if find_spec("sirf"):
        found.append(Command("script with SIRF", _sirf_script(files), images))
    return found


def partial_words(*first: Any) -> Callable[..., Callable[[Path], int]]:
    """``partial_words(*first)(*more)`` runs ``sirf-diffusion first more --out FOLDER/out``."""
    return lambda *more: _main(*first, *more)


def _main(*words: Any, out: str = "out") -> Callable[[Path], int]:
    return lambda folder: main([*map(str, words), "--out", str(folder / out)])


def images(folder: Path, *names: str) -> Products:
    """The images of results that have a record."""
    found = {}
    for name in names or ("out",):
        record = folder / name / "record.json"
        if record.is_file():
            listed = [n for n in json.loads(record.read_text())["files"] if n.endswith((".v", ".h5"))]
            found |= {f"{name}/{n}": (folder / name / n).read_bytes() for n in listed}
    return found


def whole(name: str) -> Callable[[Path], Products]:
    """One file."""
    return lambda folder: {name: (folder / name).read_bytes()} if (folder / name).is_file() else {}


def _card(folder: Path) -> Products:
    report = folder / "out" / "report.json"
    if not report.is_file():
        return {}
    named = json.loads(report.read_text())["files"]
    return {name: (folder / "out" / name).read_bytes() for name in named if not name.endswith(".json")}


def _points(folder: Path) -> Products:
    record = folder / "out" / "scan.json"
    points = json.loads(record.read_text())["points"] if record.is_file() else []
    return {p["image"]: (folder / "out" / p["image"]).with_suffix(".v").read_bytes() for p in points}


def _runs(folder: Path) -> Products:
    import h5py

    found = {}
    for path in (folder / "out").glob("runs/[!.]*.h5"):
        with h5py.File(path) as file:
            found[path.name] = b"".join(file[name][:].tobytes() for name in file) + file.attrs["run"].encode()[:200]
    if (folder / "out" / "results.h5").is_file():
        with h5py.File(folder / "out" / "results.h5") as file:
            lines = [line for case in file["maps"].values() for line in case.values()]
            found |= {f"{line.name}/{kind}": image[:].tobytes() for line in lines for kind, image in line.items()}
    return found


def _recon_many(files: dict[str, Any]) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        options = " ".join(map(str, files["scan"].options))
        steps = "--method osem --set num_iterations=60 --checkpoint-every 0"
        (folder / "list").write_text("".join(f"{options} {steps} --out {folder / name}\n" for name in "ab"))
        return main(["recon-many", str(folder / "list")])

    return run


def _personalise(files: dict[str, Any]) -> Callable[[Path], int]:
    """Of heads with voxels of 8 mm: a registration need not be as good as the command asks for."""

    def run(folder: Path) -> int:
        from sirf_diffusion.patient.deformable import Limits
        from sirf_diffusion.personalise import PersonalOptions, personalise

        limits = Limits(inverse_mm=12.0, similarity=0.3)
        options = PersonalOptions(pseudo_pets=9, least_members=2, steps=40, batch_size=2, limits=limits)
        made = {"model": str(files["wide.safetensors"]), "options": options, "device": "cpu"}
        personalise(files["bank.h5"], files["mr.nii.gz"], folder / "p.safetensors", **made)
        return 0

    return run


def _atlas(frames: tuple[Any, ...]) -> Callable[[Path], int]:
    return lambda folder: _main("atlas", *frames, "--images", folder / "out", out="a.h5")(folder)


def _benchmark(folder: Path) -> int:
    from bench_cases import TINY, tiny_case

    from benchmarks import __main__
    from benchmarks.bench import SUITES, campaign

    campaign.make_case, SUITES["quick"] = tiny_case, replace(TINY, methods=("mlem", "map-quadratic"))
    return __main__.main(["run", "--suite", "quick", "--out", str(folder / "out")])


def _sirf_script(files: dict[str, Any]) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        import sirf.STIR as pet
        from small_scan import script_objects

        from sirf_diffusion.study.reconstruction import Study

        _, truth, _, objective = script_objects(pet, files["scan"])
        objective.set_num_subsets(1)
        objective.set_up(truth)
        with OutputFolder(folder / "out", {"script": "dds"}).held() as out:
            checkpoint = out.unfinished({}) / "run.safetensors"
            options = {"model": str(files["model.safetensors"]), "num_samples": 2, "settings": {"num_steps": 10}}
            Study(objective, "dds", **options, checkpoint=checkpoint, checkpoint_every=0).run().save(out)
        return 0

    return run


def small_files(data: Path, write: bool = True) -> dict[str, Any]:
    """The tests' small data by name, written unless they are there already."""
    tests = str(ROOT / "tests")
    sys.path[:] = [tests, *(path for path in sys.path if path != tests)]
    from small_scan import SmallScan

    names = (
        "model.safetensors", "base.safetensors", "wide.safetensors", "enhance.safetensors", "volumes.h5", "bank.h5",
        "mr.nii.gz", "early.nii", "late.nii", "ring.hs", "key", "osem.par", "map.par", "train.toml", "steered.toml",
        "latent.toml", "unet.pt", "unet.json",
    )  # fmt: skip
    files: dict[str, Any] = {name: data / name for name in names}
    files |= {"scan": SmallScan(data / "scan", None, None), "images": [data / f"{k}.hv" for k in range(6)]}
    if write:
        _write(data, files)
    return files


def _write(data: Path, files: dict[str, Any]) -> None:
    import torch
    from foreign_networks import ARGUMENTS, unet
    from patient_images import activity, write_interfile
    from small_scan import write_small_model, write_small_scan
    from training_file import write_training_file

    scan = write_small_scan(data / "scan").folder
    _write_more(files)
    write_small_model(files["model.safetensors"])
    write_training_file(files["volumes.h5"])
    for k, path in enumerate(files["images"]):
        write_interfile(path, activity(k), None)
    torch.save(unet().state_dict(), files["unet.pt"])
    texts = {
        "key": "ab" * 32, "osem.par": _PAR.format(scan=scan, prior=""), "map.par": _PAR.format(scan=scan, prior=_PRIOR),
        "train.toml": TRAINING, "steered.toml": _STEERED, "latent.toml": _LATENT, "unet.json": json.dumps(ARGUMENTS),
    }  # fmt: skip
    for name, text in texts.items():
        files[name].write_text(text)


def _write_more(files: dict[str, Any]) -> None:
    """What supervised training, enhancement, personalisation and atlas read."""
    import nibabel
    import numpy as np
    import torch
    from test_enhance import make_model
    from test_personalise import MM, write_mr
    from test_supervised import layout
    from tiny_model import tiny_model

    from sirf_diffusion.files.interfile import write_projection_data
    from sirf_diffusion.simulation.parametric_head import simulate_parametric_head
    from sirf_diffusion.training.data.phantom_data import PhantomOptions, build_phantoms

    for name, size in (("base", 4.0), ("wide", MM)):
        model = tiny_model()
        model.voxel_size = (size,) * 3
        model.save(files[f"{name}.safetensors"])
    make_model().save(files["enhance.safetensors"])
    ring = layout()
    write_projection_data(files["ring.hs"], torch.zeros(ring.shape), ring)
    build_phantoms(files["bank.h5"], PhantomOptions(body="head-parametric", subjects=3, voxel_size=MM), workers=1)
    write_mr(files["mr.nii.gz"], 50)
    for seed, name in enumerate(("early.nii", "late.nii")):
        head = simulate_parametric_head(60 + seed, (28, 32, 28), MM)
        frames = np.stack([head.mr, np.sqrt(np.clip(head.mr, 0, None))], -1)[::-1].transpose(2, 1, 0, 3)
        nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(frames), np.diag([-MM, -MM, MM, 1])), files[name])
