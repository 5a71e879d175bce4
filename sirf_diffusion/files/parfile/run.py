"""What a parameter file of OSMAPOSL or OSSPS asks for around its objective function: subsets, updates, first image."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from ...geometry.checks import LARGEST_COUNT
from . import keys
from .file import ParFile, ParFileError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParRun:
    """The iterations of a parameter file.

    Keys that belong to STIR's algorithm alone, such as ``MAP model`` or ``relaxation parameter``, have no meaning for
    another method and are named once in the log; what would change the image of any method is refused.

    ``num_updates`` are to be run, the first of which is ``start at subiteration number``, by ``subset_order``: subsets
    in the order of STIR's subiterations, from ``start at subset`` on, unless drawn at random. ``initial_estimate`` is
    the file of the first image (None for ones, STIR's default), whose values are raised where they are not positive to
    ``enforce_positivity``. ``relative_change`` limits, from ``minimum`` to ``maximum relative change``, the factor by
    which an update of OSMAPOSL after the first multiplies a voxel.
    """

    par: ParFile
    num_subsets: int
    num_updates: int
    subset_order: tuple[int, ...]
    first_update: int
    random_order: bool = False
    initial_estimate: str | None = None
    enforce_positivity: bool = True
    relative_change: tuple[float, float] = (0.0, math.inf)

    @classmethod
    def of(cls, par: ParFile) -> ParRun:
        """Read the keys outside of the objective function.

        Raises ParFileError for the file of another program, a key that is not known, a filter, or a value out of range.
        """
        root = par.root
        if root.name not in keys.ALGORITHM:
            raise ParFileError(
                f"{root.path}:{root.line}: expected a file of OSMAPOSL or OSSPS ('OSMAPOSLParameters :='), found "
                f"'{root.name}'"
            )
        par.objective()
        _refuse_filters(par)
        known = keys.PROGRAMS[root.name][1]
        for key in root.keys:
            if key.name not in known:
                raise ParFileError(
                    f"{root.path}:{key.line}: '{key.name}' is not a key of {root.name} that is known here"
                )
        for reason, names in (("its output", keys.OUTPUT), ("STIR's own algorithm", keys.ALGORITHM[root.name])):
            if left := [name for name in names if name in root]:
                level = logging.INFO if names is keys.OUTPUT else logging.WARNING
                logger.log(level, "%s: keys of %s are left aside: %s", root.path, reason, ", ".join(left))
        num_subsets = root.integer("number of subsets", 1)
        first, last = root.integer("start at subiteration number", 1), root.integer("number of subiterations", 1)
        start = root.integer("start at subset", 0)
        least, most = root.real(keys.RELATIVE_CHANGE[0], 0.0), root.real(keys.RELATIVE_CHANGE[1], math.inf)
        for name, fine in (
            ("number of subsets", 1 <= num_subsets <= 100_000),
            ("start at subset", 0 <= start < max(num_subsets, 1)),
            ("start at subiteration number", first >= 1),
            ("number of subiterations", first <= last <= LARGEST_COUNT),
            (keys.RELATIVE_CHANGE[0], 0 <= least <= 1),
            (keys.RELATIVE_CHANGE[1], most >= 1),
        ):
            if not fine:
                raise root.error(name, f"is out of range: {root.text(name)}")
        initial = root.text("initial estimate", "1")
        if initial == "0":
            raise root.error("initial estimate", "is an image of zeros, which no multiplicative update can leave")
        return cls(
            par,
            num_subsets,
            last - first + 1,
            # STIR starts with the subset that this subiteration would have had in a run from the first one on.
            tuple((start + first - 1 + k) % num_subsets for k in range(num_subsets)),
            first,
            root.boolean("uniformly randomise subset order"),
            None if initial == "1" else initial,
            root.boolean("enforce initial positivity condition", True),
            (least, most),
        )

    def files(self) -> dict[str, str]:
        """Files that the file names, by key (and line, of a key that comes again), and the file itself."""
        found = {"parameter file": self.par.path}
        for _, key in self.par.root.walk():
            if key.name in keys.INPUT_FILES and key.value and (key.name, key.value) != ("initial estimate", "1"):
                found[key.name if key.name not in found else f"{key.name} (line {key.line})"] = key.value
        return found

    def num_epochs(self) -> int:
        """Passes through the data that the file asks for.

        Raises ParFileError if the subiterations are no whole number of passes, or the order of the subsets is random.
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

    def say_osem_only(self, method: str) -> None:
        """Log the keys whose meaning another method than ``osem`` does not share."""
        if left := [name for name in keys.RELATIVE_CHANGE if name in self.par.root]:
            logger.warning("%s: %s has no use for %s", self.par.path, method, ", ".join(left))


def _refuse_filters(par: ParFile) -> None:
    root = par.root
    for name, interval in keys.FILTERS.items():
        kind, _ = root.object(name)
        if kind and (interval == name or root.integer(interval, 0) > 0):
            raise root.error(
                name,
                f"({kind}) cannot be run with another method: take it out, and filter the result with STIR's "
                "'postfilter' if you want to",
            )
