"""The blocks of a parameter file that this project adds to STIR: their keys, with defaults and what a value must be.

The compiled module asks for them when it first meets such a block; `sirf_diffusion.interop.stir.check` compares a file
with them before STIR reads it.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from ...files.documents import parse_json
from ...files.parfile import ParKey, fold
from ...files.parfile.keys import RELATIVE_CHANGE, SLOTS

#: Multiplies value and gradient of every prior; STIR's default is 0, with which a prior is never called.
PENALISATION_FACTOR = "penalisation factor"


@dataclass(frozen=True)
class BlockKey:
    """A key: its name, its default as text (or what gives it), and what makes a value of a text.

    ``read`` raises ValueError with what it expected.
    """

    name: str
    otherwise: str | Callable[[], object] = ""
    read: Callable[[str], Any] = str

    @property
    def default(self) -> str:
        """The default, as it would stand in a file."""
        return self.otherwise if isinstance(self.otherwise, str) else str(self.otherwise())

    def value(self, text: str) -> Any:
        """The value of a text; ValueError if it is none."""
        try:
            return self.read(text)
        except ValueError as problem:
            raise ValueError(f"{self.name} := {text}: {problem}") from problem


@dataclass(frozen=True)
class OwnBlock:
    """A block of ours: registered name, kind (``"prior"`` or ``"data processor"``), and its keys."""

    name: str
    kind: str
    keys: tuple[BlockKey, ...]

    @property
    def defaults(self) -> dict[str, str]:
        """Default by key, as text."""
        return {key.name: key.default for key in self.keys}

    def values(self, options: Mapping[str, str]) -> dict[str, Any]:
        """Values of all keys, of texts or the defaults; ValueError ``key := text: ...`` for the first that is none."""
        return {key.name: key.value(options.get(key.name, key.default)) for key in self.keys}


def number(minimum: float = 0.0, maximum: float = math.inf) -> Callable[[str], float]:
    """Reads a finite number within limits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and minimum <= value <= maximum):
            limits = f"of at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
            raise ValueError(f"expected a number {limits}")
        return value

    return read


def _automatic(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads what ``read`` does; None of ``auto``."""
    return lambda text: None if text == "auto" else read(text)


def count(minimum: int = 0) -> Callable[[str], int]:
    """Reads a whole number of at least ``minimum``."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\+?\d{1,18}", text) or int(text) < minimum:
            raise ValueError(f"expected a whole number of at least {minimum}")
        return int(text)

    return read


def flag(text: str) -> bool:
    """STIR's 0 or 1."""
    if text not in ("0", "1"):
        raise ValueError("expected 0 or 1")
    return text == "1"


def noise_levels(text: str) -> list[float]:
    """One positive number, or several as a list ``{a, b, c}``."""
    inner = re.fullmatch(r"\{(.*)\}", text)
    try:
        levels = [number()(part.strip()) for part in (inner[1].split(",") if inner else [text])]
    except ValueError:
        levels = [0.0]
    if min(levels) <= 0:
        raise ValueError("expected a positive number, or several as a list {a, b, c}")
    return levels


def device(text: str) -> str:
    """Where the network runs."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError("expected auto, cpu, cuda or cuda:N")
    return text


def choice(options: Callable[[], Any], *more: str, automatic: str | None = None) -> Callable[[str], str | None]:
    """Reads one of several words; ``auto`` is what is given for it."""

    def read(text: str) -> str | None:
        words = (*more, *options())
        if text not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return automatic if text == "auto" else text

    return read


def arguments(text: str) -> dict[str, Any]:
    """Keyword arguments of a class, as a JSON object."""
    try:
        return parse_json(text or "{}")
    except ValueError as problem:
        raise ValueError(f'expected JSON such as {{"strength": 2}} ({problem})') from problem


def _of(module: str, *names: str) -> Callable[[], object]:
    """A default that stands in another module of this package: an attribute, imported when it is asked for."""
    return lambda: reduce(getattr, names, importlib.import_module(f"sirf_diffusion.{module}"))


_SAMPLING = ("reconstructors.diffusion.loop", "Sampling")  # the settings of all samplers
_FACTOR = BlockKey(PENALISATION_FACTOR, "0", number())
_MODEL = BlockKey("model filename", _of("models.storage", "DEFAULT_MODEL"))
_LOOKS = (
    BlockKey("planes", "auto", choice(_of("models.grid", "PLANES"), "auto")),
    BlockKey("intensity scale", "0", number()),
)
_ANATOMICAL = (BlockKey("anatomical image filename"), BlockKey("guidance weight", "0", number(-1)))
_MACHINE = (
    BlockKey("device", "auto", device),
    BlockKey("precision", "auto", choice(_of("models.score_model", "PRECISIONS"), automatic="auto")),
    BlockKey("random seed", "0", count()),
)
_PYTHON = (BlockKey("module"), BlockKey("class"), BlockKey("arguments", "{}", arguments))

#: All blocks, priors first.
BLOCKS = (
    OwnBlock("Python", "prior", (_FACTOR, *_PYTHON)),
    OwnBlock(
        "Diffusion Score",
        "prior",
        (
            BlockKey(PENALISATION_FACTOR, _of("priors.score", "PENALISATION_FACTOR"), number()),
            _MODEL,
            BlockKey("noise level", _of("priors.score", "NOISE_LEVEL"), noise_levels),
            BlockKey("number of subiterations per noise level", "0", count()),
            BlockKey("memory", lambda: int(bool(_of("priors.score", "MEMORY")())), flag),
            *_LOOKS,
            BlockKey("kappa filename"),
            *_ANATOMICAL,
            *_MACHINE,
            BlockKey("gradient filename prefix"),
        ),
    ),
    OwnBlock("Quadratic Anchor", "prior", (_FACTOR, BlockKey("anchor filename"), BlockKey("weight filename"))),
    OwnBlock("Python", "data processor", _PYTHON),
    OwnBlock(
        "Diffusion Denoiser",
        "data processor",
        (
            _MODEL,
            BlockKey("noise level", "0", number()),
            BlockKey("dose ratio", "0", number(0, 1)),
            BlockKey("number of steps", "1", count(1)),
            *_LOOKS,
            *_ANATOMICAL,
            *_MACHINE,
        ),
    ),
    OwnBlock(
        "Diffusion Sampler",
        "data processor",
        (
            _MODEL,
            BlockKey("number of steps", "0", count()),
            BlockKey("eta", "auto", _automatic(number(0, 1))),
            BlockKey("final noise level", _of(*_SAMPLING, "final_noise_level"), number()),
            *_LOOKS,
            BlockKey("anchor strength", "0", number()),
            BlockKey("h-transform filename"),
            BlockKey("sensitivity filename"),
            *_ANATOMICAL,
            *_MACHINE,
            BlockKey("sample filename prefix"),
        ),
    ),
)


def num_chain_steps(given: int, last: int, interval: int, first: int = 1) -> int:
    """Steps of ``Diffusion Sampler``, 0 for as many as there is room for.

    It is called after every ``interval`` of the subiterations ``first`` to ``last``, once more than it has steps: the
    chain ends with data steps. ValueError if the numbers do not fit.
    """
    if first != 1:
        raise ValueError("Diffusion Sampler cannot begin in the middle: remove 'start at subiteration number'")
    calls = last // interval
    steps = given or max(calls - 1, 1)
    if last % interval or calls < steps + 1:
        raise ValueError(
            f"{last} subiterations are too few or no multiple of the interval: {steps} steps with an interval of "
            f"{interval} need ({steps} + 1) x {interval} = {(steps + 1) * interval}"
        )
    return steps


#: What a file with an h-transform must say, as otherwise its subiterations are not the EM updates of all data.
_STEERED = {
    "number of subsets": "1", "inter-iteration filter subiteration interval": "1", "prior type": "none",
    "inter-update filter type": "none",
}  # fmt: skip


def check_steered(values: Mapping[str, Any], context: Mapping[str, str]) -> None:
    """A ValueError if ``Diffusion Sampler`` has an h-transform, and the file does not give it what it needs: the
    sensitivity, and between its calls one EM update of all data. ``context`` are the keys of the file.
    """
    given, image = values["h-transform filename"], values["sensitivity filename"]
    if bool(given) != bool(image):
        raise ValueError("'h-transform filename' and 'sensitivity filename' go together: give both, or neither")
    if not given:
        return
    from ...models.h_transform import find_h_transform, read_h_transform

    if read_h_transform(find_h_transform(given)).num_updates:
        raise ValueError(f"{given} wants to see ordered subsets, which no filter sees: use recon --par --method deft")
    if values["anchor strength"] > 0:
        raise ValueError("'anchor strength' ties EM updates to an image; an h-transform wants plain ones: remove it")
    for key, wanted in _STEERED.items():
        if fold(found := context.get(key) or wanted) != wanted:
            raise ValueError(f"an h-transform needs plain EM updates of all data: '{key} := {wanted}', found {found!r}")
    if limits := [key for key in (*RELATIVE_CHANGE, "osspsparameters") if key in context]:
        raise ValueError(f"an h-transform needs plain EM updates of all data, not '{limits[0]}': use OSMAPOSL alone")


def block_of(kind: str, name: str) -> OwnBlock:
    """The block of a kind and registered name."""
    return next(block for block in BLOCKS if (block.kind, block.name) == (kind, name))


def own_block(key: ParKey) -> OwnBlock | None:
    """The block of ours that a key such as ``prior type := Diffusion Score`` makes; None if it makes none of ours."""
    kind = SLOTS.get(key.name)
    return next((b for b in BLOCKS if b.kind == kind and fold(b.name) == fold(key.value)), None)
