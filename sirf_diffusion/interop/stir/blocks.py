"""The blocks of a parameter file that this project adds to STIR: their keys with defaults, as text.

The C++ sources declare the same (a test compares them); here they serve where nothing is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...files.parfile import ParKey, fold
from .stir_keys import SLOTS

#: Multiplies value and gradient of every prior; STIR's default is 0, with which a prior is never called.
PENALISATION_FACTOR = "penalisation factor"

_PYTHON = {"module": "", "class": "", "arguments": "{}"}
_ANATOMICAL = {"anatomical image filename": "", "guidance weight": "0"}

#: Keys and defaults of the priors, by registered name; each has the penalisation factor besides.
PRIORS: dict[str, dict[str, str]] = {
    "Python": dict(_PYTHON),
    "Diffusion Score": {
        "model filename": "brain-fdg",
        "noise level": "0.3",
        "number of subiterations per noise level": "0",
        "planes": "auto",
        "intensity scale": "0",
        "kappa filename": "",
        **_ANATOMICAL,
        "device": "auto",
        "random seed": "0",
        "gradient filename prefix": "",
    },
    "Quadratic Anchor": {"anchor filename": "", "weight filename": ""},
}

#: Keys and defaults of the data processors (filters), by registered name.
DATA_PROCESSORS: dict[str, dict[str, str]] = {
    "Python": dict(_PYTHON),
    "Diffusion Denoiser": {
        "model filename": "brain-fdg",
        "noise level": "0",
        "number of steps": "1",
        "planes": "auto",
        "intensity scale": "0",
        **_ANATOMICAL,
        "device": "auto",
        "random seed": "0",
    },
    "Diffusion Sampler": {
        "model filename": "brain-fdg",
        "number of steps": "0",
        "eta": "0.85",
        "final noise level": "0.05",
        "planes": "auto",
        "intensity scale": "0",
        "anchor strength": "0",
        **_ANATOMICAL,
        "device": "auto",
        "random seed": "0",
        "sample filename prefix": "",
    },
}


@dataclass(frozen=True)
class OwnBlock:
    """A block of ours: registered name, kind (``"prior"`` or ``"data processor"``), all keys with their defaults."""

    name: str
    kind: str
    defaults: dict[str, str]


#: All blocks, priors first.
BLOCKS: tuple[OwnBlock, ...] = (
    *(OwnBlock(n, "prior", {PENALISATION_FACTOR: "0", **keys}) for n, keys in PRIORS.items()),
    *(OwnBlock(n, "data processor", dict(keys)) for n, keys in DATA_PROCESSORS.items()),
)


def own_block(key: ParKey) -> OwnBlock | None:
    """The block of ours that a key such as ``prior type := Diffusion Score`` makes; None if it makes none of ours."""
    kind = SLOTS.get(key.name)
    return next((b for b in BLOCKS if b.kind == kind and fold(b.name) == fold(key.value)), None)
