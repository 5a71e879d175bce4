"""What a personalised model is shown: kept in its file with its place; own anatomy is known there, another's is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from tiny_model import tiny_model

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.expected_image import RESEMBLANCE_LEAST, bytes_of, expected_image, place_of, resemblance
from sirf_diffusion.models.storage import ModelFileError, save_model
from sirf_diffusion.patient.image import SourceImage
from sirf_diffusion.patient.resampling import stir_grid
from sirf_diffusion.study.fitness import IN, OUT, check_distribution

SHAPE = (24, 80, 72)
GEOMETRY = ImageGeometry(SHAPE, (2.0, 2.0, 2.0))


def anatomy(seed):
    """A ball of activity with folds of its own, 2 mm."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n) for n in SHAPE)
    ball = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 < 0.8
    folds = 1 + np.tanh(40 * gaussian_filter(rng.standard_normal(SHAPE), 3))
    return torch.from_numpy(gaussian_filter(ball * folds, 1.0).astype(np.float32))


def provenance(geometry=GEOMETRY, **changes):
    image = SourceImage(np.zeros(geometry.shape, np.float32), stir_grid(geometry).affine, "NIfTI")
    return {"personalised": {"mr_sha256": "0", "place": place_of(image) | changes}}


def personal_model(values, training):
    model = tiny_model(in_channels=2)
    model.metadata["training"] = training
    model.expected_image = expected_image(bytes_of(values), training)
    return model


def test_own_anatomy_is_known_at_its_place_and_others_are_not():
    own, noise = anatomy(1), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert resemblance(own, own, GEOMETRY).correlation > 0.99
    assert resemblance(own, (own + 0.4 * noise).clamp(min=0), GEOMETRY).correlation > 0.5
    for wrong in (anatomy(2), anatomy(3), own.roll(8, 1), own.flip(2)):
        assert resemblance(own, wrong, GEOMETRY).correlation < 0.3
    for nothing in (0.0, float("nan")):
        assert resemblance(own, torch.full(SHAPE, nothing), GEOMETRY).correlation == 0


@pytest.mark.parametrize("voxels", [(0, 0, 0), (1, 0, -2), (0, 3, 0), (-2, -3, 1)])
def test_how_far_off_it_lies(voxels):
    noise = 0.4 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    moved = (anatomy(1).roll(voxels, (0, 1, 2)) + noise).clamp(min=0)
    found = resemblance(anatomy(1), moved, GEOMETRY)
    assert found.offset_mm == tuple(2.0 * n for n in voxels)
    assert resemblance(anatomy(1)[10:11], moved[10:11], replace(GEOMETRY, shape=(1, *SHAPE[1:]))).offset_mm[0] == 0


def test_the_check_says_whose_model_it_is(tmp_path):
    personal_model(anatomy(1), provenance()).save(tmp_path / "m.safetensors")
    model = ScoreModel.load(tmp_path / "m.safetensors")
    slab = replace(GEOMETRY, shape=(1, 80, 72), origin=(20.0, 0.0, 0.0))
    check = check_distribution(model.on(slab, 5.0), 5 * anatomy(1).roll(2, 1)[10:11])
    assert (check.resemblance.is_somebody_else, check.resemblance.is_elsewhere) == (False, True)
    assert check.verdict != IN
    assert ", 4 mm off; the head lies elsewhere" in check.message
    for image, right in ((anatomy(1), True), (anatomy(2), False), (anatomy(1).roll(12, 1), False)):
        check = check_distribution(model.on(slab, 5.0), 5 * image[10:11])
        assert check.resemblance.is_somebody_else != right
        assert f"by {check.to_dict()['resemblance']['correlation']:.2f} (least {RESEMBLANCE_LEAST})" in check.message
        assert ("is the model this patient's" in check.recommendation) != right
        assert right or check.verdict == OUT
    assert check_distribution(tiny_model().on(slab, 5.0), 5 * image[10:11]).resemblance is None


def test_it_is_shown_where_it_lies(tmp_path):
    """On other voxels, and after a move of the bed, the same anatomy."""
    personal_model(anatomy(1), provenance()).save(tmp_path / "m.safetensors")
    model = ScoreModel.load(tmp_path / "m.safetensors")
    whole = model.on(GEOMETRY, 1.0).anatomy
    slab = replace(GEOMETRY, shape=(8, 80, 72), origin=(16.0, 0.0, 0.0))
    shown = model.on(slab, 1.0).anatomy
    factor = float(shown.max() / whole[8:16].max())  # each is scaled by itself
    torch.testing.assert_close(shown, factor * whole[8:16])
    with pytest.raises(ValueError, match="overlap by only"):
        model.on(replace(GEOMETRY, origin=(900.0, 0.0, 0.0)), 1.0)


@pytest.mark.parametrize(
    "values", [torch.zeros(9, 9, 9), torch.zeros(9, 9, dtype=torch.uint8), torch.zeros(2, 9, 9, dtype=torch.uint8)]
)
def test_what_is_no_expected_image_is_refused(values):
    with pytest.raises(ValueError, match="expected image must be a volume of bytes"):
        expected_image(values, provenance())


@pytest.mark.parametrize("changes", [
    {"affine": [[1.0]]}, {"affine": "here"}, {"affine": (1e9 * np.eye(4)).tolist()}, {"format": "PNG"},
    {"position": ["head_in", "standing"]}, {"position": 3},
])  # fmt: skip
def test_a_place_that_is_none_is_refused(tmp_path, changes):
    model = personal_model(anatomy(1), provenance())
    model.metadata["training"] = provenance(**changes)
    save_model(tmp_path / "m.safetensors", *model._stored())
    with pytest.raises(ModelFileError, match="does not say where"):
        ScoreModel.load(tmp_path / "m.safetensors")
