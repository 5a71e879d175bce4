import numpy as np
import pytest
import torch

from sirf_diffusion.data import load_example
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import intensity_scale
from sirf_diffusion.simulation import simulate_anatomy
from sirf_diffusion.simulation.tracer import draw_activity
from sirf_diffusion.simulation.tracers import TRACERS

#: Subjects and draws in which dopamine transporters are highest over the rest of the head: 6 to 7.3 times.
HOTTEST = {19: (4,), 33: (4,), 5: (4,)}


def disc(size=96, radius=30.0, spacing=2.0, activity=3.0):
    """A uniform disc, one plane; radius in voxels of 2 mm."""
    geometry = ImageGeometry((1, size, size), (2.0, spacing, spacing))
    y = (torch.arange(size) - size // 2) * spacing
    return activity * ((y[:, None] ** 2 + y**2) < (2 * radius) ** 2).float()[None], geometry


def test_a_uniform_object_has_its_activity():
    """Up to the blurred rim, which is narrow for an object much larger than 8 mm."""
    x, geometry = disc()
    assert intensity_scale(x, geometry) == pytest.approx(3.0, rel=0.1)


def test_homogeneous_of_degree_one():
    x, geometry = disc()
    x = x * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    assert intensity_scale(250.0 * x, geometry) == pytest.approx(250 * intensity_scale(x, geometry), rel=1e-5)


def test_insensitive_to_field_of_view_voxel_size_and_noise():
    x, geometry = disc()
    reference = intensity_scale(x, geometry)
    assert intensity_scale(*disc(size=200)) == pytest.approx(reference, rel=1e-5)
    assert intensity_scale(*disc(size=192, spacing=1.0)) == pytest.approx(reference, rel=0.02)
    noisy = x * gamma_noise(x.shape)
    assert intensity_scale(noisy, geometry) == pytest.approx(reference, rel=0.05)


def gamma_noise(shape):
    """Multiplicative noise of mean 1 and SD 0.7, as in an early unregularised image."""
    uniform = torch.rand((2, *shape), generator=torch.Generator().manual_seed(1)).clamp_min(1e-6)
    return -uniform.log().sum(0) / 2


def test_smoothing_keeps_constants_and_has_the_given_width():
    geometry = ImageGeometry((21, 41, 41), (3.0, 2.0, 2.0))
    ones = torch.ones(geometry.shape, dtype=torch.float64)
    torch.testing.assert_close(gaussian_smooth(ones, geometry, 8.0), ones)
    point = torch.zeros(geometry.shape, dtype=torch.float64)
    point[10, 20, 20] = 1
    smooth = gaussian_smooth(point, geometry, 8.0)
    assert float(smooth.sum()) == pytest.approx(1, rel=1e-6)
    for axis, spacing in enumerate(geometry.voxel_size):
        profile = smooth.sum([k for k in range(3) if k != axis])
        position = (torch.arange(len(profile)) - len(profile) // 2) * spacing
        assert float((profile * position**2).sum()) == pytest.approx((8 / 2.3548) ** 2, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -1.0])
def test_images_without_a_scale_are_refused(value):
    geometry = ImageGeometry((1, 8, 8), (2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match=r"finite|activity"):
        intensity_scale(torch.full(geometry.shape, value), geometry)
    with pytest.raises(ValueError, match="shape"):
        intensity_scale(torch.ones(1, 8, 9), geometry)


def hot_ball(x, geometry, radius_mm, activity):
    """The image with a hot ball off its centre."""
    axes = [(torch.arange(n) - n // 2) * s for n, s in zip(geometry.shape, geometry.voxel_size, strict=True)]
    z, y, w = torch.meshgrid(axes[0], axes[1] - 20.0, axes[2] + 15.0, indexing="ij")
    return torch.where(z**2 + y**2 + w**2 < radius_mm**2, activity, x)


@pytest.mark.parametrize("air", [0.0, 0.03])
@pytest.mark.parametrize(("ratio", "radius_mm"), [
    (5, 10.0), (10, 5.0), (10, 10.0), (10, 20.0), (15, 5.0), (15, 10.0), (15, 20.0), (25, 10.0), (40, 2.5), (40, 5.0),
    (40, 20.0), (100, 5.0), (100, 10.0), (100, 20.0),
])  # fmt: skip
def test_a_hot_object_does_not_take_the_scale_over(air, ratio, radius_mm):
    """Bladder, injection site: the scale stays that of the tissue, whatever the field of view and what air holds."""
    for x, geometry in (disc(), disc(size=344)):
        x = torch.where(x > 0, 1.0, air)
        wanted = intensity_scale(x, geometry)
        hot = hot_ball(x, geometry, radius_mm, float(ratio))
        assert intensity_scale(hot, geometry) == pytest.approx(wanted, rel=0.15)


def test_the_scale_is_continuous_where_an_object_becomes_a_hot_one():
    x, geometry = disc()
    scales = [intensity_scale(hot_ball(x, geometry, 20.0, 3.0 * ratio), geometry) for ratio in np.arange(7, 15, 0.05)]
    steps = np.abs(np.diff(scales))
    assert max(scales) / min(scales) > 2.5
    assert steps.max() < 0.1 * (max(scales) - min(scales))


def scale_without_hot_objects(x, geometry):
    smoothed = gaussian_smooth(x, geometry, 8.0)
    return float(smoothed[smoothed > 0.2 * smoothed.max()].double().mean())


@pytest.mark.parametrize("subject", HOTTEST)
def test_no_simulated_head_has_a_hot_object(subject):
    """Whatever the tracer, lesions included: the bundled models were trained with the scale of these images."""
    pytest.importorskip("nilearn")
    geometry = ImageGeometry((56, 64, 56), (4.0, 4.0, 4.0))
    anatomy = simulate_anatomy(subject, geometry.shape, 4.0)
    for tracer in TRACERS.values():
        for draw in HOTTEST[subject] if tracer.name == "dopamine" else (0,):
            x = torch.from_numpy(draw_activity(anatomy, draw, tracer.contrast(subject, draw))[0])
            assert intensity_scale(x, geometry) == pytest.approx(scale_without_hot_objects(x, geometry), rel=1e-6)


@pytest.mark.parametrize(("name", "scale"), [("brain2d", 10.568056411096565), ("brain3d", 11.961985590164383)])
def test_the_bundled_images_keep_their_scale_and_a_hot_object_in_them_too(name, scale):
    example = load_example(name)
    geometry = example.acquisition.geometry
    assert intensity_scale(example.truth, geometry) == pytest.approx(scale, rel=1e-6)
    for ratio, radius in (
        (6, 10.0), (10, 7.5), (10, 10.0), (15, 5.0), (40, 5.0), (20, 14.0), (15, 20.0), (40, 8.0), (40, 20.0),
        (100, 6.0), (100, 28.0),
    ):  # fmt: skip
        hot = hot_ball(example.truth, geometry, radius, ratio * scale)
        assert intensity_scale(hot, geometry) == pytest.approx(scale, rel=0.15), (ratio, radius)
        assert intensity_scale(30 * hot, geometry) == pytest.approx(30 * intensity_scale(hot, geometry), rel=1e-4)
