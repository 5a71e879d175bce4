"""MAP by one-step-late OSEM, with the relative difference prior and with a diffusion model as prior.

A score prior is set on the objective function like any other. OSL diverges if the penalty is strong against the data,
of any prior. Of a score prior with factor b and noise level n, at scale c, the script prints the largest
b x / ((c n)^2 s) for activity x and sensitivity s: above about 1, OSMAPOSLReconstructor shortens the prior's steps,
which leaves the image in the end what it is. For an exact maximum use sirf_diffusion.MAPEM with one or two subsets.
"""

import common
import numpy as np

import sirf_diffusion

args = common.parse(__doc__, subsets=9, epochs=5, model="brain-fdg", noise_level=0.4, rdp_factor=1.0, score_factor=0.2)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, objective, scan.template, args.subsets)

    # an early image tells which activity the network's value 1 stands for
    score = pet.ScorePrior(args.model, noise_level=args.noise_level)
    score.set_penalisation_factor(args.score_factor)
    score.set_up(start)
    scale = score.get_intensity_scale()
    print(f"intensity scale {scale:.4g} image units")
    sensitivity = sum(objective.get_subset_sensitivity(k).as_array() for k in range(args.subsets))
    relative = start.as_array() / np.where(sensitivity > 0.1 * sensitivity.max(), sensitivity, np.inf)
    largest = args.score_factor * relative.max() / (scale * args.noise_level) ** 2
    print(f"largest factor x activity / (scale level)^2 / sensitivity: {largest:.2g}")

    # the strength of RDP is given for an image of unit mean, too: its value is proportional to the image's
    rdp = pet.RelativeDifferencePrior()
    rdp.set_penalisation_factor(args.rdp_factor / scale)
    rdp.set_gamma(2.0)
    rdp.set_epsilon(0.005 * scale)

    images = {"OSEM": start}
    for name, prior in (("RDP", rdp), ("score prior", score)):
        objective.set_prior(prior)
        recon = pet.OSMAPOSLReconstructor()
        recon.set_objective_function(objective)
        recon.set_num_subsets(args.subsets)
        recon.set_num_subiterations((2 if args.quick else args.epochs) * args.subsets)
        recon.set_up(start)
        images[name] = start.clone()
        recon.reconstruct(images[name])
        print(f"{name}: log-likelihood minus penalty {objective.value(images[name]):.7g}")

    common.finish(args, images, scan.truth)


main()
print(f"\n=== done with {__file__}")
