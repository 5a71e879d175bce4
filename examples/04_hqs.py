"""Half-quadratic splitting: reverse diffusion whose data step is EM with a quadratic pull to the denoised image.

--beta is the weight of the network against the data; it does not depend on counts or units.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, steps=40, samples=2, seed=0, model="brain-fdg", beta=12.0)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    objective.set_up(scan.template)

    recon = sirf_diffusion.HQSReconstructor(
        objective,
        sirf_diffusion.ScoreModel.load(args.model, device="auto"),
        num_steps=6 if args.quick else args.steps,
        num_samples=args.samples,
        seed=args.seed,
        beta=args.beta,
    )
    recon.set_up()
    recon.process()

    image = recon.get_output()
    print(f"log-likelihood {objective.value(image):.7g}")
    common.finish(args, {"HQS": image, "one sample": recon.get_samples()[0]}, scan.truth)


main()
print(f"\n=== done with {__file__}")
