"""What the first images of a run tell of the intensity scale: a uniform one nothing, those after it too little."""

from __future__ import annotations

from torch import Tensor

from ..geometry.images import ImageGeometry

# An image whose values differ by less, relative to the largest, tells no intensity scale.
_UNIFORM = 1e-3
# After a uniform image, scales of two images in turn that differ by less are taken.
_STEADY = 0.03


class EarlyScale:
    """The scales of the images of one run, until they may be relied upon."""

    def __init__(self) -> None:
        #: Whether the run began with a uniform image.
        self.after_uniform = False
        self._latest = 0.0

    def is_told_by(self, image: Tensor | None, geometry: ImageGeometry) -> bool:
        """Whether an image ``[z, y, x]`` (None: a uniform one) tells the scale; the same image again does not count."""
        if image is None:
            self.after_uniform = True
            return False
        if not self.after_uniform:
            return True
        before, self._latest = self._latest, scale_of(image, geometry)
        return before != self._latest and abs(self._latest - before) < _STEADY * before


def scale_of(image: Tensor, geometry: ImageGeometry) -> float:
    """The intensity scale of an image, by the models' rule."""
    from ..models.intensity import intensity_scale

    return intensity_scale(image, geometry)


def with_structure(x: Tensor) -> Tensor | None:
    """An image, or the mean of several, without negative values; None if it is uniform."""
    image = x.detach().reshape(-1, *x.shape[-3:]).mean(0).clamp_min(0)
    positive = image[image > 0]
    structured = positive.numel() and float(positive.max() - positive.min()) > _UNIFORM * float(positive.max())
    return image if structured else None
