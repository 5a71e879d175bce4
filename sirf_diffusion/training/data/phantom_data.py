"""Simulated subjects as a file of training volumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain

import numpy as np

from ...files.workers import in_processes
from ...geometry.checks import check_choice, check_count, check_real
from ...simulation import FIRST_HELD_OUT_SUBJECT, body, parametric_head, simulate_anatomy
from ...simulation.lesions import lesions_in_mr
from ...simulation.parametric import draw_parametric_activity
from ...simulation.perturbations import PERTURBATIONS
from ...simulation.tracer import draw_activity
from ...simulation.tracers import TRACERS
from .manifest import check_fractions
from .volume_parts import Outcome, PartStore
from .volumes import Volume

#: Version of the simulator's output: a file made by another version is not continued.
SIMULATION_VERSION = 1
#: Field of view in mm (z, y, x) of each kind of phantom.
FIELDS_OF_VIEW = {
    "head": (224.0, 256.0, 224.0), "head-parametric": (224.0, 256.0, 224.0), "head-ct": (224.0, 256.0, 224.0),
    "thorax": (340.0, 280.0, 440.0), "trunk": (400.0, 288.0, 448.0),
}  # fmt: skip
#: Names of the tracers of each kind.
BODIES = {
    "head": tuple(TRACERS), "head-parametric": tuple(parametric_head.HEAD_TRACERS), "head-ct": tuple(TRACERS),
    "thorax": tuple(body.BODY_TRACERS), "trunk": tuple(body.TRUNK_TRACERS),
}  # fmt: skip
#: Kinds whose anatomical image is CT (density relative to water) instead of MR.
WITH_CT = ("head-ct", "trunk")
_MNI = ("head", "head-ct")
#: Attenuation of water at 511 keV in 1/cm, and the noise of a CT image, relative to water.
_WATER, _CT_NOISE = 0.096, 0.02


@dataclass(frozen=True)
class PhantomOptions:
    """What to simulate.

    Attributes
    ----------
    tracer, body
        A name in `BODIES`; ``head`` (deformed MNI152), ``head-parametric`` or ``thorax`` (both without any template);
        ``head-ct`` and ``trunk``, which come with CT in place of MR.
    draws, first
        Activity distributions of each subject, and the first one's seed; the others follow.
    voxel_size
        Isotropic, in mm: 1 to 4 for ``head``, 1 to 10 for the others.
    psf_fwhm
        Blur in mm; None for a random one per volume.
    in_mr
        Share of the lesions that show in the MR, in [0, 1].
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
        check_choice("body", self.body, tuple(FIELDS_OF_VIEW))
        check_choice(f"tracer for body {self.body}", self.tracer, BODIES[self.body])
        check_count("subjects", self.subjects, 1, 10**6)
        check_count("draws", self.draws, 1, 1000)
        check_count("seed", self.first, 0, 10**6 - 1)
        check_real("voxel_size", self.voxel_size, 1.0, 4.0 if self.body in _MNI else 10.0)
        check_real("the share of lesions in the MR", self.in_mr, 0.0, 1.0)
        if self.psf_fwhm is not None:
            check_real("the blur's FWHM in mm", self.psf_fwhm, 0.0, 100.0)
        if self.perturb is not None:
            check_choice("perturbation", self.perturb, tuple(PERTURBATIONS))
        check_fractions(self.fractions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels ``(z, y, x)`` that cover the field of view, a multiple of 8 each."""
        return tuple(8 * round(extent / self.voxel_size / 8) for extent in FIELDS_OF_VIEW[self.body])


def build_phantoms(
    out: str | os.PathLike[str], options: PhantomOptions, *, held_out: bool = False, workers: int | None = None,
    overwrite: bool = False, restart: bool = False, progress: Callable[[], None] = lambda: None,
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
    is_held_out = options.first >= FIRST_HELD_OUT_SUBJECT
    if last >= FIRST_HELD_OUT_SUBJECT and not (held_out and is_held_out):
        raise ValueError(
            f"subjects {options.first} to {last}: those from {FIRST_HELD_OUT_SUBJECT} on are kept for examples, tests "
            "and benchmarks, and a model trained on them would be judged too well. For a test set of them alone give "
            f"--held-out with a seed of at least {FIRST_HELD_OUT_SUBJECT}"
        )
    if held_out and not is_held_out:
        raise ValueError(f"--held-out needs a seed of at least {FIRST_HELD_OUT_SUBJECT}, found {options.first}")
    settings = asdict(options) | {"held_out": held_out, "simulation_version": SIMULATION_VERSION}
    store = PartStore(out, "phantoms", settings, (options.voxel_size,) * 3, overwrite=overwrite, restart=restart)
    subjects = range(options.first, last + 1)
    parts = [(_key(s, draw), f"subject {s}, draw {draw}") for s in subjects for draw in range(options.draws)]
    fractions = (0.0, 0.0, 1.0) if held_out else options.fractions
    with store.held():
        if store.finished(parts, fractions, options.split_seed):
            return store.outcomes
        missing = [s for s in subjects if not all(store.done(_key(s, d)) for d in range(options.draws))]
        done = range(len(subjects) - len(missing))
        for _ in chain(done, _simulated(store, missing, options, workers)):
            for _ in range(options.draws):
                progress()
        return store.assemble(parts, fractions, options.split_seed)


def simulate_volumes(subject: int, options: PhantomOptions) -> list[Volume]:
    """All draws on one subject."""
    volumes, voxel_size = [], (options.voxel_size,) * 3
    draws = (_heads if options.body in _MNI else _parametric)(subject, options)
    for draw, (tracer, names, (activity, mr, mu, labels, lesions)) in enumerate(draws):
        if options.perturb is not None:
            activity = PERTURBATIONS[options.perturb](activity, options.voxel_size, 1000 * subject + draw)
        volume = Volume.from_image(
            activity, voxel_size, subject=f"{options.body} {subject}", source="simulated", tracer=tracer,
            label_names=tuple(names), details={"seed": subject, "draw": draw},
        )  # fmt: skip
        volume.add_anatomy(mr, "CT" if options.body in WITH_CT else "MR")
        volume.arrays |= {"mu": mu, "labels": labels, "lesions": lesions}
        volumes.append(volume)
    return volumes


#: Title of the tracer, names of the labels, and activity, MR, attenuation, labels and lesions ``[z, y, x]``.
Draw = tuple[str, Iterable[str], Sequence[np.ndarray]]


def _heads(subject: int, options: PhantomOptions) -> Iterator[Draw]:
    tracer = TRACERS[options.tracer]
    anatomy = simulate_anatomy(subject, options.shape, options.voxel_size)
    for draw in range(options.draws):
        activity, lesions = draw_activity(anatomy, draw, tracer.contrast(subject, draw), options.psf_fwhm)
        rng = np.random.default_rng([23, subject, draw])
        t1, kinds = lesions_in_mr(rng, anatomy.t1, lesions, options.in_mr)
        if options.body in WITH_CT:
            t1 = _ct(anatomy.mu / _WATER, kinds, 1000 * subject + draw)
        # The simulated head has z to the top; files have STIR's z, to the feet.
        arrays = [a[::-1] for a in (activity, t1, anatomy.mu, anatomy.labels, kinds)]
        yield tracer.title, anatomy.tissues, arrays


def _parametric(subject: int, options: PhantomOptions) -> Iterator[Draw]:
    if options.body in ("thorax", "trunk"):
        simulate = body.simulate_thorax if options.body == "thorax" else body.simulate_trunk
        tracers = body.BODY_TRACERS if options.body == "thorax" else body.TRUNK_TRACERS
        anatomy = simulate(subject, options.shape, options.voxel_size)
        uptake, hot = tracers[options.tracer], body.HOT_LESIONS
    else:
        anatomy = parametric_head.simulate_parametric_head(subject, options.shape, options.voxel_size)
        uptake, hot = parametric_head.HEAD_TRACERS[options.tracer], parametric_head.HOT_LESIONS
    for draw in range(options.draws):
        activity, mr, kinds = draw_parametric_activity(anatomy, draw, uptake, hot, options.psf_fwhm, options.in_mr)
        if options.body == "trunk":
            density = sum(np.float32(body.DENSITIES[name]) * share for name, share in anatomy.organs.items())
            mr = _ct(density, kinds, 1000 * subject + draw)
            activity = body.breathe(activity, subject, draw, options.voxel_size)
        yield options.tracer, anatomy.organs, (activity, mr, anatomy.mu, anatomy.labels, kinds)


def _ct(density: np.ndarray, lesions: np.ndarray, seed: int) -> np.ndarray:
    """A CT image, relative to water: with noise; lesions that show, which matters in the lungs, are as water.

    It is taken at one moment, and is not blurred as PET is.
    """
    density = np.where(np.isin(lesions, (1, 3)), np.maximum(density, 1), density)
    noise = np.random.default_rng([34, seed]).standard_normal(density.shape)
    return np.clip(density + _CT_NOISE * noise, 0, None).astype(np.float32)


def _key(subject: int, draw: int) -> str:
    return f"{subject:06d}-{draw:03d}"


def _simulated(store: PartStore, subjects: list[int], options: PhantomOptions, workers: int | None) -> Iterator[None]:
    """Write the volumes of subjects as parts, in several processes; yields after each subject."""
    workers = check_count("workers", os.cpu_count() or 1 if workers is None else workers)
    write = partial(_write_subject, store, options)
    if min(workers, len(subjects)) <= 1:
        yield from map(write, subjects)
        return
    try:
        for _ in in_processes(min(workers, len(subjects)), write, {subject: subject for subject in subjects}):
            yield
    except BrokenProcessPool as error:
        raise MemoryError(
            f"a worker was killed, probably for memory: give fewer than {workers} --workers; the same command goes on "
            "where this one stopped"
        ) from error


def _write_subject(store: PartStore, options: PhantomOptions, subject: int) -> None:
    for draw, volume in enumerate(simulate_volumes(subject, options)):
        store.write(_key(subject, draw), volume)
