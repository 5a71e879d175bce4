"""A clinical OSEM script with RDP, and the same script with a diffusion prior: the lines that differ are marked.

`after` replaces the prior and nothing else; `further` hands the same objective function to a diffusion reconstructor.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, subsets=9, epochs=5)
pet = sirf_diffusion.get_engine(args.engine)
num_subiterations = (2 if args.quick else args.epochs) * args.subsets


def osmaposl(objective, initial_image):
    recon = pet.OSMAPOSLReconstructor()
    recon.set_objective_function(objective)
    recon.set_num_subsets(args.subsets)
    recon.set_num_subiterations(num_subiterations)
    recon.set_up(initial_image)
    recon.set_current_estimate(initial_image)
    recon.process()
    return recon.get_output()


def before(scan, initial_image):
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    prior = pet.RelativeDifferencePrior()
    prior.set_gamma(2.0)
    prior.set_epsilon(1e-3 * initial_image.max())
    prior.set_penalisation_factor(0.1)
    prior.set_up(initial_image)
    objective.set_prior(prior)
    return osmaposl(objective, initial_image)


def after(scan, initial_image):
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    prior = pet.ScorePrior("brain-fdg")  # changed: its strength does not depend on counts or units
    prior.set_up(initial_image)
    objective.set_prior(prior)
    return osmaposl(objective, initial_image)


def further(scan, initial_image):
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    objective.set_num_subsets(2)  # changed: two halves, to find how closely to fit the data
    objective.set_up(initial_image)  # changed

    model = sirf_diffusion.ScoreModel.load("brain-fdg")  # changed
    steps, samples = (3, 1) if args.quick else (30, 2)
    recon = sirf_diffusion.LikelihoodScheduledReconstructor(  # changed
        objective, model, num_steps=steps, num_samples=samples
    )
    recon.set_up(initial_image)
    recon.process()
    return recon.get_output()


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    initial_image = common.osem(pet, objective, scan.template, args.subsets)

    images = {
        "before": before(scan, initial_image),
        "after": after(scan, initial_image),
        "LiSch": further(scan, initial_image),
    }
    common.finish(args, images, scan.truth)


main()
print(f"\n=== done with {__file__}")
