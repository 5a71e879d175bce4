"""The projector is a matched pair, knows its axes, and does not depend on how the work is cut."""

import dataclasses
import logging
import math

import pytest
import torch

from sirf_diffusion.engines.embedded.acquisition import default_geometry
from sirf_diffusion.engines.embedded.acquisition_model import AcquisitionModel
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import Scanner
from sirf_diffusion.interop.sirf_names.data import default_image_geometry

SCANNER = Scanner(
    name="small", num_rings=4, num_detectors_per_ring=96, inner_ring_radius=120.0, average_depth_of_interaction=5.0,
    ring_spacing=6.0, default_bin_size=3.5, view_offset=0.0, max_num_non_arccorrected_bins=47,
)  # fmt: skip
DIRECT = (Segment(0, 0, 0, 4),)
SPAN_1 = (*DIRECT, Segment(1, 1, 1, 3), Segment(-1, -1, -1, 3))
SPAN_3 = (Segment(0, -1, 1, 7), Segment(1, 2, 3, 5), Segment(-1, -3, -2, 5))


def make(
    segments=SPAN_3, num_views=24, bins=40, shape=(7, 31, 31), voxel=(3.0, 4.0, 4.0), origin=(0.0, 0.0, 0.0),
    view_offset=0.0, spacing=None, **options,
) -> Projector:  # fmt: skip
    scanner = dataclasses.replace(SCANNER, view_offset=view_offset)
    projdata = ProjDataGeometry(scanner, segments, num_views, bins, spacing is not None, spacing)
    return Projector(ImageGeometry(shape, voxel, origin), projdata, **options)


def random_image(projector: Projector, *batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((*batch, *projector.geometry.shape), generator=generator)


VARIANTS = {
    "compressed": {},
    "uncompressed": {"segments": SPAN_1},
    "even image": {"shape": (8, 32, 30)},
    "shifted along the axis": {"origin": (0.8, 0.0, 0.0)},
    "thin planes": {"segments": SPAN_1, "shape": (15, 31, 31), "voxel": (2.0, 4.0, 4.0), "origin": (7.1, 0.0, 0.0)},
    "odd number of views": {"num_views": 3, "segments": DIRECT},
    "oblong pixels": {"voxel": (3.0, 4.0, 3.0), "shape": (7, 25, 36)},
    "arc-corrected": {"spacing": 4.5, "bins": 41},
    "view offset and mashing": {"view_offset": 0.3, "num_views": 12},
    "one plane": {"segments": (Segment(0, 0, 0, 1),), "shape": (1, 31, 31), "voxel": (6.0, 4.0, 4.0)},
    "shorter than the scanner": {"shape": (3, 31, 31)},
    "longer than the scanner": {"shape": (15, 31, 31)},
}


def test_the_default_plane_of_a_single_ring_meets_all_its_rays(caplog):
    scanner = dataclasses.replace(SCANNER, num_rings=1)
    projdata = ProjDataGeometry(scanner, (Segment(0, 0, 0, 1),), 24, 40, False, None)
    whole, thin = default_geometry(projdata), default_image_geometry(projdata)
    assert whole.voxel_size[0] == projdata.scanner.ring_spacing == 2 * thin.voxel_size[0]
    counts = []
    for geometry, says in ((whole, 0), (thin, 1)):
        model = AcquisitionModel(Projector(geometry, projdata))
        counts.append(float(model.forward(torch.ones(geometry.shape)).max()))
        assert sum("the only ring" in message for message in caplog.messages) == says
    assert counts[0] == pytest.approx(2 * counts[1], rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_adjoint_matches(variant):
    projector = make(**variant)
    assert projector.adjointness_test() < 1e-6
    assert projector.adjointness_test(views=[2, 0]) < 1e-6


def test_disc_gives_its_chords():
    projector = make(segments=(Segment(0, 0, 0, 1),), shape=(1, 161, 161), voxel=(6.0, 1.0, 1.0), bins=47)
    axis = torch.arange(-80, 81.0)
    radius = 50.0
    disc = (axis[:, None] ** 2 + axis[None] ** 2 < radius**2).float()[None]
    s = projector.projdata.tangential_positions()
    chords = 2 * (radius**2 - s**2).clamp_min(0).sqrt()
    inside = s.abs() < 40
    projected = projector.forward(disc)[0].double()
    assert (projected[:, inside] / chords[inside] - 1).abs().max() < 0.02
    assert float(projected[:, s.abs() > 54].abs().max()) == 0


@pytest.mark.parametrize("origin", [0.0, 1.5, 0.8])
@pytest.mark.parametrize("segments", [SPAN_1, SPAN_3])
def test_mirrored_image_swaps_segments(origin, segments):
    projector, mirror = make(segments, origin=(origin, 0, 0)), make(segments, origin=(-origin, 0, 0))
    x = random_image(projector)
    projected, mirrored = projector.forward(x), mirror.forward(x.flip(0))
    direct, plus, minus = projector.projdata.segment_slices()
    for here, there in ((direct, direct), (plus, minus), (minus, plus)):
        torch.testing.assert_close(mirrored[there].flip(0), projected[here], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["compressed", "uncompressed", "odd number of views", "one plane"])
def test_batches_and_views_change_nothing(variant):
    projector = make(**VARIANTS[variant])
    x = random_image(projector, 2, 3)
    everything = projector.forward(x)
    assert everything.shape == (2, 3, *projector.projdata.shape)
    torch.testing.assert_close(everything[1, 2], projector.forward(x[1, 2]))
    num_views = projector.projdata.num_views
    views = [num_views - 1, 0, num_views // 2]
    torch.testing.assert_close(projector.forward(x[0], views), everything[0][:, :, views])
    subsets = [range(k, num_views, 3) for k in range(3)]
    back = sum(projector.adjoint(everything[..., v, :][:, :, :, :], v) for v in map(list, subsets))
    torch.testing.assert_close(back, projector.adjoint(everything), rtol=1e-4, atol=1e-2)


def test_chunks_change_nothing(caplog):
    whole, cut = make(), make()
    cut.max_bytes = 1 << 17
    x = random_image(whole, 3)
    with caplog.at_level(logging.WARNING):
        projected = cut.forward(x)
        torch.testing.assert_close(projected, whole.forward(x))
        torch.testing.assert_close(cut.adjoint(projected), whole.adjoint(projected), rtol=1e-4, atol=1e-3)
    assert [r.levelname for r in caplog.records].count("WARNING") == 1
    assert cut._cached_bytes <= cut.max_bytes < whole._cached_bytes


def test_differentiable():
    projector = make()
    x = random_image(projector).requires_grad_()
    p = torch.rand(projector.projdata.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    inner = (projector.forward(x) * p).sum()
    (gradient,) = torch.autograd.grad(inner, x, retain_graph=True)
    torch.testing.assert_close(gradient, projector.adjoint(p.detach()))
    (gradient,) = torch.autograd.grad((projector.adjoint(p) * x.detach()).sum(), p)
    torch.testing.assert_close(gradient, projector.forward(x.detach()), rtol=1e-4, atol=1e-4)


def test_inference_mode_leaves_a_usable_projector():
    projector = make()
    x = random_image(projector)
    with torch.inference_mode():
        expected = projector.forward(x).clone()
    x.requires_grad_()
    projector.forward(x).sum().backward()
    torch.testing.assert_close(projector.forward(x.detach()), expected)


def test_circular_field_of_view():
    projector = make(segments=(Segment(0, 0, 0, 1),), shape=(1, 31, 31), voxel=(6.0, 4.0, 4.0))
    sensitivity = projector.adjoint(torch.ones(projector.projdata.shape))[0]
    axis = torch.arange(-15, 16.0) * 4
    distance = torch.hypot(axis[:, None], axis[None])
    assert bool((sensitivity[distance < 56] > 0).all())
    assert bool((sensitivity[distance > 60 + 4 * math.sqrt(2)] == 0).all())


@pytest.mark.parametrize(("options", "message"), [
    ({"shape": (7, 91, 91)}, "outside the scanner"), ({"origin": (200.0, 0.0, 0.0)}, "outside the scanner"),
    ({"origin": (0.0, 0.0, 3.0)}, "shifted in plane"), ({"voxel": (2.2, 4.0, 4.0)}, "multiple"),
    ({"max_bytes": 1000}, "max_bytes"),
])  # fmt: skip
def test_impossible_geometries_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_input_is_refused():
    projector = make()
    with pytest.raises(ValueError, match="image has shape"):
        projector.forward(torch.zeros(7, 31, 30))
    with pytest.raises(ValueError, match="projection data has shape"):
        projector.adjoint(torch.zeros(projector.projdata.shape), views=[0, 1])
    for views in ([], [0, 0], [24], [-1]):
        with pytest.raises(ValueError, match="views must be"):
            projector.forward(random_image(projector), views)


@pytest.mark.requires_cuda
def test_cuda_agrees():
    here, there = make(), make(device="cuda")
    x = random_image(here, 2)
    projected = here.forward(x)
    torch.testing.assert_close(there.forward(x).cpu(), projected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.adjoint(projected).cpu(), here.adjoint(projected), rtol=1e-4, atol=1e-3)
    assert there.adjointness_test() < 1e-6
