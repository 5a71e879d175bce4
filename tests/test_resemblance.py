"""Whose image it is: own anatomy is known wherever it lies and however noisy, another's is not, and files say which."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, rotate, shift
from tiny_model import tiny_model

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.resemblance import expected_image_of, resemblance
from sirf_diffusion.models.storage import ModelFileError, save_model
from sirf_diffusion.study.fitness import OUT, RESEMBLANCE_LEAST, check_distribution

SHAPE = (24, 80, 72)


def anatomy(seed):
    """A ball of activity with folds of its own, 2 mm."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    ball = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 0.8
    folds = 1 + np.tanh(40 * gaussian_filter(rng.standard_normal(SHAPE), 3))
    return gaussian_filter(ball * folds, 1.0).astype(np.float32)


def planes(image, numbers=(8, 12, 16), factor=1.0):
    """Some planes, as an image has them: in other units, and on a grid of its own."""
    chosen = torch.from_numpy(np.ascontiguousarray(image[list(numbers)]))
    grid = torch.nn.functional.pad(factor * chosen, (9, 15, 20, 4))
    return grid, ImageGeometry(tuple(grid.shape), (8.0, 2.0, 2.0))


def test_own_anatomy_is_known_wherever_it_lies_and_others_are_not():
    own = expected_image_of(torch.from_numpy(anatomy(1)), (2.0, 2.0, 2.0))
    moved = rotate(shift(anatomy(1), (0, 5, -7), order=1), 4, axes=(1, 2), reshape=False, order=1)
    noise = 0.2 * np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    assert resemblance(own, *planes(anatomy(1), factor=3e4)) > 0.9
    assert resemblance(own, *planes(moved)) > 0.8
    assert resemblance(own, *planes(np.clip(anatomy(1) + noise, 0, None))) > 0.8
    for seed in (2, 3, 4):
        assert resemblance(own, *planes(anatomy(seed))) < RESEMBLANCE_LEAST
    for nothing in (0.0, float("nan")):
        assert resemblance(own, *planes(np.full(SHAPE, nothing, np.float32))) == 0
    assert resemblance(own, *planes((anatomy(1) > 0.1).astype(np.float32))) < RESEMBLANCE_LEAST


def test_the_check_says_whose_model_it_is(tmp_path):
    model = tiny_model()
    model.expected_image = expected_image_of(torch.from_numpy(anatomy(1)), (2.0, 2.0, 2.0))
    model.save(tmp_path / "m.safetensors")
    model = ScoreModel.load(tmp_path / "m.safetensors")
    for seed, right in ((1, True), (2, False)):
        image, geometry = planes(anatomy(seed), factor=5.0)
        check = check_distribution(model.on(geometry, 5.0), image)
        assert check.is_somebody_else != right
        assert f"by {check.to_dict()['resemblance']:.2f} (least {RESEMBLANCE_LEAST})" in check.message
        assert ("is the model this patient's?" in check.recommendation) != right
        assert right or check.verdict == OUT
    assert check_distribution(tiny_model().on(geometry, 5.0), image).resemblance is None


@pytest.mark.parametrize(
    "image", [torch.zeros(9, 9, 9), torch.zeros(9, 9, dtype=torch.uint8), torch.zeros(2, 9, 9, dtype=torch.uint8)]
)
def test_what_is_no_expected_image_is_refused(tmp_path, image):
    model = tiny_model()
    model.expected_image = image
    save_model(tmp_path / "m.safetensors", *model._stored())
    with pytest.raises(ModelFileError, match="expected image must be a volume of bytes"):
        ScoreModel.load(tmp_path / "m.safetensors")
