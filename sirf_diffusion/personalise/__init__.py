"""Models for one patient, and atlases: what other subjects' images, carried onto one anatomy, tell of it."""

from .members import Member, Target, carry_over
from .pipeline import Personalised, PersonalOptions, personalise

__all__ = ["Member", "PersonalOptions", "Personalised", "Target", "carry_over", "personalise"]
