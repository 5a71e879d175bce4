"""MAP reconstruction reaches the maximum of the objective it is given, by whichever algorithm suits the prior."""

import json
import logging

import pytest
import torch
from scipy.optimize import minimize
from toy_denoisers import ResidualOf, gaussian_denoiser, mixture_denoiser
from toy_objective import make_toy

from sirf_diffusion.data import load_example
from sirf_diffusion.priors import AnchorPenalty, QuadraticPenalty, RelativeDifferencePenalty, ScorePenalty
from sirf_diffusion.reconstructors import MAPEM, MLEM


def run(reconstructor):
    reconstructor.set_up()
    return reconstructor.process().get_output()


def make_prior(name, objective, beta):
    geometry = objective.geometry
    anchor = torch.full(geometry.shape, 1.5, dtype=torch.float64)
    if name == "anchor":
        return AnchorPenalty(anchor, beta)
    if name == "quadratic":
        return QuadraticPenalty(geometry, beta)
    if name == "score":
        return ScorePenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), 1.5), 0.3, beta)
    return RelativeDifferencePenalty(geometry, beta, epsilon=1e-2)


def optimality(objective, prior, x):
    """Largest violation of the Karush-Kuhn-Tucker conditions, relative to the sensitivity."""
    gradient = (objective.gradient(x) - prior.gradient(x)) / objective.sensitivity()
    return float(torch.maximum((x * gradient).abs(), torch.where(x < 1e-3, gradient, -1.0)).max())


def maximum(objective, prior):
    """The maximum by SciPy's quasi-Newton method with bounds, which knows nothing of our algorithms."""

    def cost(values):
        x = torch.from_numpy(values).reshape(objective.geometry.shape)
        gradient = prior.gradient(x) - objective.gradient(x)
        return float(prior.value(x) - objective.value(x)), gradient.flatten().numpy()

    start = objective.uniform_image().flatten().numpy()
    tight = {"maxiter": 5000, "ftol": 1e-14, "gtol": 1e-7}
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start), options=tight)
    return torch.from_numpy(found.x).reshape(objective.geometry.shape)


@pytest.mark.parametrize("beta", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("name", ["anchor", "quadratic", "score", "rdp"])
def test_one_subset_reaches_the_maximum_without_a_decrease(name, beta):
    objective, _ = make_toy()
    prior = make_prior(name, objective, beta)
    reconstructor = MAPEM(objective, prior, 400)
    x = run(reconstructor)
    assert optimality(objective, prior, x) < 1e-2
    if prior.has_value:
        trace = torch.tensor(reconstructor.record["objective"], dtype=torch.float64)
        kept = trace if name != "rdp" else torch.cummax(trace, 0).values[-20:]
        assert (kept.diff() >= -1e-8 * trace.abs().max()).all()


@pytest.mark.parametrize(("beta", "epochs", "tolerance"), [
    (0.1, 160, 5e-3), (1.0, 80, 5e-3), (3.0, 30, 1e-2), (300.0, 30, 5e-3),
])  # fmt: skip
def test_bsrem_with_subsets_converges_to_the_maximum(beta, epochs, tolerance):
    """PETRIC's thresholds for convergence are 1 % (image) and 0.5 % (regions) of the background."""
    objective, _ = make_toy(num_bins=240, counts=2e4, num_subsets=8)
    prior = RelativeDifferencePenalty(objective.geometry, beta, epsilon=1e-2)
    reference = maximum(objective.divided(1), prior)
    reconstructor = MAPEM(objective, prior, epochs)
    assert (run(reconstructor) - reference).square().mean().sqrt() < tolerance * reference.mean()
    assert reconstructor.record["projections"]["forward"] < 1.6 * epochs


def test_closed_form_with_subsets_stays_near_the_maximum_and_says_so(caplog):
    objective, _ = make_toy(num_bins=240, counts=1e5, num_subsets=4)
    prior = make_prior("score", objective, 3.0)
    reference = run(MAPEM(objective.divided(1), prior, 500))
    assert "limit cycle" not in caplog.text
    assert (run(MAPEM(objective, prior, 60)) - reference).norm() < 0.06 * reference.norm()
    assert "4 subsets ends in a limit cycle" in caplog.text


def test_vanishing_penalty_gives_mlem_and_overwhelming_one_its_own_minimum():
    objective, _ = make_toy()
    free = run(MAPEM(objective, make_prior("score", objective, 0.0), 20))
    mlem = MLEM(objective, 20)
    mlem.set_up(objective.early_image())
    torch.testing.assert_close(free, mlem.process().get_output())
    tied = run(MAPEM(objective, make_prior("score", objective, 1e7), 100))
    torch.testing.assert_close(tied, torch.full_like(tied, 1.5), rtol=1e-3, atol=0)


def test_each_iteration_asks_the_network_once_and_projects_once():
    objective, _ = make_toy(num_subsets=4)
    prior = ScorePenalty(ResidualOf(mixture_denoiser()), 0.5)
    reconstructor = MAPEM(objective, prior, 6)
    run(reconstructor)
    assert prior.model.calls == 6
    assert reconstructor.record["projections"] == {"forward": 6.0, "back": 6.0}
    assert reconstructor.settings["algorithm"] == "de-pierro"


def test_inner_passes_save_network_calls_for_the_same_maximum():
    objective, _ = make_toy()
    prior = make_prior("score", objective, 3.0)
    often, seldom = run(MAPEM(objective, prior, 400)), run(MAPEM(objective, prior, 100, num_inner=4))
    torch.testing.assert_close(often, seldom, rtol=1e-3, atol=1e-3)


def test_bsrem_keeps_its_step_where_only_one_subset_sees_a_voxel(caplog):
    """As at the rim of a field of view: a step made for the average subset is too long there by their number."""
    objective, _ = make_toy(num_bins=240, counts=2e4, num_subsets=8)
    row = objective.matrix[3].sum()
    objective.matrix[:, 0] = 0
    objective.matrix[3] = 0
    objective.matrix[3, 0] = row
    objective.prompts[3] = (3 * row).round()
    reconstructor = MAPEM(objective, RelativeDifferencePenalty(objective.geometry, 0.1, epsilon=1e-2), 10)
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        x = run(reconstructor)
    assert "step halved" not in caplog.text
    assert x[0, 0, 0] == pytest.approx(3, abs=0.6)


@pytest.mark.parametrize("start", ["early", "uniform"])
def test_bsrem_has_no_voxel_leap_away_in_low_counts(start, caplog):
    """Voxels beside the head are large in one epoch, zero in the next: a step made for the first is too long."""
    objective = load_example("brain2d").acquisition.objective(7)
    image = objective.early_image() if start == "early" else objective.uniform_image()
    largest = []
    prior = RelativeDifferencePenalty(objective.geometry, 1.0, epsilon=1e-3)
    reconstructor = MAPEM(objective, prior, 8, callbacks=[lambda step: largest.append(float(step.x.max()))])
    reconstructor.set_up(image)
    with caplog.at_level(logging.INFO, "sirf_diffusion"):
        reconstructor.process()
    assert "step halved" not in caplog.text
    assert max(largest) < 40  # the early image has 35, the maximum is at 21
    assert reconstructor.record["objective"][-1] > 251340


def test_the_record_names_the_prior_with_its_parameters():
    objective, _ = make_toy()
    reconstructor = MAPEM(objective, RelativeDifferencePenalty(objective.geometry, 2.0, epsilon=0.5), 2)
    run(reconstructor)
    prior = json.loads(json.dumps(reconstructor.record))["settings"]["prior"]
    assert (prior["name"], prior["gamma"], prior["epsilon"]) == ("RelativeDifferencePenalty", 2.0, 0.5)
    assert json.dumps(make_prior("score", objective, 1.0).settings)


def test_bad_settings_are_refused():
    objective, _ = make_toy()
    with pytest.raises(TypeError, match="prior"):
        MAPEM(objective, "rdp", 3)
    with pytest.raises(ValueError, match="num_inner"):
        MAPEM(objective, make_prior("rdp", objective, 1.0), 3, num_inner=2)
