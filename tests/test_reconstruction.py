"""Reconstructions by a method's name: where they start, and what they count."""

from __future__ import annotations

import pytest
import torch
from small_scan import write_small_model, write_small_scan

from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.storage import DEFAULT_MODEL
from sirf_diffusion.priors import QuadraticPenalty
from sirf_diffusion.reconstructors import OSEM
from sirf_diffusion.study.reconstruction import reconstruct, reconstruct_from, reconstruct_objective
from sirf_diffusion.study.sources import AcquisitionSource


@pytest.fixture(scope="module")
def acquisition(tmp_path_factory):
    scan = write_small_scan(tmp_path_factory.mktemp("scan"))
    return Acquisition.from_files(
        scan.prompts_hs, multiplicative=scan.multiplicative_hs, additive=scan.additive_hs, attenuation=scan.mu_hv
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_model(tmp_path_factory.mktemp("model") / "small.safetensors")


def early_image(acquisition):
    return OSEM(acquisition.objective(8), 2).process().get_output()


def test_without_a_model_the_default_one_is_used_and_named(acquisition, caplog):
    caplog.set_level("INFO", logger="sirf_diffusion.study.reconstruction")
    result = reconstruct(acquisition, "dds", num_samples=1, settings={"num_steps": 1})
    assert result.record["model"]["sha256"] == ScoreModel.load(DEFAULT_MODEL).hash
    assert f"{DEFAULT_MODEL}, the default" in caplog.text


@pytest.mark.parametrize("method", ["map-rdp", "map-score"])
def test_map_starts_from_the_early_osem_image_and_counts_its_cost(acquisition, model, method):
    options = {"model": model, "settings": {"num_iterations": 1}}
    found = reconstruct(acquisition, method, **options)
    given = reconstruct(acquisition, method, initial=early_image(acquisition), **options)
    uniform = reconstruct(acquisition, method, initial=acquisition.objective(1).uniform_image(), **options)
    assert torch.equal(found.image, given.image)
    assert not torch.allclose(found.image, uniform.image, rtol=1e-2)
    assert found.record["projections"] == given.record["projections"] == uniform.record["projections"]
    assert found.record["seconds"]["total"] > found.record["seconds"]["intensity_scale"] > 0


def test_an_objective_gives_what_its_data_give(acquisition):
    settings = {"num_iterations": 3}
    expected = reconstruct_from(AcquisitionSource(acquisition), "osem", num_subsets=4, settings=settings)
    found = reconstruct_objective(acquisition.objective(4), "osem", settings=settings)
    assert torch.equal(found.image, expected.image)
    assert found.record["num_subsets"] == expected.record["num_subsets"] == 4
    assert found.record["engine"] == expected.record["engine"]
    assert found.record["engine"]["name"] == "embedded"


def test_order_of_subsets_and_prior_are_used_and_refused_elsewhere(acquisition):
    source, settings = AcquisitionSource(acquisition), {"num_iterations": 1}
    orders = [(0, 1, 2, 3), (3, 2, 1, 0)]
    images = [
        reconstruct_from(source, "osem", num_subsets=4, subset_order=order, settings=settings).image for order in orders
    ]
    assert not torch.allclose(images[0], images[1], rtol=1e-3)
    prior = QuadraticPenalty(acquisition.geometry, 0.5)
    result = reconstruct_from(source, "map-rdp", prior=prior, settings=settings)
    assert result.record["prior"]["name"] == "QuadraticPenalty"
    with pytest.raises(ValueError, match="prior is for map-rdp only"):
        reconstruct_from(source, "osem", prior=prior)
    with pytest.raises(ValueError, match="subset_order is for osem only"):
        reconstruct_from(source, "map-rdp", subset_order=(0,))
