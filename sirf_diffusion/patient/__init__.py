"""Images in the patient: reading them with their place, resampling and registering them."""

from .anatomical import AnatomicalImage, Placed, load_anatomical
from .readers import SourceImage, UnusableImage, read_source
from .registration import Registration, register
from .resampling import HEAD_FIRST_SUPINE, PatientGrid, Position, resample, stir_grid

__all__ = [
    "HEAD_FIRST_SUPINE",
    "AnatomicalImage",
    "PatientGrid",
    "Placed",
    "Position",
    "Registration",
    "SourceImage",
    "UnusableImage",
    "load_anatomical",
    "read_source",
    "register",
    "resample",
    "stir_grid",
]
