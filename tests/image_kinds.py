"""Images of several packages with the same values: tensors, the embedded engine's, SIRF's, CIL's."""

import numpy as np
import pytest
import torch

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.interop.containers import to_tensor
from sirf_diffusion.interop.sirf_names.data import ImageData

KINDS = ("tensor", "embedded", "protocol", pytest.param("sirf", marks=pytest.mark.requires_sirf), "cil")


class Container:
    """The three methods that CIL's functions may rely on, and nothing else."""

    def __init__(self, array):
        self.array = np.array(array, dtype=np.float32)

    @property
    def shape(self):
        return self.array.shape

    def as_array(self):
        return self.array

    def fill(self, array):
        np.copyto(self.array, array)

    def clone(self):
        return Container(self.array)


def make_image(kind: str, values: torch.Tensor, geometry: ImageGeometry):
    array = values.numpy().astype(np.float32)
    if kind == "tensor":
        return values.float().clone()
    if kind == "embedded":
        return ImageData.of(values.clone(), geometry)
    if kind == "protocol":
        return Container(array)
    if kind == "sirf":
        import sirf.STIR as pet

        image = pet.ImageData()
        image.initialise(geometry.shape, geometry.voxel_size, geometry.origin)
        return image.fill(array)
    cil = pytest.importorskip("cil.framework", reason="CIL is not installed")
    nz, ny, nx = geometry.shape
    grid = cil.ImageGeometry(voxel_num_x=nx, voxel_num_y=ny, voxel_num_z=0 if nz == 1 else nz)
    image = grid.allocate(None)
    image.fill(array[0] if nz == 1 else array)
    return image


def values_of(image) -> torch.Tensor:
    return to_tensor(image).clone()
