"""Choose a penalisation factor: a kappa image for uniform resolution, and a scan of the factor.

kappa^2 is minus the Hessian of the log-likelihood times an image of ones. With it the penalty is as strong as the data
everywhere, and a factor means the same in the middle and at the edge of the object; factors with and without kappa
cannot be compared. MAPEM is used instead of one-step-late OSEM because it also converges for strong penalties. Where
the truth is unknown, look at the images, and at how log-likelihood is lost as the factor grows.
"""

import common

import sirf_diffusion
from sirf_diffusion.priors import RelativeDifferencePenalty

args = common.parse(
    __doc__, subsets=9, iterations=10, factors={"type": float, "nargs": "+", "default": [0.005, 0.01, 0.02, 0.04, 0.08]}
)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    obj_fun = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, obj_fun, scan.template, args.subsets)

    curvature = obj_fun.multiply_with_Hessian(start, start.get_uniform_copy(1.0)) * (-1.0)
    kappa = curvature.maximum(0.0).sqrt()
    print(f"kappa up to {kappa.max():.4g}")

    objective = sirf_diffusion.as_objective(obj_fun)
    highest = start.max()
    prior = RelativeDifferencePenalty(
        objective.geometry, 1.0, gamma=2.0, epsilon=1e-3 * highest, kappa=objective.to_tensor(kappa)
    )
    images, image = {}, start
    for factor in args.factors[::2] if args.quick else args.factors:
        # kappa^2 is counts over activity squared, the relative difference is activity: this makes a factor unit-free
        prior.penalisation_factor = factor * highest
        recon = sirf_diffusion.MAPEM(objective, prior, 3 if args.quick else args.iterations)
        recon.set_up(image)  # from the last factor's image, which is near
        image = recon.process().get_output()
        likelihood = float(objective.value(objective.to_tensor(image)))
        print(f"factor {factor:g}: log-likelihood {likelihood:.7g}")
        images[f"factor {factor:g}"] = image

    common.finish(args, images, scan.truth)


main()
print(f"\n=== done with {__file__}")
