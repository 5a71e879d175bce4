"""The deep image prior: an image that an untrained network can draw, fitted to the data and stopped in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sirf_diffusion.engines.em import em_update, inside, raise_zeros
from sirf_diffusion.engines.objective import Objective
from sirf_diffusion.geometry.checks import check_count, check_real
from sirf_diffusion.models.predictor import NetworkCounter
from sirf_diffusion.reconstructors.base import Reconstructor
from sirf_diffusion.reconstructors.records import Cost, StepRecord

#: Waves per field of view in the network's input, root mean square along each axis.
WAVES = 4.0


class DeepImagePrior(Reconstructor):
    r"""An image drawn by a small untrained network, fitted to EM's updates of itself.

    .. math:: x_\theta = c\, \mathrm{softplus}(f_\theta(z)), \qquad
              \theta \leftarrow \arg\min_\theta \| x_\theta - x_{EM}(x_\theta^{old}) \|^2

    with a few steps of Adam for the minimum, from random weights, for a fixed random input ``z`` of plane waves, or an
    anatomical image as in the PET work (Gong et al. 2019, doi:10.1109/TMI.2018.2888491, who alternate EM and training
    likewise; Ulyanov et al. 2018, arXiv:1711.10925). The network draws structure sooner than noise: the number of
    iterations is the regularisation.

    Parameters
    ----------
    num_iterations
        EM updates.
    intensity_scale
        ``c``, image units.
    num_inner
        Steps of Adam for each of them.
    learning_rate
        Of Adam.
    num_channels
        Channels of the finest level; three levels with 1, 2 and 4 times as many.
    anatomical
        Network input ``[z, y, x]`` in place of noise.
    seed
        Of the weights and the input.
    """

    method: ClassVar[str] = "deep-image-prior"

    def __init__(
        self,
        objective: Objective,
        num_iterations: int,
        *,
        intensity_scale: float,
        num_inner: int = 4,
        learning_rate: float = 1e-2,
        num_channels: int = 16,
        anatomical: Tensor | None = None,
        seed: int = 0,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, callbacks=callbacks)
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.intensity_scale = check_real("intensity_scale", intensity_scale, open_below=True)
        self.num_inner = check_count("num_inner", num_inner)
        self.learning_rate = check_real("learning_rate", learning_rate, open_below=True)
        self.num_channels = check_count("num_channels", num_channels)
        self.anatomical, self.seed = anatomical, check_count("seed", seed, minimum=0)
        self.settings: dict[str, Any] = {
            "num_iterations": self.num_iterations,
            "num_inner": self.num_inner,
            "learning_rate": self.learning_rate,
            "num_channels": self.num_channels,
            "anatomical": anatomical is not None,
            "seed": self.seed,
        }
        self.counter = NetworkCounter()

    def _run(self) -> Tensor:
        sensitivity = self.objective.sensitivity()
        mask = inside(sensitivity)
        planes, height, width = self.objective.geometry.shape
        generator = torch.Generator().manual_seed(self.seed)
        source = self._source(planes, height, width, generator).to(sensitivity)
        network = _SmallNetwork(source.shape[1], planes, self.num_channels, generator).to(sensitivity)
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        x = self._initial
        for number in range(1, self.num_iterations + 1):
            evaluation = self.objective.at(x)
            self._trace.append(float(evaluation.value))
            target = em_update(self.objective, x, evaluation=evaluation) / self.intensity_scale
            began = time.perf_counter()
            for _ in range(self.num_inner):
                with torch.enable_grad():
                    drawn = functional.softplus(network(source))[0, :, :height, :width]
                    loss = (drawn - target)[mask].square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                self.counter.evaluations += 1
            self.counter.seconds += time.perf_counter() - began
            x = raise_zeros(self.intensity_scale * drawn.detach(), sensitivity)
            if self.callbacks and self._notify(self._step(number, x, evaluation.value)):
                break
        return x

    def _source(self, planes: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """The input ``[1, channels, h, w]``, padded to a multiple of four."""
        height, width = height + -height % 4, width + -width % 4
        if self.anatomical is None:
            return _waves(self.num_channels, height, width, generator)
        source = self.anatomical.float().cpu() / self.anatomical.float().cpu().amax()
        return functional.pad(source[None], (0, width - source.shape[-1], 0, height - source.shape[-2]))

    def _step(self, number: int, x: Tensor, value: Tensor) -> StepRecord:
        seconds = time.perf_counter() - self._start
        step = StepRecord.of_iteration(
            self.method, number, self.num_iterations, x, value, self.objective.counter, seconds
        )
        step.network_evaluations = self.counter.evaluations
        return step

    def _spent(self) -> Cost:
        return Cost.now(self.objective, self)


class _SmallNetwork(nn.Module):
    """A U-shaped network of three levels; the planes of a volume are its output's channels."""

    def __init__(self, inputs: int, planes: int, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = (channels, 2 * channels, 4 * channels)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((inputs, *sizes[:-1]), sizes, strict=True))
        self.up = nn.ModuleList([_block(sizes[2] + sizes[1], sizes[1]), _block(sizes[1] + sizes[0], sizes[0])])
        self.last = _convolution(channels, planes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                with torch.no_grad():
                    module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
                    module.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](functional.avg_pool2d(fine, 2))
        coarse = self.down[2](functional.avg_pool2d(middle, 2))
        middle = self.up[0](torch.cat([_twice(coarse), middle], 1))
        return self.last(self.up[1](torch.cat([_twice(middle), fine], 1)))


def _waves(number: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Plane waves of random directions: unlike white noise they tell a small network where in the image it is."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    frequencies = WAVES * torch.randn(number, 2, 1, 1, generator=generator)
    phases = torch.rand(number, 1, 1, generator=generator)
    return torch.cos(2 * math.pi * (frequencies[:, 0] * y + frequencies[:, 1] * x + phases))[None]


def _convolution(before: int, after: int, size: int) -> nn.Conv2d:
    # Without PyTorch's own initial weights, which come from the global random state.
    return nn.utils.skip_init(nn.Conv2d, before, after, size, padding=size // 2)


def _block(before: int, after: int) -> nn.Sequential:
    norm = nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(_convolution(before, after, 3), norm, nn.LeakyReLU(0.1))


def _twice(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
