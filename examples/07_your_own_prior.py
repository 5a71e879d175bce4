"""Write a prior of your own in NumPy and use it in the engine's reconstructor.

On SIRF, STIR's C++ calls these very functions. Signs and factors are STIR's: a prior is a penalty, its gradient points
uphill, and the penalisation factor is none of the object's business.
"""

import common
import numpy as np

import sirf_diffusion

args = common.parse(__doc__, subsets=9, epochs=5, factor=0.1)
pet = sirf_diffusion.get_engine(args.engine)


class LogCosh:
    """R(x) = sum over neighbours in the plane of delta^2 log cosh((x_r - x_k) / delta): quadratic, then linear."""

    def __init__(self, delta):
        self.delta = delta

    def set_up(self, geometry):
        print(f"prior set up for {geometry.shape} voxels of {geometry.voxel_size} mm")

    def value(self, x):
        total = 0.0
        for axis in (1, 2):
            steps = np.abs(np.diff(x.astype(np.float64), axis=axis)) / self.delta
            total += self.delta**2 * np.sum(steps + np.log1p(np.exp(-2 * steps)) - np.log(2))
        return total

    def gradient(self, x, out):
        out[...] = 0
        for axis in (1, 2):
            slope = self.delta * np.tanh(np.diff(x, axis=axis) / self.delta)
            here = [slice(None)] * 3
            there = [slice(None)] * 3
            here[axis], there[axis] = slice(None, -1), slice(1, None)
            out[tuple(there)] += slope
            out[tuple(here)] -= slope

    def curvature(self, x, out):
        out[...] = 8  # two for each of four neighbours bound the Hessian; OSSPS needs this


def check(prior, image):
    """The gradient has to be that of the value: the first test of any prior."""
    direction = image.clone()
    direction.fill(np.random.default_rng(0).random(image.shape).astype(np.float32))
    h = 1e-2 * image.max()
    slope = (prior.value(image + direction * h) - prior.value(image - direction * h)) / (2 * h)
    analytic = prior.gradient(image).dot(direction)
    print(f"slope along a random direction: {analytic:.6g}, by differences {slope:.6g}")


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, objective, scan.template, args.subsets)

    scale = start.max()
    prior = pet.PythonPrior(LogCosh(delta=0.05 * scale))
    prior.set_penalisation_factor(args.factor * 100 / scale**2)
    prior.set_up(start)
    check(prior, start)

    objective.set_prior(prior)
    recon = pet.OSMAPOSLReconstructor()
    recon.set_objective_function(objective)
    recon.set_num_subsets(args.subsets)
    recon.set_num_subiterations((2 if args.quick else args.epochs) * args.subsets)
    recon.set_up(start)
    image = start.clone()
    recon.reconstruct(image)

    common.finish(args, {"OSEM": start, "own prior": image}, scan.truth)


main()
print(f"\n=== done with {__file__}")
