"""PETSIRD files of the package's own generator, binned into sinograms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_exam_info, read_projection_data, write_projection_data
from sirf_diffusion.geometry.detector_pairs import DetectorPairs
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.geometry.scanners import Scanner

SCANNER = Scanner(
    "small", 6, 32, 100.0, 7.0, 5.0, 10.0, max_num_non_arccorrected_bins=31, default_num_arccorrected_bins=21
)  # fmt: skip
LAYOUTS = {
    "all bins": {"span": 1, "max_ring_difference": 5},
    "span 3, mashed": {"span": 3, "max_ring_difference": 4, "num_views": 8, "num_tangential_positions": 20},
    "span 2": {"span": 2, "max_ring_difference": 5, "num_tangential_positions": 21},
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return ProjDataGeometry.from_scanner(SCANNER, **LAYOUTS[request.param])


def random_pairs(number=4000):
    rng = np.random.default_rng(5)
    (d1, d2), (r1, r2) = rng.integers(0, 32, (2, number)), rng.integers(0, 6, (2, number))
    return d1, r1, d2, r2


@pytest.mark.requires_stir
def test_pairs_of_detectors_are_stirs(layout, tmp_path):
    import stir

    write_projection_data(tmp_path / "t.hs", torch.zeros(layout.shape), layout)
    data = stir.ProjData.read_from_file(str(tmp_path / "t.hs"))
    info = data.get_proj_data_info()  # which does not outlive the data
    first = {s.num: part.start for s, part in zip(layout.segments, layout.segment_slices(), strict=True)}
    lowest = info.get_min_tangential_pos_num()

    def of_stir(d1, r1, d2, r2):
        found, places = stir.Bin(), [stir.DetectionPosition(int(d), int(r), 0) for d, r in ((d1, r1), (d2, r2))]
        ok = d1 != d2 and info.get_bin_for_det_pos_pair(found, stir.DetectionPositionPair(*places)).succeeded()
        if not ok or found.segment_num not in first:
            return -1
        index = (first[found.segment_num] + found.axial_pos_num) * layout.num_views + found.view_num
        k = found.tangential_pos_num - lowest
        return index * layout.num_tangential_positions + k if 0 <= k < layout.num_tangential_positions else -1

    pairs = random_pairs()
    expected = [of_stir(*pair) for pair in zip(*pairs, strict=True)]
    assert max(expected) > 0
    assert DetectorPairs(layout).bins(*pairs).tolist() == expected


petsird = pytest.importorskip("petsird")


def small_scanner(*more, **changes):
    """A scanner of the generator: 16 flat modules around and two along the axis, each of 2 x 3 crystals.

    The generator's crystals start, and are not centred, where its modules put them: half a crystal further on.
    """
    from petsird.helpers.generator import CylindricalBlocksInfo, get_scanner_info

    modules = CylindricalBlocksInfo(**{
        "crystal_length": (20.0, 21.5, 5.0), "num_crystals_per_module": (1, 2, 3), "num_modules_along_ring": 16,
        "num_modules_along_axis": 2, "radius": 100.0, "arc": 2 * math.pi, "start_angle": 0.0,
        "module_spacing_along_axis": 15.0, "number_of_tof_bins": 5, "tof_resolution": 9.0, "LLD": 450.0, "ULD": 650.0,
        "number_of_event_energy_bins": 2, "energy_resolution": 0.1, "material_id": 1, **changes,
    })  # fmt: skip
    scanner = get_scanner_info([modules, *more])
    scanner.delayed_event_policy = petsird.CoincidencePolicy.REJECT_HIGHER_MULTIPLES
    singles = scanner.detection_efficiencies.detection_bin_efficiencies
    singles[0] = np.random.default_rng(1).uniform(0.5, 1, len(singles[0])).tolist()
    return scanner


def random_events(number, seed=2):
    bins = np.sort(np.random.default_rng(seed).integers(0, 384, (number, 2)), axis=1)[:, ::-1]
    return [petsird.CoincidenceEvent(detection_bins=pair, tof_idx=i % 5) for i, pair in enumerate(bins.tolist())]


def event_block(prompts, delayeds=(), start=0, stop=1000):
    interval = petsird.TimeInterval(start=start, stop=stop)
    return petsird.TimeBlock.EventTimeBlock(
        petsird.EventTimeBlock(time_interval=interval, prompt_events=[[prompts]], delayed_events=[[list(delayeds)]])
    )


def bed_block(z):
    matrix = np.hstack([np.eye(3), [[0], [0], [z]]]).astype("float32")
    return petsird.TimeBlock.BedMovementTimeBlock(
        petsird.BedMovementTimeBlock(transform=petsird.RigidTransformation(matrix=matrix))
    )


@pytest.fixture
def write(tmp_path):
    def written(scanner, blocks, exam=None):
        with petsird.BinaryPETSIRDWriter(str(tmp_path / "scan.petsird")) as writer:
            writer.write_header(petsird.Header(scanner=scanner, exam=exam))
            writer.write_time_blocks(blocks)
        return tmp_path / "scan.petsird"

    return written


def bin_events(path, template=None):
    from sirf_diffusion.interop.petsird import bin_events

    return bin_events(path, template or ProjDataGeometry.from_scanner(SCANNER, **LAYOUTS["all bins"]))


def centre(scanner, detection_bin):
    """Centre of an element in STIR's coordinates (x, y, z), by the package."""
    from petsird.helpers import expand_detection_bin
    from petsird.helpers.geometry import get_detecting_box

    box = get_detecting_box(scanner, 0, expand_detection_bin(scanner, 0, detection_bin))
    return np.mean([corner.c for corner in box.corners], axis=0) * (1, 1, -1)


def z_middle(scanner):
    heights = [centre(scanner, b)[2] for b in range(384)]
    return (max(heights) + min(heights)) / 2


@pytest.mark.parametrize("offset", [0.0, math.pi / 32], ids=["template's offset", "half a detector off"])
def test_a_coincidence_lies_on_the_line_of_its_bin(write, offset):
    scanner, template = small_scanner(), ProjDataGeometry.from_scanner(replace(SCANNER, view_offset=offset), 1, 5)
    for event in random_events(12):
        found = bin_events(write(scanner, [event_block([event])]), template)
        layout, hit = found.geometry, found.prompts.nonzero().tolist()
        assert len(hit) == 1 - found.outside[0]
        for sinogram, view, k in hit:
            places = zip(layout.segments, layout.segment_slices(), strict=True)
            segment, part = next((s, p) for s, p in places if p.start <= sinogram < p.stop)
            phi, m = layout.view_angles()[view].item(), layout.axial_positions(segment)[sinogram - part.start].item()
            x, y, z = np.transpose([centre(scanner, b) for b in event.detection_bins])
            along, across = y * math.cos(phi) - x * math.sin(phi), x * math.cos(phi) + y * math.sin(phi)
            across *= SCANNER.effective_ring_radius / 110  # where the crystals' centres are
            # Where STIR lets neighbouring lines share a view, the ends are half a detector off, to opposite sides.
            assert across.mean() == pytest.approx(layout.tangential_positions()[k].item(), abs=4)
            assert np.ptp(across) < 23
            towards = np.sign(along - along.mean()) * segment.average_ring_difference * SCANNER.ring_spacing / 2
            assert z - z_middle(scanner) == pytest.approx(m + towards, abs=0.01)
    assert math.remainder(found.geometry.scanner.view_offset, 2 * math.pi / 32) == pytest.approx(0, abs=0.01)
    assert any("view offset" in note for note in found.notes) == (offset > 0)


def test_counts_energies_time_and_position(write):
    exam = petsird.ExamInformation(start_of_acquisition=petsird.DateTime.parse("2026-03-01T10:20:30"))
    exam.patient_orientation.patient_gantry_relationship_code_sequence.code_value = "102541007"
    exam.patient_orientation.patient_orientation_modifier_code_sequence.code_value = "1240000"
    blocks = [
        bed_block(12.0),
        event_block(random_events(300), random_events(70, 3), 5000, 6000),
        event_block(random_events(200, 4), (), 7000, 9000),
    ]
    template = ProjDataGeometry.from_scanner(SCANNER, **LAYOUTS["span 2"])
    found = bin_events(write(small_scanner(), blocks, exam), template)
    assert found.prompts.sum() + found.outside[0] == 500
    assert found.delayeds.sum() + found.outside[1] == 70
    assert min(found.outside) > 0
    assert found.geometry == template
    assert found.exam.time_frames == ((5.0, 4.0),)
    assert (found.exam.orientation, found.exam.rotation) == ("feet_in", "prone")
    assert found.exam.start_time.isoformat() == "2026-03-01T10:20:30+00:00"
    assert found.exam.energy_window == (450, 650)
    told = "; ".join(found.notes)
    for part in ("5 time-of-flight bins", "2 energy windows", "cover 3 s of the 4 s", "bed's position"):
        assert part in told


def test_numbers_of_modules_do_not_matter(write):
    scanner, events = small_scanner(), random_events(400)
    expected = bin_events(write(scanner, [event_block(events)]))
    order = np.random.default_rng(0).permutation(32)
    modules = scanner.scanner_geometry.replicated_modules[0]
    modules.transforms = [modules.transforms[i] for i in order]
    new = np.argsort(order)
    for event in events:
        numbers = [12 * int(new[b // 12]) + b % 12 for b in event.detection_bins]
        event.detection_bins = sorted(numbers, reverse=True)
    torch.testing.assert_close(bin_events(write(scanner, [event_block(events)])).prompts, expected.prompts)


def test_efficiencies_are_the_packages(write, layout):
    from petsird.helpers import get_detection_efficiency

    from sirf_diffusion.interop.petsird_scanner import efficiencies_of, find_elements

    # One module is in coincidence with one other, half the ring away.
    scanner = small_scanner()
    stored = scanner.detection_efficiencies
    stored.module_pair_sgidlut[0][0] = [[-1] * (module + 1) for module in range(32)]
    stored.module_pair_sgidlut[0][0][17][0] = 3
    stored.module_pair_efficiencies_vectors[0][0][3].values = np.random.default_rng(0).uniform(size=(12, 12)).tolist()
    events = [petsird.CoincidenceEvent(detection_bins=[a, b]) for a in range(17 * 12, 18 * 12) for b in range(12)]
    detectors, rings, _ = find_elements(scanner, layout, {})
    first, second = np.array([event.detection_bins for event in events]).T // 2
    bins = DetectorPairs(layout).bins(detectors[first], rings[first], detectors[second], rings[second])
    expected = np.zeros(layout.num_bins)
    for index, event in zip(bins, events, strict=True):
        if index >= 0:
            expected[index] += get_detection_efficiency(scanner, petsird.TypeOfModulePair((0, 0)), event)
    found = bin_events(write(scanner, [event_block(events)]), layout)
    np.testing.assert_allclose(found.efficiencies.flatten(), expected, rtol=1e-5)
    assert ((found.efficiencies > 0) == (found.prompts > 0)).all()
    stored.module_pair_sgidlut[0][0][17][0] = -5
    with pytest.raises(ValueError, match="below -1"):
        bin_events(write(scanner, [event_block(events)]), layout)
    stored.module_pair_sgidlut[0][0][17][0] = 2**70
    with pytest.raises(ValueError, match="of no group"):
        efficiencies_of(scanner, 192, {})
    stored.detection_bin_efficiencies = stored.module_pair_sgidlut = stored.module_pair_efficiencies_vectors = []
    stored.calibration_factor = 1.0
    plain = bin_events(write(scanner, [event_block([])]), layout).efficiencies
    np.testing.assert_equal(plain.flatten().numpy(), 4 * pairs_in_bins(layout))  # 2 x 2 energy windows


def dead_time_block(start, stop, singles=None, modules=None):
    pairs = np.empty(1, object)
    pairs[0] = modules
    fractions = petsird.AliveTimeFractions(
        singles_alive_time_fractions=[] if singles is None else [np.asarray(singles, np.float32)],
        module_pair_alive_time_fractions=[] if modules is None else [[pairs]],
    )
    interval = petsird.TimeInterval(start=start, stop=stop)
    return petsird.TimeBlock.DeadTimeTimeBlock(
        petsird.DeadTimeTimeBlock(time_interval=interval, alive_time_fractions=fractions)
    )


def test_dead_time_is_in_the_efficiencies(write):
    """For a quarter of the time half of the coincidences are seen, then those of one element not at all."""
    modules = [[0.5] * (module + 1) for module in range(32)]
    singles = np.repeat(np.arange(192) != 7, 2)
    events = [event_block([], start=1000, stop=2000), event_block([], start=5000, stop=8000)]
    plain = bin_events(write(small_scanner(), events)).efficiencies
    parts = [dead_time_block(0, 4000, modules=modules), dead_time_block(4000, 9000, singles)]
    found = bin_events(write(small_scanner(), events + parts))
    ratio = (found.efficiencies / plain)[plain > 0]
    assert sorted({round(float(value), 5) for value in ratio}) == [0.125, 0.875]
    assert any("alive-time" in note for note in found.notes)
    for wrong, message in (
        (parts[:1], "cover 25.0%"),
        ([dead_time_block(0, 9000, singles[:-2])], "384 values|192 x 2 values"),
        ([dead_time_block(0, 9000, 2.0 * singles)], "at most 1"),
        ([dead_time_block(0, 9000, modules=modules[:-1])], "lower triangle of 32"),
    ):
        with pytest.raises(ValueError, match=message):
            bin_events(write(small_scanner(), events + wrong))


def pairs_in_bins(layout):
    """Number of pairs of detectors that each bin combines."""
    first, second = np.triu_indices(192, 1)
    bins = DetectorPairs(layout).bins(first % 32, first // 32, second % 32, second // 32)
    return np.bincount(bins[bins >= 0], minlength=layout.num_bins)


def example_of_the_generator():
    from petsird.helpers.generator import get_scanner_geometry, mtype0_def, mtype1_def

    return petsird.ScannerInformation(scanner_geometry=get_scanner_geometry([mtype0_def, mtype1_def]))


def moved(scanner, matrix):
    for transform in scanner.scanner_geometry.replicated_modules[0].transforms:
        transform.matrix = (matrix @ np.vstack([transform.matrix, [0, 0, 0, 1]]))[:3].astype("float32")
    return scanner


SHIFTED, TIPPED = np.eye(4), np.eye(4)[[0, 2, 1, 3]]
SHIFTED[0, 3] = 12.0


@pytest.mark.parametrize(("scanner", "message"), [
    (example_of_the_generator, r"2 types of detector module \(40 modules of 56 elements, 15 modules of 90"),
    (lambda: small_scanner(num_crystals_per_module=(2, 2, 3)), "crystals are in layers"),
    (lambda: small_scanner(num_modules_along_ring=4, num_crystals_per_module=(1, 8, 3)), "no cylinder around z"),
    (lambda: small_scanner(radius=150.0), "do not hold the template's ring radius of 107.0 mm"),
    (lambda: small_scanner(module_spacing_along_axis=18.0), "0.30 of a ring beside"),
    (lambda: small_scanner(num_modules_along_ring=15), "of a detector and"),
    (lambda: moved(small_scanner(), SHIFTED), "no cylinder around z"),
    (lambda: moved(small_scanner(), TIPPED), "no cylinder around z"),
])  # fmt: skip
def test_other_scanners_are_refused(write, scanner, message):
    with pytest.raises(ValueError, match=message):
        bin_events(write(scanner(), [event_block([])]))


def test_a_part_of_the_ring_is_told(write):
    found = bin_events(write(small_scanner(arc=math.pi, num_modules_along_ring=8), [event_block([])]))
    assert "96 of the template's 192 detectors have no element in the file" in found.notes
    assert (found.efficiencies == 0).float().mean() > 0.7


@pytest.mark.parametrize(("blocks", "message"), [
    (lambda: [], "no time block with events"), (lambda: [event_block([]), bed_block(1.0)], "the bed moves"),
    (lambda: [event_block([petsird.CoincidenceEvent(detection_bins=[384, 0])])], "element 192; the scanner has 192"),
])  # fmt: skip
def test_what_cannot_be_binned_is_refused(write, blocks, message):
    with pytest.raises(ValueError, match=message):
        bin_events(write(small_scanner(), blocks()))


def test_damaged_files_are_refused(write, tmp_path):
    content = write(small_scanner(), [event_block(random_events(50))]).read_bytes()
    path = tmp_path / "damaged"
    for damaged in (
        b"",
        b"PK" + content,
        content[: len(content) // 2],
        content[:-20],
        content.replace(b"PETSIRD", b"PETS"),
        content[:9] + b"\xff\xff\x7f" + content[9:],  # a description of the format that is longer than the file
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged cannot be read as binary PETSIRD"):
            bin_events(path)


def test_the_command_writes_sinograms(write, tmp_path, capsys):
    template = ProjDataGeometry.from_scanner(SCANNER, 3, 4)
    write_projection_data(tmp_path / "template.hs", torch.zeros(template.shape), template)
    (tmp_path / "template.s").unlink()
    path = write(small_scanner(), [event_block(random_events(100), random_events(9, 3))])
    arguments = [
        "data",
        "petsird",
        str(path),
        "--template",
        str(tmp_path / "template.hs"),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 0
    expected, told = bin_events(path, template), capsys.readouterr().out
    for name in ("prompts", "delayeds", "efficiencies"):
        data, geometry = read_projection_data(tmp_path / "o" / f"{name}.hs")
        torch.testing.assert_close(data, getattr(expected, name))
        assert not geometry.differences(template)
        assert read_exam_info(tmp_path / "o" / f"{name}.hs").time_frames == ((0.0, 1.0),)
    assert f"prompts: {int(expected.prompts.sum())} binned, {expected.outside[0]} outside the template" in told
    assert "time-of-flight bins are added up" in told
