import logging

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.grid import GridAdapter

MODEL_VOXEL = (2.0, 2.0, 2.0)
# Image shape, voxel size, planes, multiple.
GRIDS = {
    "same, multiple": ((3, 16, 16), (5.0, 2.0, 2.0), "transverse", 8),
    "same, odd": ((5, 17, 21), (5.0, 2.0, 2.0), "transverse", 8),
    "within 5 %": ((1, 13, 16), (2.03125, 2.08, 1.95), "transverse", 4),
    "one plane, finer": ((1, 31, 40), (2.0, 1.5, 1.5), "transverse", 8),
    "coarser": ((2, 12, 15), (2.0, 3.1, 3.1), "transverse", 8),
    "larger voxels in a volume": ((7, 20, 21), (2.03125, 2.38626, 2.38626), "three", 8),
    "half size": ((24, 40, 40), (1.0, 1.0, 1.0), "three", 4),
    "one axis differs": ((8, 16, 16), (3.27, 2.0, 2.0), "three", 4),
    "two planes": ((2, 9, 9), (4.0, 2.0, 4.0), "three", 8),
}
KEPT = ["same, multiple", "same, odd", "within 5 %"]


def adapter(name, **options):
    shape, voxel_size, planes, multiple = GRIDS[name]
    return GridAdapter(ImageGeometry(shape, voxel_size, (1.0, 2.0, 3.0)), MODEL_VOXEL, multiple, planes, **options)


def centres(geometry):
    """Voxel centres in mm, one tensor per axis, by the definition of the image geometry."""
    first = (0, geometry.shape[1] // 2, geometry.shape[2] // 2)
    return [
        o + (torch.arange(n, dtype=torch.float64) - f) * d
        for n, d, o, f in zip(geometry.shape, geometry.voxel_size, geometry.origin, first, strict=True)
    ]


def blob(geometry, centre, sd):
    """A Gaussian blob given in mm."""
    z, y, x = (torch.exp(-0.5 * ((p - c) / sd) ** 2) for p, c in zip(centres(geometry), centre, strict=True))
    return z[:, None, None] * y[:, None] * x


@pytest.mark.parametrize("name", GRIDS)
def test_adjoint(name):
    grid, generator = adapter(name), torch.Generator().manual_seed(3)
    x = torch.randn((2, *grid.geometry.shape), generator=generator, dtype=torch.float64)
    u = torch.randn((2, *grid.latent_geometry.shape), generator=generator, dtype=torch.float64)
    left, right = (grid.to_latent(x) * u).sum(), (x * grid.to_latent_adjoint(u)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)


@pytest.mark.parametrize("name", GRIDS)
def test_latent_sizes_are_multiples_and_cover_the_image(name):
    grid = adapter(name)
    sizes = grid.latent_geometry.shape if grid.planes == "three" else grid.latent_geometry.shape[1:]
    assert all(size % GRIDS[name][3] == 0 for size in sizes)
    for image, latent, old, new in zip(
        centres(grid.geometry),
        centres(grid.latent_geometry),
        grid.geometry.voxel_size,
        grid.latent_geometry.voxel_size,
        strict=True,
    ):
        # Within 5 % voxel sizes count as equal, which may shift the outermost edge by 5 % of the half-size.
        slack = 0.05 * float(image.max() - image.min() + old)
        assert float(latent[0]) - new / 2 <= float(image[0]) - old / 2 + slack
        assert float(latent[-1]) + new / 2 >= float(image[-1]) + old / 2 - slack


@pytest.mark.parametrize("name", KEPT)
def test_padding_is_exact(name):
    grid = adapter(name)
    assert not grid.resamples
    x = torch.rand(grid.geometry.shape)
    u = grid.to_latent(x)
    assert torch.equal(grid.to_image(u), x)
    assert torch.equal(u[grid.latent_inside], x.flatten())
    assert float(u[~grid.latent_inside].abs().sum()) == 0
    assert torch.equal(grid.to_latent_adjoint(u), x)


def test_transverse_leaves_the_axial_direction_alone():
    grid = adapter("same, odd")
    assert grid.latent_geometry.shape[0] == 5
    assert grid.latent_geometry.voxel_size[0] == 5.0
    assert grid.latent_geometry.origin == grid.geometry.origin


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "two planes"])  # which do not resolve a blob
def test_an_object_stays_where_it_is(name):
    """A blob keeps its place and its integral in mm: no half-voxel shifts, no transposed axes."""
    grid = adapter(name)
    geometry = grid.geometry
    z, y, x = centres(geometry)
    middle = (float(z.mean()), float(y.mean()) + 3.0, float(x.mean()) - 2.0)
    image = blob(geometry, middle, sd=3.2)
    latent = grid.to_latent(image)
    for axis, (before, after) in enumerate(zip(centres(geometry), centres(grid.latent_geometry), strict=True)):
        others = tuple(k for k in range(3) if k != axis)
        mean = float((image.sum(others) * before).sum() / image.sum())
        mean_latent = float((latent.sum(others) * after).sum() / latent.sum())
        assert mean_latent == pytest.approx(mean, abs=0.12)
    volumes = [float(i.sum()) * g.voxel_volume for i, g in ((image, geometry), (latent, grid.latent_geometry))]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)


@pytest.mark.parametrize("name", GRIDS)
def test_constants_stay_constant(name):
    """Also in the outermost voxels, in both directions: a volume that ends inside the body keeps its last planes."""
    grid = adapter(name)
    ones = torch.ones(grid.geometry.shape, dtype=torch.float64)
    latent = grid.to_latent(ones)
    torch.testing.assert_close(latent, grid.latent_inside.double())
    torch.testing.assert_close(grid.to_image(latent), ones)


@pytest.mark.parametrize("name", ["one plane, finer", "larger voxels in a volume", "half size", "one axis differs"])
def test_smooth_images_survive_the_round_trip(name):
    grid = adapter(name)
    middle = [float(p.mean()) for p in centres(grid.geometry)]
    image = blob(grid.geometry, middle, sd=7.0)
    error = (grid.to_image(grid.to_latent(image)) - image).norm() / image.norm()
    assert float(error) < 0.05


def test_larger_voxels_average_noise():
    """Antialiased: white noise loses variance when voxels become twice as large, as an average would."""
    noise = torch.randn((1, 64, 64), generator=torch.Generator().manual_seed(4))
    latent = GridAdapter(ImageGeometry((1, 64, 64), (2.0, 1.0, 1.0)), MODEL_VOXEL).to_latent(noise)
    assert float(latent.var()) < 0.25


def test_adapting_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        adapter("same, odd").log()
        assert not caplog.records
        adapter("larger voxels in a volume").log()
    assert len(caplog.records) == 1
    assert "2.386" in caplog.text
    assert "7 x 20 x 21" in caplog.text


@pytest.mark.parametrize("voxel", [2.0, 1.3])
def test_extent_covers_the_centre_only(voxel, caplog):
    geometry = ImageGeometry((2, 41, 40), (2.0, voxel, voxel))
    grid = GridAdapter(geometry, MODEL_VOXEL, 4, extent=30.0)
    whole = GridAdapter(geometry, MODEL_VOXEL, 4)
    assert grid.latent_geometry.shape == (2, 16, 16)
    x = blob(geometry, (2.0, 0.0, 0.0), sd=3.0)
    back = grid.to_image(grid.to_latent(x))
    inside = back > 0
    assert 0 < int(inside.sum()) < inside.numel()
    # In the centre nothing differs from the adapter of the whole image.
    core = (slice(None), slice(16, 25), slice(16, 25))
    torch.testing.assert_close(back[core], whole.to_image(whole.to_latent(x))[core])
    grid.log()
    assert "zero outside" in caplog.text
    generator = torch.Generator().manual_seed(5)
    u = torch.randn(grid.latent_geometry.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(geometry.shape, generator=generator, dtype=torch.float64)
    assert float((grid.to_latent(x) * u).sum()) == pytest.approx(float((x * grid.to_latent_adjoint(u)).sum()), rel=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_a_box_is_seen_as_in_the_whole_image(name):
    shape, _, planes, multiple = GRIDS[name]
    box = tuple((size // 4, max(size // 4 + 1, size // 2)) for size in shape)
    part, whole = adapter(name, box=box), adapter(name)
    (z, y, x), steps = part.latent_geometry.shape, (1 if planes == "transverse" else multiple, multiple, multiple)
    assert all(size % step == 0 for size, step in zip((z, y, x), steps, strict=True))
    # The same voxels in the same places.
    offsets = []
    for mine, all_of_it in zip(centres(part.latent_geometry), centres(whole.latent_geometry), strict=True):
        offsets.append(int((all_of_it - mine[0]).abs().argmin()))
        torch.testing.assert_close(mine, all_of_it[offsets[-1] : offsets[-1] + len(mine)])
    # From multiple to multiple of the whole: a network halves the sides at the same places.
    assert all(offset % step == 0 for offset, step in zip(offsets, steps, strict=True))
    image = blob(
        part.geometry, [float(c[sum(ends) // 2]) for c, ends in zip(centres(part.geometry), box, strict=True)], 9.0
    )
    there = tuple(slice(o, o + n) for o, n in zip(offsets, (z, y, x), strict=True))
    assert (part.window, whole.window) == ((whole.latent_geometry.shape, there), None)
    latent = part.to_latent(image)
    torch.testing.assert_close(latent, whole.to_latent(image)[there])
    assert bool(part.covered[tuple(slice(*ends) for ends in box)].all())
    back, expected = part.to_image(latent), whole.to_image(whole.to_latent(image))
    torch.testing.assert_close(back, expected * part.covered)
    u = torch.randn((z, y, x), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert float((latent * u).sum()) == pytest.approx(float((image * part.to_latent_adjoint(u)).sum()), rel=1e-12)


def test_impossible_grids_are_refused():
    one_plane, volume = ImageGeometry((1, 8, 8), MODEL_VOXEL), ImageGeometry((2, 8, 8), MODEL_VOXEL)
    with pytest.raises(ValueError, match="one plane"):
        GridAdapter(one_plane, MODEL_VOXEL, planes="three")
    with pytest.raises(ValueError, match="planes must be one of"):
        GridAdapter(volume, MODEL_VOXEL, planes="coronal")
    with pytest.raises(ValueError, match="extent"):
        GridAdapter(volume, MODEL_VOXEL, extent=0.0)
    with pytest.raises(ValueError, match="must have the shape"):
        GridAdapter(volume, MODEL_VOXEL).to_latent(torch.zeros(3, 8, 8))
