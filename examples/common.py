"""What the examples share: their options, their data, and looking at results."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sirf_diffusion.data

#: The cases of the domain-shift suite are in benchmarks/, beside this folder.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def parse(description: str, data: str = "brain2d", **more: Any) -> argparse.Namespace:
    """Options of an example; ``more`` are further ones: name and default, or name and add_argument's keywords.

    ``data`` is the bundled example that it reads; empty if it makes its own unless told a path.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = Path(sirf_diffusion.data.__file__).parent / data if data else None
    where = f"the bundled {data}" if data else "simulated data"
    parser.add_argument("-e", "--engine", choices=["auto", "sirf", "embedded"], default="auto")
    parser.add_argument("-p", "--path", type=Path, default=bundled, help=f"data folder; default: {where}")
    parser.add_argument("-o", "--output", type=Path, help="folder for images and figures; none are kept if not given")
    parser.add_argument("--non-interactive", action="store_true", help="do not show plots")
    parser.add_argument("--quick", action="store_true", help="fewer steps: to see it run, not to judge it")
    for name, option in more.items():
        keywords = option if isinstance(option, dict) else {"default": option, "type": type(option)}
        parser.add_argument("--" + name.replace("_", "-"), **keywords)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return arguments


@dataclass
class Scan:
    """Measured data, their model, and an image that says which grid to reconstruct on."""

    prompts: Any
    acq_model: Any
    template: Any
    truth: Any | None
    mr: Any | None


def load(pet: Any, path: Path) -> Scan:
    """Read a folder that holds ``prompts.hs``, ``multiplicative.hs``, ``additive.hs`` and an image on the grid."""
    pet.set_verbosity(0)
    pet.AcquisitionData.set_storage_scheme("memory")
    if missing := [n for n in ("prompts.hs", "multiplicative.hs", "additive.hs") if not (path / n).is_file()]:
        raise SystemExit(f"{path} holds no {' and no '.join(missing)}: see --path in --help, and docs/your-data.md")
    prompts = pet.AcquisitionData(str(path / "prompts.hs"))
    # counts = multiplicative (G x + additive): attenuation is a part of the multiplicative factors here
    acq_model = pet.AcquisitionModelUsingRayTracingMatrix()
    acq_model.set_num_tangential_LORs(5)
    factors = pet.AcquisitionData(str(path / "multiplicative.hs"))
    acq_model.set_acquisition_sensitivity(pet.AcquisitionSensitivityModel(factors))
    acq_model.set_additive_term(pet.AcquisitionData(str(path / "additive.hs")))
    images = {n: pet.ImageData(str(path / f"{n}.hv")) for n in ("truth", "mu", "mr") if (path / f"{n}.hv").is_file()}
    if not images:
        raise SystemExit(f"{path} holds no image: put one on the grid of the reconstruction there, as mu.hv")
    template = next(iter(images.values())).get_uniform_copy(1.0)
    print(f"{path}: {prompts.sum():.4g} counts, image of {' x '.join(map(str, template.dimensions()))} voxels")
    return Scan(prompts, acq_model, template, images.get("truth"), images.get("mr"))


def osem(pet: Any, objective: Any, template: Any, num_subsets: int, num_epochs: int = 1) -> Any:
    """An early image by the engine's OSEM: a start, and what scales are estimated from."""
    image = template.get_uniform_copy(1.0)
    reconstructor = pet.OSMAPOSLReconstructor()
    reconstructor.set_objective_function(objective)
    reconstructor.set_num_subsets(num_subsets)
    reconstructor.set_num_subiterations(num_epochs * num_subsets)
    reconstructor.set_up(image)
    reconstructor.reconstruct(image)
    return image


def error(image: Any, truth: Any | None) -> str:
    """How far an image is from the truth, if that is known."""
    if truth is None:
        return "no truth to compare with"
    difference = image.as_array() - truth.as_array()
    return f"NRMSE {np.linalg.norm(difference) / np.linalg.norm(truth.as_array()):.3f}"


def finish(arguments: argparse.Namespace, images: dict[str, Any], truth: Any | None = None) -> None:
    """Print errors, write images, show or save a figure of the middle planes."""
    for name, image in images.items():
        if "deviation" not in name:
            print(f"{name}: {error(image, truth)}")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            image.write(str(arguments.output / f"{name.replace(' ', '-').replace(',', '')}.hv"))
    if arguments.non_interactive and arguments.output is None:
        return
    import matplotlib

    if arguments.non_interactive:
        matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {**images, **({} if truth is None else {"truth": truth})}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.6), squeeze=False)
    highest = max(float(image.as_array().max()) for image in ([truth] if truth is not None else shown.values()))
    for axis, (name, image) in zip(axes[0], shown.items(), strict=True):
        array = image.as_array()
        limit = highest if "deviation" not in name else float(array.max())
        axis.imshow(array[array.shape[0] // 2], cmap="gray_r", vmin=0, vmax=limit)
        axis.set_title(name)
        axis.axis("off")
    figure.tight_layout()
    if arguments.output is not None:
        figure.savefig(arguments.output / "figure.png", dpi=100)
    if not arguments.non_interactive:
        plt.show()
    plt.close(figure)
