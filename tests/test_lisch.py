"""Likelihood-scheduled sampling: the schedule, and that every step ends where the schedule says."""

import warnings

import pytest
import torch
from toy_model import Fixed, Gaussian, Record, ToyModel, identity
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.engines import Evaluation
from sirf_diffusion.engines.em import em_update, penalised_em_step
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import Scanner
from sirf_diffusion.reconstructors.diffusion.likelihood_schedule import LikelihoodSchedule, truth_log_likelihood
from sirf_diffusion.reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor


def mlem_values(objective, number):
    x, values = objective.uniform_image(), []
    for _ in range(number + 1):
        values.append(float(objective.value(x)))
        x = em_update(objective, x)
    return values


def lisch(objective, denoiser=None, num_steps=12, **kwargs):
    model = ToyModel(denoiser or Gaussian(1.0, 0.5)).on(objective.geometry, 1.0)
    record = Record()
    run = LikelihoodScheduledReconstructor.published(
        objective, model, num_steps=num_steps, callbacks=[record], **kwargs
    )
    return run.process(), record


def test_the_schedule_is_mlem_up_to_the_target():
    objective, _ = make_toy((1, 8, 8))
    values = mlem_values(objective, 20)
    target = 0.3 * values[7] + 0.7 * values[8]
    schedule = LikelihoodSchedule.compute(objective, target=target)
    assert schedule.values == pytest.approx(values[:9])
    assert schedule.num_iterations == pytest.approx(7.7)
    assert schedule.at(1.0) == pytest.approx(target)
    assert schedule.at(0.0) == pytest.approx(values[0])
    assert schedule.at(2.5 / 7.7) == pytest.approx((values[2] + values[3]) / 2)
    same = LikelihoodSchedule.compute(objective, num_em_iterations=7.7)
    assert same.target == pytest.approx(target)


def test_the_expected_target_lies_below_what_is_expected_by_its_margin():
    objective, truth = make_toy((1, 6, 6), num_bins=600, counts=3e4)
    expected, deviation = objective.expected_log_likelihood(truth)
    schedule = LikelihoodSchedule.compute(objective, margin=3.0)
    assert schedule.rule == "expected"
    assert schedule.target == pytest.approx(expected - 3 * deviation, abs=0.2 * deviation)


def test_two_halves_of_the_data_find_the_truths_likelihood_of_this_measurement():
    # On a small scanner: the decay of the bias that is extrapolated is that of images of objects in air.
    projdata = ProjDataGeometry(Scanner("small", 1, 96, 120.0, 5.0, 6.0, 3.5), (Segment(0, 0, 0, 1),), 48, 48)
    projector = Projector(ImageGeometry((1, 32, 32), (3.0, 4.0, 4.0)), projdata, "cpu")
    truth = torch.zeros(1, 32, 32)
    truth[:, 7:25, 8:24], truth[:, 10:14, 10:14], truth[:, 17:22, 12:20] = 1.0, 3.0, 0.3
    factors = torch.full(projdata.shape, 3e4 / float(projector.forward(truth).sum()))
    model = AcquisitionModel(projector, factors, None, torch.full(projdata.shape, 4.0))
    errors, deviations = [], []
    for seed in range(20):
        prompts = torch.poisson(model.forward(truth), generator=torch.Generator().manual_seed(seed))
        objective = PoissonObjective(model, prompts, num_subsets=2)
        value = float(objective.value(truth))
        errors.append(truth_log_likelihood(objective) - value)
        deviations.append(objective.expected_log_likelihood(truth)[0] - value)
    errors, deviations = torch.tensor(errors), torch.tensor(deviations)
    assert float(errors.square().mean().sqrt()) < 0.6 * float(deviations.square().mean().sqrt())
    assert abs(float(errors.mean())) < 0.5 * float(deviations.std())


@pytest.mark.filterwarnings("ignore:50 MLEM iterations")
def test_the_data_are_split_wherever_the_subsets_allow():
    objective, _ = make_toy((1, 6, 6), num_bins=600, counts=1e4)
    values = [truth_log_likelihood(objective.divided(n)) for n in (2, 4)]
    assert values[0] == pytest.approx(values[1])  # bins 0, 2, 4, ... either way
    assert LikelihoodSchedule.compute(objective.divided(2)).rule == "split-half"
    with pytest.raises(ValueError, match="even number"):
        truth_log_likelihood(objective.divided(3))


class WithoutSubsetValues(ToyObjective):
    """As engines that tell the log-likelihood of all data only."""

    def at(self, x, subset=None):
        evaluation = super().at(x, subset)
        return evaluation if subset is None else Evaluation(self._refuse, evaluation.gradient)

    def _refuse(self):
        raise NotImplementedError


def test_the_estimate_needs_no_log_likelihoods_of_subsets():
    objective, _ = make_toy((1, 6, 6), num_bins=600, counts=1e4, num_subsets=2)
    other = WithoutSubsetValues(
        objective.matrix, objective.prompts, objective.background, objective.geometry.shape, num_subsets=2
    )
    # The data's noise moves the estimate by tens of nats, the quadrature by thousandths.
    assert truth_log_likelihood(other) == pytest.approx(truth_log_likelihood(objective), abs=0.01)


def test_schedule_and_estimate_cost_what_they_say():
    objective, _ = make_toy((1, 8, 8))
    LikelihoodSchedule.compute(objective, num_em_iterations=9)
    assert (objective.counter.forward, objective.counter.back) == (10, 9)  # a pair for each iteration
    objective, _ = make_toy((1, 8, 8), num_subsets=2)
    truth_log_likelihood(objective, (3, 6, 12))
    assert (objective.counter.forward, objective.counter.back) == (12 + 7, 12)


def test_a_larger_margin_ends_earlier():
    objective, truth = make_toy((1, 8, 8), num_bins=200, counts=2e4)
    margins = (-0.5, 0.0, 0.5, 1.0)
    schedules = [LikelihoodSchedule.compute(objective, margin=m, num_em_iterations_max=300) for m in margins]
    ends = [schedule.num_iterations for schedule in schedules]
    assert ends == sorted(ends, reverse=True)
    assert 0 < ends[-1] < ends[0]
    _, deviation = objective.expected_log_likelihood(truth)
    assert schedules[1].target - schedules[3].target == pytest.approx(deviation, rel=0.1)


def test_targets_out_of_reach_end_at_the_last_iteration_or_the_first():
    objective, _ = make_toy((1, 8, 8))
    with pytest.warns(RuntimeWarning, match="6 MLEM iterations"):
        schedule = LikelihoodSchedule.compute(objective, target=1e9, num_em_iterations_max=6)
    assert schedule.num_iterations == 6
    assert schedule.target == pytest.approx(mlem_values(objective, 6)[-1])
    schedule = LikelihoodSchedule.compute(objective, target=-1e9)  # below the uniform image: no more than that
    assert schedule.at(1.0) == schedule.values[0]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("step_size", [1.0, 1.8])
@pytest.mark.parametrize("counts", [1e3, 1e5])
def test_every_step_meets_its_target_and_hardly_more(shape, step_size, counts):
    objective, _ = make_toy(shape, counts=counts)
    run, record = lisch(objective, num_samples=3, step_size=step_size, num_em_iterations=15)
    surplus = []
    for k, (step, images) in enumerate(zip(record.steps, record.images, strict=True)):
        assert step.target == pytest.approx(run.schedule.at((k + 1) / 12))
        values = objective.value(images).tolist()
        before, after = step.log_likelihood_before, step.log_likelihood_after
        for value, first, predicted, inner in zip(values, before, after, step.num_inner, strict=True):
            if inner:
                gap = step.target - first
                surplus.append((value - step.target) / gap)
                assert predicted == pytest.approx(value, abs=0.05 * gap)
            else:
                assert value == first >= step.target
    assert len(surplus) > 10
    assert min(surplus) > -0.005
    assert sum(surplus) / len(surplus) < 0.1


def test_an_early_schedule_has_the_same_end():
    objective, _ = make_toy((1, 8, 8), counts=1e4)
    run, record = lisch(objective, num_em_iterations=15, schedule_exponent=0.5)
    targets = [step.target for step in record.steps]
    values = mlem_values(objective, 15)
    for k, target in enumerate(targets):
        below = int(15 * ((k + 1) / 12) ** 0.5)
        assert values[below] - 1e-6 <= target <= values[min(below + 1, 15)] + 1e-6
    assert targets[-1] == pytest.approx(run.schedule.target) == pytest.approx(values[-1])


def test_an_image_that_fits_already_is_not_touched_and_costs_one_forward_projection():
    objective, truth = make_toy((1, 8, 8), counts=500)
    run, record = lisch(objective, Fixed(truth), num_em_iterations=0.5, num_samples=2)
    assert all(step.num_inner == [0, 0] for step in record.steps)
    assert torch.equal(run.get_samples(), truth.expand(2, *truth.shape))
    assert run.record["projections"]["back"] == run.record["projections"]["preparation_back"]
    assert run.record["projections"]["forward"] - run.record["projections"]["preparation_forward"] == 12 * 2


@pytest.mark.filterwarnings("ignore:step 1 of 12")  # clipped noise, where it starts, does not come near the data
def test_with_an_identity_denoiser_it_follows_em():
    objective, _ = make_toy((1, 8, 8), counts=1e5)
    _, record = lisch(objective, identity, eta=0.0, step_size=1.0, num_em_iterations=30)
    for before, after, step in zip(record.images[:-1], record.images[1:], record.steps[1:], strict=True):
        x = before
        for _ in range(step.num_inner[0] - 1):
            x = em_update(objective, x).clamp_min(1e-6)
        if step.num_inner[0]:
            end = em_update(objective, x).clamp_min(1e-6)
            share = ((after - x) * (end - x)).sum() / ((end - x) ** 2).sum()
            assert 0 < share <= 1 + 1e-9
            assert torch.allclose(after, torch.lerp(x, end, share), rtol=1e-7, atol=1e-9)
    values = [float(objective.value(image)) for image in record.images]
    assert values == sorted(values)


def test_longer_steps_need_fewer_projections_for_the_same_fit():
    objective, _ = make_toy((1, 8, 8), counts=1e5)
    back, final = [], []
    for step_size in (0.5, 1.0, 1.8):
        run, _ = lisch(objective, step_size=step_size, num_em_iterations=20)
        back.append(run.record["projections"]["back"])
        final.append(float(objective.value(run.get_samples())))
    assert back[0] > 1.5 * back[1] > 1.5 * 1.3 * back[2]
    assert max(final) - min(final) < 0.01 * (run.schedule.target - run.schedule.values[0])


def test_an_unreachable_step_warns_once_and_goes_on():
    # The denoiser finds nothing in half of the image, and EM cannot leave zero within the updates allowed.
    objective, truth = make_toy((1, 8, 8), counts=1e5)
    image = truth.clone()
    image[..., ::2] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, record = lisch(objective, Fixed(image), num_em_iterations=20.0, num_samples=2)
    assert len([w for w in caught if "was not reached" in str(w.message)]) == 1
    assert [step.num_inner for step in record.steps][-1] == [55, 55]
    assert bool(torch.isfinite(run.get_output()).all())


@pytest.mark.parametrize("anchor_strength", [0.3, 3.0, 300.0])
def test_with_an_anchor_the_ascent_ends_near_the_penalised_maximum_or_at_the_target(anchor_strength):
    objective, _ = make_toy((1, 8, 8), counts=3e3)
    denoised = torch.full((1, 8, 8), 1.5, dtype=torch.float64)
    run, record = lisch(
        objective, Fixed(denoised), num_steps=8, schedule_exponent=0.0, num_em_iterations=1.5,
        anchor_strength=anchor_strength,
    )  # fmt: skip
    sigmas = [*(float(run.model.schedule.sigma(t)) for t in run.times), 0.0]
    ends = set()
    for k, (step, image) in enumerate(zip(record.steps, record.images, strict=True)):
        assert step.target == pytest.approx(run.schedule.target)
        rho = anchor_strength / (sigmas[k] ** 2 - sigmas[k + 1] ** 2)

        def penalised(x, rho=rho):
            return float(objective.value(x)) - 0.5 * rho * float((x - denoised).square().sum())

        best = denoised.clone()
        for _ in range(400):
            best = penalised_em_step(em_update(objective, best).clamp_min(1e-6), objective.sensitivity(), denoised, rho)
        if step.log_likelihood_after[0] >= step.target - 1e-9 * abs(step.target):
            ends.add("target")
            continue
        ends.add("maximum")
        gained, possible = penalised(image) - penalised(denoised), penalised(best) - penalised(denoised)
        assert 0.7 * possible <= gained <= possible + 1e-9
    assert ends == {"target", "maximum"}  # at high and at low noise


def test_with_an_anchor_the_number_of_noise_levels_matters_less():
    """Each level removes its share of the noise variance, and its data step takes no more than that from the data."""
    objective, _ = make_toy((1, 8, 8), counts=3e3)
    misfits = []
    for num_steps in (10, 40):
        run, _ = lisch(objective, num_steps=num_steps, num_em_iterations=50.0, num_samples=8, schedule_exponent=0.0,
                       anchor_strength=3.0)  # fmt: skip
        misfits.append(run.schedule.target - float(objective.value(run.get_samples()).mean()))
    assert misfits[0] > 0
    assert misfits[1] == pytest.approx(misfits[0], rel=0.2)


@pytest.mark.filterwarnings("ignore:step 4 of 4")
def test_a_step_that_lowers_the_likelihood_is_halved():
    # Few bins and a start that is far too high in every other column: over-relaxed EM goes too far there.
    objective, truth = make_toy((1, 8, 8), num_bins=12, counts=1e6, background=0.0)
    start = truth.clone()
    start[..., ::2] *= 30
    run, record = lisch(objective, Fixed(start), num_steps=4, step_size=1.95, num_em_iterations=30)
    inner = sum(step.num_inner[0] for step in record.steps)
    back = run.record["projections"]["back"] - run.record["projections"]["preparation_back"]
    assert 0 < back < inner
    for step, image in zip(record.steps, record.images, strict=True):
        assert float(objective.value(image)) > step.log_likelihood_before[0]


def test_bad_settings_are_named():
    objective, _ = make_toy((1, 8, 8))
    model = ToyModel(identity).on(objective.geometry, 1.0)
    bad = {"step_size": 2.0, "num_em_iterations": -1.0, "target": float("nan"), "num_em_iterations_max": 0,
           "schedule_exponent": -1.0, "anchor_strength": -1.0}  # fmt: skip
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            LikelihoodScheduledReconstructor.published(objective, model, **{name: value})
    with pytest.raises(ValueError, match="not both"):
        LikelihoodScheduledReconstructor.published(objective, model, target=1.0, num_em_iterations=3.0)
    with pytest.raises(ValueError, match="num_em_iterations_max"):
        LikelihoodScheduledReconstructor.published(objective, model, num_em_iterations=99.0).process()


def test_smooth_step_is_symmetric_positive_and_no_longer_than_the_plain_one():
    """So that a smoothed gradient is a direction of ascent, and step sizes keep their limits."""
    from sirf_diffusion.geometry.images import ImageGeometry
    from sirf_diffusion.reconstructors.diffusion.consistency import smooth_direction

    geometry = ImageGeometry((3, 9, 8), (4.0, 2.0, 2.0))
    generator = torch.Generator().manual_seed(0)
    p, a, b = (torch.rand(geometry.shape, generator=generator, dtype=torch.float64) for _ in range(3))
    a, b = a - 0.5, b - 0.5
    for sigma in (0.05, 0.5, 5.0):
        of_a, of_b = (smooth_direction(p, d, geometry, 12.0, sigma) for d in (a, b))
        assert float((of_a * b).sum()) == pytest.approx(float((of_b * a).sum()), rel=1e-9, abs=1e-12)
        assert 0 < float((of_a * a).sum()) <= float((p * a * a).sum())
    # wider at higher noise levels, and nothing at all for a smoothing of 0
    rough = torch.zeros(geometry.shape, dtype=torch.float64)
    rough[1, 4, 4] = 1.0
    ones = torch.ones_like(rough)
    peaks = [float(smooth_direction(ones, rough, geometry, 12.0, sigma).max()) for sigma in (0.05, 0.5, 5.0)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 3 * peaks[2]
    assert torch.equal(smooth_direction(p, a, geometry, 0.0, 1.0), p * a)
