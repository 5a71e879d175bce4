"""A score model whose network is small enough to fine-tune in a test, and does something with random weights."""

import torch

from sirf_diffusion.models import NetworkConfig, ScoreModel, VPSchedule, build_network


def tiny_model(seed: int = 0, in_channels: int = 1, dtype: torch.dtype = torch.float32) -> ScoreModel:
    """A two-level UNet with attention and all three orientations; the last layer, which MONAI makes zero, is random."""
    config = NetworkConfig(
        channels=(8, 8), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8,
        in_channels=in_channels,
    )  # fmt: skip
    network = build_network(config, seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.copy_(0.1 * torch.randn(last.weight.shape, generator=generator))
    network.requires_grad_(False).eval()
    return ScoreModel(network, VPSchedule(), "v", architecture=config)


class SmallNetwork(torch.nn.Module):
    """Two convolutions and a time embedding: milliseconds in a test, all that adaptation distinguishes."""

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1)
            self.first = torch.nn.Conv2d(in_channels, 8, 3, padding=1)
            self.time_embed = torch.nn.Linear(1, 8)
            self.orientation = torch.nn.Embedding(3, 8)
            self.last = torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, images: torch.Tensor, time: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        embedded = self.time_embed(time[:, None] / 1000) + self.orientation(class_labels)
        return self.last(torch.nn.functional.silu(self.first(images) + embedded[:, :, None, None]))


def small_model(in_channels: int = 1, dtype: torch.dtype = torch.float32, beta_max: float = 10.0) -> ScoreModel:
    """A model with a `SmallNetwork`; another ``beta_max`` gives another hash."""
    network = SmallNetwork(in_channels).to(dtype).requires_grad_(False)
    return ScoreModel(network, VPSchedule(beta_max=beta_max), "v", in_channels=in_channels)
