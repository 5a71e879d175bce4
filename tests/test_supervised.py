"""Supervised training: scans as asked for, a loss with the right gradient, one result however often interrupted."""

import csv
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from tiny_model import tiny_model
from training_file import write_training_file

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner
from sirf_diffusion.models import NetworkConfig, build_network
from sirf_diffusion.models.h_transform import num_inputs, read_h_transform
from sirf_diffusion.training import train
from sirf_diffusion.training.data.scans import ScanOptions, ScanSimulator
from sirf_diffusion.training.distributed import Processes
from sirf_diffusion.training.loop import RunOptions
from sirf_diffusion.training.state import TrainingState
from sirf_diffusion.training.supervised import SLICES, SupervisedLoop, Supervision
from sirf_diffusion.training.trainer import training_stream
from sirf_diffusion.training.views import Window, ordinary

pytestmark = pytest.mark.usefixtures("undrawn")
RING = Scanner("one ring", 1, 64, 90.0, 5.0, 4.0, 4.0, max_num_non_arccorrected_bins=33)
RECIPE = replace(
    SLICES, crops=(32,), cycles=(4,), batch_size=2, validate_every=2,
    architecture=NetworkConfig(
        channels=(8, 8), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8, num_class_embeds=0,
        in_channels=5,
    ),
)  # fmt: skip
VOLUME_RECIPE = replace(
    RECIPE, batch_size=4, architecture=replace(RECIPE.architecture, in_channels=num_inputs(True))
)


def layout(num_rings: int = 1, ring_spacing: float = 4.0) -> ProjDataGeometry:
    """One ring, or some with oblique sinograms."""
    scanner, most = replace(RING, num_rings=num_rings, ring_spacing=ring_spacing), min(num_rings - 1, 1)
    return ProjDataGeometry.from_scanner(scanner, span=1, max_ring_difference=most, num_tangential_positions=33)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supervised")
    # Planes of the volumes' 4 mm, and of others.
    for name, known in {"ring1": layout(), "ring3": layout(3, 8.0), "ring4": layout(4, 5.0)}.items():
        write_projection_data(folder / f"{name}.hs", torch.zeros(known.shape), known)
    base = tiny_model()
    base.voxel_size = (4.0, 4.0, 4.0)
    base.save(folder / "base.safetensors")
    write_training_file(folder / "train.h5", anatomy=False)
    return folder


def supervision(files, pool=0, rings="ring1", start="") -> Supervision:
    return Supervision(str(files / "base.safetensors"), files / f"{rings}.hs", ScanOptions(), pool, str(start))


def loop_of(files, pool=0, recipe=RECIPE, rings="ring1", start="") -> SupervisedLoop:
    chosen = supervision(files, pool, rings, start)
    recipe = chosen.checked(recipe)
    state = TrainingState(recipe, {}, torch.device("cpu"), Processes(), network=chosen.network(recipe))
    source = training_stream(files / "train.h5", recipe, chosen.stream)
    return SupervisedLoop(chosen, state, source, files, RunOptions())


def disc(size=32) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    return ((x**2 + y**2) < 0.5).float()[None]


def test_scans_have_the_counts_and_the_likelihood_of_their_images():
    geometry = ImageGeometry((1, 32, 32), (4.0, 4.0, 4.0))
    options = ScanOptions(background_error=0.0, psf_share=0.0, background=(0.3, 0.3), efficiency_sd=(0.05, 0.05))
    simulator = ScanSimulator(geometry, layout(), options)
    images = torch.stack([disc(), 0.5 * disc()])
    rngs = [np.random.default_rng(k) for k in range(2)]
    scans = simulator.scans(images, 0.096 * images.sign(), rngs, counts=1e6)
    assert scans.prompts.sum((1, 2, 3)).tolist() == pytest.approx([1e6, 1e6], rel=0.01)
    assert scans.background.sum((1, 2, 3)).tolist() == pytest.approx([3e5, 3e5], rel=1e-3)
    torch.testing.assert_close(scans.sensitivity, simulator.projector.adjoint(scans.factors))
    inner = images > 0
    right, wrong = scans.increment(images), scans.increment(0.5 * images)
    assert float(right[inner].abs().mean()) < 0.02
    assert float(wrong[inner].mean()) == pytest.approx(0.5 * 0.5 * float(images[inner].mean()), rel=0.5)
    drawn = [simulator.scans(images[:1], images[:1], [np.random.default_rng(7)]).prompts for _ in range(2)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("name", "value"), [
    ("counts", (2e6, 2e4)), ("counts", (0.0, 1.0)), ("background", (0.1, 1.0)), ("efficiency_sd", (0.1, 2.0)),
    ("dead_bins", -0.1), ("psf_fwhm_mm", float("nan")),
])  # fmt: skip
def test_what_cannot_be_drawn_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        ScanOptions(**{name: value})


def test_windows_hold_the_object_and_come_back():
    image = torch.zeros(2, 1, 32, 32)
    image[0, 0, 3:9, 20:27] = 1
    image[1, 0, 15:30, 2:5] = 2
    cut = Window.around(image, 4)
    assert cut(image).shape[-2:] == (20, 12)
    assert torch.equal(cut.back(cut(image)), image)
    assert Window.around(torch.zeros(1, 1, 32, 32), 4).size == (32, 32)


def test_an_example_is_a_function_of_its_step(files):
    loop, again, pooled = loop_of(files), loop_of(files), loop_of(files, pool=2)
    one, other = loop._example(3), again._example(3)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.target, other.target)
    assert not torch.equal(loop._example(4).time, one.time)
    first, later = pooled._example(0), pooled._example(1)
    assert torch.equal(first.target, later.target)
    assert torch.equal(first.images[:, :2], later.images[:, :2])
    assert not torch.equal(first.images[:, 2], later.images[:, 2])  # another scan


def test_another_scanner_or_attenuation_is_another_training(files, tmp_path):
    wide = replace(layout(), scanner=replace(layout().scanner, inner_ring_radius=180.0))
    write_projection_data(files / "wide.hs", torch.zeros(wide.shape), wide)  # of the same name and shape
    assert supervision(files, rings="wide").provenance() != supervision(files).provenance()
    write_training_file(tmp_path / "train.h5", anatomy=False)
    found = []
    for value in (0.05, 0.05, 0.1):
        with h5py.File(tmp_path / "train.h5", "r+") as file:
            for volume in file["volumes"].values():
                volume.pop("mu", None)
                volume["mu"] = np.full(volume["emission"].shape, value, np.float16)
        found.append(training_stream(tmp_path / "train.h5", RECIPE, supervision(files).stream).fingerprint)
    assert found[0] == found[1] != found[2]


def test_slices_without_activity_are_drawn_again():
    geometry = ImageGeometry((1, 32, 32), (4.0, 4.0, 4.0))
    slices = [torch.zeros(2, 1, 32, 32), torch.zeros(2, 1, 32, 32), torch.stack([disc(), disc()])]
    assert ordinary(slices.__getitem__, geometry) is slices[2]
    with pytest.raises(ValueError, match="have no activity"):
        ordinary(lambda _: slices[0], geometry)


def test_the_gradient_of_the_loss_is_that_of_finite_differences(files):
    example = loop_of(files)._example(0)
    network = build_network(RECIPE.architecture, seed=3).double()
    torch.nn.init.normal_(network.out[2].conv.weight, 0, 0.1, torch.Generator().manual_seed(0))

    def loss():
        predicted = network(example.images.double(), example.time, class_labels=example.planes)
        return (predicted - example.target.double()).square().mean()

    loss().backward()
    # `Example.loss` is what the trainer takes, in float32.
    predicted = network(example.images.double(), example.time, class_labels=example.planes)
    assert float(example.loss(predicted).detach()) == pytest.approx(float(loss().detach()), rel=1e-5)
    parameters = [network.out[2].conv.weight, network.conv_in.conv.weight, network.time_embed[0].weight]
    for parameter in parameters:
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
        expected, values = float((parameter.grad * direction).sum()), []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                parameter += step * direction
                values.append(float(loss()))
                parameter -= step * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("recipe", "rings", "planes"), [(RECIPE, "ring1", 1), (VOLUME_RECIPE, "ring3", 5)])
def test_interrupted_it_gives_the_same_file(files, tmp_path, recipe, rings, planes):
    def trained(name, *stops):
        for stop in stops:
            train(
                recipe, tmp_path / name, data=files / "train.h5", supervision=supervision(files, 3, rings),
                max_steps=stop, threads=1, device="cpu", options=RunOptions(licence="CC0-1.0"),
            )  # fmt: skip
        return (tmp_path / name).read_bytes()

    assert trained("a.safetensors", None) == trained("b.safetensors", 3, None)
    config = read_h_transform(tmp_path / "a.safetensors")
    assert config.base_sha256 == supervision(files).model.hash
    assert (config.scanner, config.licence, config.num_planes) == ("one ring", "CC0-1.0", planes)
    low, high = config.counts
    assert high / low == pytest.approx(100, rel=1e-3)  # as the prompts
    with (tmp_path / "b.safetensors.training" / "log.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][3:] == [f"rmse_prompts_{n:g}" for n in (2e4, 6.3e4, 2e5, 6.3e5, 2e6)]
    assert [row[0] for row in rows[1:]][-1] == "4"


@pytest.mark.parametrize(("changes", "words"), [
    ({"--config": "slices.toml", "--scanner": "ring3.hs"}, "in_channels = 18"),
    ({"--counts": "9:8"}, "the lower first"),
    ({"--init": None}, "--supervised needs"),
    ({"--scanner": None}, "--supervised needs"),
    ({"--supervised": None}, "are for --supervised"),
    ({"--init-h": "base.safetensors"}, "is not an h-transform"),
])  # fmt: skip
def test_options_that_do_not_fit_are_told(files, tmp_path, capsys, changes, words):
    usual = {"--supervised": "", "--init": "base.safetensors", "--data": "train.h5", "--scanner": "ring1.hs"}
    (files / "slices.toml").write_text("[data]\ncrops = [32]\nplanes = [0]\n[network]\nin_channels = 5\n")
    line = []
    for key, value in (usual | changes).items():
        if value is not None:
            line += [key, *([value if key == "--counts" else str(files / value)] if value else [])]
    assert main(["train", *line, "--out", str(tmp_path / "h.safetensors"), "--max-steps", "0"]) == 2
    assert words in capsys.readouterr().err


def test_a_network_of_the_wrong_kind_is_refused(files, tmp_path):
    usual = {"data": files / "train.h5", "max_steps": 0, "device": "cpu"}
    with pytest.raises(ValueError, match="is for a supervised training"):
        train(RECIPE, tmp_path / "a.safetensors", **usual)
    wrong = replace(RECIPE, architecture=replace(RECIPE.architecture, in_channels=1))
    with pytest.raises(ValueError, match="needs in_channels = 5"):
        train(wrong, tmp_path / "a.safetensors", supervision=supervision(files), **usual)
