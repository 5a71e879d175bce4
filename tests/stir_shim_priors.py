"""Priors and filters that the tests name in parameter files, with NumPy alone: they start fast."""

import time

import numpy as np


class TenLines:
    """A prior as a user writes it: half the squared distance to a constant."""

    def __init__(self, level=1.0):
        self.level = level

    def value(self, x):
        return 0.5 * float(((x - self.level) ** 2).sum(dtype=np.float64))

    def gradient(self, x, out):
        np.subtract(x, self.level, out=out)

    def curvature(self, x, out):
        out[...] = 1


class FailsAt(TenLines):
    """Raises at one of its gradients."""

    def __init__(self, call, kind="error"):
        super().__init__()
        self.call, self.kind, self.calls = call, kind, 0

    def gradient(self, x, out):
        self.calls += 1
        if self.calls == self.call and self.kind == "rebinds":
            out = np.empty_like(out)
        super().gradient(x, out)
        if self.calls == self.call:
            if self.kind == "error":
                raise ZeroDivisionError("deliberately")
            if self.kind == "nan":
                out[0, 3, 5] = np.nan
            if self.kind == "infinity":
                out[0, 3, 5:8] = np.inf
            if self.kind == "returns":
                return out
        return None


class Slow(TenLines):
    """Tells that it was called, and takes its time."""

    def gradient(self, x, out):
        super().gradient(x, out)
        with open("called", "a", encoding="utf-8") as file:
            file.write("x")
        time.sleep(0.05)


class HowThePatientLies:
    """Prints what STIR tells, as numbers of its enums."""

    def set_patient_position(self, orientation, rotation):
        print("lies", orientation, rotation, flush=True)

    def apply(self, x):
        pass


class Halve:
    """A filter."""

    def set_up(self, geometry):
        self.shape = geometry.shape

    def apply(self, x):
        assert x.shape == self.shape
        x *= 0.5


class Seen(TenLines):
    """Writes down what it is given, and checks that the arrays are views."""

    def set_up(self, geometry):
        np.savez("seen_geometry.npz", shape=geometry.shape, voxel=geometry.voxel_size, origin=geometry.origin)

    def gradient(self, x, out):
        assert not x.flags.writeable
        assert not x.flags.owndata
        assert out.flags.writeable
        np.save("seen_image.npy", x)
        super().gradient(x, out)


class Prepared(TenLines):
    """Writes down the sensitivity that it is told, and the penalisation factor."""

    def prepare_one_step_late(self, sensitivity, factor):
        np.savez("prepared.npz", sensitivity=sensitivity, factor=factor)
