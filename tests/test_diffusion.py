"""Properties of the reverse-diffusion loop that hold whatever the data step is."""

import itertools
import logging

import pytest
import torch
from toy_denoisers import gaussian_score_model
from toy_model import Gaussian, Record, StopAt, ToyModel
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.engines.objective import Evaluation
from sirf_diffusion.files import progress
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.schedules import VESchedule, VPSchedule
from sirf_diffusion.reconstructors.checkpoint import Checkpoint, CheckpointCallback
from sirf_diffusion.reconstructors.diffusion.chain import Chain, balanced, posterior_sd
from sirf_diffusion.reconstructors.diffusion.consistency import Adaptation
from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.hqs import HQSReconstructor
from sirf_diffusion.reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor
from sirf_diffusion.reconstructors.diffusion.loop import DiffusionReconstructor
from sirf_diffusion.reconstructors.records import LogCallback, ProgressBar

METHODS = [DDSReconstructor, HQSReconstructor, LikelihoodScheduledReconstructor]
SHAPES = [(1, 8, 8), (3, 6, 5)]
each_method = pytest.mark.parametrize("method", METHODS)


def bound_model(objective, denoiser=None, scale=1.0, **kwargs):
    return ToyModel(denoiser or Gaussian(1.0, 0.25), **kwargs).on(objective.geometry, scale)


def run(method, objective, model=None, num_steps=8, **kwargs):
    reconstructor = method(objective, model or bound_model(objective), num_steps=num_steps, **kwargs)
    return reconstructor.process()


class NoData(ToyObjective):
    """A likelihood that does not depend on the image."""

    def at(self, x, subset=None):
        return Evaluation(
            torch.zeros(x.shape[:-3], dtype=torch.float64),
            lambda active=None: torch.zeros_like(x if active is None else x[active]),
        )


class Watched(ToyObjective):
    """Remembers every image whose full likelihood was asked for."""

    seen: list

    def at(self, x, subset=None):
        if subset is None:
            self.seen += [image.numpy().tobytes() for image in x.reshape(-1, *self.geometry.shape)]
        return super().at(x, subset)


def converted(kind, objective, **attributes):
    other = kind(
        objective.matrix, objective.prompts, objective.background, objective.geometry.shape, objective.num_subsets
    )
    vars(other).update(attributes)
    return other


@pytest.mark.parametrize(("eta", "gain"), [(0.0, 0.3), (1.0, 0.6)])
def test_a_multistep_solver_needs_fewer_levels(eta, gain):
    """Without data and noise the chain of a Gaussian prior ends where the exact solution does."""
    objective, _ = make_toy((2, 40, 40), num_bins=4)
    model = bound_model(objective, Gaussian(3.0, 0.25), scale=2.0)

    def spread(solver, num_steps):
        options = {"num_steps": num_steps, "num_samples": 2, "eta": eta, "spacing": "log_sigma", "solver": solver}
        samples = DiffusionReconstructor(objective, model, **options).process().get_samples()
        return float((samples - 6.0).square().mean().sqrt())

    exact = spread("ddim", 800)
    errors = {solver: abs(spread(solver, 16) - exact) for solver in ("ddim", "multistep")}
    assert errors["multistep"] < gain * errors["ddim"]


def test_a_model_that_is_bound_already_is_not_cropped_in_silence(caplog):
    objective, _ = make_toy((1, 8, 8))
    DDSReconstructor(objective, bound_model(objective), crop=True)
    assert "crop=True has no effect" in caplog.text


def test_noise_is_the_same_wherever_a_box_begins():
    """Two early images that differ a little may have boxes that differ by a voxel or two."""
    chains = []
    for first in (2, 3):
        box = (slice(0, 2), slice(first, 10), slice(first, 10))
        mean = torch.zeros(2, 10 - first, 10 - first)
        chains.append(Chain.start(mean, 1.0, 3, 0, "balanced", None, ((2, 12, 12), box)))
    assert torch.equal(chains[0].u[..., 1:, 1:], chains[1].u)
    assert torch.equal(*[chain.noise()[..., -7:, -7:] for chain in chains])


@each_method
def test_what_the_network_does_not_cover_stays_at_the_floor(method):
    objective, _ = make_toy((1, 8, 8), num_bins=40, num_subsets=2)
    model = bound_model(objective)
    model.covered = torch.zeros(1, 8, 8, dtype=torch.bool)
    model.covered[:, 2:6, 1:5] = True
    samples = run(method, objective, model, num_samples=2).get_samples()
    assert torch.equal(samples[:, ~model.covered], torch.full_like(samples[:, ~model.covered], 1e-6))
    assert float(samples[:, model.covered].min()) > 1e-3


@pytest.mark.parametrize("schedule", [VPSchedule(), VESchedule()], ids=["vp", "ve"])
@pytest.mark.parametrize("eta", [0.0, 0.85])
@pytest.mark.parametrize("noise", ["balanced", "independent"])
def test_without_data_the_chain_draws_from_the_prior(schedule, eta, noise):
    objective, _ = make_toy((2, 40, 40), num_bins=4)
    model = bound_model(objective, Gaussian(3.0, 0.25), scale=2.0, schedule=schedule)
    chain = DiffusionReconstructor(objective, model, num_steps=300, num_samples=4, eta=eta, noise=noise)
    chain.set_up(torch.full((2, 40, 40), 6.0))
    samples = chain.process().get_samples()
    assert samples.mean() == pytest.approx(6.0, rel=0.01)
    # A little less than the prior's, because the chain ends at sigma 0.05 and takes finite steps.
    assert samples.std() == pytest.approx(1.0, rel=0.03)
    within, between = samples.std((1, 2, 3)), chain.get_uncertainty().mean()
    assert torch.allclose(within, torch.ones(4, dtype=within.dtype), rtol=0.08)
    assert between == pytest.approx(1.0 * 0.921, rel=0.05)  # mean SD of 4 normal numbers


@each_method
@pytest.mark.parametrize("eta", [0.0, 0.85])
@pytest.mark.filterwarnings("ignore:50 MLEM iterations")
def test_with_an_uninformative_likelihood_it_is_the_unconditional_chain(method, eta):
    objective = converted(NoData, make_toy((2, 5, 6))[0])
    model = bound_model(objective, Gaussian(1.0, 0.01), scale=3.0)
    with_step, without = Record(), Record()
    run(method.published, objective, model, eta=eta, seed=5, num_samples=2, callbacks=[with_step])
    run(DiffusionReconstructor, objective, model, eta=eta, seed=5, num_samples=2, callbacks=[without])
    for a, b in zip(with_step.images, without.images, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=0)


@each_method
@pytest.mark.parametrize("noise", ["balanced", "independent"])
def test_the_grouping_of_samples_does_not_matter(method, noise):
    objective, _ = make_toy(SHAPES[0])
    together = run(method, objective, num_samples=4, seed=3, noise=noise).get_samples()
    grouped = run(method, objective, num_samples=4, seed=3, noise=noise, batch_size=3).get_samples()
    assert torch.allclose(together, grouped, rtol=1e-9)


@each_method
@pytest.mark.parametrize("noise", ["balanced", "independent"])
def test_samples_made_apart_are_those_of_one_run(method, noise, tmp_path):
    objective, _ = make_toy(SHAPES[0])
    options = {"num_samples": 5, "seed": 3, "noise": noise}
    together = run(method, objective, **options).get_samples()
    for members in ((0, 1), (4, 2), (3,)):
        apart = method(objective, bound_model(objective), num_steps=8, **options)
        apart.restrict_to(members)
        kept = CheckpointCallback(tmp_path / "half.safetensors")
        apart.callbacks = (lambda step, kept=kept: kept(step) if step.step == 4 else None,)
        assert torch.allclose(apart.process().get_samples(), together[list(members)], rtol=1e-9)
        again = method(
            objective, bound_model(objective), num_steps=8, **options, resume_from=tmp_path / "half.safetensors"
        )
        again.restrict_to(members)
        assert torch.allclose(again.process().get_samples(), together[list(members)], rtol=1e-9)


@pytest.mark.parametrize("number", [2, 3, 7])
def test_balanced_noises_are_normal_and_add_up_to_zero(number, generator):
    noise = balanced(torch.randn((number, 100_000), generator=generator, dtype=torch.float64))
    assert torch.allclose(noise.sum(0), torch.zeros(1, dtype=torch.float64), atol=1e-12)
    products = noise @ noise.T / noise.shape[1]
    expected = torch.full((number, number), -1 / (number - 1), dtype=torch.float64).fill_diagonal_(1)
    assert torch.allclose(products, expected, atol=0.02)
    # Each comes back as the posterior's standard deviation, and so do independent ones.
    assert posterior_sd(noise, "balanced").square().mean() == pytest.approx(1, rel=0.01)


def test_where_the_network_is_linear_two_balanced_samples_have_the_mean_of_infinitely_many():
    objective, _ = make_toy((2, 8, 8))
    model = bound_model(objective, Gaussian(3.0, 0.25))
    start = torch.full((2, 8, 8), 3.0)
    means = []
    for noise in ("balanced", "independent"):
        chain = DiffusionReconstructor(objective, model, num_steps=20, num_samples=2, noise=noise)
        chain.set_up(start)
        means.append(chain.process().get_output())
    # Images are not negative, which six standard deviations never are.
    assert torch.allclose(means[0], start.to(means[0]), atol=1e-6)
    assert not torch.allclose(means[1], start.to(means[1]), atol=0.1)


@each_method
def test_outside_the_image_the_chain_follows_the_prior(method, tmp_path):
    objective, _ = make_toy(SHAPES[0])
    ends = []
    for kind in (method, DiffusionReconstructor):
        path = tmp_path / f"{kind.__name__}.safetensors"
        run(kind, objective, bound_model(objective, pad=3), callbacks=[CheckpointCallback(path)], solver="ddim")
        ends.append(Checkpoint.load(path).tensors["u"])
    outside = torch.ones_like(ends[0], dtype=torch.bool)
    outside[..., 3:-3, 3:-3] = False
    assert torch.equal(ends[0][outside], ends[1][outside])
    assert not torch.allclose(ends[0][~outside], ends[1][~outside], rtol=0.01)


@pytest.mark.parametrize(("method", "bound", "options"), [
    *itertools.product(METHODS, (True, False), [{}]), *((method, True, {"solver": "multistep"}) for method in METHODS),
    (LikelihoodScheduledReconstructor, True, {"reuse_above": 1e-3}),
])  # fmt: skip
def test_resumed_equals_uninterrupted(method, bound, options, tmp_path):
    def objective():  # afresh each time: one keeps its early image
        return make_toy(SHAPES[1], num_subsets=1)[0]

    model = ToyModel(Gaussian())
    model = model.on(objective().geometry, 1.2) if bound else model
    path, options = tmp_path / "run.safetensors", {"num_samples": 2, "solver": "ddim", **options}
    whole = run(method, objective(), model, **options)
    killed = [CheckpointCallback(path, every=3), StopAt(5, KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        run(method, objective(), model, **options, callbacks=killed)
    resumed = run(method, objective(), model, **options, resume_from=path, callbacks=[CheckpointCallback(path)])
    assert torch.equal(whole.get_samples(), resumed.get_samples())
    assert whole.record["projections"] == pytest.approx(resumed.record["projections"])
    assert whole.record["network_evaluations"] == resumed.record["network_evaluations"]
    assert whole.record["log_likelihood"] == resumed.record["log_likelihood"]
    assert [e["step"] for e in resumed.record["trace"]] == list(range(1, 9))
    finished = run(method, objective(), model, **options, resume_from=path)
    assert torch.equal(whole.get_samples(), finished.get_samples())
    assert [p.name for p in tmp_path.iterdir()] == ["run.safetensors"]


def test_orientations_take_turns_until_the_last_level():
    objective, _ = make_toy(SHAPES[0])
    model, turns = bound_model(objective), []
    predict = model.predict
    model.predict = lambda u, t, turn=None: turns.append(turn) or predict(u, t)
    run(DDSReconstructor, objective, model, num_steps=5)
    assert turns == [0, 1, 2, 3, None]


def test_every_second_level_takes_over_what_the_data_changed():
    method = LikelihoodScheduledReconstructor
    objective, truth = make_toy(SHAPES[0])
    model = bound_model(objective)
    whole, reusing = (run(method, objective, model, reuse_above=above) for above in (None, 1e-3))
    spent = [0, *(entry["forward"] for entry in reusing.record["trace"])]
    assert [b > a for a, b in itertools.pairwise(spent)] == [True, False] * 3 + [True, True]
    errors = [float((made.get_output() - truth).norm()) for made in (whole, reusing)]
    assert 0 < abs(errors[1] - errors[0]) < 0.5 * errors[0]
    assert torch.equal(run(method, objective, model, reuse_above=1e3).get_output(), whole.get_output())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    objective, _ = make_toy(SHAPES[0])
    path = tmp_path / "run.safetensors"
    run(DDSReconstructor, objective, callbacks=[CheckpointCallback(path)])
    with pytest.raises(ValueError, match="seed was 0, this run has 1"):
        run(DDSReconstructor, objective, seed=1, resume_from=path)
    with pytest.raises(ValueError, match="num_inner"):
        run(DDSReconstructor, objective, num_inner=2, resume_from=path)
    other = ToyObjective(objective.matrix, objective.prompts + 1, objective.background, objective.geometry.shape)
    with pytest.raises(ValueError, match="initial_image"):  # the uniform image of other counts
        run(DDSReconstructor, other, resume_from=path)
    rough = bound_model(objective)
    rough.precision = "bfloat16"
    with pytest.raises(ValueError, match="precision was 'float32', this run has 'bfloat16'"):
        run(DDSReconstructor, objective, rough, resume_from=path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x00" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.safetensors"):
            run(DDSReconstructor, objective, resume_from=path)
    with pytest.raises(FileNotFoundError, match="missing"):
        run(DDSReconstructor, objective, resume_from=tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="folder"):
        CheckpointCallback(tmp_path / "nowhere" / "run.safetensors")


@pytest.mark.parametrize(("noise", "divisor"), [("balanced", 3), ("independent", 2)])
def test_mean_and_standard_deviation(noise, divisor, caplog):
    objective, _ = make_toy(SHAPES[0])
    result = run(DDSReconstructor, objective, num_samples=3, noise=noise)
    samples = result.get_samples()
    assert torch.equal(result.get_output(), samples.mean(0))
    deviation = ((samples - samples.mean(0)) ** 2).sum(0).div(divisor).sqrt()
    assert torch.allclose(result.get_uncertainty(), deviation)
    assert run(DDSReconstructor, objective, noise=noise).get_uncertainty() is None
    assert "num_samples" in caplog.text


@each_method
def test_no_likelihood_is_computed_twice(method):
    objective = converted(Watched, make_toy(SHAPES[0])[0], seen=[])
    run(method, objective, num_samples=3)
    assert len(objective.seen) > 20
    assert len(set(objective.seen)) == len(objective.seen)


@each_method
def test_the_record_accounts_for_everything(method):
    objective, _ = make_toy(SHAPES[0])
    record = Record()
    result = run(method.published, objective, num_samples=3, callbacks=[record]).record
    projections = result["projections"]
    assert projections["forward"] == pytest.approx(objective.counter.forward)
    assert projections["back"] == pytest.approx(objective.counter.back)
    inner = sum(sum(step.num_inner) for step in record.steps)
    assert projections["back"] == pytest.approx(inner + projections["preparation_back"])
    tests = 8 * 3 if method is LikelihoodScheduledReconstructor else 0
    assert projections["forward"] == pytest.approx(inner + tests + projections["preparation_forward"])
    assert record.steps[-1].forward == pytest.approx(projections["forward"])
    assert result["network_evaluations"] == 8 * 3
    seconds = result["seconds"]
    parts = seconds["projector"] + seconds["network"] + seconds["callbacks"] + seconds["other"]
    assert parts == pytest.approx(seconds["total"], rel=1e-6)
    assert len(result["trace"]) == 8
    assert result["settings"]["num_steps"] == 8


@each_method
def test_a_score_model_gives_what_the_exact_denoiser_gives(method):
    objective, _ = make_toy(SHAPES[1], dtype=torch.float32)
    expected = run(method, objective, bound_model(objective, scale=1.2), num_samples=2)
    found = run(method, objective, gaussian_score_model(0.25).on(objective.geometry, 1.2), num_samples=2)
    assert torch.allclose(found.get_samples(), expected.get_samples(), rtol=2e-3, atol=1e-4)
    assert found.record["network_evaluations"] == 16


@each_method
@pytest.mark.parametrize("planes", ["transverse", "three"])
def test_resampled_and_padded_for_the_network(method, planes):
    objective, _ = make_toy(SHAPES[1], dtype=torch.float32)
    model = gaussian_score_model(0.25, voxel_size=(3.0, 2.5, 2.5), multiple=4).on(objective.geometry, 1.2, planes)
    assert model.latent_shape != SHAPES[1]
    samples = run(method, objective, model, num_samples=2).get_samples()
    without = run(DiffusionReconstructor, objective, model, num_samples=2).get_samples()
    assert samples.shape == without.shape == (2, *SHAPES[1])
    assert bool((objective.value(samples) > objective.value(without)).all())


def test_the_last_network_call_is_at_the_final_noise_level():
    objective, _ = make_toy(SHAPES[0])
    record = Record()
    run(DDSReconstructor, objective, num_steps=5, final_noise_level=0.24758, callbacks=[record])
    assert [step.t for step in record.steps] == pytest.approx([1.0, 0.775, 0.55, 0.325, 0.1], abs=1e-4)
    assert record.steps[-1].sigma == pytest.approx(0.2476, abs=1e-4)


class Replaced(Adaptation):
    """Goes over to another model at the fourth noise level."""

    def __init__(self, other):
        self.other, self.steps = other, []

    def __call__(self, model, u, step):
        self.steps.append((step.index, tuple(u.shape)))
        return self.other if step.index == 3 else None


def test_adaptation_sees_every_step_and_may_replace_the_model():
    objective, _ = make_toy(SHAPES[0])
    model = bound_model(objective, Gaussian(1.0, 0.01))
    adaptation = Replaced(bound_model(objective, Gaussian(5.0, 0.01)))
    settings = {"num_inner": 1, "anchor_strength": 100.0}
    record = Record()
    adapted = run(DDSReconstructor, objective, model, adaptation=adaptation, callbacks=[record], **settings)
    plain = run(DDSReconstructor, objective, model, **settings)
    assert adaptation.steps == [(index, (1, *SHAPES[0])) for index in range(8)]
    assert adapted.get_output().mean() > 1.5 * plain.get_output().mean()
    # The new model denoises the very images that it was chosen for.
    assert record.images[3].mean() > 1.5 * record.images[2].mean()


def test_a_chain_that_blows_up_is_an_error():
    objective, _ = make_toy(SHAPES[0])
    model = bound_model(objective, lambda w, sigma: w * float("nan"))
    with pytest.raises(FloatingPointError, match="dds step 1 of 8"):
        run(DDSReconstructor, objective, model)


def test_bad_settings_are_named():
    objective, _ = make_toy(SHAPES[0])
    model = bound_model(objective)
    for name, value in {"num_steps": 0, "num_samples": 0, "eta": 1.2, "seed": -1, "batch_size": 0}.items():
        with pytest.raises(ValueError, match=name):
            DiffusionReconstructor(objective, model, **{name: value})
    for members in ((), (0, 0), (2,), (-1,)):
        with pytest.raises(ValueError, match="0 to 1"):
            DDSReconstructor(objective, model, num_samples=2).restrict_to(members)
    with pytest.raises(ValueError, match="adapt one network"):  # whose samples stay together
        DDSReconstructor(objective, model, num_samples=2, adaptation=Adaptation()).restrict_to((0,))
    elsewhere = ToyModel(Gaussian()).on(ImageGeometry((1, 9, 9), (2.0, 2.0, 2.0)), 1.0)
    with pytest.raises(ValueError, match="bound to"):
        DDSReconstructor(objective, elsewhere)
    with pytest.raises(RuntimeError, match="process"):
        DDSReconstructor(objective, model).get_samples()


def test_progress_and_log(caplog, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    objective, _ = make_toy(SHAPES[0])
    with caplog.at_level(logging.INFO, logger="sirf_diffusion"):
        run(LikelihoodScheduledReconstructor, objective, callbacks=[ProgressBar(), LogCallback(every=3)])
    lines = [line for line in caplog.messages if line.startswith("lisch ")]
    assert [line.split(":")[0] for line in lines] == ["lisch 3/8", "lisch 6/8", "lisch 8/8"]
    assert "target" in lines[0]
    assert "8/8" in capsys.readouterr().err
