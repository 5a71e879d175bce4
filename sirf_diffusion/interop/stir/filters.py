"""The filters: ``Diffusion Denoiser``, and ``Diffusion Sampler`` between the subiterations of a reconstruction."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ...engines.em import RELATIVE_FLOOR, inside
from ...files.interfile import write_image
from ...geometry.images import ImageGeometry
from ...models import ScoreModel
from ...models.denoiser import Denoiser
from ...models.h_transform import HTransform, non_negative
from ...reconstructors.diffusion.chain import Chain
from ...reconstructors.diffusion.consistency import orientation_of_step
from ...reconstructors.diffusion.deft import SteeredSampling
from ...reconstructors.diffusion.sampling import Sampling, renoised, reverse_times
from ...reconstructors.enhancement import Enhancer, image_filter
from . import values
from .blocks import check_steered, num_chain_steps
from .views import as_tensor

logger = logging.getLogger("stir_priors")


class SamplerCallback:
    r"""An inter-iteration filter that makes a reconstruction a sampler (decomposed diffusion sampling).

    With ``p`` subiterations between calls and ``K`` steps, a run of ``(K + 1) p`` subiterations is:

    1. ``p`` subiterations from the initial estimate. Their image tells the intensity scale ``c`` and is the mean of the
       noisy image :math:`u` from which the chain starts, at the highest noise level.
    2. Call ``k = 1 ... K``: the estimate becomes the denoised image :math:`c\,u_0` of noise level :math:`t_k`, at least
       :math:`10^{-6} c`; the ``p`` subiterations that follow make it consistent with the data. At the next call, what
       they changed is added to :math:`u_0` and noise is put back, down to level :math:`t_{k+1}`.
    3. Call ``K + 1`` leaves the image as it is: the last one saved is consistent with the data.

    This is the loop of `sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor` with the subiterations as
    its data step: Singh et al. 2024, MELBA 2:547. Without a prior and with the same order of subsets, it gives the
    image of ``DDSReconstructor.published(anchor_strength=0)`` that starts at the image of the first ``p`` of them,
    with the same intensity scale, and the same noise for the same seed.

    With an h-transform (``DEFTReconstructor``), ``p`` is 1, and the subiteration after a call is the EM update that
    tells the network the data. The change of the image is its increment: call ``k`` corrects the image of call
    ``k - 1``, puts noise back, and hands out the next one; call ``K + 1`` hands out the result.

    Parameters
    ----------
    options
        Values of the block's keys: ``number of steps`` is ``K``, 0 for as many as the file has subiterations for.
        If ``anchor strength``, :math:`\lambda \ge 0` in network units, is positive, the prior ``Quadratic Anchor`` of
        the same run, which must have no ``anchor filename``, ties the subiterations to the denoised image with the
        penalisation factor :math:`\lambda / c^2`.
    """

    def __init__(self, options: Mapping[str, Any], context: Mapping[str, str]) -> None:
        check_steered(options, context)
        self.options, self.context = options, context
        self.model = values.model_of(options)
        name = options["h-transform filename"]
        self.h = HTransform.load(name, self.model) if name else None
        self.sampling = SteeredSampling if self.h else Sampling
        self.eta = self.sampling.eta if options["eta"] is None else options["eta"]
        self.num_steps = _num_steps(options["number of steps"], context)
        self.times = reverse_times(self.model.schedule, self.num_steps, options["final noise level"])

    def set_patient_position(self, orientation: int, rotation: int) -> None:
        """How the data's patient lies; comes before `set_up`."""
        self.model = values.lying(self.model, orientation, rotation)

    def set_up(self, geometry: ImageGeometry) -> None:
        """Start anew, on this grid."""
        self.geometry = geometry
        self.model.check_anatomical(geometry)
        self.num_calls = 0
        self._chain: Chain | None = None
        self._bound: ScoreModel | None = None

    def apply(self, x: np.ndarray) -> None:
        """One step in place, see above."""
        image = as_tensor(x)
        self.num_calls += 1
        if self.num_calls > self.num_steps:
            if self.h is not None and self.num_calls == self.num_steps + 1:
                u0, _ = self._steered(image)
                image.copy_(self._bound.to_image(u0)[0].clamp(min=0))
            if self.num_calls == self.num_steps + 2:
                logger.warning(
                    "the chain of %d steps ended before: the subiterations go on without denoising", self.num_steps
                )
            return
        if self._chain is None:
            self._begin(image)
        else:
            self._renoise(image)
        self._denoise(image)

    def _begin(self, image: Tensor) -> None:
        logger.info("reverse diffusion: %d steps", self.num_steps)
        self._bound = self.model.for_data(
            self.geometry,
            image,
            sampling=True,
            planes=self.options["planes"],
            intensity_scale=self.options["intensity scale"] or None,
            box="object" if self.sampling.crop else None,
        )
        if self.h is not None:
            sensitivity = values.image("sensitivity filename", self.options["sensitivity filename"], self.geometry)
            self._inside, self._counts = inside(sensitivity), self.h.counts(self._bound, sensitivity)
            scanner = _scanner(self.context.get("input file", ""))
            self.h.outside(self._counts, self._bound.to_latent(image), self.geometry.shape[0], scanner)
        schedule, t = self._bound.schedule, self.times[0]
        mean = float(schedule.gamma(t)) * self._bound.to_latent(image)
        seed = self.options["random seed"]
        self._chain = Chain.start(mean, float(schedule.nu(t)), 1, seed, window=self._bound.window)

    def _renoise(self, image: Tensor) -> None:
        """The subiterations are a data step, and noise is put back."""
        model, chain, k = self._bound, self._chain, self.num_calls - 1
        if self.h is not None:
            u0, eps = self._steered(image)
        else:
            # The change, not the image: a resampled image would lose detail that only the network's grid holds.
            u0, eps = self._u0 + model.to_latent(image - self._prior_image), self._eps
        times = self.times[max(k - 2, 0) : k + 1]
        chain.u = renoised(chain, model.schedule, times, u0, eps, self.sampling.solver, self.eta)

    def _steered(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latent image and noise, of the image that was handed out and its EM update."""
        model, u, k = self._bound, self._chain.u, self.num_calls - 2
        increment = model.to_latent((image - self._handed_out) * self._inside)[None]
        u0 = self.h.estimate(model, u, self._u0, self.times[k], [increment.to(u)], self._counts)
        return non_negative(model.schedule, u, u0, self.times[k])

    def _denoise(self, image: Tensor) -> None:
        model, k = self._bound, self.num_calls - 1
        self._u0, self._eps = model.predict(self._chain.u, self.times[k], orientation_of_step(k, self.num_steps))
        self._prior_image = model.to_image(self._u0)[0].to(image)
        image.copy_(self._prior_image.clamp(min=RELATIVE_FLOOR * model.intensity_scale))
        if self.h is not None:
            self._handed_out = image.mul_(self._inside).clone()
        if self.options["anchor strength"] > 0:
            self._move_anchor(image, self.options["anchor strength"])
        if prefix := self.options["sample filename prefix"]:
            write_image(f"{prefix}_{self.num_calls}.hv", image, self.geometry)

    def _move_anchor(self, image: Tensor, strength: float) -> None:
        shim = importlib.import_module("stir_priors._shim")
        anchors = shim.moving_anchors()
        if len(anchors) != 1:
            raise RuntimeError(
                f"anchor strength := {strength:g} needs exactly one 'prior type := Quadratic Anchor' "
                f"without an anchor filename in the same process, found {len(anchors)}"
            )
        shim.move_anchor(anchors[0], image.numpy(), strength / self._bound.intensity_scale**2)


class DenoiserCallback:
    """A `Denoiser`, or an `Enhancer`, that works in place on STIR's image."""

    def __init__(self, denoiser: Denoiser | Enhancer) -> None:
        self.denoiser = denoiser

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DenoiserCallback:
        """That of a block's values: noise level, dose ratio and intensity scale of 0 are estimated from each image."""
        made = image_filter(
            options["model filename"], options["device"], options["precision"],
            noise_level=options["noise level"] or None, num_steps=options["number of steps"],
            planes=options["planes"], intensity_scale=options["intensity scale"] or None,
            dose_ratio=options["dose ratio"] or None,
        )  # fmt: skip
        made.model = values.guided(made.model, options)
        return cls(made)

    def set_patient_position(self, orientation: int, rotation: int) -> None:
        """How the image's patient lies; comes before `set_up`."""
        self.denoiser.model = values.lying(self.denoiser.model, orientation, rotation)

    def set_up(self, geometry: ImageGeometry) -> None:
        """Take the grid; the intensity scale may have to wait for an image."""
        self.geometry = geometry
        self.denoiser.model.check_anatomical(geometry)

    def apply(self, x: np.ndarray) -> None:
        """Denoise in place."""
        image = as_tensor(x)
        image.copy_(self.denoiser(image, self.geometry))


def _scanner(filename: str) -> str | None:
    """The scanner's name in a header of projection data, None if it is not to be had."""
    from ...files.interfile import read_projection_data_geometry

    try:
        return read_projection_data_geometry(filename).scanner.name
    except (OSError, ValueError):
        return None


def _num_steps(given: int, context: Mapping[str, str]) -> int:
    """Steps of the chain, checked against the subiterations of the file, if it is one of a reconstruction."""
    keys = ("number of subiterations", "inter-iteration filter subiteration interval", "start at subiteration number")
    last, interval, first = (context.get(key, "") for key in keys)
    if last.isdigit() and interval.isdigit() and int(interval) > 0:
        return num_chain_steps(given, int(last), int(interval), int(first or 1))
    if not given:
        raise ValueError("number of steps := 0 needs a parameter file with subiterations and an inter-iteration filter")
    return given
