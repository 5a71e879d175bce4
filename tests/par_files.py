"""Parameter files of STIR's reconstruction programs, as text."""

_LIKELIHOOD = "PoissonLogLikelihoodWithLinearModelForMeanAndProjData"


def par_text(
    prompts: object, prefix: object, objective: str = "", extra: str = "", *, algorithm: str = "OSMAPOSL",
    rays: int = 10, subsets: int = 2, subiterations: int = 8, save: int | None = None,
) -> str:  # fmt: skip
    """Ray tracing; ``objective`` are further lines of the objective function, ``extra`` of the algorithm."""
    return f"""{algorithm}Parameters :=
objective function type := {_LIKELIHOOD}
{_LIKELIHOOD} Parameters :=
  input file := {prompts}
  projector pair type := Matrix
    Projector Pair Using Matrix Parameters :=
      Matrix type := Ray Tracing
      Ray tracing matrix parameters :=
        number of rays in tangential direction to trace for each bin := {rays}
      End Ray tracing matrix parameters :=
    End Projector Pair Using Matrix Parameters :=
{objective}
END {_LIKELIHOOD} Parameters :=
output filename prefix := {prefix}
number of subsets := {subsets}
number of subiterations := {subiterations}
save estimates at subiteration intervals := {save or subiterations}
{extra}
END :=
"""
