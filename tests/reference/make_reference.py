"""Run a real STIR on small geometries and store what it computes in ``stir_reference.h5``.

Needs STIR's Python module (any 6.x that has ray tracing with several tangential rays)::

    python tests/reference/make_reference.py [output.h5]

Templates go to STIR as Interfile headers written by this package and results come back as files written by STIR, so a
misread header would show up as a difference, too. Symmetries in phi are switched off so that STIR's subsets are the
views ``k, k + n, ...``; they do not change the projections. For each case the file holds:

``geometry`` (attribute)
    JSON of the scanner, segments, sizes and image grid.
``images/{smooth,sharp}``, ``forward/{smooth,sharp}``
    Two asymmetric phantoms and their projections.
``back/sharp``, ``back/ones``
    Back projection of ``forward/sharp`` and of ones.
``poisson/...`` (some cases)
    Multiplicative factors, additive term, prompts; log-likelihood of both images (attribute ``value_*``), gradient of
    the log-likelihood at ``smooth``, and of subset 2 of 7.
"""

import dataclasses
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from sirf_diffusion.files.interfile import read_image, read_projection_data, write_image, write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner, Segment
from sirf_diffusion.geometry.scanners import get_scanner

NUM_TANGENTIAL_RAYS = 10
NUM_SUBSETS = 7
COUNTS_PER_BIN = 20

_logger = logging.getLogger("make_reference")


def _scanner(name: str, num_rings: int, detectors: int, radius: float, ring_spacing: float, **more) -> Scanner:
    return Scanner(
        name=name, num_rings=num_rings, num_detectors_per_ring=detectors, inner_ring_radius=radius,
        average_depth_of_interaction=more.pop("depth", 7.0), ring_spacing=ring_spacing,
        default_bin_size=more.pop("bin_size", 3.0), max_num_non_arccorrected_bins=detectors // 2 - 1,
        default_num_arccorrected_bins=detectors // 2 - 1, **more,
    )  # fmt: skip


def cases() -> dict[str, tuple[ProjDataGeometry, ImageGeometry]]:
    """Name, projection data and image grid of each case; sizes odd and even."""
    mmr = dataclasses.replace(get_scanner("Siemens mMR"), name="one ring of an mMR", num_rings=1)
    thorax = _scanner("two rings", 2, 192, 400.0, 6.75)
    # Turned a little: STIR's ten rays per bin alias where they run along rows of voxels, and few views share a subset.
    oblique = _scanner("eight rings", 8, 112, 130.0, 5.0, depth=5.0, view_offset=0.02)
    arc = _scanner("arc-corrected", 1, 168, 200.0, 6.0)
    tilted = _scanner("tilted", 1, 288, 250.0, 4.0, view_offset=0.35)
    return {
        "mmr_slice": (
            ProjDataGeometry(mmr, (Segment(0, 0, 0, 1),), 126, 344),
            ImageGeometry((1, 128, 128), (mmr.ring_spacing, 2.0, 2.0)),
        ),
        "two_rings": (
            ProjDataGeometry(thorax, (Segment(0, 0, 0, 2), Segment(1, 1, 1, 1), Segment(-1, -1, -1, 1)), 96, 95),
            ImageGeometry((3, 75, 75), (3.375, 5.5, 5.5)),
        ),
        "oblique": (
            ProjDataGeometry(oblique, (Segment(0, -1, 1, 15), Segment(1, 2, 4, 11), Segment(-1, -4, -2, 11)), 56, 46),
            ImageGeometry((15, 44, 44), (2.5, 4.0, 4.0)),
        ),
        "arc_corrected": (
            ProjDataGeometry(arc, (Segment(0, 0, 0, 1),), 84, 96, True, 3.1),
            ImageGeometry((1, 77, 77), (6.0, 3.0, 3.0)),
        ),
        "view_offset": (
            ProjDataGeometry(tilted, (Segment(0, 0, 0, 1),), 36, 101),
            ImageGeometry((1, 80, 80), (4.0, 4.0, 4.0)),
        ),
    }


def phantoms(geometry: ImageGeometry) -> tuple[np.ndarray, np.ndarray]:
    """A smooth and a sharp image without any symmetry, well inside the field of view."""
    (nz, ny, nx), (_, dy, dx) = geometry.shape, geometry.voxel_size
    z, y, x = np.meshgrid(
        (np.arange(nz) - (nz - 1) / 2) / max(nz, 6) * 2, (np.arange(ny) - ny // 2) * dy, (np.arange(nx) - nx // 2) * dx,
        indexing="ij",
    )  # fmt: skip
    radius = min((ny - 1) // 2 * dy, (nx - 1) // 2 * dx)
    y, x = y / radius, x / radius
    smooth = np.zeros(geometry.shape)
    for height, cz, cy, cx, wy, wx in (
        (1.0, 0.2, 0.1, -0.15, 0.22, 0.28), (0.8, -0.5, -0.3, 0.3, 0.16, 0.14), (0.6, 0.6, 0.35, 0.4, 0.13, 0.15),
    ):  # fmt: skip
        smooth += height * np.exp(-0.5 * (((y - cy) / wy) ** 2 + ((x - cx) / wx) ** 2 + ((z - cz) / 0.8) ** 2))
    smooth *= np.clip((0.93 - np.hypot(y, x)) / 0.25, 0, 1) ** 2
    sharp = np.zeros(geometry.shape)
    for value, cz, cy, cx, ry, rx in (
        (1.0, 0.0, 0.05, -0.05, 0.75, 0.6), (1.5, 0.3, 0.3, -0.2, 0.2, 0.15), (-0.7, -0.4, -0.35, 0.2, 0.15, 0.25),
        (2.5, 0.1, -0.05, 0.35, 0.07, 0.07), (0.8, 0.0, -0.8, -0.35, 0.06, 0.1),
    ):  # fmt: skip
        sharp += value * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 + ((z - cz) / 1.1) ** 2 < 1)
    return smooth.astype(np.float32), np.maximum(sharp, 0).astype(np.float32)


class StirCase:
    """One case in STIR: files in, files out."""

    def __init__(self, stir, folder: Path, projdata: ProjDataGeometry, image: ImageGeometry) -> None:
        self.stir, self.folder, self.projdata, self.image = stir, folder, projdata, image
        self.template = self.to_projdata(torch.zeros(projdata.shape))
        self.matrix = stir.ProjMatrixByBinUsingRayTracing()
        self.matrix.set_num_tangential_LORs(NUM_TANGENTIAL_RAYS)
        self.matrix.set_do_symmetry_90degrees_min_phi(False)
        self.matrix.set_do_symmetry_180degrees_min_phi(False)

    def _path(self, suffix: str) -> str:
        return tempfile.mktemp(suffix=suffix, dir=self.folder)

    def to_projdata(self, data: torch.Tensor):
        path = self._path(".hs")
        write_projection_data(path, data, self.projdata)
        return self.stir.ProjData.read_from_file(path)

    def from_projdata(self, data) -> np.ndarray:
        path = self._path(".hs")
        data.write_to_file(path)
        tensor, found = read_projection_data(path)
        if found.differences(self.projdata):
            raise RuntimeError(f"STIR wrote other projection data: {found.differences(self.projdata)}")
        return tensor.numpy()

    def to_image(self, data: np.ndarray):
        path = self._path(".hv")
        write_image(path, torch.as_tensor(data), self.image)
        return self.stir.FloatVoxelsOnCartesianGrid.read_from_file(path)

    def from_image(self, image) -> np.ndarray:
        path = self._path(".hv")
        image.write_to_file(path)
        return read_image(path)[0].numpy()

    def empty_projdata(self):
        return self.stir.ProjDataInMemory(self.template.get_exam_info(), self.template.get_proj_data_info())

    def forward(self, image: np.ndarray) -> np.ndarray:
        density, out = self.to_image(image), self.empty_projdata()
        projector = self.stir.ForwardProjectorByBinUsingProjMatrixByBin(self.matrix)
        projector.set_up(self.template.get_proj_data_info(), density)
        projector.forward_project(out, density)
        return self.from_projdata(out)

    def back(self, data: np.ndarray) -> np.ndarray:
        out = self.to_image(np.zeros(self.image.shape, np.float32))
        projector = self.stir.BackProjectorByBinUsingProjMatrixByBin(self.matrix)
        projector.set_up(self.template.get_proj_data_info(), out)
        projector.back_project(out, self.to_projdata(torch.as_tensor(data)))
        return self.from_image(out)

    def objective(self, prompts: np.ndarray, factors: np.ndarray, additive: np.ndarray, num_subsets: int):
        stir = self.stir
        objective = stir.PoissonLogLikelihoodWithLinearModelForMeanAndProjData3DFloat()
        objective.set_proj_data_sptr(self.to_projdata(torch.as_tensor(prompts)))
        objective.set_additive_proj_data_sptr(self.to_projdata(torch.as_tensor(additive)))
        # STIR wants normalisation factors, the inverse of efficiencies; a huge one stands for a dead bin.
        inverse = np.where(factors > 0, 1 / np.maximum(factors, 1e-9), 1e9).astype(np.float32)
        objective.set_normalisation_sptr(stir.BinNormalisationFromProjData(self.to_projdata(torch.as_tensor(inverse))))
        objective.set_projector_pair_sptr(stir.ProjectorByBinPairUsingProjMatrixByBin(self.matrix))
        objective.set_num_subsets(num_subsets)
        objective.set_use_subset_sensitivities(True)
        objective.set_recompute_sensitivity(True)
        return objective


def _store_poisson(
    group: h5py.Group, case: StirCase, smooth: np.ndarray, sharp: np.ndarray, projected: np.ndarray
) -> None:
    rng = np.random.default_rng(7)
    factors = np.exp(-0.012 * np.minimum(projected, 80)).astype(np.float32)
    factors *= rng.uniform(0.8, 1.2, factors.shape).astype(np.float32)
    factors = np.ceil(factors * 256) / np.float32(256)  # compresses well
    factors[:, ::9, 20:24] = 0
    additive = np.full(factors.shape, 0.3 * projected.mean(), np.float32)
    scale = COUNTS_PER_BIN / (factors * (projected + additive)).mean()
    smooth, sharp, additive = (scale * v for v in (smooth, sharp, additive))
    prompts = rng.poisson(factors * (scale * projected + additive)).astype(np.float32)
    objective = case.objective(prompts, factors, additive, NUM_SUBSETS)
    start = case.to_image(smooth)
    if not objective.set_up(start).succeeded():
        raise RuntimeError("STIR's objective function was not set up")
    for name, image in (("smooth", smooth), ("sharp", sharp)):
        group.attrs[f"value_{name}"] = objective.compute_objective_function_without_penalty(case.to_image(image))
    gradients = []
    for subset in range(NUM_SUBSETS):
        out = case.to_image(np.zeros_like(smooth))
        objective.compute_sub_gradient_without_penalty(out, start, subset)
        gradients.append(case.from_image(out))
    group.attrs["scale"] = scale
    for name, values in (
        ("multiplicative_factors", factors), ("additive_term", additive), ("prompts", prompts.astype(np.uint16)),
        ("gradient", np.sum(gradients, 0)), ("gradient_of_subset_2", gradients[2]),
    ):  # fmt: skip
        _store(group, name, values)


def _store(group: h5py.Group, name: str, values: np.ndarray) -> h5py.Dataset:
    if values.dtype != np.uint16:
        values = values.astype(np.float32)
    if name.startswith(("forward", "back")):
        # The last bits (4e-6 relative) are rounding noise of STIR's own sums and would double the file.
        values = ((values.view(np.uint32) + 32) & np.uint32(0xFFFFFFC0)).view(np.float32)
    return group.create_dataset(name, data=values, compression="gzip", compression_opts=9, shuffle=True)


def make_reference(output: Path) -> None:
    """Write all cases to ``output``."""
    import stir

    with tempfile.TemporaryDirectory(dir=output.parent) as folder:
        temporary = Path(folder) / "reference.h5"
        _write(stir, temporary, Path(folder))
        os.replace(temporary, output)


def _write(stir, output: Path, folder: Path) -> None:
    with h5py.File(output, "w") as file:
        file.attrs["num_tangential_rays"], file.attrs["num_subsets"] = NUM_TANGENTIAL_RAYS, NUM_SUBSETS
        for name, (projdata, image) in cases().items():
            _logger.info("case %s", name)
            case, group = StirCase(stir, folder, projdata, image), file.create_group(name)
            group.attrs["geometry"] = json.dumps(
                {"projdata": dataclasses.asdict(projdata), "image": dataclasses.asdict(image)}
            )
            smooth, sharp = phantoms(image)
            projected = case.forward(sharp)
            _store(group, "images/smooth", smooth)
            _store(group, "images/sharp", sharp)
            _store(group, "forward/smooth", case.forward(smooth))
            _store(group, "forward/sharp", projected)
            _store(group, "back/sharp", case.back(projected))
            _store(group, "back/ones", case.back(np.ones_like(projected)))
            if name in ("mmr_slice", "oblique"):
                _store_poisson(group.create_group("poisson"), case, smooth, sharp, projected)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    make_reference(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("stir_reference.h5"))
