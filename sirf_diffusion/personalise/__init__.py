"""Models for one patient, and atlases, made of other subjects' images that are registered to one anatomy."""

from .atlas import Atlas
from .groupwise import Subject, build_atlas
from .members import Member, Target, carry_over
from .pipeline import Personalised, PersonalOptions, personalise

__all__ = [
    "Atlas", "Member", "PersonalOptions", "Personalised", "Subject", "Target", "build_atlas", "carry_over",
    "personalise",
]  # fmt: skip
