"""Denoisers known in closed form, behind the interface that the score prior asks of a model."""

import torch

from sirf_diffusion.models import ScoreModel, VPSchedule


class ResidualOf:
    """``residual`` of any denoiser ``D(u, sigma)`` in network units; counts its calls."""

    def __init__(self, denoiser, intensity_scale=1.0):
        self.denoiser, self.intensity_scale, self.calls = denoiser, intensity_scale, 0

    def residual(self, x, sigma):
        self.calls += x[..., 0, 0, 0].numel()
        return x - self.intensity_scale * self.denoiser(x / self.intensity_scale, sigma)


def gaussian_denoiser(variance, mean):
    """Posterior mean for independent voxels ``N(mean, variance)``."""
    return lambda u, sigma: (variance * u + sigma**2 * mean) / (variance + sigma**2)


def gaussian_score_model(variance, mean=1.0, **options):
    """A score model whose network is that denoiser."""

    def network(images, time, class_labels=None):
        sigma = (time / 250).exp().reshape(-1, *[1] * (images.dim() - 1))
        return gaussian_denoiser(variance, mean)(images * (1 + sigma**2).sqrt(), sigma)

    return ScoreModel(network, VPSchedule(), "x0", **options)


def mixture_denoiser(centres=(0.3, 1.5), variance=0.02):
    """Posterior mean for independent voxels from two equal Gaussians: smooth, not linear, exactly conservative."""

    def denoise(u, sigma):
        total = variance + sigma**2
        centre = torch.tensor(centres, dtype=u.dtype).reshape(-1, *([1] * u.dim()))
        share = torch.softmax(-((u - centre) ** 2) / (2 * total), 0)
        return (share * (variance * u + sigma**2 * centre) / total).sum(0)

    return denoise


def mixture_log_density(u, sigma, centres=(0.3, 1.5), variance=0.02):
    """Log-density of the mixture blurred by noise of SD ``sigma``, up to a constant."""
    centre = torch.tensor(centres, dtype=u.dtype).reshape(-1, *([1] * u.dim()))
    return torch.logsumexp(-((u - centre) ** 2) / (2 * (variance + sigma**2)), 0).sum((-3, -2, -1))
