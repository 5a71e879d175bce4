"""The score model: everything needed to denoise an image, or a volume, in image units."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..geometry.images import ImageGeometry
from .conditioning import Conditioning, anatomical_on, check_guidance, make_conditioning
from .coverage import Coverage, Network
from .grid import THREE_ORIENTATIONS, GridAdapter
from .intensity import INTENSITY_RULES
from .intensity import intensity_scale as estimate_intensity_scale
from .networks import TIME_INPUTS, NetworkConfig, memory_format, network_time
from .schedules import PREDICTIONS, NoiseSchedule, denoised_and_noise
from .storage import ModelConfig, checked_voxel_size, find_model, load_model, save_model, serialise

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

logger = logging.getLogger(__name__)

#: In which a network computes, see `ScoreModel.load`.
PRECISIONS = ("float32", "bfloat16")


@dataclass
class NetworkCounter:
    """Counts network work: one evaluation is one image (or volume) denoised once, in however many orientations;
    ``seconds`` is wall time.
    """

    evaluations: int = 0
    seconds: float = 0.0


class ScoreModel:
    """A network with its noise schedule and training grid; bound to an image grid and an intensity scale by `for_data`.

    Two sets of units meet here. *Network units*, on the latent grid: ``u_t = gamma u_0 + nu z`` (`predict`,
    `to_latent`, `to_image`; what samplers use). *Image units*, on the image grid: ``x_t = c u_t`` with the intensity
    scale ``c`` (`denoise`, `score`, `predict_noise`, `denoise_at`, `residual`; what priors and users need). Images are
    ``[..., z, y, x]`` with any leading dimensions; nothing is ever clipped.

    Parameters
    ----------
    network
        ``f(images [B, in, H, W], time [B], class_labels=plane [B]) -> [B, 1, H, W]``, given
        ``u_t / sqrt(gamma^2 + nu^2)`` and, as second image of a conditional model, the anatomy. Any callable will do.
        A network of volumes (``spatial_dims=3``) is given ``[B, in, D, H, W]``.
    schedule
        Noise schedule of its training.
    prediction
        What it returns: ``"eps"``, ``"x0"``, ``"v"`` (variance-preserving schedules only) or ``"score"``.
    voxel_size
        Voxel size ``(z, y, x)`` of its training images, mm.
    time_input
        What it is told of the time, see `network_time`.
    architecture
        Its configuration, needed to save it.
    multiple
        Slice sizes must be multiples of this; taken from the architecture if there is one.
    in_channels
        2 for a model that is conditioned on an anatomical image; taken from the architecture if there is one.
    spatial_dims
        2 for a network of slices, 3 for one of volumes; taken from the architecture if there is one.
    metadata
        Any of ``tracer``, ``licence``, ``training``, ``intensity_rule``.

    Raises
    ------
    ValueError
        If an argument is not one of the above.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        prediction: str = "eps",
        voxel_size: tuple[float, float, float] = (2.0, 2.0, 2.0),
        metadata: dict[str, Any] | None = None,
        *,
        time_input: str = "log_sigma",
        architecture: NetworkConfig | None = None,
        multiple: int = 1,
        in_channels: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, found {prediction!r}")
        if prediction == "v" and not schedule.variance_preserving:
            raise ValueError(f"v-prediction needs a variance-preserving schedule, found {schedule.name!r}")
        if time_input not in TIME_INPUTS:
            raise ValueError(f"time_input must be one of {', '.join(TIME_INPUTS)}, found {time_input!r}")
        self.in_channels = in_channels if architecture is None else architecture.in_channels
        if self.in_channels not in (1, 2):
            raise ValueError(
                f"this network needs {self.in_channels} input images; known are 1 (noisy) and 2 (noisy, anatomical)"
            )
        if multiple < 1:
            raise ValueError(f"multiple must be at least 1, found {multiple}")
        self.metadata: dict[str, Any] = {
            "intensity_rule": INTENSITY_RULES[0],
            "tracer": "",
            "licence": "",
            "training": {},
        }
        unknown = sorted(set(metadata or {}) - set(self.metadata))
        if unknown:
            raise ValueError(f"metadata has unknown keys {unknown}; known are {sorted(self.metadata)}")
        self.metadata.update(metadata or {})
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.voxel_size = checked_voxel_size(voxel_size)
        self.time_input, self.architecture = time_input, architecture
        self.multiple = multiple if architecture is None else architecture.multiple
        self.spatial_dims = spatial_dims if architecture is None else architecture.spatial_dims
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims!r}")
        self.counter = NetworkCounter()
        self.max_batch: int | None = None
        self.block: int | None = None
        self.gradient_batch: int | None = None
        self.precision = PRECISIONS[0]
        self.geometry: ImageGeometry | None = None
        self._scale: float | None = None
        self._grid: GridAdapter | None = None
        self._conditioning = Conditioning() if self.in_channels > 1 else None
        self._anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None = None
        self._guidance = 0.0

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], device: str = "cpu", precision: str = PRECISIONS[0]
    ) -> ScoreModel:
        """Model of a bundled name or of a file.

        Parameters
        ----------
        name_or_path
            Name or file.
        device
            ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        precision
            Of what the network computes inside: ``"float32"``, or ``"bfloat16"`` (PyTorch's autocast), which takes
            about 0.6 of the time on processors made for it, and changes reconstructions by about 0.1 %. Weights,
            images and projections stay ``float32``.

        Raises
        ------
        ModelFileError
            If there is no such model, or its file cannot be used; a ValueError.
        ValueError
            If the device is not there, or the precision is none of these.
        """
        from ..environment import select_device, warn_if_slow

        where = select_device(device)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}")
        if precision == "bfloat16":
            warn_if_slow(where)
        network, config, digest = load_model(find_model(name_or_path))
        model = cls(
            network.to(memory_format=memory_format(config.architecture)).to(where),  # type: ignore[call-overload]
            config.schedule,
            config.prediction,
            config.voxel_size,
            {key: getattr(config, key) for key in ("intensity_rule", "tracer", "licence", "training")},
            time_input=config.time_input,
            architecture=config.architecture,
        )
        model.__dict__["hash"] = digest
        model.precision = precision
        return model

    def save(self, path: str | os.PathLike[str], weights_dtype: str = "float32") -> str:
        """Write the model to a ``.safetensors`` file, weights as ``"float32"`` or ``"float16"``; returns its SHA-256.

        Raises
        ------
        ValueError
            If the architecture is not known, or does not fit the network.
        """
        return save_model(path, *self._stored(), weights_dtype)

    def for_data(
        self,
        data: Any,
        early_image: Tensor | None = None,
        *,
        sampling: bool = False,
        planes: str | None = None,
        intensity_scale: float | None = None,
        extent: float | None = None,
        anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None = None,
        guidance: float | None = None,
        max_batch: int | None = None,
        block: int | None = None,
    ) -> ScoreModel:
        """The model for the images of an acquisition: everywhere the same intensity scale, orientations and grid.

        Parameters
        ----------
        data
            An `Objective`, or the image grid alone: then give ``early_image`` or ``intensity_scale``.
        early_image
            Image ``[z, y, x]`` that the intensity scale is estimated from; ``data.early_image()`` if omitted.
        sampling
            Whether for a sampler, which looks at the orientations of a volume in turns; what is not one, such as a
            penalty, looks at all of them.
        planes
            As for `on`; None as `planes_for` says.
        intensity_scale
            Instead of estimating it.
        extent, anatomical, guidance, max_batch, block
            As for `on`.

        Raises
        ------
        ValueError
            As `on`, or if there is nothing to estimate the intensity scale from.
        """
        geometry = getattr(data, "geometry", data)
        if intensity_scale is None:
            if early_image is None and geometry is data:
                raise ValueError("a grid alone tells no intensity scale: give early_image or intensity_scale too")
            early_image = data.early_image() if early_image is None else early_image
            intensity_scale = estimate_intensity_scale(early_image, geometry)
            logger.info("intensity scale %.6g image units", intensity_scale)
        return self.on(
            geometry,
            intensity_scale,
            planes or self.planes_for(geometry, sampling=sampling),
            extent=extent,
            max_batch=max_batch,
            block=block,
            anatomical=anatomical,
            guidance=guidance,
        )

    def on(
        self,
        geometry: ImageGeometry,
        intensity_scale: float,
        planes: str | None = None,
        *,
        extent: float | None = None,
        max_batch: int | None = None,
        block: int | None = None,
        anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None = None,
        guidance: float | None = None,
    ) -> ScoreModel:
        """The model for images of one grid and intensity: a light copy that shares the network and counts anew.

        Parameters
        ----------
        geometry
            The image grid. Where its voxel size differs from the training images' by more than 5 %, images are
            resampled for the network, which is logged.
        intensity_scale
            ``c``: image units for one network unit, see `sirf_diffusion.models.intensity_scale`; positive.
        planes
            ``"transverse"``; ``"three"`` for the mean over transverse, coronal and sagittal slices of a volume;
            ``"alternating"`` for one of the three after the other where `predict` is told whose turn it is, as by
            samplers, and their mean everywhere else; ``"volume"`` for a network of volumes, which knows nothing else.
            None: ``"volume"`` or ``"transverse"``.
        extent
            Cover only a centred square of this side, mm, in y and x; the image is zero outside it. For small objects in
            a large field of view.
        max_batch
            Most slices, or volumes, in one network call; None to fit memory.
        block
            A network of volumes sees blocks of this side in voxels, which overlap and are blended (`in_blocks`); None:
            the whole volume, or blocks as large as memory allows.
        anatomical
            MR or CT image, any unit, for a model that was trained with such images: ``[z, y, x]`` on the image grid,
            an `AnatomicalImage` in its own space, or a file; None for that of `guided_by`. Without one such a model
            runs unconditionally, with a warning.
        guidance
            Weight ``w >= -1`` of classifier-free guidance; 0 is the plain conditional model, -1 the unconditional one;
            None for that of `guided_by`, or 0.

        Raises
        ------
        ValueError
            If an argument is out of range, an anatomical image is given to a model that takes none, three orientations
            are wanted of one plane or of a network of one orientation, or ``planes`` does not suit the network's
            dimensions.
        """
        planes = planes or ("volume" if self.spatial_dims == 3 else "transverse")
        if (planes == "volume") != (self.spatial_dims == 3):
            raise ValueError(
                f"planes={planes!r} does not suit a network of {'volumes' if self.spatial_dims == 3 else 'slices'}: "
                f"use {self.planes_for(geometry)!r}"
            )
        if block is not None and (planes != "volume" or block < 2 * self.multiple):
            raise ValueError(
                f"block must be at least {2 * self.multiple} voxels, for a network of volumes; found {block} with "
                f"planes={planes!r}"
            )
        if not 0 < intensity_scale < math.inf:
            raise ValueError(f"intensity_scale must be a positive finite number, found {intensity_scale!r}")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, found {max_batch}")
        known = 0 if self.architecture is None else self.architecture.num_class_embeds
        if planes in THREE_ORIENTATIONS and known in (1, 2):
            raise ValueError(f"planes={planes!r} needs a network of three orientations, found {known}")
        anatomical = self._anatomical if anatomical is None else anatomical
        guidance = self._guidance if guidance is None else guidance
        grid = GridAdapter(geometry, self.voxel_size, self.multiple, planes, extent)
        grid.log()
        bound = copy.copy(self)
        bound.geometry, bound._scale, bound._grid = geometry, float(intensity_scale), grid.to(self.device)
        bound.max_batch, bound.block, bound.counter = max_batch, block, NetworkCounter()
        bound._conditioning = make_conditioning(self.in_channels, anatomical, guidance, geometry, grid, self.device)
        return bound

    def guided_by(
        self, anatomical: Tensor | AnatomicalImage | str | os.PathLike[str] | None, guidance: float = 0.0
    ) -> ScoreModel:
        """A light copy, not bound to a grid, that shows the network this anatomical image wherever it is bound.

        For what binds the model itself: reconstructors, priors and filters.

        Parameters
        ----------
        anatomical, guidance
            As for `on`; None for no image.

        Raises
        ------
        ValueError
            If the network takes no anatomical image, or ``guidance`` is out of range.
        """
        check_guidance(self.in_channels, anatomical is not None, guidance)
        copied = copy.copy(self)
        copied.geometry = copied._scale = copied._grid = None
        copied._anatomical, copied._guidance = anatomical, float(guidance)
        copied.counter = NetworkCounter()
        return copied

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

    def check_anatomical(self, geometry: ImageGeometry) -> None:
        """Whether the image of `guided_by`, if there is one, can be put onto a grid: before anything is computed.

        Raises
        ------
        ValueError
            If not.
        """
        if self._anatomical is not None:
            anatomical_on(self._anatomical, geometry)

    @property
    def is_guided(self) -> bool:
        """Whether it was given an anatomical image by `guided_by`, or a weight of guidance that needs none."""
        return self._anatomical is not None or self._guidance == -1

    @property
    def conditioning(self) -> dict[str, Any] | None:
        """Hash of the anatomical image and guidance weight, ready for JSON; None for a model that takes none."""
        return None if self._conditioning is None else self._conditioning.describe()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._coverage.device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape ``(Z', Y', X')`` of a latent image."""
        return self._bound().latent_geometry.shape

    @property
    def network_input(self) -> tuple[tuple[int, ...], float]:
        """Shape ``(in, ...)`` of the largest image of which gradients are taken at once, and how many a volume is."""
        shape, number = self._coverage.largest_with_gradients(self.latent_shape)
        return (self.in_channels, *shape), number

    @property
    def latent_inside(self) -> Tensor:
        """Boolean latent image: which voxels lie in the image's field of view."""
        return self._bound().latent_inside

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the model file, or of the file that `save` would write; of name and weights for others."""
        if self.architecture is not None and isinstance(self.network, nn.Module):
            return hashlib.sha256(serialise(*self._stored())).hexdigest()
        kind = self.network if hasattr(self.network, "__qualname__") else type(self.network)
        name = f"{kind.__module__}.{kind.__qualname__} {self.schedule.to_config()} {self.prediction}"
        digest = hashlib.sha256(name.encode())
        if isinstance(self.network, nn.Module):
            for value in self.network.state_dict().values():
                digest.update(value.detach().cpu().float().numpy().tobytes())
        return digest.hexdigest()

    # Network units, latent grid ---------------------------------------------------------------------------------------

    def predict(self, u: Tensor, t: float, turn: int | None = None) -> tuple[Tensor, Tensor]:
        """Clean image and noise in a noisy latent image: ``(u0, eps)`` with ``u = gamma u0 + nu eps``.

        Three orientations: the network's outputs are averaged; ``u0``, ``eps`` and the score are the same affine
        functions of each, so that all of them are averages.

        Parameters
        ----------
        u
            Noisy latent image ``[..., Z', Y', X']``, network units.
        t
            Its time, with noise left (``nu > 0``).
        turn
            Number of the noise level, for ``planes="alternating"``: of transverse, coronal and sagittal slices only
            those whose turn it is are looked at. None for the mean over all.

        Raises
        ------
        ValueError
            If the shape does not fit, or there is no noise at ``t``.
        """
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
        start = self._clock()
        output = self._evaluate(u / math.sqrt(gamma * gamma + nu * nu), t, turn)
        passes = 1 if self._conditioning is None else len(self._conditioning.terms())
        self.counter.evaluations += math.prod(u.shape[:-3]) * passes
        self.counter.seconds += self._clock() - start
        return denoised_and_noise(self.prediction, output, u, gamma, nu)

    def to_latent(self, x: Tensor) -> Tensor:
        """Image in image units to latent image in network units: ``u = P x / c``."""
        return self._bound().to_latent(x.to(self.device)) / self.intensity_scale

    def to_image(self, u: Tensor) -> Tensor:
        """Latent image in network units to image in image units: ``x = c R u``.

        The inverse of `to_latent` where voxel sizes agree; close to it for images without detail at the voxel size
        where they do not.
        """
        return self._bound().to_image(u) * self.intensity_scale

    # Image units, image grid ------------------------------------------------------------------------------------------

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
        u = self.to_latent(x)
        removed = u - self._denoise_latent(u, sigma)
        return (self._bound().to_latent_adjoint(removed) * self.intensity_scale).to(x.device)

    # ------------------------------------------------------------------------------------------------------------------

    def _denoise_latent(self, w: Tensor, sigma: float) -> Tensor:
        """Clean latent image in ``w = u_0 + sigma z``: the schedule's own noisy image is ``gamma w``."""
        t = self.schedule.t_of_sigma(float(sigma))
        return self.predict(self.schedule.gamma(t) * w, t)[0]

    def _evaluate(self, images: Tensor, t: float, turn: int | None) -> Tensor:
        """Network output, the weighted sum of those with and without anatomy under guidance."""
        network, told = self._coverage, float(network_time(self.time_input, self.schedule, t))
        if self._conditioning is None:
            return network(images[..., None, :, :, :], told, turn)
        outputs = []
        for weight, anatomy in self._conditioning.terms():
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

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _bound(self) -> GridAdapter:
        if self._grid is None:
            raise ValueError("the model has no image grid yet: bind it with model.for_data(objective)")
        return self._grid

    def _stored(self) -> tuple[dict[str, Tensor], ModelConfig]:
        if self.architecture is None or not isinstance(self.network, nn.Module):
            raise ValueError("only a network built by build_network can be saved: give its architecture to ScoreModel")
        config = ModelConfig(
            self.architecture, self.schedule, self.prediction, self.time_input, self.voxel_size, **self.metadata
        )
        return self.network.state_dict(), config
