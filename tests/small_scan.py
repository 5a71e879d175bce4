"""A small acquisition, written as STIR files, and a small score model: enough for the commands, in a second."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sirf_diffusion.engines.embedded.acquisition_model import attenuation_factors
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.files.interfile import read_projection_data, write_image, write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Scanner
from sirf_diffusion.models import NetworkConfig, ScoreModel, VPSchedule, build_network

SCANNER = Scanner(
    name="small ring", num_rings=2, num_detectors_per_ring=64, inner_ring_radius=90.0, average_depth_of_interaction=5.0,
    ring_spacing=8.0, default_bin_size=4.0, max_num_non_arccorrected_bins=33,
)  # fmt: skip


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over that of what is expected."""
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class SmallScan:
    folder: Path
    truth: torch.Tensor
    geometry: ImageGeometry

    def __getattr__(self, name: str) -> str:
        """Path of a file, as ``scan.prompts_hs``."""
        stem, _, suffix = name.rpartition("_")
        return str(self.folder / f"{stem}.{suffix}")

    def words(self, **changed: object) -> list[str]:
        """Its files as options of ``sirf-diffusion recon``, with some changed or added; None leaves one out."""
        options: dict[str, object] = {"prompts": self.prompts_hs, "multiplicative": self.multiplicative_hs}
        options |= {"additive": self.additive_hs, "attenuation": self.mu_hv} | changed
        return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]

    @property
    def options(self) -> list[str]:
        """Its files alone."""
        return self.words()


def write_small_scan(folder: Path, *, planes: int = 1, voxel_size: float = 4.0, counts: float = 2e4) -> SmallScan:
    """Simulate an asymmetric object; the multiplicative factors hold no attenuation (it is in ``mu.hv``)."""
    generator = torch.Generator().manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    geometry = ImageGeometry((planes, 21, 21), (4.0, voxel_size, voxel_size))
    projdata = ProjDataGeometry.from_scanner(
        SCANNER, span=1, max_ring_difference=0 if planes == 1 else 1, num_tangential_positions=33
    )
    y, x = torch.meshgrid(torch.linspace(-1, 1, 21), torch.linspace(-1, 1, 21), indexing="ij")
    head = ((x / 0.7) ** 2 + (y / 0.85) ** 2 < 1).float()
    plane = head * (1 + 1.5 * ((x - 0.2) ** 2 + (y + 0.3) ** 2 < 0.06).float())
    truth = plane.expand(planes, -1, -1).clone()
    mu = 0.096 * head.expand(planes, -1, -1).clone()

    projector = Projector(geometry, projdata)
    efficiency = 0.5 + torch.rand(projdata.shape, generator=generator)
    factors = efficiency * attenuation_factors(mu, projector)
    trues = factors * projector.forward(truth)
    scale = counts / float(trues.sum()) * 0.7
    truth, trues = truth * scale, trues * scale
    background = torch.full(projdata.shape, 0.3 * counts) / projdata.num_bins
    prompts = torch.poisson(trues + background, generator=generator)

    for stem, values in (("prompts", prompts), ("multiplicative", efficiency), ("additive", background / factors)):
        write_projection_data(folder / f"{stem}.hs", values, projdata)
    write_projection_data(folder / "multiplicative_with_attenuation.hs", factors, projdata)
    for stem, image in (("truth", truth), ("mu", mu), ("mr", plane.expand(planes, -1, -1).clone())):
        write_image(folder / f"{stem}.hv", image, geometry)
    return SmallScan(folder, truth, geometry)


def write_example(folder: Path, planes: int = 1) -> SmallScan:
    """The small scan as the bundled examples are: attenuation is a part of the multiplicative factors."""
    scan = write_small_scan(folder, planes=planes)
    factors, layout = read_projection_data(scan.multiplicative_with_attenuation_hs)
    write_projection_data(scan.multiplicative_hs, factors, layout)
    return scan


def script_objects(pet: Any, scan: SmallScan) -> tuple[Any, Any, Any, Any]:
    """Prompts, truth, acquisition model (set up) and objective function, as a script of SIRF's makes them."""
    prompts, truth = pet.AcquisitionData(scan.prompts_hs), pet.ImageData(scan.truth_hv)
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    factors = pet.AcquisitionData(scan.multiplicative_with_attenuation_hs)
    model.set_acquisition_sensitivity(pet.AcquisitionSensitivityModel(factors))
    model.set_additive_term(pet.AcquisitionData(scan.additive_hs))
    model.set_up(prompts, truth)
    return prompts, truth, model, pet.make_Poisson_loglikelihood(prompts, acq_model=model)


def write_conditional_model(path: Path, voxel_size: float = 2.0) -> Path:
    """Like `write_small_model`, with an anatomical image as second input, which changes what it predicts."""
    model = ScoreModel.load(write_small_model(path, voxel_size, in_channels=2))
    # MONAI starts the last layer at zero.
    torch.nn.init.normal_(model.network.out[2].conv.weight, generator=torch.Generator().manual_seed(0))
    model.save(path)
    return path


def write_small_model(path: Path, voxel_size: float = 4.0, in_channels: int = 1) -> Path:
    """A network with random weights: it denoises badly, and has everything a model file has."""
    config = NetworkConfig(
        channels=(8, 8), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4, num_head_channels=8,
        in_channels=in_channels,
    )  # fmt: skip
    model = ScoreModel(
        build_network(config, seed=0), VPSchedule(), "v", (4.0, voxel_size, voxel_size),
        {"tracer": "none", "licence": "Apache-2.0", "training": {"note": "random weights"}}, architecture=config,
    )  # fmt: skip
    model.save(path)
    return path
