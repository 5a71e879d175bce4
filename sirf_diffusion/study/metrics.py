"""Image quality against a reference, and bias and spread over noise realisations.

Images are tensors ``[..., z, y, x]`` (or ``[y, x]``) in the same unit as their reference. Everything is computed in
``float64`` and returned as Python floats. A posterior *mean* is the estimator to be judged: a single sample's squared
error is that of the mean plus the posterior variance.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..geometry.checks import check_finite


def nrmse(image: Tensor, reference: Tensor) -> float:
    """Root of the squared error relative to the reference's energy, ``||x - ref|| / ||ref||``.

    Raises
    ------
    ValueError
        If the shapes differ, a value is not finite, or the reference is zero.
    """
    x, ref = _pair(image, reference)
    norm = ref.norm()
    if norm == 0:
        raise ValueError("the reference image is zero: NRMSE is not defined")
    return float((x - ref).norm() / norm)


def psnr(image: Tensor, reference: Tensor, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB, ``10 log10(range^2 / MSE)``, infinite for equal images.

    The range is the maximum of the reference unless given.
    """
    x, ref = _pair(image, reference)
    mse = float((x - ref).square().mean())
    return math.inf if mse == 0 else 10.0 * math.log10(_range(ref, data_range) ** 2 / mse)


def ssim(image: Tensor, reference: Tensor, data_range: float | None = None, sigma: float = 1.5) -> float:
    r"""Structural similarity (Wang et al., 2004, doi:10.1109/TIP.2003.819861), mean over planes and pixels.

    .. math:: \frac{(2 \mu_x \mu_r + c_1)(2 \sigma_{xr} + c_2)}
              {(\mu_x^2 + \mu_r^2 + c_1)(\sigma_x^2 + \sigma_r^2 + c_2)},
              \quad c_i = (k_i \, \mathrm{range})^2, \; k = (0.01, 0.03)

    with a Gaussian window of ``sigma`` pixels, 11 x 11 for the default, in each transverse plane. Pixels whose window
    leaves the plane are left out, as in the paper's own implementation.

    Parameters
    ----------
    data_range
        The maximum of the reference unless given.
    sigma
        Standard deviation of the window in pixels.
    """
    x, ref = _pair(image, reference)
    peak = _range(ref, data_range)
    radius = int(3.5 * sigma + 0.5)
    if min(ref.shape[-2:]) <= 2 * radius:
        raise ValueError(f"SSIM needs planes of more than {2 * radius} pixels, found {tuple(ref.shape)}")
    x, ref = (v.reshape(-1, 1, *v.shape[-2:]) for v in (x, ref))

    taps = torch.arange(-radius, radius + 1, dtype=torch.float64, device=x.device)
    window = torch.exp(-0.5 * (taps / sigma) ** 2)
    window = window / window.sum()

    def smooth(v: Tensor) -> Tensor:
        v = functional.conv2d(v, window.view(1, 1, -1, 1))
        return functional.conv2d(v, window.view(1, 1, 1, -1))

    mean_x, mean_ref = smooth(x), smooth(ref)
    var_x, var_ref = smooth(x * x) - mean_x**2, smooth(ref * ref) - mean_ref**2
    covariance = smooth(x * ref) - mean_x * mean_ref
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    index = (2 * mean_x * mean_ref + c1) * (2 * covariance + c2)
    index = index / ((mean_x**2 + mean_ref**2 + c1) * (var_x + var_ref + c2))
    return float(index.mean())


def contrast_recovery(images: Tensor, reference: Tensor, lesion: Tensor, background: Tensor) -> float:
    r"""Contrast recovery coefficient, ``mean_r (L_r / B_r - 1) / (L / B - 1)``; 1 is perfect, 0 is a lost lesion.

    ``L`` and ``B`` are means over the lesion and the background of the reference, ``L_r`` and ``B_r`` those of
    realisation ``r``.

    Parameters
    ----------
    images
        Realisations ``[R, z, y, x]``, or one image.
    reference, lesion, background
        The truth and two boolean masks, ``[z, y, x]``.
    """
    reference = reference.double()
    true_contrast = float(reference[lesion].mean() / reference[background].mean() - 1)
    if true_contrast == 0:
        raise ValueError("lesion and background have the same mean in the reference: there is no contrast to recover")
    lesions, backgrounds = _roi_means(images, lesion), _roi_means(images, background)
    return float((lesions / backgrounds - 1).mean() / true_contrast)


def contrast_to_noise(images: Tensor, lesion: Tensor, background: Tensor) -> float:
    r"""Contrast-to-noise ratio ``mean_r(L_r - B_r) / SD_B``.

    ``SD_B`` is the standard deviation between realisations, root mean square over the background's voxels: not the
    spatial spread of one image, which smoothing hides.

    ``images`` are at least two realisations ``[R, z, y, x]``.
    """
    if images.ndim != lesion.ndim + 1 or images.shape[0] < 2:
        raise ValueError(f"CNR needs at least two realisations [R, z, y, x], found shape {tuple(images.shape)}")
    spread = images.double()[:, background].var(dim=0).mean().sqrt()
    return float((_roi_means(images, lesion) - _roi_means(images, background)).mean() / spread)


@dataclass(frozen=True)
class Ensemble:
    """Bias and spread over noise realisations, relative to the reference's energy: ``nrmse^2 = bias^2 + sd^2``."""

    bias: float
    sd: float
    nrmse: float


def bias_and_sd(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Ensemble:
    r"""Split the error of an estimator into bias and spread, over realisations and voxels.

    .. math:: \mathrm{bias} = \frac{\|\bar x - r\|}{\|r\|}, \quad
              \mathrm{sd} = \frac{\sqrt{\sum_j \mathrm{var}_j}}{\|r\|},
              \quad \mathrm{nrmse}^2 = \mathrm{bias}^2 + \mathrm{sd}^2

    with the variance over realisations (divided by ``R``, so that the split is exact).

    Parameters
    ----------
    images
        Estimates ``[R, z, y, x]``, one for each noise realisation.
    reference
        The truth ``[z, y, x]``.
    mask
        Voxels to use; all unless given.
    """
    if images.shape[1:] != reference.shape or images.shape[0] < 2:
        raise ValueError(
            f"images must be at least two realisations of shape {tuple(reference.shape)}, found {tuple(images.shape)}"
        )
    mask = torch.ones_like(reference, dtype=torch.bool) if mask is None else mask
    x, ref = images.double()[:, mask], reference.double()[mask]
    norm = ref.norm()
    bias = float((x.mean(0) - ref).norm() / norm)
    sd = float(x.var(dim=0, correction=0).sum().sqrt() / norm)
    return Ensemble(bias=bias, sd=sd, nrmse=math.hypot(bias, sd))


@dataclass(frozen=True)
class ImageQuality:
    """The three numbers of a comparison table."""

    nrmse: float
    psnr: float
    ssim: float

    def as_dict(self) -> dict[str, float]:
        """``{"nrmse": ..., "psnr": ..., "ssim": ...}``."""
        return asdict(self)


def image_quality(image: Tensor, reference: Tensor) -> ImageQuality:
    """NRMSE, PSNR and SSIM, with the maximum of the reference as data range."""
    return ImageQuality(nrmse(image, reference), psnr(image, reference), ssim(image, reference))


def _pair(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)}, its reference {tuple(reference.shape)}; they must agree"
        )
    pair = image.detach().double(), reference.detach().double()
    for name, v in zip(("image", "reference"), pair, strict=True):
        check_finite(v, name)
    return pair


def _range(reference: Tensor, data_range: float | None) -> float:
    peak = float(reference.max()) if data_range is None else float(data_range)
    if not peak > 0:
        raise ValueError(f"data_range must be positive, found {peak}")
    return peak


def _roi_means(images: Tensor, mask: Tensor) -> Tensor:
    return images.double()[..., mask].mean(dim=-1)
