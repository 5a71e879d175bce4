"""What a personalised model gains: registration, images, lesions that the MR does not show, and wrong subjects.

::

    python -m benchmarks.personalised WORK              # a bank of 24, two patients, both count levels
    python -m benchmarks.personalised WORK --members 10 --patients 9300 --options steps=300 quick_registration=True

Bank and patients are heads that no bundled model has seen; the patients have two hot lesions in each plane that their
MRs do not show. Compared are LiSch with the population's model, with the patient's own, and guided by the MR. Then data
of other subjects are reconstructed with the patient's model: the fitness check must not be content. Everything is kept
in WORK; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import ast
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench.acquisition import centred, mmr_slice, simulate_acquisition
from benchmarks.bench.domain_shift import GREY_MATTER, REFERENCE_PSF
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.files.atomic import atomic_path
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.patient.anatomical import AnatomicalImage
from sirf_diffusion.patient.writing import write_nifti
from sirf_diffusion.personalise import PersonalOptions, personalise
from sirf_diffusion.simulation import simulate_anatomy
from sirf_diffusion.simulation.head import HeadAnatomy
from sirf_diffusion.simulation.lesions import soft_ellipsoid
from sirf_diffusion.simulation.tracer import draw_activity
from sirf_diffusion.simulation.tracers import TRACERS
from sirf_diffusion.study.execution import Execution
from sirf_diffusion.study.metrics import contrast_recovery, nrmse
from sirf_diffusion.study.reconstruction import reconstruct
from sirf_diffusion.study.report import format_table
from sirf_diffusion.training.data.phantom_data import PhantomOptions, build_phantoms
from sirf_diffusion.training.data.volume_file import VolumeFile

FIRST_MEMBER, PLANES, HOT, RADIUS_MM = 2000, (60, 68, 76), 2.0, 6.0
COLUMNS = {
    "prompts": ".0e", "method": "s", "nrmse": ".4f", "lesion_crc": ".3f", "nrmse_elsewhere": ".4f", "verdict": "s",
}  # fmt: skip


def patient_slices(subject: int, planes: Sequence[int]) -> tuple[HeadAnatomy, list[dict[str, Any]]]:
    """A patient and the truth of some planes: two hot lesions in the brain, which the MR does not show."""
    anatomy, size = simulate_anatomy(subject), mmr_slice()[0].shape[1:]
    slices = []
    for plane in planes:
        rng = np.random.default_rng([71, subject, plane])
        inside = np.argwhere(anatomy.brain[plane] > 0.9)
        lesions = [
            soft_ellipsoid(anatomy.t1.shape, (plane, *inside[rng.integers(len(inside))]), [RADIUS_MM / 2] * 3, HOT)
            for _ in range(2)
        ]
        activity, _ = draw_activity(anatomy, 0, TRACERS["fdg"].contrast(subject, 0), REFERENCE_PSF, lesions)
        lesion, near = (np.ones(anatomy.t1.shape, np.float32) for _ in range(2))
        for one in lesions:
            one.multiply(lesion, HOT)
            wide = soft_ellipsoid(anatomy.t1.shape, [(s.start + s.stop) / 2 for s in one.box], [RADIUS_MM] * 3, HOT)
            wide.multiply(near, HOT)
        images = {
            "truth": GREY_MATTER * activity, "mu": anatomy.mu, "mr": anatomy.t1, "lesion": lesion > 1.5,
            "near": near > 1.2, "brain": anatomy.brain > 0.5,
        }  # fmt: skip
        slices.append(
            {name: centred(torch.from_numpy(np.array(v[plane][None], np.float32)), size) for name, v in images.items()}
        )
    return anatomy, slices


def measure(slice_: dict[str, Tensor], image: Tensor) -> dict[str, float]:
    """Error, recovery of the lesions' contrast to what is around them, and error away from them."""
    truth, lesion, near = slice_["truth"], slice_["lesion"] > 0, slice_["near"] > 0
    brain = slice_["brain"] > 0
    away = brain & ~near
    return {
        "nrmse": nrmse(image, truth),
        "lesion_crc": contrast_recovery(image[None], truth, lesion, near & ~lesion & brain),
        "nrmse_elsewhere": nrmse(image[away], truth[away]),
    }


def acquired(truth: Tensor, mu: Tensor, prompts: float, seed: tuple[int, ...]) -> Acquisition:
    """One ring of an mMR."""
    return simulate_acquisition(truth, mu, *mmr_slice(), prompts=prompts, seed=seed)


def shown_at(model: Path, millimetres: float) -> AnatomicalImage:
    """What the model expects, moved so that this place along STIR's z lies on the ring."""
    expected = ScoreModel.load(model).expected_image
    assert expected is not None
    affine = expected.image.affine.copy()
    affine[2, 3] += millimetres
    return replace(expected, image=replace(expected.image, affine=affine))


def compare(
    slices: Sequence[dict[str, Tensor]],
    places: Sequence[float],
    own: Path,
    levels: Sequence[float],
    subject: int,
    figure: Path,
    samples: int,
) -> list[dict[str, Any]]:
    """Rows of means over the planes, printed as they are made, and a figure of the first plane."""
    rows, shown = [], [("truth", slices[0]["truth"]), ("MR", slices[0]["mr"])]
    for prompts in levels:
        for method, model in (("population", "brain-fdg"), ("personalised", own), ("MR-guided", "brain-fdg-mr")):
            found, verdicts = [], []
            for number, one in enumerate(slices):
                data = acquired(one["truth"], one["mu"], prompts, (subject, number))
                guide = {"MR-guided": one["mr"], "personalised": shown_at(own, places[number])}.get(method)
                options = {"num_samples": samples, "device": "cpu", "speed": "accurate", "anatomical": guide}
                result = reconstruct(data, "lisch", model=str(model), **options)
                found.append(measure(one, result.image))
                verdicts.append(result.record["distribution"]["verdict"])
                if number == 0:
                    shown.append((f"{method}, {prompts:.0e}", result.image))
            means = {name: float(np.mean([f[name] for f in found])) for name in found[0]}
            rows.append({"prompts": prompts, "method": method, **means, "verdict": ", ".join(verdicts)})
            print(format_table(rows[-1:], COLUMNS), flush=True)
    draw(figure, shown)
    return rows


def wrong_subjects(bank: VolumeFile, own: Path, numbers: Sequence[int], prompts: float, samples: int) -> int:
    """How many of other subjects' slices the fitness check warns of when this patient's model reconstructs them."""
    warned = 0
    for number in numbers:
        plane = len(bank.volume(number)) // 2
        images = (bank.volume(number, name)[plane : plane + 1].float() for name in ("emission", "mu"))
        truth, mu = (centred(image, mmr_slice()[0].shape[1:]) for image in images)
        data, shown = acquired(GREY_MATTER * truth, mu, prompts, (number,)), shown_at(own, plane * bank.voxel_size[0])
        options = {"num_samples": samples, "device": "cpu", "speed": "accurate", "anatomical": shown}
        result = reconstruct(data, "lisch", model=str(own), **options)
        check = result.record["distribution"]
        warned += check["verdict"] != "in distribution"
        print(f"subject {number}: {check['message']}", flush=True)
    return warned


def draw(path: Path, shown: Sequence[tuple[str, Tensor]]) -> None:
    """Images side by side."""
    from matplotlib.figure import Figure

    columns = (len(shown) + 1) // 2
    sheet = Figure(figsize=(2.1 * columns, 4.6), layout="constrained")
    axes = sheet.subplots(2, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes.flat, shown, strict=False):
        is_mr = title == "MR"
        axis.imshow(image[0, 10:-10, 16:-16], cmap="gray" if is_mr else "gray_r", vmin=0, vmax=1.3 if is_mr else 45)
        axis.set_title(title, fontsize=9)
    with atomic_path(path) as temporary:
        sheet.savefig(temporary, dpi=80)


def write_patient_mr(path: Path, anatomy: HeadAnatomy) -> None:
    """The MR as NIfTI."""
    # The simulated head has z to the top, STIR's to the feet.
    values = torch.from_numpy(anatomy.t1[::-1].copy())
    write_nifti(path, values, ImageGeometry(anatomy.t1.shape, (anatomy.voxel_size,) * 3))


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--members", type=int, default=24)
    parser.add_argument("--patients", nargs="+", type=int, default=[9300, 9301])
    parser.add_argument("--prompts", nargs="+", type=float, default=[5e4, 2e5])
    parser.add_argument("--wrong", type=int, default=10, help="other subjects for the patient's model")
    parser.add_argument("--planes", nargs="+", type=int, default=PLANES)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--options", nargs="*", default=[], help="of PersonalOptions: steps=300 ...")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    options = PersonalOptions(**{k: ast.literal_eval(v) for k, v in (text.split("=") for text in arguments.options)})
    files = {}
    for name, first, number in (("bank", FIRST_MEMBER, arguments.members), ("others", 2500, arguments.wrong)):
        files[name] = work / f"{name}.h5"
        if number and not files[name].exists():
            build_phantoms(files[name], PhantomOptions("fdg", subjects=number, first=first), workers=arguments.workers)
    for subject in arguments.patients:
        anatomy, slices = patient_slices(subject, arguments.planes)
        mr, own = work / f"{subject}.nii.gz", work / f"{subject}.safetensors"
        if not mr.exists():
            write_patient_mr(mr, anatomy)
        execution = Execution(arguments.workers)
        made = personalise(files["bank"], mr, own, options=options, execution=execution, device="cpu")
        print(f"patient {subject}: {sum(not m.reason for m in made.members)} of {len(made.members)} members used")
        places = [anatomy.voxel_size * (len(anatomy.t1) - 1 - plane) for plane in arguments.planes]
        rows = compare(slices, places, own, arguments.prompts, subject, work / f"{subject}.png", arguments.samples)
        print(format_table(rows, COLUMNS), flush=True)
        if arguments.wrong:
            others, prompts = VolumeFile(files["others"]), max(arguments.prompts)
            warned = wrong_subjects(others, own, range(arguments.wrong), prompts, arguments.samples)
            print(f"patient {subject}: the check warned of {warned} of {arguments.wrong} other subjects", flush=True)


if __name__ == "__main__":
    main()
