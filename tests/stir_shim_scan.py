"""A small acquisition simulated with STIR-Python, and parameter files that reconstruct it."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from par_files import par_text

from sirf_diffusion.files.interfile import read_image, write_image
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.stir.python_blocks import ALLOW

SIZE = 48
VOXEL = 5.0
_HERE = Path(__file__).parent


def phantom(size: int = SIZE) -> np.ndarray:
    """A warm disc with a hot and a cold insert, off-centre, ``[1, y, x]``."""
    y, x = np.mgrid[:size, :size] - size // 2
    image = np.zeros((1, size, size), np.float32)
    image[0][(x / 0.4) ** 2 + (y / 0.32) ** 2 < size**2] = 1.0
    image[0][(x - size // 6) ** 2 + (y - size // 12) ** 2 < (size / 12) ** 2] = 4.0
    image[0][(x + size // 8) ** 2 + (y + size // 10) ** 2 < (size / 10) ** 2] = 0.2
    return image


@dataclass
class Scan:
    """Files of a simulated acquisition in a folder, and what was simulated."""

    folder: Path
    geometry: ImageGeometry
    truth: np.ndarray

    def par(
        self, name: str, prior: str = "", *, algorithm: str = "OSMAPOSL", subsets: int = 2, subiterations: int = 8,
        initial: str = "start.hv", extra: str = "", save: int | None = None,
    ) -> Path:  # fmt: skip
        """Write ``<name>.par``, whose images are ``<name>_<n>.hv``; ``prior`` is the block from ``prior type`` on."""
        objective = f"additive sinogram := {self.folder}/additive.hs\n{prior}"
        extra = f"initial estimate := {self.folder / initial}\n{extra}"
        options = {"rays": 2, "subsets": subsets, "subiterations": subiterations, "save": save}
        text = par_text(
            f"{self.folder}/prompts.hs", f"{self.folder}/{name}", objective, extra, algorithm=algorithm, **options
        )
        path = self.folder / f"{name}.par"
        path.write_text(text)
        return path

    def run(self, name: str, prior: str = "", *, algorithm: str = "OSMAPOSL", subiterations: int = 8, **options):
        """Write ``<name>.par``, let the compiled program run it, and give its last image."""
        par = self.par(name, prior, algorithm=algorithm, subiterations=subiterations, **options)
        ran = run_program(algorithm, par, cwd=self.folder)
        assert ran.returncode == 0, ran.output
        return self.image(f"{name}_{subiterations}")

    def image(self, name: str) -> np.ndarray:
        """The image of a file ``<name>.hv``."""
        return read_image(self.folder / f"{name}.hv")[0].numpy()

    def write(self, name: str, image: np.ndarray) -> Path:
        """An image as ``<name>.hv``."""
        path = self.folder / f"{name}.hv"
        write_image(path, torch.as_tensor(np.asarray(image, np.float32)), self.geometry)
        return path


def simulate(folder: Path, counts: float = 2e5, seed: int = 4) -> Scan:
    """Poisson counts of the phantom with 30 % background, in the geometry of the bundled slice."""
    import stir
    import stirextra

    geometry = ImageGeometry((1, SIZE, SIZE), (2.03125, VOXEL, VOXEL))
    scan = Scan(folder, geometry, phantom())
    scan.write("truth", scan.truth)
    template = stir.ProjData.read_from_file(str(files("sirf_diffusion.data") / "brain2d" / "prompts.hs"))
    image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(folder / "truth.hv"))
    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_num_tangential_LORs(2)
    projector = stir.ForwardProjectorByBinUsingProjMatrixByBin(matrix)
    projector.set_up(template.get_proj_data_info(), image)
    trues = stir.ProjDataInMemory(template.get_exam_info(), template.get_proj_data_info())
    projector.forward_project(trues, image)
    mean = stirextra.to_numpy(trues)
    scale = 0.7 * counts / mean.sum()
    background = np.full_like(mean, 0.3 * counts / mean.size)
    prompts = np.random.default_rng(seed).poisson(scale * mean + background).astype(np.float32)
    for name, values in (("prompts", prompts), ("additive", background)):
        data = stir.ProjDataInMemory(template.get_exam_info(), template.get_proj_data_info())
        data.fill(values.ravel())
        data.write_to_file(str(folder / f"{name}.hs"))
    scan.truth *= scale
    scan.write("truth", scan.truth)
    scan.write("start", np.full(geometry.shape, scan.truth.mean()))
    return scan


@dataclass
class Ran:
    """How a child process ended."""

    returncode: int
    output: str = field(repr=False)


def environment() -> dict[str, str]:
    """Environment of a child that finds this checkout, its tests and our modules, and may run Python in files."""
    paths = [str(_HERE.parent), str(_HERE), *(p for p in sys.path if p)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1", ALLOW: "1"}


def run_program(name: str, *arguments: object, cwd: Path, timeout: float = 120) -> Ran:
    """Run one of the compiled programs."""
    from stir_priors.build import find_builds

    command = [str(find_builds()[0].program(name)), *map(str, arguments)]
    return _run(command, cwd, timeout)


def run_python(code: str, *arguments: object, cwd: Path, timeout: float = 120) -> Ran:
    """Run Python code in a process of its own."""
    return _run([sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)], cwd, timeout)


def _run(command: list[str], cwd: Path, timeout: float) -> Ran:
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
    return Ran(done.returncode, done.stdout + done.stderr)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference relative to the largest value of ``b``."""
    return float(np.abs(a - b).max() / np.abs(b).max())
