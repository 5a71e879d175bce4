"""Uses every public name as a user would; test_typing.py has mypy check it, and it is not run."""

from typing import Any

import torch

import sirf_diffusion as sd

geometry = sd.ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0))
example = sd.load_example("brain2d")
acquisition: sd.Acquisition = example.acquisition
objective: sd.Objective = sd.as_objective(acquisition.objective(14))
image: torch.Tensor = objective.early_image()
engine = sd.get_engine("embedded")

model: sd.ScoreModel = sd.ScoreModel.load("brain").guided_by(None)
bound: sd.ScoreModel = model.for_data(objective, planes="transverse")
clean: torch.Tensor = bound.denoise_at(image, 0.2)

penalties: list[sd.Penalty] = [
    sd.AnchorPenalty(image, 1.0),
    sd.BowsherPenalty(geometry, 1.0, image),
    sd.ParallelLevelSetsPenalty(geometry, 1.0, image, 1.0, 1.0),
    sd.QuadraticPenalty(geometry, 1.0, sd.kappa_image(objective, image)),
    sd.RelativeDifferencePenalty(geometry, 1.0),
    sd.ScorePenalty(bound, 0.2),
]
slopes: list[torch.Tensor] = [penalty.gradient(image) for penalty in penalties]

maps = [sd.MLEM(objective, 5), sd.OSEM(objective), sd.RelativeDifferenceMAP(objective), sd.ScoreMAP(objective, model)]
best: Any = sd.MAPEM(objective, penalties[0], 20).process().get_output()

samplers = [
    sd.DDSReconstructor(objective, model, num_samples=2, anchor_strength=4.0),
    sd.HQSReconstructor.published(objective, model),
    sd.LikelihoodScheduledReconstructor(objective, model, num_steps=20),
    sd.DDIPReconstructor(objective, model, adaptation=sd.DDIPAdaptation(rank=8)),
    sd.SteerableReconstructor(objective, model, adaptation=sd.SteerableAdaptation(every=1)),
]
for sampler in samplers:
    sampler.set_up(image)
    sampler.process()
    samples: Any = sampler.get_samples()

mean: torch.Tensor = sd.reconstruct(acquisition, "lisch", model="brain", num_samples=2, seed=1).image
version: str = sd.__version__
