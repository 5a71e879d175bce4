"""Score models: a network, its noise schedule, its intensity scale and its grid, in one file."""

from __future__ import annotations

from .intensity import intensity_scale
from .networks import NetworkConfig, build_network
from .schedules import DDPMSchedule, NoiseSchedule, VESchedule, VPSchedule
from .score_model import NetworkCounter, ScoreModel
from .storage import DEFAULT_MODEL, ModelConfig, ModelFileError, list_models, load_model, read_config, save_model

__all__ = [
    "DEFAULT_MODEL",
    "DDPMSchedule",
    "ModelConfig",
    "ModelFileError",
    "NetworkConfig",
    "NetworkCounter",
    "NoiseSchedule",
    "ScoreModel",
    "VESchedule",
    "VPSchedule",
    "build_network",
    "intensity_scale",
    "list_models",
    "load_model",
    "read_config",
    "save_model",
]
