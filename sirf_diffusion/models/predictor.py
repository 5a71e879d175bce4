"""What a model finds in noisy images: in network units on the latent grid, and in image units on the image grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..geometry.images import ImageGeometry
from .conditioning import Conditioning
from .coverage import Coverage, Network, clock
from .grid import Box, GridAdapter, Window
from .networks import NetworkConfig, network_time
from .schedules import NoiseSchedule, denoised_and_noise


@dataclass
class NetworkCounter:
    """Counts network work: one evaluation is one image (or volume) denoised once, in however many orientations;
    ``seconds`` is wall time.
    """

    evaluations: int = 0
    seconds: float = 0.0


class Predictor:
    """A network with its schedule and, once bound, its image grid: base of `ScoreModel`, which makes one.

    Two sets of units meet here. *Network units*, on the latent grid: ``u_t = gamma u_0 + nu z`` (`predict`,
    `to_latent`, `to_image`; what samplers use). *Image units*, on the image grid: ``x_t = c u_t`` with the intensity
    scale ``c`` (`denoise`, `score`, `predict_noise`, `denoise_at`, `residual`; what priors and users need). Images are
    ``[..., z, y, x]`` with any leading dimensions; nothing is ever clipped.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str
    time_input: str
    multiple: int
    in_channels: int
    spatial_dims: int
    architecture: NetworkConfig | None
    precision: str
    #: The file that it was loaded from.
    path: Path | None = None
    counter: NetworkCounter
    max_batch: int | None = None
    block: int | None = None
    gradient_batch: int | None = None
    geometry: ImageGeometry | None = None
    _scale: float | None = None
    _grid: GridAdapter | None = None
    anatomical_input: Conditioning | None = None
    #: A `sirf_diffusion.models.coarse.Coarse` that takes the network's place in `predict` while the noise is strong.
    coarse: Any = None

    @property
    def intensity_scale(self) -> float:
        """``c``, image units for one network unit."""
        self._bound()
        return float(self._scale)  # type: ignore[arg-type]

    @property
    def planes(self) -> str:
        """``"transverse"``, ``"three"``, ``"alternating"`` or ``"volume"``."""
        return "transverse" if self._grid is None else self._grid.planes

    def planes_for(self, geometry: ImageGeometry, *, sampling: bool = False) -> str:
        """How images of a grid are best seen: volumes in three orientations, which take turns in ``sampling``.

        ``"volume"`` if the network takes those.
        """
        if self.spatial_dims == 3:
            return "volume"
        if geometry.shape[0] == 1:
            return "transverse"
        return "alternating" if sampling else "three"

    @property
    def extent(self) -> float | None:
        """Side of the central square that is covered, mm; None for the whole image."""
        return None if self._grid is None else self._grid.extent

    @property
    def covered(self) -> Tensor | None:
        """Boolean image: which voxels the network covers, if it was given a box; None for all."""
        return None if self._grid is None or self._grid.box is None else self._grid.covered

    @property
    def box(self) -> Box | None:
        """The voxels that the network was told to cover; None for the whole image."""
        return None if self._grid is None else self._grid.box

    @property
    def conditioning(self) -> dict[str, Any] | None:
        """Hash of the anatomical image and guidance weight, ready for JSON; None for a model that takes none."""
        return None if self.anatomical_input is None else self.anatomical_input.describe()

    @property
    def anatomy(self) -> Tensor | None:
        """The anatomical image as the network sees it, on the latent grid; None without one."""
        return None if self.anatomical_input is None else self.anatomical_input.anatomy

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._coverage.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape ``(Z', Y', X')`` of a latent image."""
        return self.latent_geometry.shape

    @property
    def window(self) -> Window | None:
        """Of a model that is bound to a box: what that is of the latent grid without it."""
        return self._bound().window

    @property
    def latent_geometry(self) -> ImageGeometry:
        """Grid of a latent image."""
        return self._bound().latent_geometry

    @property
    def network_input(self) -> tuple[tuple[int, ...], float]:
        """Shape ``(in, ...)`` of the largest image of which gradients are taken at once, and how many a volume is."""
        shape, number = self._coverage.largest_with_gradients(self.latent_shape)
        return (self.in_channels, *shape), number

    @property
    def latent_inside(self) -> Tensor:
        """Boolean latent image: which voxels lie in the image's field of view."""
        return self._bound().latent_inside

    @property
    def latent_shares(self) -> Tensor:
        """``P^T 1``: how many of the latent voxels each image voxel is, 1 where sizes agree, less where it is smaller.

        As diagonal matrix not below ``P^T P``: the rows of ``P`` have no negative weights and sum to at most one.
        """
        return self._bound().to_latent_adjoint(torch.ones(self.latent_shape, device=self.device))

    def predict(self, u: Tensor, t: float, turn: int | None = None) -> tuple[Tensor, Tensor]:
        """Clean image and noise in a noisy latent image: ``(u0, eps)`` with ``u = gamma u0 + nu eps``.

        ``u`` is ``[..., Z', Y', X']`` in network units, ``t`` its time, with noise left (``nu > 0``; ValueError
        otherwise). Three orientations: the network's outputs are averaged; ``u0``, ``eps`` and the score are the same
        affine functions of each, so that all of them are averages. With ``planes="alternating"``, ``turn`` is the
        number of the noise level: only those slices whose turn it is are looked at; None for the mean over all.
        """
        gamma, nu = self.schedule.gamma(float(t)), self.schedule.nu(float(t))
        if self.coarse is not None and nu > self.coarse.above * gamma:
            return self.coarse.predict(u, gamma, nu, turn, self.precision)
        with torch.no_grad():
            return self._predict(u, t, turn)

    def predict_with_gradient(self, u: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """`predict`, differentiable with respect to ``u`` and to those of the network's weights that ask for it.

        Where the slices need more than one network call, activations are not kept but computed again in the backward
        pass, one call at a time, so that memory is that of one call. Time in the backward pass is not counted.
        """
        with torch.enable_grad():
            return self._predict(u, t)

    def _predict(self, u: Tensor, t: float, turn: int | None = None) -> tuple[Tensor, Tensor]:
        t = float(t)
        gamma, nu = self.schedule.gamma(t), self.schedule.nu(t)
        if nu <= 0:
            raise ValueError(f"a network needs noise: found none at t = {t:g}")
        if self._grid is not None and tuple(u.shape[-3:]) != self.latent_shape:
            raise ValueError(f"u must have the shape [..., {self.latent_shape}], found {tuple(u.shape)}; see to_latent")
        start = clock(self.device)
        output = self._evaluate(u / math.sqrt(gamma * gamma + nu * nu), t, turn)
        if not bool(torch.isfinite(output.detach()).all()):
            raise FloatingPointError(
                f"the score model's network gives values that are not finite (at noise level "
                f"{self.schedule.sigma(t):.3g}): its file is damaged, or it does not suit these images; use another"
            )
        passes = 1 if self.anatomical_input is None else len(self.anatomical_input.terms())
        self.counter.evaluations += math.prod(u.shape[:-3]) * passes
        self.counter.seconds += clock(self.device) - start
        return denoised_and_noise(self.prediction, output, u, gamma, nu)

    def seen_by(
        self, network: Network, architecture: NetworkConfig | None, images: Tensor, time: float, turn: int | None = None
    ) -> Tensor:
        """Output of another network for latent images ``[..., in, Z', Y', X']``, seen as this model's network sees its.

        ``time`` is what the network is told, see `network_time`. Seconds are counted with the model's own.
        """
        start = clock(self.device)
        with torch.no_grad():
            output = replace(self._coverage, network=network, architecture=architecture)(images, time, turn)
        self.counter.seconds += clock(self.device) - start
        return output

    def to_latent(self, x: Tensor) -> Tensor:
        """Image in image units to latent image in network units: ``u = P x / c``."""
        return self._bound().to_latent(x.to(self.device)) / self.intensity_scale

    def to_image(self, u: Tensor) -> Tensor:
        """Latent image in network units to image in image units: ``x = c R u``.

        The inverse of `to_latent` where voxel sizes agree; close to it for images without detail at the voxel size
        where they do not.
        """
        return self._bound().to_image(u) * self.intensity_scale

    def denoise(self, x_t: Tensor, t: float) -> Tensor:
        """Clean image ``E[x_0 | x_t]`` in ``x_t = gamma x_0 + c nu z``, image units."""
        u0, _ = self.predict(self.to_latent(x_t), t)
        return self.to_image(u0).to(x_t.device)

    def predict_noise(self, x_t: Tensor, t: float) -> Tensor:
        """Noise ``z`` in ``x_t = gamma x_0 + c nu z``, without unit."""
        _, eps = self.predict(self.to_latent(x_t), t)
        return self._bound().to_image(eps).to(x_t.device)

    def score(self, x_t: Tensor, t: float) -> Tensor:
        """Gradient of ``log p(x_t)``: ``-z / (c nu)`` (Tweedie's formula), per image unit."""
        return self.predict_noise(x_t, t) / (-self.intensity_scale * self.schedule.nu(float(t)))

    def denoise_at(self, x: Tensor, sigma: float) -> Tensor:
        """Clean image ``E[x_0 | x]`` in ``x = x_0 + c sigma z``: the noise level is given and the image not attenuated.

        A discrete schedule is asked at the nearest level it has.
        """
        return self.to_image(self._denoise_latent(self.to_latent(x), sigma)).to(x.device)

    def residual(self, x: Tensor, sigma: float) -> Tensor:
        """What denoising takes away, ``c P^T (P x / c - D(P x / c; sigma))``, image units.

        Divided by ``(c sigma)^2``, it is the gradient of ``-log p_sigma(P x / c)`` with respect to ``x``: the adjoint
        ``P^T`` of the resampling makes it a gradient on the image grid too. Without resampling it is
        ``x - denoise_at(x, sigma)``.
        """
        return self.to_latent_adjoint(self.removed(x, sigma)).to(x.device)

    def removed(self, x: Tensor, sigma: float, noise: Tensor | float = 0.0) -> Tensor:
        """What denoising takes away of an image plus latent ``noise``: a latent image."""
        u = self.to_latent(x) + noise
        return u - self._denoise_latent(u, sigma)

    def to_latent_adjoint(self, u: Tensor) -> Tensor:
        """``c P^T u``, image units, of a latent image."""
        return self._bound().to_latent_adjoint(u) * self.intensity_scale

    def _denoise_latent(self, w: Tensor, sigma: float) -> Tensor:
        """Clean latent image in ``w = u_0 + sigma z``: the schedule's own noisy image is ``gamma w``."""
        t = self.schedule.t_of_sigma(float(sigma))
        return self.predict(self.schedule.gamma(t) * w, t)[0]

    def _evaluate(self, images: Tensor, t: float, turn: int | None) -> Tensor:
        """Network output, the weighted sum of those with and without anatomy under guidance."""
        network, told = self._coverage, float(network_time(self.time_input, self.schedule, t))
        if self.anatomical_input is None:
            return network(images[..., None, :, :, :], told, turn)
        outputs = []
        for weight, anatomy in self.anatomical_input.terms():
            second = torch.zeros_like(images) if anatomy is None else anatomy.to(images).expand_as(images)
            outputs.append(weight * network(torch.stack((images, second), -4), told, turn))
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]

    @property
    def _coverage(self) -> Coverage:
        return Coverage(
            self.network,
            self.planes,
            self.multiple,
            self.architecture,
            self.max_batch,
            self.block,
            self.gradient_batch,
            self.precision,
        )

    def _bound(self) -> GridAdapter:
        if self._grid is None:
            raise ValueError("the model has no image grid yet: bind it with model.for_data(objective)")
        return self._grid
