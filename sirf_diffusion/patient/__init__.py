"""Images in the patient: reading and writing them with their place, resampling and registering them."""

from ..geometry.exam import Position
from .anatomical import AnatomicalImage, Placed, load_anatomical
from .image import SourceImage, UnusableImage
from .readers import read_source
from .registration import Registration, register
from .resampling import PatientGrid, resample, stir_grid
from .writing import write_dicom, write_nifti

__all__ = [
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
    "write_dicom",
    "write_nifti",
]
