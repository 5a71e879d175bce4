"""Simulated subjects as a file of training volumes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ...simulation import body, parametric_head, simulate_anatomy
from ...simulation.lesions import lesions_in_mr
from ...simulation.parametric import draw_parametric_activity
from ...simulation.perturbations import PERTURBATIONS
from ...simulation.subjects import FIRST_HELD_OUT_SUBJECT
from ...simulation.tracer import draw_activity
from ...simulation.tracers import TRACERS
from .manifest import check_fractions
from .volume_parts import Outcome, PartStore
from .volumes import Volume, new_file, write_group

#: Version of the simulator's output: a file made by another version is not continued.
SIMULATION_VERSION = 1
#: Field of view in mm (z, y, x) of each kind of phantom.
FIELDS_OF_VIEW = {
    "head": (224.0, 256.0, 224.0), "head-parametric": (224.0, 256.0, 224.0), "thorax": (340.0, 280.0, 440.0),
}  # fmt: skip
#: Names of the tracers of each kind.
BODIES = {
    "head": tuple(TRACERS), "head-parametric": tuple(parametric_head.HEAD_TRACERS), "thorax": tuple(body.BODY_TRACERS),
}  # fmt: skip
HEAD_LABELS = (
    "grey", "white", "csf", "skull", "scalp", "eyes", "glands", "face_bone", "mucosa", "fat", "muscle",
)  # fmt: skip


@dataclass(frozen=True)
class PhantomOptions:
    """What to simulate.

    Attributes
    ----------
    tracer, body
        A name in `BODIES`; ``head`` (deformed MNI152), ``head-parametric`` or ``thorax`` (both without any template).
    subjects, draws, first
        Number of subjects, activity distributions of each, and the first one's seed; the others follow.
    voxel_size
        Isotropic, in mm: 1 to 4 for ``head``, 1 to 10 for the others.
    psf_fwhm
        Blur in mm; None for a random one per volume.
    in_mr
        Share of the lesions that show in the MR, in [0, 1].
    fractions, split_seed
        Shares of the subjects for training, validation and test; decides which subject goes where.
    perturb
        A name in `~sirf_diffusion.simulation.perturbations.PERTURBATIONS`: images that are wrong in a known way, to
        study what a model makes of it; None for none.
    """

    tracer: str = "fdg"
    body: str = "head"
    subjects: int = 16
    draws: int = 1
    first: int = 0
    voxel_size: float = 2.0
    psf_fwhm: float | None = None
    in_mr: float = 0.5
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    split_seed: int = 0
    perturb: str | None = None

    def __post_init__(self) -> None:
        if self.body not in FIELDS_OF_VIEW:
            raise ValueError(f"body must be one of {', '.join(FIELDS_OF_VIEW)}, found {self.body!r}")
        if self.tracer not in BODIES[self.body]:
            known = ", ".join(BODIES[self.body])
            raise ValueError(f"unknown tracer {self.tracer!r} for body {self.body}: choose one of {known}")
        if not (1 <= self.subjects <= 10**6 and 1 <= self.draws <= 1000 and 0 <= self.first < 10**6):
            raise ValueError(
                "subjects and draws must be at least 1 (at most 10^6 and 1000), and the seed from 0 to 10^6, found "
                f"{self.subjects}, {self.draws} and {self.first}"
            )
        highest = 4.0 if self.body == "head" else 10.0
        if not 1.0 <= self.voxel_size <= highest:
            raise ValueError(f"voxel_size must lie between 1 and {highest:g} mm, found {self.voxel_size}")
        if self.perturb is not None and self.perturb not in PERTURBATIONS:
            raise ValueError(f"unknown perturbation {self.perturb!r}: choose one of {', '.join(PERTURBATIONS)}")
        if not 0 <= self.in_mr <= 1:
            raise ValueError(f"the share of lesions in the MR must lie between 0 and 1, found {self.in_mr}")
        if self.psf_fwhm is not None and not 0 <= self.psf_fwhm <= 100:
            raise ValueError(f"the blur's FWHM must lie between 0 and 100 mm, found {self.psf_fwhm}")
        check_fractions(self.fractions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels ``(z, y, x)`` that cover the field of view, a multiple of 8 each."""
        return tuple(8 * round(extent / self.voxel_size / 8) for extent in FIELDS_OF_VIEW[self.body])

    @property
    def is_held_out(self) -> bool:
        """Whether all subjects are among those that no recipe trains on."""
        return self.first >= FIRST_HELD_OUT_SUBJECT


def build_phantoms(
    out: str | os.PathLike[str], options: PhantomOptions, *, held_out: bool = False, workers: int | None = None,
    overwrite: bool = False, progress: Callable[[], None] = lambda: None,
) -> list[Outcome]:  # fmt: skip
    """Simulate subjects and write them as training volumes: emission, MR, attenuation, labels, lesions.

    A stopped build is continued. The same options give the same file content.

    ``held_out`` allows subjects from `FIRST_HELD_OUT_SUBJECT` on, which examples, tests and benchmarks are made of; all
    go to the test split. There is one process per processor, or ``workers``; ``progress`` is called after each volume.

    Raises
    ------
    ValueError
        If held-out subjects are among the others, or are asked for without ``held_out``; or as `PartStore` does.
    """
    last = options.first + options.subjects - 1
    if last >= FIRST_HELD_OUT_SUBJECT and not (held_out and options.is_held_out):
        raise ValueError(
            f"subjects {options.first} to {last}: those from {FIRST_HELD_OUT_SUBJECT} on are kept for examples, tests "
            "and benchmarks, and a model trained on them would be judged too well. For a test set of them alone give "
            f"--held-out with a seed of at least {FIRST_HELD_OUT_SUBJECT}"
        )
    if held_out and not options.is_held_out:
        raise ValueError(f"--held-out needs a seed of at least {FIRST_HELD_OUT_SUBJECT}, found {options.first}")
    settings = asdict(options) | {"held_out": held_out, "simulation_version": SIMULATION_VERSION}
    store = PartStore(out, "phantoms", settings, (options.voxel_size,) * 3, overwrite=overwrite)
    subjects = range(options.first, last + 1)
    parts = [(_key(s, draw), f"subject {s}, draw {draw}") for s in subjects for draw in range(options.draws)]
    missing = [s for s in subjects if not all(store.done(_key(s, d)) for d in range(options.draws))]
    for _ in range(len(parts) - len(missing) * options.draws):
        progress()
    for _ in _simulated(store.folder, missing, options, workers):
        for _ in range(options.draws):
            progress()
    fractions = (0.0, 0.0, 1.0) if held_out else options.fractions
    return store.assemble(parts, fractions, options.split_seed)


def simulate_volumes(subject: int, options: PhantomOptions) -> list[Volume]:
    """All draws on one subject."""
    return (_heads if options.body == "head" else _parametric)(subject, options)


def _heads(subject: int, options: PhantomOptions) -> list[Volume]:
    tracer = TRACERS[options.tracer]
    anatomy = simulate_anatomy(subject, options.shape, options.voxel_size)
    air = 1 - sum(anatomy.tissues.values())
    labels = np.argmax(np.stack([air, *(anatomy.tissues[name] for name in HEAD_LABELS)]), axis=0)
    volumes = []
    for draw in range(options.draws):
        activity, lesions = draw_activity(anatomy, draw, tracer.contrast(subject, draw), options.psf_fwhm)
        rng = np.random.default_rng([23, subject, draw])
        t1, kinds = lesions_in_mr(rng, anatomy.t1, lesions, options.in_mr)
        # The simulated head has z to the top; files have STIR's z, to the feet.
        up = [a[::-1] for a in (activity, t1, anatomy.mu, labels, kinds)]
        volumes.append(_volume(subject, draw, options, tracer.title, HEAD_LABELS, *up))
    return volumes


def _parametric(subject: int, options: PhantomOptions) -> list[Volume]:
    if options.body == "thorax":
        anatomy = body.simulate_thorax(subject, options.shape, options.voxel_size)
        uptake, hot = body.BODY_TRACERS[options.tracer], body.HOT_LESIONS
    else:
        anatomy = parametric_head.simulate_parametric_head(subject, options.shape, options.voxel_size)
        uptake, hot = parametric_head.HEAD_TRACERS[options.tracer], parametric_head.HOT_LESIONS
    volumes = []
    for draw in range(options.draws):
        activity, mr, kinds = draw_parametric_activity(anatomy, draw, uptake, hot, options.psf_fwhm, options.in_mr)
        arrays = (activity, mr, anatomy.mu, anatomy.labels, kinds)
        volumes.append(_volume(subject, draw, options, options.tracer, tuple(anatomy.organs), *arrays))
    return volumes


def _volume(
    subject: int, draw: int, options: PhantomOptions, tracer: str, names: tuple[str, ...], activity: np.ndarray,
    mr: np.ndarray, mu: np.ndarray, labels: np.ndarray, lesions: np.ndarray,
) -> Volume:  # fmt: skip
    if options.perturb is not None:
        activity = PERTURBATIONS[options.perturb](activity, options.voxel_size, 1000 * subject + draw)
    volume = Volume.from_image(
        activity, (options.voxel_size,) * 3, subject=f"{options.body} {subject}", source="simulated", tracer=tracer,
        label_names=names, details={"seed": subject, "draw": draw},
    )  # fmt: skip
    volume.add_anatomy(mr, "MR")
    volume.arrays |= {"mu": mu, "labels": labels, "lesions": lesions}
    return volume


def _key(subject: int, draw: int) -> str:
    return f"{subject:06d}-{draw:03d}"


def _simulated(folder: Path, subjects: list[int], options: PhantomOptions, workers: int | None) -> Iterator[None]:
    """Write the volumes of subjects as files into a folder, in several processes; yields after each subject."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, found {workers}")
    workers = min(workers or os.cpu_count() or 1, len(subjects))
    if workers <= 1:
        for subject in subjects:
            yield _write_subject(folder, subject, options)
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        for job in as_completed([pool.submit(_write_subject, folder, subject, options) for subject in subjects]):
            yield job.result()
    except BrokenProcessPool as error:
        raise MemoryError(
            f"a worker was killed, probably for memory: give fewer than {workers} --workers; the same command goes on "
            "where this one stopped"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the group; what a worker has begun is to be finished and kept.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _write_subject(folder: Path, subject: int, options: PhantomOptions) -> None:
    for draw, volume in enumerate(simulate_volumes(subject, options)):
        with new_file(folder / f"{_key(subject, draw)}.h5") as file:
            write_group(file, volume)
