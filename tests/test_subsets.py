"""Subsets of views are STIR's: a basic view and the views that its projector relates to it by symmetry go together."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from osem_cases import CASES, acquisition_of

from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.engines.embedded.subsets import basic_views, divide_views
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.geometry.scanners import Scanner
from sirf_diffusion.reconstructors.em.osem import OSEM

IMAGES = np.load(Path(__file__).parent / "reference" / "stir_osem.npz")
TABLE = json.loads((Path(__file__).parent / "reference" / "stir_subsets.json").read_text())


def _geometries(case):
    scanner = Scanner("ring", 1, case["num_detectors"], 100.0, 0.0, 4.0, 2.0, case["view_offset"])
    layout = ProjDataGeometry.from_scanner(scanner, 1, 0, case["num_views"], 15)
    return ImageGeometry((1, 9, 9), (4.0, *case["voxel_size"])), layout


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c["name"])
def test_sets_are_those_of_the_real_stir(case):
    basic = basic_views(*_geometries(case), case["related_views"])
    found = divide_views(basic, len(case["subsets"]))
    assert [list(views) for views in found] == case["subsets"]


def _projector(num_views=32):
    case = {"num_detectors": 2 * num_views, "num_views": num_views, "voxel_size": (3.0, 3.0), "view_offset": 0.0}
    return Projector(*_geometries(case))


@pytest.mark.parametrize("num_subsets", [4, 3])
def test_subsets_add_up_to_the_whole(num_subsets, caplog):
    projector = _projector()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(projector.geometry.shape, generator=generator)
    prompts = torch.poisson(projector.forward(x) + 1, generator)
    model = AcquisitionModel(projector, background_term=torch.ones(prompts.shape))
    whole, parts = PoissonObjective(model, prompts), PoissonObjective(model, prompts, num_subsets)
    for of in ("value", "gradient", "sensitivity"):
        arguments = () if of == "sensitivity" else (x,)
        total = sum(getattr(parts, of)(*arguments, subset=k) for k in range(num_subsets))
        torch.testing.assert_close(total, getattr(whole, of)(*arguments), rtol=1e-4, atol=1e-4)
    assert parts.counter.forward == pytest.approx(2)  # each subset counts its share
    said = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == (0 if num_subsets == 4 else 1)  # 32 views in 3 subsets are unequal, said once


def test_numbers_of_subsets_that_make_no_sense(caplog):
    projector = _projector(12)
    assert projector.subset_views(None, 3) is None
    assert projector.subset_views(0, 1) is None
    for number in (0, 5):
        with pytest.raises(ValueError, match=r"4 groups of related views, evenly.*try one of \[1, 2, 3\]"):
            projector.subset_views(None, number)
    with pytest.raises(ValueError, match=r"subset must be in 0\.\.2, found 3"):
        projector.subset_views(3, 3)


@pytest.mark.parametrize("name", CASES)
def test_osem_is_stirs_osmaposl(name):
    stir = torch.from_numpy(IMAGES[name])
    prompts, additive, layout, grid = acquisition_of(CASES[name])
    model = AcquisitionModel(Projector(grid, layout), additive_term=additive)
    osem = OSEM(
        PoissonObjective(model, prompts, CASES[name]["num_subsets"]), 1, subset_order=range(CASES[name]["num_subsets"])
    )
    osem.set_up(torch.ones(grid.shape))
    image = osem.process().get_output()
    assert (image - stir).norm() < 0.005 * stir.norm()
