"""Enhancement beside filters, and beside reconstruction from the same counts, on held-out trunks.

    sirf-diffusion data phantom --body trunk --voxel-size 4 --subjects 12 --seed 9000 --held-out --out test.h5
    python -m benchmarks.enhancement --data test.h5 --model body-fdg-enhance --out results

Ten subjects, a slab of neighbouring slices of each; two more tune the filters, at each dose. Every slice is scanned by
a ring of detectors at the doses asked for, and reconstructed by OSEM: the noise that the model was trained on. Lesions
of 10 mm are put in where CT shows nothing. Filters: Gaussian, bilateral and non-local means (scikit-image), BM4D (the
package bm4d: free for research alone), a deep image prior that is shown CT (--only dip, minutes a case); a supervised
UNet of one dose (--train-unet, then --unet). Prints a table; writes results.json and, with --figure, a figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.files.outputs import write_json
from sirf_diffusion.geometry.gaussian import gaussian_smooth
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.doses import DoseSchedule
from sirf_diffusion.models.enhancement import EnhancementModel
from sirf_diffusion.reconstructors.enhancement import Enhancer
from sirf_diffusion.reconstructors.low_dose import LowDose
from sirf_diffusion.study.metrics import image_quality
from sirf_diffusion.study.reconstruction import reconstruct
from sirf_diffusion.study.report import format_table
from sirf_diffusion.training import train
from sirf_diffusion.training.data.volume_file import VolumeFile
from sirf_diffusion.training.enhancement_recipes import ENHANCEMENT_RECIPES

from .enhancement_rivals import filters, tuned_deep_image_prior

Image = Tensor
SLICES, TUNING = 12, 2
#: 10 mm lesions: radius, FWHM of the scanner's blur in mm, and what they add to their surroundings.
RADIUS, BLUR, CONTRAST = 5.0, 5.5, 3.0
ORGANS = ("lung", "liver", "spleen", "mediastinum", "muscle", "fat")


@dataclass
class Case:
    """A slab ``[z, y, x]`` with its CT and lesions, in network units."""

    truth: Image
    ct: Image
    organs: dict[str, Image]
    lesions: list[Image]
    number: int

    def grid(self, size: tuple[float, float, float]) -> ImageGeometry:
        return ImageGeometry(tuple(self.truth.shape), size)

    def noisy(self, low_dose: LowDose, dose: float) -> Image:
        generator = torch.Generator().manual_seed(1000 * self.number + int(1e4 * dose))
        return low_dose(self.truth[:, None], torch.full((len(self.truth),), dose), generator)[:, 0]


def cases(path: Path) -> list[Case]:
    """Of a file of phantoms."""
    import h5py

    file, found = VolumeFile(path), []
    for k in range(len(file)):
        rng = np.random.default_rng(k)
        first = int(rng.integers(file.infos[k].shape[0] // 6, 5 * file.infos[k].shape[0] // 6 - SLICES))
        part = slice(first, first + SLICES)
        truth, ct = file.volume(k)[part].float().clone(), file.volume(k, "anatomy")[part].float()
        labels = file.volume(k, "labels")[part]
        with h5py.File(path) as raw:
            names = list(raw["volumes"][file.infos[k].name]["labels"].attrs["names"])
        organs = {name: labels == names.index(name) + 1 for name in ORGANS}
        lesions = [_add_lesion(truth, labels, rng, file.voxel_size) for _ in range(3)]
        clear = torch.stack(lesions).any(0)
        organs = {name: mask & ~clear for name, mask in organs.items() if int((mask & ~clear).sum()) > 300}
        found.append(Case(truth, ct, organs, lesions, k))
    return found


def _add_lesion(truth: Image, labels: Tensor, rng: np.random.Generator, size: tuple[float, ...]) -> Tensor:
    """Add one to the truth, inside the body; returns its mask."""
    inside = torch.nonzero(functional.max_pool3d((labels == 0)[None, None].float(), 7, 1, 3)[0, 0] == 0)
    inside = inside[(inside[:, 0] > 2) & (inside[:, 0] < len(truth) - 3)]
    place = inside[int(rng.integers(len(inside)))]
    axes = torch.meshgrid(*(torch.arange(n) for n in truth.shape), indexing="ij")
    r = sum(((axis - p) * s) ** 2 for axis, p, s in zip(axes, place, size, strict=True)).sqrt()
    sphere = (0.5 + (RADIUS - r) / size[0]).clamp(0, 1)
    local = truth[(r > 8) & (r < 16)].mean()
    truth += gaussian_smooth(CONTRAST * local * sphere, ImageGeometry(tuple(truth.shape), size), BLUR)
    return r <= RADIUS + 1


def measures(image: Image, low: Image, case: Case) -> dict[str, float]:
    """PSNR, SSIM, relative errors of total activity and organs, lesions' contrast relative to the low-dose image's."""
    truth = case.truth
    found = {key: float(value) for key, value in image_quality(image, truth).as_dict().items()}
    found["total %"] = 100 * float(image.sum() / truth.sum() - 1)
    errors = [abs(float(image[mask].mean() / truth[mask].mean() - 1)) for mask in case.organs.values()]
    found["organ %"] = 100 * max(errors, default=math.nan)
    ratios = [_contrast(image, mask) / _contrast(low, mask) for mask in case.lesions]
    found["contrast"] = float(np.median(ratios))
    return found


def _contrast(image: Image, mask: Tensor) -> float:
    near = functional.max_pool3d(mask[None, None].float(), 7, 1, 3)[0, 0] > 0
    return float(image[mask].mean() - image[near & ~mask].mean())


def invented(image: Image, case: Case, grid: ImageGeometry, patches: int = 10) -> int:
    """Lesions where there are none, in patches of 8 voxels: more than half above the truth after smoothing by 8 mm."""
    rng, size = np.random.default_rng(case.number), 8
    smooth, truth = (gaussian_smooth(x, grid, 8.0) for x in (image, case.truth))
    wrong = (smooth > 1.5 * truth) & (truth > 0.2) & ~torch.stack(case.lesions).any(0)
    inside, count = torch.nonzero(truth[SLICES // 2] > 0.3), 0
    for _ in range(patches):
        y, x = (int(v) for v in inside[int(rng.integers(len(inside)))])
        z = int(rng.integers(SLICES - size + 1))
        count += bool(wrong[z : z + size, max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4].any())
    return count


def reconstructed(case: Case, low_dose: LowDose, dose: float, factor: float) -> Image:
    """MAP-EM with the relative difference prior from the counts of the middle slice, the same as `Case.noisy` has."""
    height, width = case.truth.shape[1:]
    side = max(height, width)
    pad = ((side - width) // 2, side - width - (side - width) // 2, (side - height) // 2,
           side - height - (side - height) // 2)  # fmt: skip
    generator = torch.Generator().manual_seed(1000 * case.number + int(1e4 * dose))
    planes = functional.pad(case.truth, pad)[:, None]
    scans, k = low_dose.scans(planes, torch.full((len(planes),), dose), generator), SLICES // 2
    background = (scans.background[k] / scans.factors[k].clamp_min(1e-12)).expand(scans.factors[k].shape)
    data = Acquisition(
        scans.prompts[k], scans.projector.projdata, scans.projector.geometry, multiplicative=scans.factors[k],
        additive=background.contiguous(),
    )  # fmt: skip
    image = reconstruct(data, "map-rdp", settings={"penalisation_factor": factor}).image[0]
    return image[pad[2] : side - pad[3], pad[0] : side - pad[1]]


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of each dose and method, means over the cases."""
    everything = cases(arguments.data)
    model = EnhancementModel.load(arguments.model, "cpu")
    size = model.config.voxel_size
    low_dose, known = LowDose(model.config.scan, "binomial", size), filters()
    tested, tuning = everything[:-TUNING][: arguments.cases], everything[-TUNING:]
    for dose in arguments.doses:
        noisy = {case.number: case.noisy(low_dose, dose) for case in (*tested, *tuning)}
        methods: dict[str, Callable[[Case], Image]] = {"low dose": lambda case: noisy[case.number]}  # noqa: B023
        for name, settings in known.items():
            skipped = name != "gaussian" if arguments.quick else name == "bm4d" and arguments.only is None
            if skipped or arguments.only not in (None, name):
                continue
            errors = {
                setting: sum(float((apply(noisy[c.number], c.grid(size)) - c.truth).square().mean()) for c in tuning)
                for setting, apply in settings.items()
            }
            best = min(errors, key=errors.__getitem__)
            print(f"dose {dose:g}: {name} {best}", flush=True)
            methods[f"{name} {best}"] = lambda c, apply=settings[best]: apply(noisy[c.number], c.grid(size))  # noqa: B023
        kinds = {"enhance": (dose, True, {}), "enhance, auto dose": (None, True, {}),
                 "enhance, no CT": (dose, False, {})}  # fmt: skip
        if not model.config.architecture.neighbours:
            kinds["enhance, slices alone"] = (dose, True, {"axial_fwhm": 0.0})
        if arguments.quick:
            kinds = {"enhance": kinds["enhance"]}
        elif dose == arguments.doses[0]:
            kinds["enhance, 8 steps"] = (dose, True, {"num_steps": 8})
        for label, (ratio, ct, options) in kinds.items():
            methods[label] = partial(enhanced, model, noisy, ratio, ct and model.sees_ct, options)
        if arguments.unet is not None:
            unet = EnhancementModel.load(arguments.unet, "cpu")
            methods["unet of one dose"] = partial(enhanced, unet, noisy, unet.config.schedule.lowest, True, {})
        if arguments.only == "dip":
            methods["dip"] = tuned_deep_image_prior(noisy, tuning)
        if arguments.only is not None:
            methods = {name: method for name, method in methods.items() if name.startswith(arguments.only)}
        for name, method in methods.items():
            images = {case.number: method(case) for case in tested}
            found = [measures(images[c.number], noisy[c.number], c) for c in tested]
            mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            mean["total %"] = float(np.mean([abs(one["total %"]) for one in found]))
            mean["organ %"] = float(np.nanmean([one["organ %"] for one in found]))
            mean["invented"] = sum(invented(images[c.number], c, c.grid(size)) for c in tested)
            middle = [_psnr_of_slice(images[c.number][SLICES // 2], c) for c in tested]
            yield {"dose": dose, "method": name, **mean, "slice psnr": float(np.mean(middle)), "cases": len(tested)}
        if arguments.only is not None or arguments.quick:
            continue
        errors = {
            s: sum(float((reconstructed(c, low_dose, dose, s) - c.truth[SLICES // 2]).square().mean()) for c in tuning)
            for s in (0.5, 2.0, 8.0, 32.0)
        }
        best = min(errors, key=errors.__getitem__)
        values = [_psnr_of_slice(reconstructed(c, low_dose, dose, best), c) for c in tested]
        yield {"dose": dose, "method": f"reconstruction, RDP {best:g}", "slice psnr": float(np.mean(values))}


def enhanced(
    model: EnhancementModel, noisy: dict[int, Image], ratio: float | None, with_ct: bool, options: dict[str, Any],
    case: Case,
) -> Image:  # fmt: skip
    grid = case.grid(model.config.voxel_size)
    shown = model.guided_by(case.ct) if with_ct else model
    return Enhancer(shown, ratio, without_ct=True, **options)(noisy[case.number], grid)


def _psnr_of_slice(image: Image, case: Case) -> float:
    truth = case.truth[SLICES // 2]
    return float(image_quality(image[None], truth[None]).psnr)


def figure(path: Path, arguments: argparse.Namespace) -> None:
    """The middle slices of three cases at one dose."""
    from matplotlib.figure import Figure

    everything = cases(arguments.data)
    model = EnhancementModel.load(arguments.model, "cpu")
    size, dose = model.config.voxel_size, 0.1
    low_dose, k = LowDose(model.config.scan, "binomial", size), SLICES // 2
    drawn = Figure(figsize=(11, 6.2), layout="constrained")
    axes = drawn.subplots(3, 5)
    for row, case in zip(axes, everything[:3], strict=True):
        low = case.noisy(low_dose, dose)
        better = enhanced(model, {case.number: low}, dose, model.sees_ct, {}, case)
        shown = [case.ct, low, gaussian_smooth(low, case.grid(size), 8.0), better, case.truth]
        peak = 1.2 * float(case.truth[k].flatten().quantile(0.97))
        titles = ("CT", "dose 1/10, OSEM", "Gaussian 8 mm", "enhanced", "truth")
        for axis, image, title in zip(row, shown, titles, strict=True):
            high, colours = (1.6, "gray") if title == "CT" else (peak, "gray_r")
            axis.imshow(image[k], vmin=0, vmax=high, cmap=colours)
            axis.set_axis_off()
            told = "" if title in ("CT", "truth") else f": {_psnr_of_slice(image[k], case):.1f} dB"
            axis.set_title(title + told, fontsize=9)
    drawn.savefig(path, dpi=110)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="F.h5", help="held-out trunks")
    parser.add_argument("--model", metavar="NAME|FILE")
    parser.add_argument(
        "--train-unet", type=float, metavar="D", help="train the UNet of this dose into --out, from --model if that is "
        "given, and end",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help="of that training; default: those of the recipe")
    parser.add_argument("--unet", metavar="FILE", help="supervised UNet of one dose")
    parser.add_argument("--doses", type=float, nargs="+", default=[0.1, 0.25, 0.05], metavar="D")
    parser.add_argument("--only", metavar="FILTER", help="this one alone: bm4d, dip take minutes a case")
    parser.add_argument("--quick", action="store_true", help="the Gaussian filter and enhancement alone")
    parser.add_argument("--cases", type=int, default=10, metavar="N", help="of the ten; default: all")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--figure", type=Path, metavar="PNG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.train_unet is not None:
        recipe = ENHANCEMENT_RECIPES["body-fdg-enhance"]
        recipe = replace(recipe, name="unet", doses=DoseSchedule(1, arguments.train_unet))
        recipe = recipe if arguments.steps is None else replace(recipe, cycles=(arguments.steps,))
        out, init = arguments.out / "unet.safetensors", arguments.model
        train(recipe, out, init=init, work_dir=arguments.out, threads=1)
        return
    if arguments.figure is not None:
        figure(arguments.figure, arguments)
    found = []
    for row in rows(arguments):
        found.append(row)
        write_json(arguments.out / "results.json", {"rows": found})
    columns = {"dose": ".3g", "method": "s", "psnr": ".2f", "ssim": ".4f", "total %": ".2f", "organ %": ".1f",
               "contrast": ".2f", "invented": ".0f", "slice psnr": ".2f"}  # fmt: skip
    print(format_table(found, columns))


if __name__ == "__main__":
    main()
