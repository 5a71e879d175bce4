"""The figure of iso-likelihood sampling in docs/methods.md: samples beside the MLEM image of the same log-likelihood.

python -m benchmarks.iso_likelihood --out docs/images/iso-likelihood.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sirf_diffusion
from sirf_diffusion.study.metrics import nrmse
from sirf_diffusion.study.report import Panel, comparison_figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iteration", type=int, default=5, metavar="N", help="of MLEM; default: 5")
    parser.add_argument("--samples", type=int, default=3, metavar="K", help="default: 3")
    parser.add_argument("--model", default="brain-fdg", metavar="NAME|FILE", help="default: brain-fdg")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    options = parser.parse_args()
    example = sirf_diffusion.load_example("brain2d")
    data, truth = example.acquisition, example.truth
    mlem = sirf_diffusion.reconstruct(data, "osem", num_subsets=1, settings={"num_iterations": options.iteration})
    settings = {"num_em_iterations": float(options.iteration)}
    drawn = sirf_diffusion.reconstruct(
        data, "iso-likelihood", model=options.model, num_samples=options.samples, settings=settings
    )
    values = drawn.record["trace"][-1]["log_likelihood_after"]
    images = {f"MLEM, {options.iteration}": mlem.image}
    images |= {f"sample {number}": sample for number, sample in enumerate(drawn.samples, start=1)}
    images["their mean"] = drawn.image
    panels = [Panel(name, image, caption=f"NRMSE {nrmse(image, truth):.3f}") for name, image in images.items()]
    comparison_figure(options.out, truth, panels, mlem.geometry)
    print(f"log-likelihoods: MLEM {mlem.record['log_likelihood']:.9g}, samples {', '.join(f'{v:.9g}' for v in values)}")


if __name__ == "__main__":
    main()
