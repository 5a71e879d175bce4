"""How a patient lies in a scanner, and where STIR's axes point in that patient."""

from __future__ import annotations

from .exam import ExamInfo

#: ``("head_in" or "feet_in", "supine" or "prone")``, as in STIR's headers.
Position = tuple[str, str]
#: Direction of increasing x, y, z in STIR for each patient position, as signs in LPS
#: (STIR 6, DiscretisedDensity: head first, supine is LPI).
POSITIONS: dict[Position, tuple[int, int, int]] = {
    ("head_in", "supine"): (1, 1, -1),
    ("head_in", "prone"): (-1, -1, -1),
    ("feet_in", "supine"): (-1, 1, 1),
    ("feet_in", "prone"): (1, -1, 1),
}
HEAD_FIRST_SUPINE: Position = ("head_in", "supine")


def position_of(exam: ExamInfo | None) -> Position | None:
    """Position of the patient; None if nobody said. Of two words, an unknown one stands for head first or supine.

    Raises
    ------
    ValueError
        If it is another one than head or feet first, supine or prone.
    """
    if exam is None or (exam.orientation, exam.rotation) == ("unknown", "unknown"):
        return None
    words = (exam.orientation, exam.rotation)
    position = tuple(d if w == "unknown" else w for w, d in zip(words, HEAD_FIRST_SUPINE, strict=True))
    if position not in POSITIONS:
        raise ValueError(f"the patient position '{', '.join(words)}' is none of head or feet first, supine or prone")
    return position
