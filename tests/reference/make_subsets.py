"""Make ``stir_subsets.json``: which views the real STIR's projector puts into each subset.

    PYTHONPATH=. python tests/reference/make_subsets.py

A view belongs to a subset if the forward projection of that subset fills it.
"""

import itertools
import json
import math
from pathlib import Path

import stir

# views, detectors, voxel size (y, x), view offset (rad), most related views, numbers of subsets
CASES = [
    (32, 64, (3, 3), 0.0, 4, (1, 2, 4, 8)),
    (32, 64, (3, 3), 0.0, 4, (3, 5)),
    (32, 64, (3, 3), 0.0, 2, (4, 16)),
    (32, 64, (3, 3), 0.0, 1, (4, 32)),
    (32, 64, (3, 3.5), 0.0, 4, (4, 16)),
    (32, 64, (3, 3), 0.05, 4, (4, 32)),
    (32, 128, (3, 3), 0.0, 4, (4, 8)),
    (252, 504, (3, 3), 0.0, 4, (9, 12, 21, 63)),
    (30, 60, (3, 3), 0.0, 4, (3, 5)),
    (30, 60, (3, 2.5), 0.0, 4, (5,)),
    (21, 42, (3, 3), 0.0, 4, (3, 7)),
    (16, 32, (3, 3), 0.0, 4, (2, 4)),
    (20, 40, (3, 3), 0.0, 4, (5,)),
    (48, 96, (3, 3.001), 0.0, 4, (6,)),
]


def _subsets(num_views, num_detectors, voxel, offset, related, number):
    scanner = stir.Scanner.get_scanner_from_name("ECAT 953")
    scanner.set_num_detectors_per_ring(num_detectors)
    scanner.set_num_rings(1)
    scanner.set_intrinsic_azimuthal_tilt(offset)
    scanner.set_max_num_non_arccorrected_bins(15)
    info = stir.ProjDataInfo.construct_proj_data_info(scanner, 1, 0, num_views, 15, False)
    image = stir.FloatVoxelsOnCartesianGrid(
        stir.IndexRange3D(stir.Int3BasicCoordinate((0, -4, -4)), stir.Int3BasicCoordinate((0, 4, 4))),
        stir.FloatCartesianCoordinate3D(0, 0, 0),
        stir.FloatCartesianCoordinate3D(scanner.get_ring_spacing(), *voxel),
    )
    image.fill(1)
    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_do_symmetry_90degrees_min_phi(related == 4)
    matrix.set_do_symmetry_180degrees_min_phi(related >= 2)
    projector = stir.ForwardProjectorByBinUsingProjMatrixByBin(matrix)
    projector.set_up(info, image)
    projector.set_input(image)
    found = []
    for subset in range(number):
        data = stir.ProjDataInMemory(stir.ExamInfo(), info)
        projector.forward_project(data, subset, number, True)
        values = data.as_array()[0]
        found.append([view for view in range(num_views) if math.fsum(values[:, view].ravel()) > 0])
    return found


def main() -> None:
    """Write the table."""
    table = []
    for *case, numbers in CASES:
        num_views, num_detectors, voxel, offset, related = case
        for number in numbers:
            name = f"{num_views} of {num_detectors // 2} views, {number} subsets, {voxel}, {offset}, {related}"
            keys = ("num_views", "num_detectors", "voxel_size", "view_offset", "related_views")
            table.append({"name": name, **dict(zip(keys, case, strict=True)), "subsets": _subsets(*case, number)})
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in table)
    Path(__file__).with_name("stir_subsets.json").write_text(f"[\n{lines}\n]\n")
    assert all(len(set(itertools.chain(*row["subsets"]))) == row["num_views"] for row in table)


if __name__ == "__main__":
    main()
