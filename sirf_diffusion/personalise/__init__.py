"""Models for one patient, and atlases: what other subjects' images, carried onto one anatomy, tell of it."""

from .atlas import Atlas
from .groupwise import Subject, build_atlas
from .members import Member, Target, carry_over
from .pipeline import Personalised, PersonalOptions, personalise

__all__ = [
    "Atlas", "Member", "PersonalOptions", "Personalised", "Subject", "Target", "build_atlas", "carry_over",
    "personalise",
]  # fmt: skip
