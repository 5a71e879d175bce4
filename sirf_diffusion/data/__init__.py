"""Example acquisitions that come with the package, for the demo, the examples and the tests.

They were simulated from subjects that no bundled model was trained on; see ``README.md`` beside the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..engines.embedded.acquisition import Acquisition

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Example:
    """A simulated acquisition with the images behind it, all on ``acquisition.geometry``.

    Parameters
    ----------
    name
        Name of the folder.
    acquisition
        The counts, multiplicative factors (attenuation included) and additive term.
    truth
        Emission image ``[z, y, x]``, in the units of the reconstruction.
    attenuation
        Linear attenuation coefficients in 1/cm.
    mr
        T1-weighted MR image, arbitrary units; None if the example has none.
    folder
        Where the files are.
    """

    name: str
    acquisition: Acquisition
    truth: Tensor
    attenuation: Tensor
    mr: Tensor | None
    folder: Path


def list_examples() -> list[str]:
    """Names of the bundled examples."""
    return sorted(p.parent.name for p in _FOLDER.glob("*/prompts.hs"))


def load_example(name: str | Path = "brain2d") -> Example:
    """Load a bundled example, or a folder with the same file names.

    Parameters
    ----------
    name
        ``"brain2d"`` (one mMR slice at low counts), ``"brain3d"`` (a few planes with oblique segments), or a folder
        that holds ``prompts.hs``, ``multiplicative.hs``, ``additive.hs``, ``truth.hv``, ``mu.hv`` and, if there is
        one, ``mr.hv``.

    Raises
    ------
    ValueError
        If there is no such example.
    """
    from ..files.interfile import read_image

    folder = Path(name) if Path(name).is_dir() else _FOLDER / str(name)
    if not (folder / "prompts.hs").is_file():
        raise ValueError(f"there is no example {str(name)!r}; bundled are {', '.join(list_examples()) or 'none'}")
    truth, geometry = read_image(folder / "truth.hv")
    acquisition = Acquisition.from_files(
        folder / "prompts.hs",
        multiplicative=folder / "multiplicative.hs",
        additive=folder / "additive.hs",
        geometry=geometry,
    )
    mu, _ = read_image(folder / "mu.hv")
    mr = read_image(folder / "mr.hv")[0] if (folder / "mr.hv").is_file() else None
    return Example(folder.name, acquisition, truth, mu, mr, folder)
