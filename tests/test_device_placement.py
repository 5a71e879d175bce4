"""What a GPU would show, without one: tensors on PyTorch's ``meta`` device, which mixes with no other, without values.

So an operation fails that would mix devices, or that would make the host wait for a number (``.item()``).
"""

import contextlib
import dataclasses

import pytest
import torch

from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.coverage import budget_bytes
from sirf_diffusion.reconstructors.diffusion.chain import Chain
from sirf_diffusion.reconstructors.diffusion.consistency import smooth_direction
from sirf_diffusion.reconstructors.diffusion.sampling import extrapolated

META = torch.device("meta")
GRID = ImageGeometry((31, 33, 33), (3.375, 8.0, 8.0))
VIEWS = (None, [0, 2, 7])


@pytest.fixture(scope="module")
def projector():
    """Its weights, made on the CPU, moved."""
    layout = ProjDataGeometry.from_scanner("ECAT 953", span=1, max_ring_difference=1, num_views=24)
    projector = Projector(GRID, layout)
    for views in VIEWS:
        projector.adjoint(projector.forward(torch.ones(GRID.shape), views), views)
    projector.device, projector._edges = META, tuple(edge.to(META) for edge in projector._edges)
    for key, matrix in projector._cache.items():
        moved = {name: getattr(matrix, name).to(META) for name in ("offsets", "columns", "weights")}
        projector._cache[key] = dataclasses.replace(matrix, **moved)
    return projector


@pytest.mark.parametrize("views", VIEWS)
def test_a_projection_stays_on_the_device_and_waits_for_nothing(projector, views):
    ones = torch.ones(projector.projdata.shape)
    model = AcquisitionModel(projector, psf_fwhm_mm=6.0)
    model.multiplicative_factors = model.constant_term = ones.to(META)
    expected = model.forward(torch.zeros(2, *GRID.shape, device=META), views)
    assert expected.device == model.adjoint(expected, views).device == META


def test_the_network_and_its_grid_stay_on_the_device(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which has no meta device
    model = ScoreModel.load("brain")
    model.network.to(META)
    bound = model.on(ImageGeometry((7, 20, 24), (2.5, 2.5, 2.5)), 3.0, "alternating")
    u = bound.to_latent(torch.zeros(2, 7, 20, 24, device=META))
    for turn in (0, 1, None):
        assert bound._coverage(u[..., None, :, :, :], 0.3, turn).device == META
    assert bound.to_image(u).device == bound.to_latent_adjoint(u).device == META


@pytest.mark.parametrize("noises", ["balanced", "independent"])
@pytest.mark.parametrize("members", [None, (0, 2)])
def test_a_step_of_the_chain_stays_on_the_device(noises, members):
    schedule = ScoreModel.load("brain").schedule
    chain = Chain.start(torch.zeros(4, 8, 8, device=META), 1.0, 3, 0, noises, members)
    u0, eps = extrapolated(schedule, (0.9, 0.8, 0.7), chain.u, chain.u, chain.u)
    assert schedule.ddim_step(u0, eps, 0.8, 0.7, 1.0, chain.noise()).device == META


def test_threads_draw_from_the_generators_what_one_would():
    chains = [Chain.start(torch.zeros(3, 4, 4, device=device), 1.0, 3, 0, "balanced") for device in ("cpu", META)]
    here, there = ([g.get_state() for g in chain.generators] for chain in chains)
    assert all(map(torch.equal, here, there))


def test_batches_do_not_shrink_as_pytorch_keeps_memory(monkeypatch):
    free, reserved = 60e9, 0.0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - reserved, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0.0)
    expected = budget_bytes(torch.device("cuda"))
    reserved = 30e9
    assert budget_bytes(torch.device("cuda")) == expected


def test_smoothing_keeps_its_weights_on_the_device():
    x = torch.zeros(GRID.shape, device=META)
    assert gaussian_smooth(x, GRID, 8.0).device == smooth_direction(x, x, GRID, 8.0, 0.5).device == META
