"""Variations of two headers, and numbers that tell how STIR and this package understand a file."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from interfile_files import NUM_BINS, SCANNER, write_image_files, write_projdata_files
from refused_changes import escaped_rows

from sirf_diffusion.files.interfile import (
    read_exam_info,
    read_image,
    read_projection_data,
    read_projection_data_geometry,
)

_EXAM = """image scaling factor[1] := 2
calibration factor := 3.5
number of energy windows := 1
energy window lower level[1] := 430
energy window upper level[1] := 610
radionuclide halflife (sec)[1] := 500
"""
_SHORT = ("signed integer", 2, "i2")
_VALUE = re.compile(r":= *(.*)$")

# Change of one line ``key := value``: its name, and the new text (None: the change does not fit the line).
_CHANGES = {
    "deleted": lambda line, key, value: "",
    "empty": lambda line, key, value: f"{key} :=",
    "no colon": lambda line, key, value: line.replace(":=", "="),
    "no index": lambda line, key, value: re.sub(r" ?\[\d\]", "", line) if "[" in key else None,
    "next index": lambda line, key, value: line.replace("[3]", "[4]").replace("[2]", "[3]").replace("[1]", "[2]"),
    "index 0": lambda line, key, value: re.sub(r"\[\d\]", "[0]", line) if "[" in key else f"{key} [0] := {value}",
    "index 1": lambda line, key, value: None if "[" in key else f"{key}[1] := {value}",
    "index -1": lambda line, key, value: re.sub(r"\[\d\]", "[-1]", line) if "[" in key else f"{key}[-1] := {value}",
    "text after the key": lambda line, key, value: f"{key} (a note) := {value}",
    "spelling": lambda line, key, value: f"  !{key.upper().replace(' ', '_ ')}:={value}",
    "repeated empty": lambda line, key, value: f"{line}\n{key} :=",
    "repeated": lambda line, key, value: f"{line}\n{key} := {_another(value)}",
    "comment": lambda line, key, value: f"{line} ; a note",
    "braces": lambda line, key, value: f"{key} := {{{value}}}",
    "list": lambda line, key, value: f"{key} := {value},{value},{value}",
    "open brace": lambda line, key, value: f"{key} := {{{value}",
    "junk": lambda line, key, value: f"{key} := junk",
    "negative": lambda line, key, value: f"{key} := -{value}",
    "zero": lambda line, key, value: f"{key} := 0",
}


def _whole_changes() -> dict[str, tuple[str, str]]:
    """Changes of the whole header: old text, new text."""
    return {row["variation"]: (row["old"], row["new"]) for row in escaped_rows("header_changes")}


def _another(value: str) -> str:
    return str(int(value) + 1) if re.fullmatch(r"-?\d+", value) else "1"


def write_base(folder: Path, kind: str) -> Path:
    """A header of an image or of projection data, with its data file."""
    more = "data offset in bytes[1] := 4\n" + _EXAM
    if kind == "image":
        return write_image_files(folder, np.arange(60), number=_SHORT, offset=4, more=more)
    return write_projdata_files(folder, np.arange(NUM_BINS), number=_SHORT, offset=4, more=more, scanner=SCANNER)


def variations(text: str) -> Iterator[tuple[str, str]]:
    """Name and text of each variation of a header."""
    yield "unchanged", text
    lines = text.splitlines()
    for n, line in enumerate(lines[1:-1], start=1):
        key, value = line.partition(":=")[0].strip(), _VALUE.search(line)[1].strip()
        rest = lines[:n] + lines[n + 1 :]
        yield f"{key}: at the top", "\n".join([rest[0], line, *rest[1:]]) + "\n"
        yield f"{key}: at the bottom", "\n".join([*rest[:-1], line, rest[-1]]) + "\n"
        for name, change in _CHANGES.items():
            if (new := change(line, key, value)) is not None and new != line:
                yield f"{key}: {name}", "\n".join([*lines[:n], new, *lines[n + 1 :]]) + "\n"
    for name, (old, new) in _whole_changes().items():
        if old in text:
            yield name, text.replace(old, new)


def cells_agree(a: str, b: str) -> bool:
    """Whether two cells of the table say the same, but for the last digit."""
    if "refused" in (a, b) or "=" in (a, b):
        return a == b
    pairs = [dict(part.split(":") for part in cell.split()) for cell in (a, b)]
    return pairs[0].keys() == pairs[1].keys() and all(
        math.isclose(float(pairs[0][k]), float(pairs[1][k]), rel_tol=2e-5, abs_tol=1e-5) for k in pairs[0]
    )


def cell(found: list[float] | None, base: list[float]) -> str:
    """What differs from the unchanged header: ``place:value``; ``=`` for nothing, and ``refused``."""
    if found is None:
        return "refused"
    different = (
        f"{i}:{new:.6g}"
        for i, (new, old) in enumerate(zip(found, base, strict=True))
        if not math.isclose(new, old, rel_tol=2e-6, abs_tol=1e-5)
    )
    return " ".join(different) or "="


def our_numbers(path: Path, kind: str, with_values: bool = True) -> list[float]:
    """How this package understands a file."""
    exam = read_exam_info(path)
    window = exam.energy_window or (-1, -1)
    start, duration = exam.time_frames[0] if exam.time_frames else (0, 0)
    words = {"head_in": 0, "feet_in": 1, "other": 2, "supine": 0, "prone": 1, "right": 2, "left": 3}
    numbers = [words.get(exam.orientation, 3), words.get(exam.rotation, 5), exam.calibration_factor or -1, *window]
    numbers += [exam.radionuclide.half_life or -1, start, duration]
    values = torch.zeros(2)
    if kind == "image":
        values, grid = read_image(path)
        numbers += [*grid.shape, *grid.voxel_size, *grid.origin]
    else:
        if with_values:
            values, layout = read_projection_data(path)
        else:
            layout = read_projection_data_geometry(path)
        phi, s, outer = layout.view_angles(), layout.tangential_positions(), layout.segments[-1]
        scanner = layout.scanner
        numbers += [*layout.shape, phi[0], phi[1] - phi[0], s[0], s[1], layout.axial_positions(layout.segments[0])[0]]
        numbers += [layout.axial_positions(outer)[0], layout.tan_theta(outer)[0], *layout.bed_position]
        numbers += [scanner.num_rings, scanner.effective_ring_radius, scanner.default_bin_size]
    return [float(v) for v in (*numbers, *_samples(values.numpy()))]


def _samples(values: np.ndarray) -> list[float]:
    flat = values.ravel()
    return [flat[0], flat[1], flat[flat.size // 2], flat[-1], flat.sum(dtype=np.float64)]


def stir_numbers(path: Path, kind: str, with_values: bool = True) -> list[float]:
    """How the real STIR does."""
    import stir

    if kind == "image":
        image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(path))
        values, exam = image.as_array(), image.get_exam_info()
        numbers = [*values.shape]
        for place in (image.get_voxel_size(), image.get_origin()):  # headers hold six digits: less is no shift
            numbers += [0 if abs(v) < 1e-3 else v for v in (place.z(), place.y(), place.x())]
    else:
        data = stir.ProjData.read_from_file(str(path))
        exam, info = data.get_exam_info(), data.get_proj_data_info()
        scanner, first = info.get_scanner(), info.get_min_tangential_pos_num()
        values = data.as_array()[0] if with_values else np.zeros(2)
        shape = (data.get_num_non_tof_sinograms(), info.get_num_views(), info.get_num_tangential_poss())
        last = info.get_min_segment_num()
        bins = [stir.Bin(0, 0, 0, first), stir.Bin(0, 1, 0, first + 1), stir.Bin(last, 0, 0, first)]
        phi = [info.get_phi(bins[0]), info.get_phi(bins[1])]
        numbers = [*shape, phi[0], phi[1] - phi[0], info.get_s(bins[0]), info.get_s(bins[1])]
        numbers += [info.get_m(bins[0]), info.get_m(bins[2]), info.get_tantheta(bins[2])]
        numbers += [info.get_bed_position_horizontal(), info.get_bed_position_vertical(), scanner.get_num_rings()]
        numbers += [scanner.get_effective_ring_radius(), max(0, scanner.get_default_bin_size())]
    frames, position = exam.get_time_frame_definitions(), exam.patient_position
    start, duration = (frames.get_start_time(1), frames.get_duration(1)) if frames.get_num_frames() else (0, 0)
    window = (exam.get_low_energy_thres(), exam.get_high_energy_thres())
    half_life = max(-1, exam.get_radionuclide().get_half_life(False))
    factor = exam.get_calibration_factor()
    told = [position.get_orientation(), position.get_rotation(), factor if factor > 0 else -1, *window]
    return [float(v) for v in (*told, half_life or -1, start, duration, *numbers, *_samples(values))]
