"""STIR Interfile: images (``.hv``/``.v``) and projection data of cylindrical scanners (``.hs``/``.s``).

Examples
--------
>>> import tempfile, torch
>>> from sirf_diffusion.geometry.images import ImageGeometry
>>> geometry = ImageGeometry((3, 4, 5), (2.03125, 2.0, 2.0))
>>> with tempfile.TemporaryDirectory() as folder:
...     write_image(f"{folder}/image.hv", torch.arange(60.0).reshape(3, 4, 5), geometry)
...     image, read_geometry = read_image(f"{folder}/image.hv")
>>> image[2, 1, 0].item(), read_geometry == geometry
(45.0, True)
"""

from .exam import read_exam_info
from .header import InterfileError, UnsupportedError
from .image import read_image, write_image
from .projdata import read_projection_data, read_projection_data_geometry, write_projection_data

__all__ = [
    "InterfileError",
    "UnsupportedError",
    "read_exam_info",
    "read_image",
    "read_projection_data",
    "read_projection_data_geometry",
    "write_image",
    "write_projection_data",
]
