"""Tracers by name: which uptake each tissue of a simulated head may have.

The ranges are broad on purpose. They are meant to hold what the literature reports, and then some: a score model has
to know which contrasts occur, and no more. They are no reference values for a tracer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .tracer import TracerContrast

_AROUND = TracerContrast().other


@dataclass(frozen=True)
class Tracer:
    """A tracer: a mixture of contrasts.

    Attributes
    ----------
    name, title
        As given on the command line, and as written into files.
    contrasts
        What a subject may show, each as likely as the others.
    """

    name: str
    title: str
    contrasts: tuple[TracerContrast, ...]

    def contrast(self, subject: int, draw: int) -> TracerContrast:
        """The contrast of one draw on one subject, a function of both numbers."""
        if len(self.contrasts) == 1:
            return self.contrasts[0]
        return self.contrasts[int(np.random.default_rng([24, subject, draw]).integers(len(self.contrasts)))]


_FDG = TracerContrast()
# Non-specific uptake of amyloid tracers is in white matter; the cerebellum's grey matter is the reference without any.
_AMYLOID_NEGATIVE = TracerContrast(
    white=(1.2, 2.4), reversed_white=(0.9, 1.2), deep=(0.9, 1.4), cerebellum=(0.8, 1.15), regional_sd=0.06,
    other=_AROUND | {"csf": (0.1, 0.5), "skull": (0.1, 0.9), "scalp": (0.1, 0.8)}, max_lesions=2,
)  # fmt: skip
_AMYLOID_POSITIVE = replace(
    _AMYLOID_NEGATIVE, white=(0.55, 1.0), reversed_white=(1.0, 1.3), deep=(0.7, 1.3), cerebellum=(0.35, 0.65),
    regional_sd=0.25,
)  # fmt: skip
# 18 kDa translocator protein (DPA-714 and its like): grey and white nearly alike, thalamus high, skin and glands high.
_TSPO = TracerContrast(
    white=(0.6, 1.05), reversed_white=(1.05, 1.3), reversed_share=0.15, deep=(0.8, 1.2), cerebellum=(0.85, 1.25),
    regions={"thalamus": (1.05, 1.6)}, regional_sd=0.12,
    other=_AROUND | {"csf": (0.3, 1.2), "skull": (0.2, 1.2), "scalp": (0.3, 1.5), "glands": (0.5, 3.0),
                     "mucosa": (0.5, 3.0), "face_bone": (0.2, 1.2)},
)  # fmt: skip
_TAU = TracerContrast(
    white=(0.6, 1.1), reversed_white=(1.1, 1.5), deep=(0.7, 1.8), cerebellum=(0.4, 0.9), regional_sd=0.35,
    other=_AROUND | {"csf": (0.1, 0.8), "skull": (0.1, 1.5), "eyes": (0.1, 1.5)}, max_lesions=2,
)  # fmt: skip
_DOPAMINE = TracerContrast(
    white=(0.6, 1.0), reversed_white=(1.0, 1.2), deep=(2.0, 6.0), cerebellum=(0.7, 1.1),
    regions={"thalamus": (1.0, 2.0)}, regional_sd=0.08,
    other=_AROUND | {"glands": (0.5, 3.0), "scalp": (0.2, 1.0)}, max_lesions=1,
)  # fmt: skip
_AMINO_ACID = TracerContrast(
    white=(0.6, 0.95), reversed_white=(0.95, 1.2), deep=(0.9, 1.2), cerebellum=(0.85, 1.15), regional_sd=0.06,
    other=_AROUND | {"csf": (0.2, 0.8), "scalp": (0.4, 1.4), "muscle": (0.4, 1.2), "glands": (0.5, 2.0)},
)  # fmt: skip
# Everything may be darker or brighter than everything else.
_ANY = TracerContrast(
    white=(0.15, 6.0), reversed_white=(0.15, 6.0), deep=(0.4, 4.0), cerebellum=(0.3, 2.0), regional_sd=0.2,
    other=dict.fromkeys(_AROUND, (0.02, 2.0)), max_lesions=5, logarithmic=True,
)  # fmt: skip

TRACERS = {
    tracer.name: tracer
    for tracer in (
        Tracer("fdg", "[18F]FDG", (_FDG,)),
        # Without the tail of subjects whose contrast is reversed: for a model that another tracer takes by surprise.
        Tracer("fdg-typical", "[18F]FDG, contrast as usual", (replace(_FDG, white=(0.25, 0.4), reversed_share=0.0),)),
        Tracer("amyloid", "amyloid, positive or negative", (_AMYLOID_POSITIVE, _AMYLOID_NEGATIVE)),
        Tracer("amyloid-positive", "amyloid, positive", (_AMYLOID_POSITIVE,)),
        Tracer("amyloid-negative", "amyloid, negative", (_AMYLOID_NEGATIVE,)),
        Tracer("florbetapir", "[18F]florbetapir", (
            replace(_AMYLOID_POSITIVE, white=(0.7, 1.1)), replace(_AMYLOID_NEGATIVE, white=(1.3, 2.0)),
        )),
        Tracer("dpa714", "[18F]DPA-714 (TSPO)", (_TSPO,)),
        Tracer("tau", "tau", (_TAU,)),
        Tracer("dopamine", "striatal (dopaminergic)", (_DOPAMINE,)),
        Tracer("amino-acid", "amino acid (FET, methionine)", (_AMINO_ACID,)),
        Tracer("any", "uptake of every tissue drawn at random", (_ANY,)),
        # Amyloid and TSPO tracers are left out, so that a model of all the others can be tried on tracers it never saw.
        Tracer("various", "many tracers, without amyloid and TSPO", (
            _FDG, _FDG, _TAU, _DOPAMINE, _AMINO_ACID, _ANY, _ANY, _ANY,
        )),
    )
}  # fmt: skip
