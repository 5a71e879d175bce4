"""What enhancement is compared with: a deep image prior, and the models of the ablation."""

from dataclasses import replace

import pytest
import torch

from benchmarks.enhancement_ablation import ROWS, recipes
from benchmarks.enhancement_rivals import deep_image_prior


def test_a_deep_image_prior_finds_the_image_before_the_noise():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 32)] * 2, indexing="ij")
    truth = torch.sigmoid(20 * (0.5 - y**2 - x**2)).expand(2, 32, 32)
    noisy = truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    images = deep_image_prior(noisy, 1.5 * truth, (2, 25), 0.0)
    errors = [float((image - truth).square().mean()) for image in (images[2], images[25], noisy)]
    assert errors[1] < 0.3 * errors[2]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("latent", [False, True])
def test_models_of_the_ablation_differ_in_noise_and_ct_alone(latent):
    found = recipes(10, latent)
    assert set(found) == set(ROWS) - ({"exact + CT"} if latent else set())
    plain = {"name": "", "enhancement": replace(found["diffusion"].enhancement, noise="sinogram", ct="none")}
    for name, recipe in found.items():
        assert (recipe.enhancement.noise, recipe.enhancement.ct) == ROWS[name]
        alike = replace(recipe.enhancement, noise="sinogram", ct="none")
        assert replace(recipe, name="", enhancement=alike) == replace(found["diffusion"], **plain)
