"""Adapting the network to the data: harmless if switched off, exact where that can be checked, gone afterwards."""

import gc
import logging

import pytest
import torch
from test_lora import same, weights
from tiny_model import small_model
from toy_model import Gaussian, Record, StopAt, ToyModel
from toy_objective import make_toy

from sirf_diffusion.models.lora import Adapter, AdapterFileError
from sirf_diffusion.reconstructors.adaptation.ddip import (
    DDIPAdaptation,
    DDIPReconstructor,
    SteerableAdaptation,
    SteerableReconstructor,
)
from sirf_diffusion.reconstructors.adaptation.network_adaptation import total_variation
from sirf_diffusion.reconstructors.checkpoint import Checkpoint, CheckpointCallback
from sirf_diffusion.reconstructors.diffusion.consistency import DiffusionStep
from sirf_diffusion.reconstructors.diffusion.dds import DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.hqs import HQSReconstructor, PenalisedEM
from sirf_diffusion.reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor
from sirf_diffusion.reconstructors.diffusion.loop import DiffusionReconstructor

KINDS = [DDIPAdaptation, SteerableAdaptation]
METHODS = [DDSReconstructor, HQSReconstructor, LikelihoodScheduledReconstructor]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_coupling = pytest.mark.parametrize("coupling", ["hqs", "data-step", "projector"])
pytestmark = pytest.mark.filterwarnings("ignore:50 MLEM iterations", "ignore:step .* of .*target")
SCALE = 1.5
STEPS = 4
#: At every noise level, two updates without a limit.
ALWAYS = {"cap": False, "num_updates": 2, "every": 1, "max_noise_level": None}


@pytest.fixture(scope="module")
def objective():
    return make_toy((2, 8, 8), dtype=torch.float32)[0]


@pytest.fixture
def model(objective):
    return small_model().on(objective.geometry, SCALE)


def run(method, objective, model, **options):
    speed = {"speed": "accurate"} if method.has_speeds else {}  # as with an adaptation
    return method(objective, model, **{"num_steps": STEPS, **speed, **options}).process()


def adapted(kind, objective, model, *, num_samples=1, **settings):
    """An adaptation that is set up, the model that it adapts, and noisy images."""
    adaptation, data_step = kind(**settings), PenalisedEM(3, 2.0)
    data_step.set_up(objective)
    data_step.set_scale(SCALE)
    adaptation.set_up(objective, model, data_step, STEPS)
    generator = torch.Generator().manual_seed(7)
    u = torch.randn(num_samples, *model.latent_shape, generator=generator).to(objective.sensitivity())
    return adaptation, adaptation.begin(model, num_samples, num_samples), u


@each_kind
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nothing", [{"rank": 0}, {"num_rounds": 0}], ids=["rank-0", "zero-rounds"])
def test_nothing_to_adapt_is_no_adaptation(kind, method, nothing, objective, model):
    plain = run(method, objective, model, num_samples=2)
    found = run(method, objective, model, num_samples=2, adaptation=kind(**nothing))
    assert torch.equal(found.get_samples(), plain.get_samples())
    assert found.record["projections"] == plain.record["projections"]
    assert found.record["network_evaluations"] == plain.record["network_evaluations"]
    assert found.record["adaptation"]["updates"] == 0


@each_kind
@pytest.mark.parametrize("method", METHODS)
def test_any_method_takes_an_adaptation(kind, method, objective, model, untouched_random_state):
    kept, plain = weights(model), run(method, objective, model)
    found = run(method, objective, model, adaptation=kind(**ALWAYS))
    assert found.record["adaptation"]["updates"] >= STEPS
    assert len(found.record["adaptation"]["losses"]) == STEPS
    assert not torch.allclose(found.get_output(), plain.get_output(), rtol=1e-3)
    assert same(weights(model), kept)
    again = found.process()
    assert torch.equal(again.get_output(), run(method, objective, model, adaptation=kind(**ALWAYS)).get_output())


def test_ddip_starts_at_its_noise_level_and_ends_at_the_target_unless_told_otherwise(objective, model):
    first, other = Record(), Record()
    found = run(DDIPReconstructor, objective, model, adaptation=DDIPAdaptation(**ALWAYS), callbacks=[first])
    assert found.method == found.record["method"] == "ddip"
    assert first.steps[0].sigma == pytest.approx(0.7, rel=1e-3)
    assert found.record["log_likelihood"][-1] == pytest.approx(found.record["schedule"]["target"], rel=1e-3)
    settings = {"starting_noise_level": None, "final_step": False}
    found = run(DDIPReconstructor, objective, model, callbacks=[other], **settings)
    assert other.steps[0].t == pytest.approx(model.schedule.t_max)
    assert other.steps[-1].num_inner is None
    assert not found.record.get("log_likelihood")


@each_kind
@each_coupling
@pytest.mark.parametrize("rank", [3, None], ids=["low-rank", "all"])
def test_the_loss_falls(kind, coupling, rank, objective, model):
    options = {"coupling": coupling, "rank": rank, "carry_optimiser": True, "learning_rate": 2e-3}
    adaptation, changed, u = adapted(kind, objective, model, num_samples=2, **options, **ALWAYS)
    step = DiffusionStep(0, 1, 0.3, float(model.schedule.sigma(0.3)))
    for _ in range(12):
        adaptation(changed, u, step)
    losses = adaptation.summary()["losses"]
    assert sum(losses[6:]) < sum(losses[:6])
    assert losses[-1] < losses[0]


@each_coupling
def test_the_gradient_is_that_of_finite_differences(coupling):
    objective, _ = make_toy((1, 8, 8))
    model = small_model(dtype=torch.float64).on(objective.geometry, SCALE)
    options = {"coupling": coupling, "cap": False, "rank": 2, "total_variation": 0.3, "num_updates": 1}
    adaptation, changed, u = adapted(SteerableAdaptation, objective, model, num_samples=2, **options)
    step = DiffusionStep(0, 1, 0.25, float(model.schedule.sigma(0.25)))
    if coupling != "projector":
        target = adaptation.coupling.latent_target(changed, changed.predict(u, step.t)[0], step, 2)

    def loss():
        u0 = changed.predict(u, step.t)[0]
        penalty = 0.3 * float(total_variation(u0))
        if coupling != "projector":
            return float((u0 - target).square().mean()) + penalty
        x = adaptation.coupling.em.admissible(changed.to_image(u0))
        return float(-objective.value(x).mean()) / float((objective.prompts - objective.background).sum()) + penalty

    parameters, taken = adaptation.adapter.parameters(), []

    class Taken(torch.optim.SGD):
        def step(self, closure=None):
            taken.extend(p.grad.clone() for p in parameters)

    adaptation._new_optimiser = lambda: Taken(parameters, lr=1.0)
    value = loss()
    adaptation(changed, u, step)
    assert adaptation.loss == pytest.approx(value, rel=1e-9)
    # Clipping scales all gradients alike.
    norm = float(torch.stack([g.norm() for g in taken]).norm())
    assert norm <= 1 + 1e-9
    direction = [torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype) for p in parameters]
    differences = []
    for h in (1e-4, -1e-4):
        for p, d in zip(parameters, direction, strict=True):
            p += h * d
        differences.append(loss())
        for p, d in zip(parameters, direction, strict=True):
            p -= h * d
    slope = (differences[0] - differences[1]) / 2e-4
    found = sum(float((g * d).sum()) for g, d in zip(taken, direction, strict=True))
    assert found == pytest.approx(slope, rel=1e-4) or norm == pytest.approx(1, rel=1e-6)
    assert norm < 1, "the test needs a gradient that is not clipped"


@each_coupling
def test_data_that_are_fitted_already_are_left_alone(coupling, objective, model):
    adaptation = DDIPAdaptation(coupling=coupling, cap=-1e12, max_noise_level=None)
    found = run(DDSReconstructor, objective, model, adaptation=adaptation)
    plain = run(DDSReconstructor, objective, model)
    assert found.record["adaptation"]["updates"] == 0
    assert found.record["adaptation"]["levels_at_target"] == STEPS
    assert torch.equal(found.get_output(), plain.get_output())


def test_the_limit_is_the_likelihood_schedules(objective, model):
    halved = objective.divided(2)
    within = run(SteerableReconstructor, halved, model)
    assert within.record["adaptation"]["target"] == within.record["schedule"]["target"]
    assert within.record["schedule"]["rule"] == "split-half"
    alone = run(DDSReconstructor, halved, model, adaptation=SteerableAdaptation())
    assert alone.record["adaptation"]["target"] == within.record["schedule"]["target"]


def test_levels_between_are_skipped(objective, model):
    found = run(DDSReconstructor, objective, model, num_steps=12, adaptation=DDIPAdaptation(**ALWAYS | {"every": 5}))
    due = [index for index, loss in enumerate(found.record["adaptation"]["losses"]) if loss is not None]
    assert due == [0, 5, 8, 9, 10, 11]


def test_the_image_target_is_the_data_step_of_hqs(objective, model):
    adaptation, changed, u = adapted(DDIPAdaptation, objective, model, num_inner=4, beta=2.0, smoothing=0.0, cap=False)
    step = DiffusionStep(0, 1, 0.3, float(model.schedule.sigma(0.3)))
    u0, _ = changed.predict(u, step.t)
    em = PenalisedEM(4, 2.0, reference_steps=0)
    em.set_up(objective)
    em.set_scale(SCALE)
    expected = changed.to_latent(em(changed.to_image(u0), step).x)
    found = adaptation.coupling.latent_target(changed, u0, step, 1)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_smoothing_takes_noise_out_of_an_em_target_and_leaves_what_is_smooth(objective, model):
    adaptation, _, _ = adapted(DDIPAdaptation, objective, model, smoothing=20.0, cap=False)
    step = DiffusionStep(0, 1, 0.3, 1.0)
    start = torch.ones(1, *objective.geometry.shape)
    noise = 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    smooth = adaptation.coupling._smooth
    left = smooth(start, start + noise, step) - start
    assert float(left.std()) < 0.6 * float(noise.std())
    shifted = smooth(start, start + 0.1, step) - start
    assert 0.05 < float(shifted.mean()) < 0.101


def test_with_the_projector_the_denoised_image_is_held_by_its_anchor(objective, model):
    moved = []
    for beta in (1e-3, 1e3):
        options = {"coupling": "projector", "beta": beta, "num_updates": 8, "cap": False}
        adaptation, changed, u = adapted(DDIPAdaptation, objective, model, **options)
        step = DiffusionStep(0, 1, 0.3, float(model.schedule.sigma(0.3)))
        before, _ = changed.predict(u, step.t)
        adaptation(changed, u, step)
        moved.append(float((changed.predict(u, step.t)[0] - before).square().sum()))
    assert 0 < moved[1] < 0.5 * moved[0]


def test_hqs_asks_the_projector_less_where_a_target_serves_many_updates(objective, model):
    costs = {}
    for coupling in ("hqs", "projector"):
        adaptation = DDIPAdaptation(coupling=coupling, num_inner=2, num_updates=8, cap=False, max_noise_level=None)
        record = run(DDSReconstructor, objective, model, adaptation=adaptation).record
        plain = run(DDSReconstructor, objective, model).record
        costs[coupling] = sum(record["projections"][key] - plain["projections"][key] for key in ("forward", "back"))
        assert record["adaptation"]["updates"] == 8 * STEPS
    assert costs["projector"] == pytest.approx(2 * 8 * STEPS)
    assert costs["hqs"] == pytest.approx(2 * 2 * STEPS)


@each_coupling
@pytest.mark.parametrize("planes", ["transverse", "three"])
def test_grids_that_differ_from_the_networks(coupling, planes):
    objective, _ = make_toy((3, 6, 5), dtype=torch.float32)
    base = small_model()
    base.voxel_size, base.multiple = (3.0, 2.5, 2.5), 4
    model = base.on(objective.geometry, SCALE, planes)
    assert model.latent_shape != objective.geometry.shape
    found = run(DDSReconstructor, objective, model, adaptation=DDIPAdaptation(coupling=coupling, **ALWAYS))
    assert bool(torch.isfinite(found.get_output()).all())
    assert found.record["adaptation"]["updates"] == 2 * STEPS


def test_anatomy_conditions_the_adapted_network(objective):
    images = []
    for fill in (1.0, 3.0):
        anatomical = torch.ones(objective.geometry.shape)
        anatomical[:, :4] = fill
        bound = small_model(in_channels=2).on(objective.geometry, SCALE, anatomical=anatomical)
        images.append(run(DDSReconstructor, objective, bound, adaptation=DDIPAdaptation(**ALWAYS)).get_output())
    assert not torch.allclose(images[0], images[1], rtol=1e-3)


@pytest.mark.parametrize("grouped", [1, 3])
def test_groups_of_samples_do_not_change_the_result(objective, model, grouped):
    for coupling in ("hqs", "projector"):
        adaptation = DDIPAdaptation(coupling=coupling, num_updates=2)
        options = {"num_samples": 3, "adaptation": adaptation}
        together = run(DDSReconstructor, objective, model, **options).get_samples()
        apart = run(DDSReconstructor, objective, model, batch_size=grouped, **options).get_samples()
        assert torch.allclose(together, apart, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("carry_optimiser", [False, True])
@pytest.mark.parametrize("method", [DDIPReconstructor, SteerableReconstructor])
@pytest.mark.parametrize("rank", [2, None], ids=["low-rank", "all"])
def test_a_killed_run_resumes(method, rank, carry_optimiser, objective, model, tmp_path):
    kind = DDIPAdaptation if method is DDIPReconstructor else SteerableAdaptation
    path = tmp_path / "run.safetensors"

    def adaptation():
        return kind(rank=rank, carry_optimiser=carry_optimiser, **ALWAYS)

    whole = run(method, objective, model, num_steps=5, num_samples=2, adaptation=adaptation())
    callbacks = [CheckpointCallback(path, every=2), StopAt(3, KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        run(method, objective, model, num_steps=5, num_samples=2, adaptation=adaptation(), callbacks=callbacks)
    options = {"num_steps": 5, "num_samples": 2, "resume_from": path}
    resumed = run(method, objective, model, adaptation=adaptation(), **options)
    assert torch.equal(whole.get_samples(), resumed.get_samples())
    assert whole.record["adaptation"] == resumed.record["adaptation"]
    assert whole.record["projections"] == pytest.approx(resumed.record["projections"])
    assert whole.record["network_evaluations"] == resumed.record["network_evaluations"]
    with pytest.raises(ValueError, match="adaptation was"):
        run(method, objective, model, adaptation=kind(rank=rank, learning_rate=1.0), **options)


def test_a_kept_adapter_is_the_start_of_the_next_run(objective, model, tmp_path):
    first = DDIPAdaptation(rank=3, **ALWAYS)
    run(DDSReconstructor, objective, model, adaptation=first)
    path = first.save(tmp_path / "patient.safetensors")
    kept = Adapter.load(path, model)
    assert kept.hash == first.adapter.hash
    # Used as it is, it is the model that it was merged into.
    used = run(DDSReconstructor, objective, model, adaptation=DDIPAdaptation(adapter=path, num_rounds=0))
    merged = run(DDSReconstructor, objective, kept.merge())
    assert torch.allclose(used.get_output(), merged.get_output(), rtol=1e-5)
    further = run(DDSReconstructor, objective, model, adaptation=DDIPAdaptation(adapter=path, cap=False))
    assert further.record["adaptation"]["rank"] == 3
    assert further.record["adaptation"]["adapter"] == kept.hash != further.record["adaptation"]["adapter_hash"]
    other = small_model(beta_max=12.0).on(objective.geometry, SCALE)
    with pytest.raises(AdapterFileError, match="another model"):
        run(DDSReconstructor, objective, other, adaptation=DDIPAdaptation(adapter=path))
    with pytest.raises(RuntimeError, match="no adapter yet"):
        DDIPAdaptation().save(path)


@each_coupling
def test_memory_is_flat(coupling, objective, model):
    counts, adaptation = {}, DDIPAdaptation(coupling=coupling, **ALWAYS)

    def count(record):
        if record.step >= 3:  # before that, what is kept to the end is made
            gc.collect()
            tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
            counts.setdefault(record.step, []).append(len(tensors))

    gc.freeze()  # what other tests have left need not be looked through
    try:
        reconstructor = HQSReconstructor(objective, model, num_steps=4, adaptation=adaptation).process()
        reconstructor.callbacks = (count,)
        for _ in range(2):
            reconstructor.process()
    finally:
        gc.unfreeze()
    assert counts[3] == counts[4]
    assert counts[4][0] == counts[4][1]
    assert not any(p.requires_grad or p.grad is not None for p in adaptation.adapter.network.parameters())


def test_cost_is_announced_before_the_run(objective, model, caplog):
    caplog.set_level(logging.INFO, logger="sirf_diffusion")
    run(DDSReconstructor, objective, model, adaptation=DDIPAdaptation())
    (line,) = [message for message in caplog.messages if message.startswith("adaptation ddip")]
    assert "numbers of the network may change" in line
    assert "MiB" in line
    assert " s per noise level" in line


def test_network_evaluations_are_counted(objective, model):
    found = run(DDSReconstructor, objective, model, num_samples=2, adaptation=DDIPAdaptation(**ALWAYS))
    assert found.record["network_evaluations"] == 2 * STEPS * (1 + 2)


def test_a_checkpoint_holds_weights_only_once(objective, model, tmp_path):
    path = tmp_path / "run.safetensors"
    adaptation = DDIPAdaptation(rank=2, **ALWAYS)
    run(DDSReconstructor, objective, model, adaptation=adaptation, callbacks=[CheckpointCallback(path)])
    names = [name for name in Checkpoint.load(path).tensors if name.startswith("adaptation.")]
    assert len(names) == len(adaptation.adapter.parameters())


def test_bad_settings_are_named(objective, model):
    wrong = {
        "coupling": "loose",
        "learning_rate": 0.0,
        "num_rounds": -1,
        "num_inner": 0,
        "num_updates": 0,
        "beta": 0.0,
        "total_variation": -1.0,
        "every": 0,
        "cap": float("nan"),
        "rank": -2,
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            DDIPAdaptation(**{name: value})
    with pytest.raises(ValueError, match="starting_noise_level"):
        DDIPReconstructor(objective, small_model().on(objective.geometry, 1.0), starting_noise_level=0.0)
    with pytest.raises(ValueError, match="data-step"):  # to learn from
        run(DiffusionReconstructor, objective, model, adaptation=SteerableAdaptation())
    toy = ToyModel(Gaussian()).on(objective.geometry, 1.0)
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        run(DDSReconstructor, objective, toy, adaptation=DDIPAdaptation())


def test_levels_above_the_limit_are_skipped(objective, model):
    record = Record()
    options = ALWAYS | {"max_noise_level": 1.0}
    run(DDSReconstructor, objective, model, adaptation=SteerableAdaptation(**options), callbacks=[record])
    assert [step.loss is not None for step in record.steps] == [step.sigma <= 1.0 for step in record.steps]
    assert {step.sigma <= 1.0 for step in record.steps} == {True, False}


def test_total_variation_is_that_of_a_step():
    u = torch.zeros(1, 1, 4, 10, dtype=torch.float64)
    u[..., 5:] = 3.0
    assert float(total_variation(u)) == pytest.approx(3.0 * 4 / 40, abs=1e-3)
