"""A prior for ``prior type := Python``: half the sum of squared differences between neighbours in x and y (and z)."""

import numpy as np


class SmoothPrior:
    """A penalty: large where neighbours differ. STIR minimises it, with the penalisation factor that it multiplies."""

    def __init__(self, axial=True):
        self.axes = (0, 1, 2) if axial else (1, 2)

    def set_up(self, geometry):
        """Called once before the run; ``geometry.voxel_size`` and so on are there for priors that need them."""

    def value(self, x):
        return 0.5 * sum(float(np.square(np.diff(x, axis=axis)).sum()) for axis in self.axes)

    def gradient(self, x, out):
        out[...] = 0
        for axis in self.axes:
            difference = np.diff(x, axis=axis)
            np.moveaxis(out, axis, 0)[1:] += np.moveaxis(difference, axis, 0)
            np.moveaxis(out, axis, 0)[:-1] -= np.moveaxis(difference, axis, 0)

    def curvature(self, x, out):
        """Bound of the second derivative, for OSSPS: 4 per direction."""
        out[...] = 4 * len(self.axes)
