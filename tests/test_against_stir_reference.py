"""The embedded engine against numbers that a real STIR computed (``reference/make_reference.py``), without STIR."""

import importlib.util
import json
from pathlib import Path

import h5py
import pytest
import torch
from torch import Tensor

from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import BlockStructure, Scanner

FOLDER = Path(__file__).parent / "reference"
CASES = ["mmr_slice", "two_rings", "oblique", "arc_corrected", "view_offset"]
POISSON_CASES = ["mmr_slice", "oblique"]


class Case:
    """A case of the file: tensors by name, attributes, and the projector built from its stored geometry."""

    def __init__(self, name: str) -> None:
        with h5py.File(FOLDER / "stir_reference.h5") as file:
            group = file[name]
            self.tensors: dict[str, Tensor] = {}
            self.attributes: dict[str, dict] = {}
            group.visititems(self._read)
            stored = json.loads(group.attrs["geometry"])
            self.num_subsets = int(file.attrs["num_subsets"])
        scanner = stored["projdata"].pop("scanner")
        scanner = Scanner(**{**scanner, "blocks": BlockStructure(**scanner["blocks"])})
        segments = tuple(Segment(**s) for s in stored["projdata"].pop("segments"))
        self.projdata = ProjDataGeometry(scanner=scanner, segments=segments, **stored["projdata"])
        self.image = ImageGeometry(**stored["image"])
        self.projector = Projector(self.image, self.projdata)

    def _read(self, name: str, item: h5py.Group | h5py.Dataset) -> None:
        self.attributes[name] = dict(item.attrs)
        if isinstance(item, h5py.Dataset):
            self.tensors[name] = torch.from_numpy(item[()].astype("float32"))

    def objective(self) -> PoissonObjective:
        terms = (self.tensors[f"poisson/{name}"] for name in ("multiplicative_factors", "additive_term"))
        return PoissonObjective(
            AcquisitionModel(self.projector, *terms), self.tensors["poisson/prompts"], self.num_subsets
        )


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module", params=POISSON_CASES)
def poisson_case(request) -> Case:
    return Case(request.param)


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative L2 norm of the difference."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize(("phantom", "direct", "oblique"), [("smooth", 1e-3, 1e-2), ("sharp", 3e-3, 1e-2)])
def test_forward(case, phantom, direct, oblique):
    projected, expected = case.projector.forward(case.tensors[f"images/{phantom}"]), case.tensors[f"forward/{phantom}"]
    for segment, rows in zip(case.projdata.segments, case.projdata.segment_slices(), strict=True):
        assert difference(projected[rows], expected[rows]) <= (oblique if segment.num else direct), f"segment {segment}"


def test_a_flip_shift_or_transpose_would_show(case):
    # The bars above mean something only if every wrong axis is far outside them.
    image, expected = case.tensors["images/sharp"], case.tensors["forward/sharp"]
    wrong = [image.flip(1), image.flip(2), image.transpose(1, 2), image.roll(1, 1), image.roll(1, 2)]
    if image.shape[0] > 1:
        wrong += [image.flip(0), image.roll(1, 0)]
    for candidate in wrong:
        assert difference(case.projector.forward(candidate), expected) > 0.03
    projected = case.projector.forward(image)
    changed = [projected.flip(1), projected.flip(2), projected.roll(1, 1), projected.roll(1, 2)]
    if len(case.projdata.segments) > 1:
        _, plus, minus = case.projdata.segment_slices()
        changed.append(torch.cat((projected[: plus.start], projected[minus], projected[plus])))
    for candidate in changed:
        assert difference(candidate, expected) > 0.02


@pytest.mark.parametrize("data", ["sharp", "ones"])
def test_back_projection(case, data):
    source = case.tensors["forward/sharp"]
    source = source if data == "sharp" else torch.ones_like(source)
    assert difference(case.projector.adjoint(source), case.tensors[f"back/{data}"]) <= 1e-2


def test_log_likelihood_difference(poisson_case):
    objective, attributes = poisson_case.objective(), poisson_case.attributes["poisson"]
    smooth, sharp = (poisson_case.tensors[f"images/{name}"] * attributes["scale"] for name in ("smooth", "sharp"))
    found = objective.value(torch.stack((smooth, sharp)))
    expected = attributes["value_smooth"] - attributes["value_sharp"]
    assert float(found[0] - found[1]) == pytest.approx(expected, rel=1e-3)


def test_gradients(poisson_case):
    objective = poisson_case.objective()
    x = poisson_case.tensors["images/smooth"] * poisson_case.attributes["poisson"]["scale"]
    assert difference(objective.gradient(x), poisson_case.tensors["poisson/gradient"]) <= 1e-2
    subset = objective.gradient(x, subset=2)
    assert difference(subset, poisson_case.tensors["poisson/gradient_of_subset_2"]) <= 1e-2


@pytest.mark.requires_stir
def test_stored_numbers_are_stirs(tmp_path):
    specification = importlib.util.spec_from_file_location("make_reference", FOLDER / "make_reference.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    script.make_reference(tmp_path / "again.h5")
    with h5py.File(tmp_path / "again.h5") as again, h5py.File(FOLDER / "stir_reference.h5") as stored:
        assert set(again) == set(stored)

        def compare(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                here = torch.from_numpy(stored[name][()].astype("float32"))
                assert difference(torch.from_numpy(item[()].astype("float32")), here) < 1e-4, name

        again.visititems(compare)
