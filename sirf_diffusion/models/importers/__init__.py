"""Import of networks that other software trained, into model files of this package.

A foreign file holds weights; what they mean (schedule, prediction, voxel size) is in a configuration beside it or comes
from the caller. A network fits if MONAI's ``DiffusionModelUNet`` or `DRUNet` can do exactly what it does; anything else
is refused, with the name of what does not fit.
"""

from __future__ import annotations

from .denoisers import DenoiserNetwork
from .importer import import_model
from .reading import UnsupportedNetworkError

__all__ = ["DenoiserNetwork", "UnsupportedNetworkError", "import_model"]
