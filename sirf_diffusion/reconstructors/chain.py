"""The state of a reverse-diffusion run: noisy images, and a random generator for each of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Chain:
    """Noisy latent images ``u [samples, z, y, x]``, data-consistent images ``x`` of the last step, and steps done."""

    u: Tensor
    x: Tensor | None
    generators: list[torch.Generator]
    step: int = 0

    @classmethod
    def start(cls, mean: Tensor, nu: float, num_samples: int, seed: int) -> Chain:
        """``u = mean + nu z`` for every sample, with a latent image ``mean [z, y, x]``."""
        generators = [torch.Generator().manual_seed(sample_seed(seed, k)) for k in range(num_samples)]
        chain = cls(mean.expand(num_samples, *mean.shape).clone(), None, generators)
        chain.u += nu * chain.noise()
        return chain

    def noise(self) -> Tensor:
        """Fresh noise, each sample from its own generator on the CPU: the same numbers on every device."""
        shape = self.u.shape[1:]
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators]).to(self.u)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {"u": self.u, "x": self.x, **{f"generator_{k}": g.get_state() for k, g in enumerate(self.generators)}}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], step: int, latent: torch.device, image: torch.device) -> Chain:
        """Inverse of :meth:`tensors`."""
        generators = []
        for k in range(len(tensors["u"])):
            generators.append(torch.Generator())
            generators[-1].set_state(tensors[f"generator_{k}"])
        return cls(tensors["u"].to(latent), tensors["x"].to(image), generators, step)


def sample_seed(seed: int, sample: int) -> int:
    """A seed of its own for each sample: ``seed + sample`` would make neighbouring seeds share samples."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}".encode()).digest()[:4], "little")
