"""What holds for every reconstructor: one image per seed, whatever the unit; finite numbers; an end when asked."""

import pytest
import torch
from tiny_model import small_model
from toy_denoisers import ResidualOf, gaussian_denoiser
from toy_model import Gaussian, Record, StopAt, ToyModel
from toy_objective import ToyObjective, make_toy

from sirf_diffusion.priors import RelativeDifferencePenalty, ScorePenalty
from sirf_diffusion.reconstructors import MAPEM, MLEM, OSEM, DDSReconstructor, HQSReconstructor
from sirf_diffusion.reconstructors.adaptation.ddip import (
    DDIPAdaptation,
    DDIPReconstructor,
    SteerableAdaptation,
    SteerableReconstructor,
)
from sirf_diffusion.reconstructors.diffusion.lisch import LikelihoodScheduledReconstructor

pytestmark = pytest.mark.filterwarnings("ignore:50 MLEM iterations", "ignore:step .* of .*target")
STEPS = 8


def made(kind, objective, scale, **options):
    """A reconstructor for images around ``scale``."""
    if kind in (MLEM, OSEM):
        return kind(objective, STEPS, callbacks=options.get("callbacks", ()))
    if kind is MAPEM or kind == "bsrem":
        prior = (
            ScorePenalty(ResidualOf(gaussian_denoiser(0.5, 1.0), scale), 0.3, 0.5, memory=True)
            if kind is MAPEM
            else RelativeDifferencePenalty(objective.geometry, 0.1 / scale, epsilon=0.01 * scale)
        )
        return MAPEM(objective, prior, STEPS, callbacks=options.get("callbacks", ()))
    model = ToyModel(Gaussian(1.0, 0.5))
    if kind in (DDIPReconstructor, SteerableReconstructor):
        model = small_model(dtype=objective.matrix.dtype)
        adaptation = DDIPAdaptation if kind is DDIPReconstructor else SteerableAdaptation
        options["adaptation"] = adaptation(num_updates=1)
    model = model.on(objective.geometry, scale)
    return kind(objective, model, **{"num_steps": STEPS, "num_samples": 2, "seed": 3, **options})


SAMPLERS = [
    DDSReconstructor, HQSReconstructor, LikelihoodScheduledReconstructor, DDIPReconstructor, SteerableReconstructor,
]  # fmt: skip
every_reconstructor = pytest.mark.parametrize("kind", [MLEM, OSEM, MAPEM, "bsrem", *SAMPLERS])


@every_reconstructor
def test_the_same_again_gives_the_same_image_and_leaves_the_global_random_state(kind, untouched_random_state):
    first, again = (made(kind, make_toy((3, 6, 5), num_subsets=4)[0], 1.0) for _ in range(2))
    expected = first.process().get_output()
    assert torch.equal(again.process().get_output(), expected)
    assert torch.equal(first.process().get_output(), expected)
    if kind in SAMPLERS:
        other = made(kind, make_toy((3, 6, 5), num_subsets=4)[0], 1.0, seed=4).process()
        assert not torch.allclose(other.get_samples()[1], first.get_samples()[0], rtol=0.01)


@every_reconstructor
def test_the_unit_of_the_image_does_not_matter(kind):
    objective, _ = make_toy(num_subsets=2)
    shape = objective.geometry.shape
    scaled = ToyObjective(objective.matrix / 8, objective.prompts, objective.background, shape, num_subsets=2)
    images = [made(kind, each, c).process().get_output() / c for each, c in ((objective, 1.5), (scaled, 12.0))]
    torch.testing.assert_close(*images, rtol=1e-7, atol=1e-9)


@every_reconstructor
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("num_subsets", [1, 4])
def test_hard_data_give_finite_images_that_are_zero_where_nothing_is_seen(kind, shape, num_subsets):
    objective, _ = make_toy(shape, counts=60, background=0.0, blind_voxel=True, dtype=torch.float32)
    assert int((objective.prompts == 0).sum()) > 20
    if shape[0] > 1:
        objective.matrix[:, : shape[1] * shape[2]] = 0  # the scanner does not see the first slice
        objective.prompts[objective.matrix.sum(1) == 0] = 0
    objective = objective.divided(num_subsets)
    run = made(kind, objective, 1.0).process()
    images = run.get_samples() if kind in SAMPLERS else run.get_output()[None]
    blind = objective.sensitivity() == 0
    assert bool(torch.isfinite(images).all())
    assert bool((images[:, blind] == 0).all())
    assert bool((images[:, ~blind] >= 0).all())
    assert kind not in SAMPLERS or bool(torch.isfinite(run.get_uncertainty()).all())


@every_reconstructor
def test_stop_iteration_ends_with_the_image_of_that_step(kind):
    record = Record()
    run = made(kind, make_toy(num_subsets=4)[0], 1.0, callbacks=[record, StopAt(3)]).process()
    assert len(record.steps) == 3
    assert run.record["stopped_early"]
    assert torch.equal(run.get_samples() if kind in SAMPLERS else run.get_output(), record.images[-1])
