"""Acquisitions for tests with the real SIRF: the bundled ones, TOF data, and list mode data written event by event."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stir_list_mode import HEADER

from benchmarks.bench.acquisition import script_model
from sirf_diffusion import data

LIST_MODE = "LinearModelForMeanAndListModeDataWithProjMatrixByBin"


@dataclass
class Scan:
    """What a SIRF script has in its hands."""

    prompts: Any
    model: Any
    template: Any
    truth: Any = None

    def objective(self, pet: Any, num_subsets: int = 6, prior: Any = None) -> Any:
        """An objective function that has been set up."""
        obj = pet.make_Poisson_loglikelihood(self.prompts, acq_model=self.model)
        obj.set_num_subsets(num_subsets)
        if prior is not None:
            obj.set_prior(prior)
        obj.set_up(self.template)
        return obj


@contextlib.contextmanager
def quiet_sirf(scheme: str = "memory") -> Iterator[Any]:
    """``sirf.STIR`` with this storage scheme, no chatter and one thread, restored afterwards.

    With OpenMP STIR adds up in the order in which threads finish: SIRF's own OSMAPOSL, run twice with two threads, then
    differs from itself by up to 1.3e-4 of the image's maximum after 8 updates. With one thread every run gives the same
    bits, on builds with and without OpenMP, and a prior of Python's differs from SIRF's by the rounding of its own sums
    alone: 4e-6 there, where the tests allow 1e-5.
    """
    import sirf.STIR as pet

    before, verbosity = pet.AcquisitionData.get_storage_scheme(), pet.get_verbosity()
    threads = pet.get_max_omp_threads()
    pet.set_max_omp_threads(1)
    redirector = pet.MessageRedirector(info=None, warn=None, errr=None)
    pet.AcquisitionData.set_storage_scheme(scheme)
    pet.set_verbosity(0)
    try:
        yield pet
    finally:
        pet.AcquisitionData.set_storage_scheme(before)
        pet.set_verbosity(verbosity)
        pet.set_max_omp_threads(threads)
        del redirector


def bundled(pet: Any, name: str = "brain2d", num_rays: int = 10) -> Scan:
    """A bundled acquisition as SIRF reads it, with the ray tracing that it was simulated with."""
    folder = Path(data.__file__).parent / name
    prompts, multiplicative, additive = (
        pet.AcquisitionData(str(folder / f"{part}.hs")) for part in ("prompts", "multiplicative", "additive")
    )
    truth = pet.ImageData(str(folder / "truth.hv"))
    model = script_model(pet, prompts, multiplicative, additive, truth, num_rays)
    return Scan(prompts, model, truth.get_uniform_copy(0), truth)


def time_of_flight(pet: Any) -> Scan:
    """A few sinograms of a TOF scanner, five TOF bins, of an asymmetric object."""
    layout = pet.AcquisitionData("GE Discovery 690", 1, 0, 12, 11)
    truth = _object(pet, (47, 25, 25), (3.27, 18.0, 18.0))
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_up(layout, truth)
    return _with_noise(Scan(None, model, truth.get_uniform_copy(0), truth), layout, 3e5)


def list_mode(pet: Any, folder: Path) -> tuple[Scan, Any]:
    """Direct sinograms and the same events as list mode data: the scan of the former, the ``ListmodeData``."""
    header, events = folder / "events.l.hdr", folder / "events.l"
    header.write_text(HEADER.format(most=0, number=1, table="64"))
    _write_events(events, np.ones(4, dtype=int))
    layout = pet.ListmodeData(str(header)).acquisition_data_template()
    truth = _object(pet, (127, 25, 25), (2.03125, 16.0, 16.0))
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_up(layout, truth)
    scan = _with_noise(Scan(None, model, truth.get_uniform_copy(0), truth), layout, 3e4)
    _write_events(events, np.asarray(scan.prompts.as_array(), dtype=int).ravel())
    return scan, pet.ListmodeData(str(header))


def _object(pet: Any, shape: tuple[int, int, int], voxel_size: tuple[float, float, float]) -> Any:
    image = pet.ImageData()
    image.initialise(shape, voxel_size)
    image.fill(0)
    cylinder = pet.EllipticCylinder()
    length = shape[0] * voxel_size[0]
    cylinder.set_length(length)
    cylinder.set_radii((90, 60))
    cylinder.set_origin((length / 2, 20, -30))
    image.add_shape(cylinder, 1.0)
    return image


def _with_noise(scan: Scan, layout: Any, counts: float) -> Scan:
    """Poisson counts, a fifth of them background."""
    expected = scan.model.forward(scan.truth).as_array().astype(np.float64)
    scale = 0.8 * counts / expected.sum()
    background = 0.2 * counts / expected.size
    scan.truth = scan.truth * scale
    additive = layout.get_uniform_copy(background)
    scan.model.set_additive_term(additive)
    drawn = np.random.default_rng(7).poisson(scale * expected + background).astype(np.float32)
    scan.prompts = layout.get_uniform_copy(0)
    scan.prompts.fill(drawn)
    return scan


def _write_events(path: Path, counts: np.ndarray) -> None:
    """32-bit words: bin numbers with the bit of a prompt, between two time marks."""
    events = np.repeat(np.arange(counts.size), counts)
    np.random.default_rng(8).shuffle(events)
    words = np.concatenate([[0x80000000], events | 0x40000000, [0x80000000 + 1000]])
    words.astype("<u4").tofile(path)
