"""A tiny case for the benchmark: a disc with two tissues and a lesion, in a small ring."""

from dataclasses import replace

import torch
from small_scan import SCANNER

from benchmarks.bench.cases import Case, CaseSpec, case_of
from benchmarks.bench.suites import Suite
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

TINY = Suite(
    "tiny", "for the tests", prompts=(2e4,), subjects=(9000,), tuning_subjects=(800,), num_realisations=2,
    num_samples=3, budget=3, methods=("mlem", "map-quadratic", "hqs"), variants=(2.0,), num_variant_realisations=2,
    overrides={"hqs": {"num_steps": 2}},
)  # fmt: skip


def tiny_case(spec: CaseSpec) -> Case:
    """The same for all subjects, but for the place of the lesion."""
    geometry = ImageGeometry((1, 24, 24), (4.0, 4.0, 4.0))
    scanner = replace(SCANNER, num_rings=1)
    projdata = ProjDataGeometry.from_scanner(scanner, span=1, max_ring_difference=0, num_tangential_positions=33)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 24), indexing="ij")
    radius = torch.hypot(x, y)
    distance = torch.hypot(x - (0.2 if spec.subject >= 9000 else -0.2), y)
    head, inner, lesion = radius < 0.85, radius < 0.6, distance < 0.18
    truth = (0.5 * head + 1.0 * inner + 1.5 * lesion).float()[None] * 10
    masks = {
        "head": head,
        "grey": inner & ~lesion,
        "white": head & ~inner,
        "hot, in the MR": lesion,
        "around hot, in the MR": inner & (distance > 0.25) & (distance < 0.45),
    }
    mu = 0.096 * head.float()[None]
    return case_of(spec, geometry, projdata, truth, mu, truth / 10, {k: v[None] for k, v in masks.items()})
