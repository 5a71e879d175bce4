"""Simulate the bundled example acquisitions with a real STIR.

Needs STIR's Python module and nilearn::

    python tests/reference/make_examples.py [folder]

Two held-out subjects (seeds 9000 and 9001, which no recipe trains on) in Siemens mMR geometry:

``brain2d``
    one ring, 126 views x 344 bins, 128 x 128 pixels of 2 mm, 2e5 prompts expected;
``brain3d``
    twelve rings, segments 0, +1, -1 of span 7, 42 views x 112 bins, 23 planes, 2e6 prompts expected.

Projections are STIR's ray tracing with 10 tangential rays. Multiplicative factors are attenuation (from the subject's
mu-map, in 1/cm) times bin efficiencies (10 % SD, a few dead bins) times the scan's calibration; ``efficiencies.hs`` of
the slice are those without attenuation, to be given with ``mu.hv``. The expected background is 30 % of the prompts: a
scatter-like smooth part and constant randoms. Grey matter has about 20 image units.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_reference import StirCase

from benchmarks.bench.acquisition import centred, expected_background, mmr_slice
from sirf_diffusion.files.interfile import read_image, read_projection_data, write_image, write_projection_data
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import get_scanner
from sirf_diffusion.simulation import TracerContrast, simulate_activity, simulate_anatomy

BACKGROUND_SHARE = 0.3
GREY_MATTER = 20.0
#: The usual contrast of FDG phantoms, grey to white matter about 4 to 1; training draws it from 1.6 to 5.
CONTRAST = TracerContrast(white=(0.24, 0.28), reversed_share=0.0)


def brain2d() -> tuple[ProjDataGeometry, ImageGeometry, dict[str, np.ndarray], float]:
    """Geometry, images and expected prompts of the slice."""
    geometry, projdata = mmr_slice()
    return projdata, geometry, _subject(9000, geometry.shape, 68), 2.0e5


def brain3d() -> tuple[ProjDataGeometry, ImageGeometry, dict[str, np.ndarray], float]:
    """Geometry, images and expected prompts of the small volume."""
    mmr = dataclasses.replace(get_scanner("Siemens mMR"), name="twelve rings of a Siemens mMR", num_rings=12)
    segments = (Segment(0, -3, 3, 23), Segment(1, 4, 10, 15), Segment(-1, -10, -4, 15))
    projdata = ProjDataGeometry(mmr, segments, 42, 112)
    geometry = ImageGeometry((23, 112, 96), (mmr.ring_spacing / 2, 2.0, 2.0))
    images = _subject(9001, geometry.shape, 52)
    del images["mr"]
    return projdata, geometry, images, 2.0e6


def _subject(seed: int, shape: tuple[int, int, int], first_plane: int) -> dict[str, np.ndarray]:
    anatomy = simulate_anatomy(seed)
    activity = GREY_MATTER * simulate_activity(anatomy, 0, CONTRAST, psf_fwhm=4.0)
    return {
        name: centred(torch.from_numpy(values[first_plane : first_plane + shape[0]]), shape[1:]).numpy()
        for name, values in (("truth", activity), ("mu", anatomy.mu), ("mr", anatomy.t1))
    }


def make(name: str, out: Path, stir) -> None:
    """Simulate one example and write its files."""
    projdata, geometry, images, expected_prompts = {"brain2d": brain2d, "brain3d": brain3d}[name]()
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for image, values in images.items():
        write_image(folder / f"{image}.hv", torch.from_numpy(values), geometry, "short")
        # what follows is simulated from what was stored, rounding included
        images[image] = read_image(folder / f"{image}.hv")[0].numpy()

    rng = np.random.default_rng([23, sum(name.encode())])
    with tempfile.TemporaryDirectory() as scratch:
        case = StirCase(stir, Path(scratch), projdata, geometry)
        projected = case.forward(images["truth"])
        path_length = case.forward(images["mu"]) * geometry.voxel_size[2] / 10
    efficiencies = np.clip(rng.normal(1, 0.1, projdata.shape), 0.3, None)
    efficiencies[rng.random(projdata.shape) < 0.002] = 0
    multiplicative = (np.exp(-path_length) * efficiencies).astype(np.float32)
    trues = multiplicative * projected
    calibration = (1 - BACKGROUND_SHARE) * expected_prompts / trues.sum(dtype=np.float64)
    multiplicative *= calibration
    if name == "brain2d":
        _stored(folder / "efficiencies.hs", (efficiencies * calibration).astype(np.float32), projdata)
    multiplicative = _stored(folder / "multiplicative.hs", multiplicative, projdata)
    trues = multiplicative * projected

    background = expected_background(trues, BACKGROUND_SHARE)
    alive = multiplicative > 0
    additive = np.divide(background, multiplicative, where=alive, out=np.zeros_like(trues)).astype(np.float32)
    additive = _stored(folder / "additive.hs", additive, projdata)
    prompts = rng.poisson(multiplicative * (projected + additive).astype(np.float64)).astype(np.float32)
    _stored(folder / "prompts.hs", prompts, projdata)
    print(f"{name}: {prompts.sum():.0f} prompts, {trues.sum() / prompts.sum():.3f} of them true")


def _stored(path: Path, data: np.ndarray, projdata: ProjDataGeometry) -> np.ndarray:
    write_projection_data(path, torch.from_numpy(data), projdata, "short")
    return read_projection_data(path)[0].numpy()


if __name__ == "__main__":
    import stir as stir_module

    stir_module.Verbosity.set(0)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "sirf_diffusion" / "data"
    for example in ("brain2d", "brain3d"):
        make(example, target, stir_module)
