"""The score model: everything needed to denoise an image, or a volume, in image units."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..environment import faster_precision, select_device, warn_of_slow_precision
from ..geometry.checks import check_choice, check_count, check_keys, check_real
from ..geometry.images import ImageGeometry
from .coarse import Coarse, companion_of
from .conditioning import Conditioning, anatomical_on, check_guidance, make_conditioning, shown_for, shown_image
from .coverage import Network
from .grid import THREE_ORIENTATIONS, Box, GridAdapter
from .intensity import INTENSITY_RULES, object_box
from .intensity import intensity_scale as estimate_intensity_scale
from .networks import TIME_INPUTS, NetworkConfig, memory_format
from .predictor import NetworkCounter, Predictor
from .schedules import PREDICTIONS, NoiseSchedule
from .storage import ModelConfig, checked_voxel_size, find_model, load_model, save_model, serialise

if TYPE_CHECKING:
    from ..patient import AnatomicalImage

    Anatomical = Tensor | AnatomicalImage | str | os.PathLike[str]

logger = logging.getLogger(__name__)

#: In which a network may be asked to compute, see `ScoreModel.load`.
PRECISIONS = ("auto", "float32", "bfloat16")


class ScoreModel(Predictor):
    """A network with its noise schedule and training grid; bound to an image grid and an intensity scale by `for_data`.

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
        check_choice("prediction", prediction, PREDICTIONS)
        check_choice("time_input", time_input, TIME_INPUTS)
        if prediction == "v" and not schedule.variance_preserving:
            raise ValueError(f"v-prediction needs a variance-preserving schedule, found {schedule.name!r}")
        self.in_channels = in_channels if architecture is None else architecture.in_channels
        if self.in_channels not in (1, 2):
            raise ValueError(
                f"this network needs {self.in_channels} input images; known are 1 (noisy) and 2 (noisy, anatomical)"
            )
        known = {"intensity_rule": INTENSITY_RULES[0], "tracer": "", "licence": "", "training": {}}
        self.metadata: dict[str, Any] = known | (metadata or {})
        check_keys("metadata", self.metadata, known)
        self.network, self.schedule, self.prediction = network, schedule, prediction
        self.voxel_size = checked_voxel_size(voxel_size)
        self.time_input, self.architecture = time_input, architecture
        self.multiple = check_count("multiple", multiple if architecture is None else architecture.multiple)
        self.spatial_dims = spatial_dims if architecture is None else architecture.spatial_dims
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, found {spatial_dims!r}")
        self.counter = NetworkCounter()
        self.precision = "float32"
        #: Of a model for one patient: what its network is shown, see `sirf_diffusion.models.expected_image`.
        self.expected_image: AnatomicalImage | None = None
        self.anatomical_input = Conditioning() if self.in_channels > 1 else None
        self._anatomical: Anatomical | None = None
        self._guidance = 0.0

    @classmethod
    def load(
        cls, name_or_path: str | os.PathLike[str], device: str = "cpu", precision: str = PRECISIONS[0]
    ) -> ScoreModel:
        """Model of a bundled name or of a file.

        Parameters
        ----------
        device
            ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"auto"``.
        precision
            Of what the network computes inside: ``"float32"``; ``"bfloat16"`` (PyTorch's autocast), which takes about
            0.6 of the time on processors made for it, and changes reconstructions by about 0.1 %; ``"auto"`` for that
            in samplers on such processors, and ``"float32"`` else. Weights, images and projections stay ``float32``.

        Raises
        ------
        ValueError
            If there is no such model or device, its file cannot be used, or the precision is none of these.
        """
        where = select_device(device)
        check_choice("precision", precision, PRECISIONS)
        warn_of_slow_precision(precision, where)
        network, config, digest = load_model(path := find_model(name_or_path))
        model = cls(
            network.to(memory_format=memory_format(config.architecture)).to(where),  # type: ignore[call-overload]
            config.schedule,
            config.prediction,
            config.voxel_size,
            {key: getattr(config, key) for key in ("intensity_rule", "tracer", "licence", "training")},
            time_input=config.time_input,
            architecture=config.architecture,
        )
        model.__dict__.update(hash=digest, path=path)
        model.precision, model.expected_image = precision, config.expected_image
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
        box: Box | str | None = None,
        anatomical: Anatomical | None = None,
        guidance: float | None = None,
        coarse_above: float | None = None,
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
        box
            As for `on`, or ``"object"`` for the `object_box` of the early image.
        extent, anatomical, guidance, coarse_above
            As for `on`, whose ValueErrors it raises, and one if there is nothing to estimate scale or box from.
        """
        geometry = getattr(data, "geometry", data)
        if early_image is None and (intensity_scale is None or box == "object"):
            if geometry is data:
                raise ValueError("a grid alone tells no intensity scale: give early_image or intensity_scale too")
            early_image = data.early_image()
        if box == "object":
            box = object_box(early_image, geometry)
        if intensity_scale is None:
            intensity_scale = estimate_intensity_scale(early_image, geometry)
            logger.info("intensity scale %.6g image units", intensity_scale)
        bound = self.on(
            geometry,
            intensity_scale,
            planes or self.planes_for(geometry, sampling=sampling),
            extent=extent,
            box=box,
            anatomical=shown_for(anatomical, self, data),
            guidance=guidance,
            coarse_above=coarse_above,
        )
        if sampling and self.precision == "auto":
            bound.precision = faster_precision(self.device)
        return bound

    def on(
        self,
        geometry: ImageGeometry,
        intensity_scale: float,
        planes: str | None = None,
        *,
        extent: float | None = None,
        box: Box | None = None,
        max_batch: int | None = None,
        block: int | None = None,
        anatomical: Anatomical | None = None,
        guidance: float | None = None,
        coarse_above: float | None = None,
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
            ``"alternating"`` for one of them after the other where `predict` is told whose turn it is, and their mean
            everywhere else; ``"volume"`` for a network of volumes. None: ``"volume"`` or ``"transverse"``.
        extent
            Cover only a centred square of this side, mm, in y and x; the image is zero outside it. For small objects in
            a large field of view.
        box
            Cover only these voxels (first of z, y and x, and the one after the last), filled up to what the network
            needs; the image is zero outside, see `covered`.
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
        coarse_above
            Relative noise level above which `predict` asks the `companion`, if there is one; None: never.

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
        check_real("intensity_scale", intensity_scale, open_below=True)
        if max_batch is not None:
            check_count("max_batch", max_batch)
        known = 0 if self.architecture is None else self.architecture.num_class_embeds
        if planes in THREE_ORIENTATIONS and known in (1, 2):
            raise ValueError(f"planes={planes!r} needs a network of three orientations, found {known}")
        anatomical = shown_image(self._anatomical if anatomical is None else anatomical, self)
        guidance = self._guidance if guidance is None else guidance
        companion = None if coarse_above is None else self.companion
        multiple = self.multiple if companion is None else math.lcm(self.multiple, companion.multiple, 2)
        grid = GridAdapter(geometry, self.voxel_size, multiple, planes, extent, box)
        grid.log()
        bound = copy.copy(self)
        bound.geometry, bound._scale, bound._grid = geometry, float(intensity_scale), grid.to(self.device)
        bound.max_batch, bound.block, bound.counter = max_batch, block, NetworkCounter()
        bound.precision = "float32" if self.precision == "auto" else self.precision
        bound.anatomical_input = make_conditioning(self.in_channels, anatomical, guidance, geometry, grid, self.device)
        bound.coarse = None if companion is None else Coarse.of(bound, companion, coarse_above)
        return bound

    def guided_by(self, anatomical: Anatomical | None, guidance: float = 0.0) -> ScoreModel:
        """A light copy, not bound to a grid, that shows the network this anatomical image wherever it is bound.

        For what binds the model itself: reconstructors, priors and filters. A personalised model compares the MR,
        and is shown what it expects, see `shown_image`.
        ``anatomical`` and ``guidance`` are those of `on`; None is no image. ValueError if they do not suit the network.
        """
        anatomical = shown_image(anatomical, self)
        check_guidance(self.in_channels, anatomical is not None, guidance)
        copied = copy.copy(self)
        copied.geometry = copied._scale = copied._grid = None
        copied._anatomical, copied._guidance = anatomical, float(guidance)
        copied.counter = NetworkCounter()
        return copied

    def check_anatomical(self, geometry: ImageGeometry) -> None:
        """Raise ValueError if the image of `guided_by` cannot be put onto a grid, before anything is computed."""
        if (shown := shown_image(self._anatomical, self)) is not None:
            anatomical_on(shown, geometry)

    @property
    def is_guided(self) -> bool:
        """Whether it was given an anatomical image, or a weight of guidance that needs none."""
        return self.expected_image is not None or self._anatomical is not None or self._guidance == -1

    #: A model of twice the voxel size, see `sirf_diffusion.models.coarse`; None without one.
    companion = cached_property(companion_of)

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

    def _stored(self) -> tuple[dict[str, Tensor], ModelConfig]:
        if self.architecture is None or not isinstance(self.network, nn.Module):
            raise ValueError("only a network built by build_network can be saved: give its architecture to ScoreModel")
        config = ModelConfig(
            self.architecture, self.schedule, self.prediction, self.time_input, self.voxel_size, **self.metadata,
            expected_image=self.expected_image,
        )  # fmt: skip
        return self.network.state_dict(), config
