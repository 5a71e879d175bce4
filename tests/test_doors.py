"""One image for the same data, model and seed, whichever door one comes in by: class, function, command, script."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_scan import SmallScan, script_objects, write_small_model, write_small_scan

import sirf_diffusion
from sirf_diffusion.cli import main
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.priors import ScorePenalty
from sirf_diffusion.reconstructors import MAPEM
from sirf_diffusion.reconstructors.methods import METHODS
from sirf_diffusion.study.reconstruction import reconstruct

SETTINGS = {
    "dds": {"num_steps": 3},
    "hqs": {"num_steps": 3},
    "lisch": {"num_steps": 3},
    "map-score": {"num_iterations": 3},
}
SEED = 7
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module", params=[1, 3], ids=["slice", "volume"])
def data(request, tmp_path_factory) -> tuple[SmallScan, Path]:
    folder = tmp_path_factory.mktemp("doors")
    scan = write_small_scan(folder / "scan", planes=request.param, counts=2e4 * request.param)
    return scan, write_small_model(folder / "model.safetensors")


@lru_cache
def acquisition(scan: SmallScan) -> Acquisition:
    return Acquisition.from_files(
        scan.prompts_hs, multiplicative=scan.multiplicative_hs, additive=scan.additive_hs, attenuation=scan.mu_hv
    )


def drawn(method: str) -> dict:
    return {"num_samples": 2, "seed": SEED} if METHODS[method].samples else {}


def by_class(method, scan, model, objective=None):
    objective = acquisition(scan).objective() if objective is None else objective
    run = METHODS[method](objective, ScoreModel.load(model), **drawn(method), **SETTINGS[method])
    return run.process().get_output()


the_class_image = lru_cache(by_class)


def by_its_parts(method, scan, model):
    if method != "map-score":
        pytest.skip("samplers are their own class")
    objective = acquisition(scan).objective()
    return MAPEM(objective, ScorePenalty(ScoreModel.load(model)), 3).process().get_output()


def by_function(method, scan, model, data=None):
    data = acquisition(scan) if data is None else data
    return reconstruct(data, method, model=str(model), settings=SETTINGS[method], device="cpu", **drawn(method)).image


def by_function_of_an_objective(method, scan, model):
    return by_function(method, scan, model, acquisition(scan).objective())


def by_command(method, scan, model):
    out = scan.folder / f"{method}-out"
    values = {"method": method, "model": model, "device": "cpu", "out": out}
    values |= {"samples": 2, "seed": SEED} if METHODS[method].samples else {}
    assert main(["recon", *scan.words(**values, set="=".join(map(str, *SETTINGS[method].items())))]) == 0
    planes = json.loads((out / "record.json").read_text())["model"]["planes"]
    volume = "three" if method == "map-score" else "alternating"
    assert planes == (volume if scan.geometry.shape[0] > 1 else "transverse")
    return read_image(out / "reconstruction.hv")[0]


def by_sirfs_names(method, scan, model):
    _, truth, _, objective = script_objects(sirf_diffusion.get_engine("embedded"), scan)
    objective.set_up(truth)
    return torch.from_numpy(np.array(by_class(method, scan, model, objective).as_array()))


DOORS = [by_its_parts, by_function, by_function_of_an_objective, by_command, by_sirfs_names]


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_image(door, method, data):
    scan, model = data
    expected = the_class_image(method, scan, model)
    torch.testing.assert_close(door(method, scan, model), expected, rtol=0, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("method", ["hqs", "lisch"])
def test_every_door_has_the_same_speeds(method, data, tmp_path):
    scan, model = data
    objective = acquisition(scan).objective()
    run = METHODS[method](objective, ScoreModel.load(model), speed="accurate", **drawn(method), **SETTINGS[method])
    expected = run.process().get_output()
    assert not run.sampling_settings.crop
    options = {"settings": SETTINGS[method], "speed": "accurate", "device": "cpu", **drawn(method)}
    result = reconstruct(acquisition(scan), method, model=str(model), **options)
    assert (result.record["speed"], result.record["values"]["solver"]) == ("accurate", "ddim")
    torch.testing.assert_close(result.image, expected, rtol=0, atol=1e-5 * float(expected.max()))
    assert not torch.equal(expected, the_class_image(method, scan, model))
