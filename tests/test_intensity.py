import numpy as np
import pytest
import torch

from sirf_diffusion.data import load_example
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import intensity_scale, object_box
from sirf_diffusion.simulation import simulate_anatomy
from sirf_diffusion.simulation.tracer import draw_activity
from sirf_diffusion.simulation.tracers import TRACERS
from sirf_diffusion.training.data.volumes import Volume

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
    (5, 10.0), (5, 20.0), (6, 15.0), (8, 20.0), (10, 5.0), (10, 10.0), (10, 20.0), (15, 5.0), (15, 10.0), (15, 20.0),
    (25, 10.0), (40, 2.5), (40, 5.0), (40, 20.0), (100, 5.0), (100, 10.0), (100, 20.0),
])  # fmt: skip
def test_a_hot_object_does_not_take_the_scale_over(air, ratio, radius_mm):
    """Bladder, injection site: the scale stays that of the tissue, whatever the field of view and what air holds."""
    for x, geometry in (disc(), disc(size=344)):
        x = torch.where(x > 0, 1.0, air)
        wanted = intensity_scale(x, geometry)
        hot = hot_ball(x, geometry, radius_mm, float(ratio))
        assert intensity_scale(hot, geometry) == pytest.approx(wanted, rel=0.15)


def ellipsoid(geometry, centre, radii):
    """Which voxels of a volume lie within, mm from the middle."""
    axes = [(torch.arange(n) - n // 2) * s for n, s in zip(geometry.shape, geometry.voxel_size, strict=True)]
    places = zip(torch.meshgrid(*axes, indexing="ij"), centre, radii, strict=True)
    return sum(((place - middle) / radius) ** 2 for place, middle, radius in places) < 1


BODY = ImageGeometry((40, 88, 88), (5.0, 5.0, 5.0))


def body():
    """Trunk with a liver of 2.2 and lungs of 0.3 times its activity."""
    x = torch.full(BODY.shape, 0.02)
    for centre, radii, activity in (
        ((0, 0, 0), (400, 140, 190), 1.0), ((60, -20, -90), (60, 60, 70), 2.2), ((60, 0, 80), (60, 80, 50), 0.3),
    ):  # fmt: skip
        x[ellipsoid(BODY, centre, radii)] = activity
    return x


@pytest.mark.parametrize("radius_mm", [10, 15, 20, 25, 35])
@pytest.mark.parametrize("place", [(-70, 20, 0), (0, 0, 170), (20, 0, 90)], ids=["bladder", "injection", "lung tumour"])
def test_one_hot_organ_of_a_body_does_not_take_the_scale_over(place, radius_mm):
    x = body()
    wanted, organ = intensity_scale(x, BODY), ellipsoid(BODY, place, (radius_mm,) * 3)
    for ratio in (3, 4, 6, 8, 40):
        hot = torch.where(organ, float(ratio), x).numpy()
        volume = Volume.from_image(hot, BODY.voxel_size, subject="s", source="s")
        assert volume.intensity_scale == pytest.approx(wanted, rel=0.12), ratio
        assert bool(volume.notes) == (ratio > 5), (ratio, volume.notes)


@pytest.mark.parametrize("radius_mm", [10, 15, 20])
def test_one_hot_ball_in_a_brain_does_not_take_the_scale_over(radius_mm):
    """Below 6 times the scale it counts as a lesion; simulated heads have such."""
    example = load_example("brain3d")
    geometry = example.acquisition.geometry
    wanted, ball = intensity_scale(example.truth, geometry), ellipsoid(geometry, (0, 20, -15), (radius_mm,) * 3)
    for ratio, most in ((3, 1.25), (5, 1.55), (6, 1.15), (8, 1.02), (15, 1.02), (40, 1.02)):
        scale = intensity_scale(torch.where(ball, ratio * wanted, example.truth), geometry)
        assert 0.97 < scale / wanted < most, ratio


@pytest.mark.parametrize(("radius", "rise"), [(20.0, 1.2), (36.0, 2.5)])
def test_the_scale_is_continuous_where_an_object_becomes_a_hot_one(radius, rise):
    x, geometry = disc()
    scales = [intensity_scale(hot_ball(x, geometry, radius, 3.0 * ratio), geometry) for ratio in np.arange(3, 12, 0.05)]
    steps = np.abs(np.diff(scales))
    assert max(scales) / min(scales) > rise
    assert steps.max() < 0.15 * (max(scales) - min(scales))


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


def test_the_objects_box_leaves_specks_of_noise_out_but_no_object():
    geometry = ImageGeometry((12, 64, 64), (3.0, 3.0, 3.0))
    across = torch.arange(64).float() - 32
    head = (((across / 20) ** 2)[:, None] + (across / 16) ** 2 < 1).float().expand(geometry.shape).clone()
    alone = object_box(head, geometry)
    assert alone == ((0, 12), (10, 55), (14, 51))

    def with_part(value, size):
        image = head.clone()
        image[5 : 5 + size, 2 : 2 + size, 57 : 57 + size] = value
        return object_box(image, geometry)

    assert with_part(5.0, 1) == alone  # a noisy voxel at the rim, 0.2 of the tissue when smoothed
    assert with_part(20.0, 1) == ((0, 12), (0, 55), (14, 62))  # a marker
    assert with_part(0.2, 6) == ((0, 12), (0, 55), (14, 64))  # an arm
    plane = ImageGeometry((1, 64, 64), (3.0, 3.0, 3.0))
    speck = head[:1].clone()
    speck[0, 2, 60] = 1.0
    assert object_box(speck, plane) == ((0, 1), *alone[1:])
    assert object_box(torch.zeros(plane.shape), plane) == ((0, 1), (0, 64), (0, 64))
