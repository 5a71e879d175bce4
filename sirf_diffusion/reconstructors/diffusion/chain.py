"""The state of a reverse-diffusion run: noisy images, and the random numbers that drive them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.grid import Window

#: How the noises of the samples of one run belong together.
NOISES = ("balanced", "independent")


@dataclass
class Chain:
    """Noisy latent images ``u [samples, z, y, x]``, data-consistent images ``x`` of the last step, and steps done.

    ``previous`` are the latent data-consistent images that a multistep solver remembers. ``correction`` is what the
    data changed at the last level, where the next one takes it over.
    ``generators`` are those of all samples of the run; ``members`` tells which of them are here, None for all.
    ``window`` is that of the model's `~sirf_diffusion.models.grid.GridAdapter`: noise is drawn for the whole grid and
    cut, so that it is the same wherever a box begins and ends.
    """

    u: Tensor
    x: Tensor | None
    generators: list[torch.Generator]
    noises: str = "independent"
    step: int = 0
    members: tuple[int, ...] | None = None
    previous: Tensor | None = None
    window: Window | None = None
    correction: Tensor | None = None

    @classmethod
    def start(
        cls,
        mean: Tensor,
        nu: float,
        num_samples: int,
        seed: int,
        noises: str = "independent",
        members: tuple[int, ...] | None = None,
        window: Window | None = None,
    ) -> Chain:
        """``u = mean + nu z`` for every sample, with a latent image ``mean [z, y, x]``."""
        generators = [torch.Generator().manual_seed(sample_seed(seed, k)) for k in range(num_samples)]
        number = num_samples if members is None else len(members)
        chain = cls(mean.expand(number, *mean.shape).clone(), None, generators, noises, members=members, window=window)
        chain.u += nu * chain.noise()
        return chain

    def noise(self) -> Tensor:
        """Fresh noise, each sample from its own generator on the CPU: the same numbers on every device."""
        shape, part = self.window or (self.u.shape[1:], ...)

        def draw(generator: torch.Generator) -> Tensor:
            return torch.randn(shape, generator=generator)[part]

        if self.u.device.type == "cpu":
            drawn = [draw(g) for g in self.generators]
        else:  # each generator draws in one thread, while a GPU would wait
            with ThreadPoolExecutor(len(self.generators)) as pool:
                drawn = list(pool.map(draw, self.generators))
        noise = torch.stack([one.to(self.u) for one in drawn])
        if self.noises == "balanced":
            noise = balanced(noise)  # over all samples, wherever the others are
        return noise if self.members is None else noise[list(self.members)]

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        generators = {f"generator_{k}": g.get_state() for k, g in enumerate(self.generators)}
        return {
            "u": self.u,
            "x": self.x,
            **generators,
            **{name: x for name in ("previous", "correction") if (x := getattr(self, name)) is not None},
        }

    @classmethod
    def of(
        cls,
        tensors: dict[str, Tensor],
        step: int,
        latent: torch.device,
        image: torch.device,
        noises: str,
        members: tuple[int, ...] | None = None,
        window: Window | None = None,
    ) -> Chain:
        """Inverse of :meth:`tensors`."""
        generators = [torch.Generator() for name in tensors if name.startswith("generator_")]
        for k, generator in enumerate(generators):
            generator.set_state(tensors[f"generator_{k}"])
        previous = tensors["previous"].to(latent) if "previous" in tensors else None
        correction = tensors["correction"].to(image) if "correction" in tensors else None
        u, x = tensors["u"].to(latent), tensors["x"].to(image)
        return cls(u, x, generators, noises, step, members, previous, window, correction)


def balanced(noise: Tensor) -> Tensor:
    r"""Independent standard normal noises ``[samples, ...]`` as such that add up to zero.

    .. math:: z_k \leftarrow \sqrt{K / (K - 1)}\; \Bigl(z_k - \tfrac{1}{K} \sum_j z_j\Bigr)

    Each is standard normal by itself, any two have correlation :math:`-1 / (K - 1)`; for two it is a noise and its
    negative (antithetic variates, Hammersley and Morton 1956, doi:10.1017/S0305004100031455; in diffusion models Jia
    et al. 2025, arXiv:2506.06185). What the noise does to a sample is mostly linear, so that it cancels in their mean.
    """
    number = len(noise)
    return noise if number == 1 else (noise - noise.mean(0)) * (number / (number - 1)) ** 0.5


def posterior_sd(samples: Tensor, noises: str) -> Tensor:
    """Standard deviation of a posterior whose samples ``[samples, ...]`` were driven by such noises.

    The divisor is ``samples - 1`` for independent ones. For balanced ones it is ``samples``: their mean does not share
    their deviations.
    """
    return samples.std(0, correction=0 if noises == "balanced" else 1)


def sample_seed(seed: int, sample: int) -> int:
    """A seed of its own for each sample: ``seed + sample`` would make neighbouring seeds share samples."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{sample}".encode()).digest()[:4], "little")
