"""Scanners and projection-data geometry: layouts as STIR's, symmetric positions, clear errors."""

import dataclasses
import math

import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner, Segment
from sirf_diffusion.geometry.scanners import find_scanner, get_scanner, scanner_names

SMALL = Scanner("small", 8, 64, 100.0, 5.0, 4.0, 2.0)


@pytest.mark.parametrize(("name", "first_name"), [
    ("Siemens mMR", "Siemens mMR"), ("2008", "Siemens mMR"), ("biograph_vision  600", "Siemens Vision 600"),
    ("VISION 600", "Siemens Vision 600"), ("GE Discovery 690", "GE Discovery 690"),
    ("Discovery 710", "GE Discovery 690"), ("GE Signa", "GE Signa PET/MR"), ("!ge signa pet/mr", "GE Signa PET/MR"),
    ("ecat 962", "ECAT 962"), ("ECAT HR+", "ECAT 962"), ("ECAT 966", "ECAT EXACT 3D"),
    ("Discovery MI", "GE Discovery MI 3 rings"),
])  # fmt: skip
def test_scanners_are_found_by_any_name(name, first_name):
    assert get_scanner(name).name == first_name


def test_an_unknown_scanner_is_named_with_suggestions():
    assert find_scanner("Siemens mMRI") is None
    with pytest.raises(ValueError, match=r"unknown scanner 'Siemens mMRI'.*siemens mmr"):
        get_scanner("Siemens mMRI")


@pytest.mark.parametrize("name", scanner_names())
@pytest.mark.parametrize("arc_corrected", [False, True])
def test_every_scanner_gives_data_of_full_size(name, arc_corrected):
    scanner = get_scanner(name)
    bins = scanner.default_num_arccorrected_bins if arc_corrected else scanner.max_num_non_arccorrected_bins
    while arc_corrected and bins * scanner.default_bin_size / 2 >= scanner.effective_ring_radius:
        bins //= 2
    geometry = ProjDataGeometry.from_scanner(name, 1, scanner.num_rings - 1, None, bins, arc_corrected)
    assert geometry.shape == (scanner.num_rings**2, scanner.num_detectors_per_ring // 2, bins)
    s = geometry.tangential_positions()
    assert s.abs().max() < scanner.effective_ring_radius


def test_mmr_span_11_layout():
    geometry = ProjDataGeometry.from_scanner("Siemens mMR", 11, 60)
    assert [s.num for s in geometry.segments] == [0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5]
    assert [s.num_axial_positions for s in geometry.segments] == [127, 115, 115, 93, 93, 71, 71, 49, 49, 27, 27]
    assert [(s.min_ring_difference, s.max_ring_difference) for s in geometry.segments[:3]] == [
        (-5, 5),
        (6, 16),
        (-16, -6),
    ]


def test_even_span_widens_segment_0_and_cuts_the_last_one():
    geometry = ProjDataGeometry.from_scanner("GE Signa PET/MR", 2, 44)
    positive = [s for s in geometry.segments if s.num >= 0]
    assert [s.num_axial_positions for s in positive] == list(range(89, 0, -4))
    assert (positive[0].min_ring_difference, positive[0].max_ring_difference) == (-1, 1)
    assert (positive[1].min_ring_difference, positive[1].max_ring_difference) == (2, 3)
    assert (positive[-1].min_ring_difference, positive[-1].max_ring_difference) == (44, 44)


@pytest.mark.parametrize("num_rings", [1, 2, 5, 8])
def test_segments_share_all_ring_differences_out(num_rings):
    scanner = dataclasses.replace(SMALL, num_rings=num_rings)
    for span in range(1, 2 * num_rings):
        for most in range(span // 2, num_rings):
            if span > 1 and (most - span // 2) % span == 1 and most < num_rings - 1:
                with pytest.raises(ValueError, match="single ring difference"):
                    ProjDataGeometry.from_scanner(scanner, span, most, 32, 33)
                continue
            geometry = ProjDataGeometry.from_scanner(scanner, span, most, 32, 33)
            covered = [d for s in geometry.segments for d in range(s.min_ring_difference, s.max_ring_difference + 1)]
            assert sorted(covered) == list(range(-most, most + 1))
            assert geometry.segment_slices()[-1].stop == geometry.shape[0]


@pytest.mark.parametrize("views", [32, 16, 8])
def test_a_mashed_view_lies_amid_the_views_it_adds(views):
    tilted = dataclasses.replace(SMALL, view_offset=-0.1)
    fine = ProjDataGeometry.from_scanner(tilted, 1, 0, 32, 33).view_angles()
    coarse = ProjDataGeometry.from_scanner(tilted, 1, 0, views, 33)
    assert coarse.view_mashing == 32 // views
    torch.testing.assert_close(coarse.view_angles(), fine.reshape(views, -1).mean(dim=1))
    assert fine[0].item() == pytest.approx(-0.1)


def test_views_that_are_no_divisor_are_not_adjusted():
    geometry = ProjDataGeometry.from_scanner(SMALL, 1, 0, 20, 33)
    assert geometry.view_mashing == 1
    assert geometry.view_angles()[0] == 0
    assert geometry.view_angles()[1].item() == pytest.approx(math.pi / 20)


@pytest.mark.parametrize("num", [33, 34])
@pytest.mark.parametrize("arc_corrected", [False, True])
def test_tangential_positions_are_centred_on_zero(num, arc_corrected):
    s = ProjDataGeometry.from_scanner(SMALL, 1, 0, 32, num, arc_corrected).tangential_positions()
    assert s[num // 2] == 0
    torch.testing.assert_close(s[num // 2 + 1 :], -s[1 - num % 2 : num // 2].flip(0))
    first_step = 2.0 if arc_corrected else 105 * math.sin(math.pi / 64)
    assert s[num // 2 + 1].item() == pytest.approx(first_step)


def test_planes_are_centred_and_spaced_by_compression():
    geometry = ProjDataGeometry.from_scanner(SMALL, 3, 4, 32, 33)
    for segment in geometry.segments:
        m = geometry.axial_positions(segment)
        torch.testing.assert_close(m, -m.flip(0))
        torch.testing.assert_close(m.diff(), torch.full((len(m) - 1,), 2.0, dtype=m.dtype))
    single = ProjDataGeometry.from_scanner(SMALL, 1, 1, 32, 33)
    assert single.axial_positions(single.segments[1]).diff().unique().tolist() == [4.0]


def test_oblique_rays_join_the_rings_they_come_from():
    geometry = ProjDataGeometry.from_scanner(SMALL, 1, 3, 32, 33)
    for segment in geometry.segments:
        half_chord = torch.sqrt(105.0**2 - geometry.tangential_positions() ** 2)
        rise = 2 * half_chord * geometry.tan_theta(segment)
        torch.testing.assert_close(rise, torch.full_like(rise, segment.min_ring_difference * 4.0))


@pytest.mark.parametrize(("change", "message"), [
    ({"num_views": 0}, "must be positive"), ({"num_tangential_positions": -3}, "must be positive"),
    ({"num_tangential_positions": 65}, "at most 64"), ({"segments": (Segment(0, 0, 0, 9),)}, "at most 8"),
    ({"segments": (Segment(0, -1, 1, 14),)}, "odd number"), ({"segments": (Segment(1, 1, 1, 7),)}, "contain 0"),
    ({"segments": (Segment(0, 0, 0, 8), Segment(2, 2, 2, 6))}, "without gaps"),
    ({"tangential_spacing": 2.0}, "arc-corrected data only"),
    ({"arc_corrected": True, "tangential_spacing": math.nan}, "must be positive"),
    ({"arc_corrected": True, "tangential_spacing": 9.0}, "beyond the ring radius"),
])  # fmt: skip
def test_impossible_layouts_are_refused(change, message):
    good = {"scanner": SMALL, "segments": (Segment(0, 0, 0, 8),), "num_views": 32, "num_tangential_positions": 33}
    ProjDataGeometry(**good)
    with pytest.raises(ValueError, match=message):
        ProjDataGeometry(**good | change)


@pytest.mark.parametrize(("span", "most", "message"), [
    (0, 0, "span m"), (17, 7, "span m"), (5, 1, "max_ring_d"), (2, 0, "max_ring_d"), (1, 8, "max_ring_d"),
])  # fmt: skip
def test_impossible_spans_are_refused(span, most, message):
    with pytest.raises(ValueError, match=message):
        ProjDataGeometry.from_scanner(SMALL, span, most, 32, 33)


@pytest.mark.parametrize(
    "change",
    [{"num_rings": 0}, {"inner_ring_radius": -1.0}, {"ring_spacing": math.nan}, {"num_detectors_per_ring": 63},
     {"average_depth_of_interaction": -1.0}, {"view_offset": math.inf}],
)  # fmt: skip
def test_impossible_scanners_are_refused(change):
    with pytest.raises(ValueError, match=f"'small': {next(iter(change))}"):
        dataclasses.replace(SMALL, **change)


def test_differences_name_what_differs():
    geometry = ProjDataGeometry.from_scanner(SMALL, 1, 1, 32, 33)
    rounded = dataclasses.replace(SMALL, ring_spacing=4.0001)
    assert geometry.differences(dataclasses.replace(geometry, scanner=rounded)) == []
    assert geometry.differences(dataclasses.replace(geometry, num_views=16)) == ["views: 32 against 16"]
    assert "segments" in geometry.differences(ProjDataGeometry.from_scanner(SMALL, 1, 2, 32, 33))[0]
    assert "arc-corrected" in geometry.differences(ProjDataGeometry.from_scanner(SMALL, 1, 1, 32, 33, True))[0]


@pytest.mark.requires_stir
class TestAgainstSTIR:
    @pytest.mark.parametrize("name", scanner_names())
    def test_scanner_table(self, name):
        import stir

        ours, its = get_scanner(name), stir.Scanner.get_scanner_from_name(name)
        assert ours.name == its.get_name()
        assert ours.num_rings == its.get_num_rings()
        assert ours.num_detectors_per_ring == its.get_num_detectors_per_ring()
        assert ours.inner_ring_radius == pytest.approx(its.get_inner_ring_radius(), rel=1e-6)
        assert ours.average_depth_of_interaction == pytest.approx(its.get_average_depth_of_interaction(), rel=1e-6)
        assert ours.ring_spacing == pytest.approx(its.get_ring_spacing(), rel=1e-6)
        assert ours.default_bin_size == pytest.approx(its.get_default_bin_size(), rel=1e-6)
        assert ours.view_offset == pytest.approx(its.get_intrinsic_azimuthal_tilt(), rel=1e-5)
        assert ours.max_num_non_arccorrected_bins == its.get_max_num_non_arccorrected_bins()
        assert ours.default_num_arccorrected_bins == its.get_default_num_arccorrected_bins()
        for field in dataclasses.fields(ours.blocks):
            assert getattr(ours.blocks, field.name) == getattr(its, f"get_{field.name}")()


@pytest.mark.parametrize(("arguments", "message"), [
    (((1.5, 2, 3), (1, 1, 1)), "shape must be whole numbers"),
    (((1, 2, 3), 2.0), "voxel_size needs three numbers"),
    (((1, 2), (1, 1, 1)), "shape needs three numbers"),
])  # fmt: skip
def test_an_image_grid_of_wrong_numbers_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageGeometry(*arguments)
