"""Recipes: everything that decides how a bundled model is trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..models.networks import NetworkConfig
from ..models.schedules import NoiseSchedule, VPSchedule


@dataclass(frozen=True)
class Recipe:
    """Data, network, noise and optimiser of one training.

    Noise levels are drawn as ``ln sigma ~ N(log_sigma_mean, log_sigma_sd^2)`` within the schedule's range
    (Karras et al. 2022, arXiv:2206.00364), a tenth of them log-uniform so that no level goes unseen. The loss is
    the mean squared error of the ``v`` prediction. Learning rate: linear warm-up, constant, linear decay over the
    last quarter.
    """

    name: str
    tracer: str
    subjects: tuple[int, ...]
    validation_subjects: tuple[int, ...]
    contrasts: int = 3
    architecture: NetworkConfig = field(default_factory=NetworkConfig)
    schedule: NoiseSchedule = field(default_factory=VPSchedule)
    crops: tuple[int, ...] = (96, 96, 96, 128)
    batch_size: int = 8
    num_steps: int = 10_000
    learning_rate: float = 6e-4
    warmup_steps: int = 200
    ema_decay: float = 0.999
    log_sigma_mean: float = -0.8
    log_sigma_sd: float = 1.3
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Provenance for the model file: plain values only."""
        content = asdict(self) | {"architecture": self.architecture.to_dict(), "schedule": self.schedule.to_config()}
        for name in ("subjects", "validation_subjects"):
            numbers = getattr(self, name)
            content[name] = f"simulated, seeds {min(numbers)} to {max(numbers)}"
        return content


#: Seeds from 9000 on are kept for examples, tests and benchmarks: no recipe may train or validate on them.
FIRST_HELD_OUT_SUBJECT = 9000

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="brain-fdg",
            tracer="[18F]FDG, head",
            subjects=tuple(range(64)),
            validation_subjects=tuple(range(800, 804)),
            architecture=NetworkConfig(
                channels=(32, 64, 128),
                attention_levels=(False, False, False),
                num_res_blocks=2,
                num_head_channels=32,
                patch_size=2,
            ),
        ),
    )
}
