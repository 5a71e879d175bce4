"""What a parameter file of OSMAPOSL or OSSPS asks for around its objective function: subsets, updates, first image."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .file import ParFile, ParFileError, fold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParRun:
    """The iterations of a parameter file.

    Keys that belong to STIR's algorithm alone, such as ``MAP model`` or ``relaxation parameter``, have no meaning for
    another method and are named once in the log; what would change the image of any method is refused.

    Parameters
    ----------
    par
        The file.
    num_subsets
        ``number of subsets``.
    num_updates
        Subiterations to be run.
    subset_order
        Subsets in the order of STIR's subiterations, from ``start at subset`` on.
    random_order
        ``uniformly randomise subset order``.
    initial_estimate
        File of the first image; None for an image of ones, STIR's default.
    """

    par: ParFile
    num_subsets: int
    num_updates: int
    subset_order: tuple[int, ...]
    random_order: bool
    initial_estimate: str | None

    @classmethod
    def of(cls, par: ParFile) -> ParRun:
        """Read the keys outside of the objective function.

        Raises
        ------
        ParFileError
            For the file of another program, a key that is not known, a filter, or a value out of range.
        """
        root = par.root
        if root.name not in ("osmaposlparameters", "osspsparameters"):
            raise ParFileError(
                f"{root.path}:{root.line}: expected a file of OSMAPOSL or OSSPS ('OSMAPOSLParameters :='), found "
                f"'{root.name}'"
            )
        par.objective()
        _refuse_filters(par)
        for key in root.keys:
            if ":=" in key.name or key.name not in _USED | _OF_THE_ALGORITHM | set(_FILTERS) | set(_FILTERS.values()):
                raise ParFileError(
                    f"{root.path}:{key.line}: '{key.name}' is not a key of {root.name} that is known here"
                )
        if left := sorted({key.name for key in root.keys} & _OF_THE_ALGORITHM):
            logger.info("%s: keys of STIR's own algorithm or its output are left aside: %s", root.path, ", ".join(left))
        num_subsets = root.integer("number of subsets", 1)
        first, last = root.integer("start at subiteration number", 1), root.integer("number of subiterations", 1)
        start = root.integer("start at subset", 0)
        for name, fine in (
            ("number of subsets", num_subsets >= 1),
            ("start at subset", 0 <= start < max(num_subsets, 1)),
            ("start at subiteration number", first >= 1),
            ("number of subiterations", last >= first),
        ):
            if not fine:
                raise root.error(name, f"is out of range: {root.text(name)}")
        initial = root.text("initial estimate", "1")
        if initial == "0":
            raise root.error("initial estimate", "is an image of zeros, which no multiplicative update can leave")
        # STIR starts with the subset that this subiteration would have had in a run from the first one on.
        order = tuple((start + first - 1 + k) % num_subsets for k in range(num_subsets))
        return cls(
            par,
            num_subsets,
            last - first + 1,
            order,
            root.boolean("uniformly randomise subset order"),
            None if initial == "1" else initial,
        )

    def files(self) -> dict[str, str]:
        """Files that the objective function names, by key, the file itself and the initial estimate."""
        names = ("input file", "list mode filename", "additive sinogram", "normalisation projdata filename",
                 "attenuation image filename")  # fmt: skip
        found = {key.name: key.value for _, key in self.par.objective().walk() if key.name in names and key.value}
        initial = {} if self.initial_estimate is None else {"initial estimate": self.initial_estimate}
        return {"parameter file": self.par.path, **found, **initial}

    def num_epochs(self) -> int:
        """Passes through the data that the file asks for.

        Raises
        ------
        ParFileError
            If the subiterations are no whole number of passes, or the order of the subsets is random.
        """
        root = self.par.root
        if self.random_order:
            raise root.error(
                "uniformly randomise subset order", "cannot be reproduced: set it to 0 or give --set num_iterations=N"
            )
        if self.num_updates % self.num_subsets:
            raise root.error(
                "number of subiterations",
                f"({self.num_updates} of them) is no multiple of the {self.num_subsets} subsets: make it one, or give "
                "--set num_iterations=N, the number of passes through the data",
            )
        return self.num_updates // self.num_subsets


def _refuse_filters(par: ParFile) -> None:
    root = par.root
    for name, interval in _FILTERS.items():
        kind, _ = root.object(name)
        if kind and (interval == fold(name) or root.integer(interval, 0) > 0):
            raise root.error(
                name,
                f"({kind}) cannot be run with another method: take it out, and filter the result with STIR's "
                "'postfilter' if you want to",
            )


# Filters by the key that switches them on (themselves, if there is none).
_FILTERS = {
    "post-filter type": "post-filter type",
    "inter-iteration filter type": "inter-iteration filter subiteration interval",
    "inter-update filter type": "inter-update filter subiteration interval",
}

_USED = frozenset(
    ("objective function type", "number of subsets", "number of subiterations", "start at subiteration number",
     "start at subset", "uniformly randomise subset order", "initial estimate")
)  # fmt: skip

_OF_THE_ALGORITHM = frozenset(
    (
        "output filename prefix", "output file format type", "disable output", "verbosity",
        "save estimates at subiteration intervals", "report objective function values interval", "write update image",
        "enforce initial positivity condition", "map model", "maximum relative change", "minimum relative change",
        "upper bound", "precomputed denominator", "relaxation parameter", "relaxation gamma", "do line search",
    )
)  # fmt: skip
