"""EM updates, subsets and the life cycle that all reconstructors share."""

import itertools
import json

import pytest
import torch
from toy_objective import make_toy

from sirf_diffusion.engines.em import em_step, em_update, herman_meyer_order, penalised_em_step
from sirf_diffusion.files.weights import WeightsFileError
from sirf_diffusion.reconstructors import MLEM, OSEM
from sirf_diffusion.reconstructors.checkpoint import Checkpoint, CheckpointCallback


def run(reconstructor, initial=None):
    reconstructor.set_up(initial)
    return reconstructor.process().get_output()


def test_mlem_never_lowers_the_likelihood_and_approaches_its_maximum():
    objective, _ = make_toy()
    mlem = MLEM(objective, 300)
    x = run(mlem)
    trace = torch.tensor(mlem.record["log_likelihood"])
    assert (trace.diff() >= 0).all()
    # Karush-Kuhn-Tucker: the gradient vanishes where the image is positive.
    assert (x * objective.gradient(x)).abs().max() < 0.02 * (x * objective.sensitivity()).max()


def test_em_update_is_the_back_projected_ratio():
    objective, truth = make_toy(num_subsets=4)
    q = objective.expected(truth, 1)
    ratio = (objective.matrix[1::4].T @ (objective.prompts[1::4] / q)).reshape(truth.shape)
    torch.testing.assert_close(em_update(objective, truth, 1), truth * ratio / objective.sensitivity(1))


def test_em_update_reuses_an_evaluation_and_treats_a_batch_as_separate_images():
    objective, truth = make_toy()
    batch = torch.stack([truth, 2 * truth, truth + 1])
    evaluation = objective.at(batch)
    before = objective.counter.forward
    updated = em_update(objective, batch, evaluation=evaluation)
    assert objective.counter.forward == before
    torch.testing.assert_close(updated, torch.stack([em_update(objective, x) for x in batch]))


def test_subsets_get_close_to_mlem_with_fewer_passes():
    objective, _ = make_toy(counts=1e6, num_subsets=5)
    target = run(MLEM(objective, 40))
    near, far = run(OSEM(objective, 8)), run(MLEM(objective, 8))
    assert (near - target).norm() < 0.5 * (far - target).norm()


def test_one_subset_is_mlem():
    objective, _ = make_toy()
    assert torch.equal(run(OSEM(objective, 5)), run(MLEM(objective, 5)))


def test_projections_and_settings_are_recorded():
    objective, _ = make_toy(num_subsets=4)
    osem = OSEM(objective, 3)
    run(osem)
    assert osem.record["projections"] == {"forward": 3.0, "back": 3.0}
    assert osem.record["settings"]["num_iterations"] == 3
    assert osem.record["network_evaluations"] == 0
    seconds = osem.record["seconds"]
    assert seconds["total"] >= seconds["projector"] > 0
    json.dumps(osem.record)


@pytest.mark.parametrize("number", [1, 2, 7, 12, 14, 18, 21, 30])
def test_herman_meyer_order_visits_each_subset_once(number):
    assert sorted(herman_meyer_order(number)) == list(range(number))


def test_herman_meyer_order_keeps_neighbours_apart():
    order = herman_meyer_order(16)
    assert min(abs(a - b) for a, b in itertools.pairwise(order)) >= 4


def test_zeros_inside_the_field_of_view_can_recover():
    objective, truth = make_toy()
    holed = truth.clone()
    holed[..., :4] = 0
    assert (run(MLEM(objective, 200), holed)[..., 3] > 0).all()


@pytest.mark.parametrize(("image", "message"), [
    (torch.ones(1, 8, 9), "shape"), (-torch.ones(1, 8, 8), "negative"), (torch.full((1, 8, 8), float("nan")), "NaN"),
    (torch.zeros(1, 8, 8), "zero everywhere"),
])  # fmt: skip
def test_bad_initial_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        MLEM(make_toy()[0], 1).set_up(image)


def test_bad_settings_are_refused():
    objective, _ = make_toy(num_subsets=4)
    with pytest.raises(ValueError, match="num_iterations"):
        OSEM(objective, 0)
    with pytest.raises(ValueError, match="subset_order"):
        OSEM(objective, 1, subset_order=[0, 1, 2, 2])
    with pytest.raises(TypeError, match="str"):
        OSEM("data.hs", 1)
    with pytest.raises(RuntimeError, match="process"):
        OSEM(objective, 1).get_output()


@pytest.mark.parametrize("rho", [1e-4, 1e-2, 1.0, 1e2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_penalised_step_is_the_root_of_its_equation(rho, dtype):
    generator = torch.Generator().manual_seed(0)
    x_em, s, v = (torch.rand(1, 8, 8, generator=generator, dtype=torch.float64) * scale for scale in (3, 40, 6))
    v = v - 2
    x = penalised_em_step(x_em.to(dtype), s.to(dtype), v.to(dtype), rho).double()
    residual = rho * x**2 + (s - rho * v) * x - s * x_em
    size = rho * x**2 + (s + rho * v.abs()) * x + s * x_em
    assert (residual.abs() / size).max() < (1e-5 if dtype == torch.float32 else 1e-12)
    assert (x >= 0).all()


def test_penalised_step_has_the_right_limits():
    x_em, s, v = torch.rand(1, 4, 4) + 0.1, torch.rand(1, 4, 4) + 0.1, torch.rand(1, 4, 4) - 0.5
    torch.testing.assert_close(penalised_em_step(x_em, s, v, 0.0), x_em)
    torch.testing.assert_close(penalised_em_step(x_em, s, v, 1e9), v.clamp_min(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(penalised_em_step(x_em, 0 * s, v, 2.0), v.clamp_min(0))


def test_penalised_step_does_not_round_a_weak_anchor_to_zero():
    """The textbook root cancels to exactly 0 in float32 here, and 0 is absorbing."""
    x = penalised_em_step(torch.tensor([[[1e-3]]]), torch.tensor([[[1e4]]]), torch.tensor([[[0.0]]]), 1e-2)
    assert float(x) == pytest.approx(1e-3, rel=1e-5)


def test_em_step_keeps_what_a_subset_does_not_see():
    x, s = torch.ones(1, 1, 2), torch.tensor([[[2.0, 0.0]]])
    assert em_step(x, torch.tensor([[[2.0, 5.0]]]), s).flatten().tolist() == [2.0, 1.0]


def test_a_checkpoint_whose_step_is_a_whole_float_goes_on(tmp_path):
    objective, _ = make_toy((1, 6, 6))
    whole = OSEM(objective, 3).process().get_output()
    OSEM(objective, 3, callbacks=[CheckpointCallback(tmp_path / "c.safetensors", 2)]).process()
    checkpoint = Checkpoint.load(tmp_path / "c.safetensors")
    checkpoint.metadata["step"] = float(checkpoint.metadata["step"])
    checkpoint.save(tmp_path / "c.safetensors")
    resumed = OSEM(objective, 3)
    resumed.resume_from = tmp_path / "c.safetensors"
    assert torch.equal(resumed.process().get_output(), whole)
    checkpoint.metadata["step"] = 1.5
    checkpoint.save(tmp_path / "c.safetensors")
    with pytest.raises(WeightsFileError, match="step must be an integer"):
        Checkpoint.load(tmp_path / "c.safetensors")
