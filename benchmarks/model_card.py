"""Figures and table of a bundled model's card, from the work folder of a recipe that simulates its own subjects.

::

    python benchmarks/model_card.py brain-fdg --work-dir TRAINING_FOLDER

Judges the model on the validation subjects of the folder, on the slices and noise that the training's own log uses.
Writes ``docs/images/MODEL-denoising.png`` and ``docs/images/MODEL-samples.png`` and prints the checks and the table.
For models trained on a data file: ``sirf-diffusion models evaluate``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import h5py
import torch

from sirf_diffusion.models import ScoreModel
from sirf_diffusion.training.judging.acceptance import evaluate_on
from sirf_diffusion.training.judging.model_card import denoising_table, draw_denoising
from sirf_diffusion.training.judging.samples import save_sheet
from sirf_diffusion.training.judging.validation import ValidationSet

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="bundled name or file")
    parser.add_argument("--work-dir", type=Path, required=True, help="work folder of the training")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where the figures go")
    options = parser.parse_args()
    model, name = ScoreModel.load(options.model), Path(options.model).stem
    with h5py.File(options.work_dir / "validation.h5") as file:
        volumes = torch.from_numpy(file["activity"][:]).flatten(0, 1)
    slices = ValidationSet.from_volumes(volumes, model.schedule)
    evaluation = evaluate_on(
        model, slices, model=name, data="validation.h5", split="validation", size=128, num_samples=8, num_steps=60
    )
    options.images.mkdir(parents=True, exist_ok=True)
    draw_denoising(evaluation, options.images / f"{name}-denoising.png")
    save_sheet(evaluation.samples, options.images / f"{name}-samples.png")
    print("\n".join([*evaluation.summary(), "", *denoising_table(evaluation)]))
    print("mean activity of the emitting pixels of each sample:", [round(v, 2) for v in evaluation.sample_means])


if __name__ == "__main__":
    main()
