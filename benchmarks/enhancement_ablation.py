"""What the parts of latent diffusion enhancement give: the published ablation, at a size for one core.

    sirf-diffusion data phantom --body trunk --voxel-size 4 --subjects 12 --seed 9000 --held-out --out test.h5
    python -m benchmarks.enhancement_ablation --data test.h5 --out ablation [--latent] [--steps 500]

Jiang et al. 2023 (MICCAI) add to a latent diffusion model Poisson noise in place of Gaussian noise, CT-guided
cross-attention, and both. The same four are trained here from the same start, on the same slices, for the same steps:
on images, or with --latent on the latents of one autoencoder; and a fifth, on images, with exactly thinned counts. All
are judged on counts of held-out trunks that were thinned and reconstructed by OSEM, at the doses asked for. Noise of
another kind is another amount at the same dose: each model is told the share of the dose that is best for two tuning
subjects. A training that was stopped goes on. Prints tables; writes ablation.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sirf_diffusion.files.outputs import write_json
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.enhancement import EnhancementModel
from sirf_diffusion.models.latent import NOISES
from sirf_diffusion.reconstructors.low_dose import LowDose
from sirf_diffusion.study.report import format_table
from sirf_diffusion.training import train
from sirf_diffusion.training.data.phantom_data import build_phantoms
from sirf_diffusion.training.enhancement_recipes import ENHANCEMENT_RECIPES, EnhancementRecipe

from .enhancement import TUNING, cases, enhanced, measures

#: By name: noise and CT of the published rows, and of exact thinning.
ROWS = {
    "diffusion": ("gaussian", "none"), "+ Poisson": ("sinogram", "none"), "+ CT": ("gaussian", "attention"),
    "+ both": ("sinogram", "attention"), "exact + CT": ("binomial", "attention"),
}  # fmt: skip
#: Of the dose, that models are told of it.
SHARES = (1.0, 0.5, 0.25, 0.125)


def recipes(steps: int, latent: bool) -> dict[str, EnhancementRecipe]:
    """By row; of images, or of latents of half the size."""
    whole = ENHANCEMENT_RECIPES["body-fdg-enhance"]
    network = replace(whole.enhancement, neighbours=0)
    whole = replace(
        whole, enhancement=network, cycles=(steps,), validate_every=steps, autoencoder_steps=steps,
        augmentation=ENHANCEMENT_RECIPES["latent"].augmentation,
    )  # fmt: skip
    if latent:
        network = replace(
            network, network=replace(network.network, patch_size=1), noise="sinogram", compression=2,
            autoencoder_channels=16,
        )  # fmt: skip
        whole = replace(whole, enhancement=network, batch_size=4)
    return {
        name: replace(whole, name=name, enhancement=replace(network, noise=noise, ct=ct))
        for name, (noise, ct) in ROWS.items()
        if not (latent and noise == "binomial")
    }


def trained(name: str, recipe: EnhancementRecipe, out: Path) -> EnhancementModel:
    """The model of a row; subjects are simulated once. Autoencoders of the rows are alike to the bit."""
    data, file = out / "phantoms.h5", out / f"{name.replace('+ ', 'and-').replace(' ', '-')}.safetensors"
    if not data.exists():
        build_phantoms(data, recipe.phantoms)
    train(recipe, file, data=data, threads=1)
    return EnhancementModel.load(file, "cpu")


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of each model and dose, means over the cases."""
    everything = cases(arguments.data)
    tested, tuning = everything[:-TUNING][: arguments.cases], everything[-TUNING:]
    for name, recipe in recipes(arguments.steps, arguments.latent).items():
        model = trained(name, recipe, arguments.out)
        low_dose = LowDose(model.config.scan, "binomial", model.config.voxel_size)
        for dose in arguments.doses:
            noisy = {case.number: case.noisy(low_dose, dose) for case in (*tested, *tuning)}
            errors = {}
            for share in SHARES:
                images = [(enhanced(model, noisy, share * dose, model.sees_ct, {}, c), c.truth) for c in tuning]
                errors[share] = sum(float((image - truth).square().mean()) for image, truth in images)
            told = dose * min(errors, key=errors.__getitem__)
            found = [measures(enhanced(model, noisy, told, model.sees_ct, {}, c), noisy[c.number], c) for c in tested]
            mean = {key: float(np.mean([one[key] for one in found])) for key in ("psnr", "ssim", "contrast")}
            yield {"model": name, "dose": dose, "told": told, **mean, "cases": len(tested), "steps": arguments.steps}


def noise_of_kinds(data: Path, dose: float = 0.1) -> Iterator[dict[str, Any]]:
    """Standard deviation of each kind of noise in the body of the tuning subjects, and after 10 mm in plane."""
    scan, size = ENHANCEMENT_RECIPES["body-fdg-enhance"].scan, (4.0, 4.0, 4.0)
    for kind in NOISES:
        found = []
        for case in cases(data)[-TUNING:]:
            noise = case.noisy(LowDose(scan, kind, size), dose) - case.truth
            body = gaussian_smooth(case.truth, case.grid(size), 8.0) > 0.3
            smooth = gaussian_smooth(noise, ImageGeometry(tuple(noise.shape), (1e5, *size[1:])), 10.0)
            found.append([float(values[body].square().mean().sqrt()) for values in (noise, smooth)])
        raw, smooth = np.mean(found, 0).tolist()
        yield {"noise": kind, "dose": dose, "sd": raw, "sd after 10 mm": smooth}


def main() -> None:
    """Run the ablation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="F.h5", help="held-out trunks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--latent", action="store_true", help="diffuse latents of an autoencoder instead of images")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="of each training; default: 500")
    parser.add_argument("--doses", type=float, nargs="+", default=[0.25, 0.1, 0.05], metavar="D")
    parser.add_argument("--cases", type=int, default=10, metavar="N", help="of the ten; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    noises = list(noise_of_kinds(arguments.data))
    print(format_table(noises, {"noise": "s", "dose": ".3g", "sd": ".3f", "sd after 10 mm": ".3f"}))
    found = []
    for row in rows(arguments):
        found.append(row)
        write_json(arguments.out / "ablation.json", {"noise": noises, "rows": found})
    columns = {"model": "s", "dose": ".3g", "told": ".3g", "psnr": ".2f", "ssim": ".4f", "contrast": ".2f"}
    print(format_table(found, columns))


if __name__ == "__main__":
    main()
