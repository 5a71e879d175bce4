"""Likelihood-scheduled sampling (PET-LiSch, Webber et al. 2025): posterior samples, their mean and their spread.

How closely to fit the data is found from the data: the schedule ends where the log-likelihood of the true image is
expected. Two subsets are needed for that estimate; the sampling itself uses all data in each step.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, steps=40, samples=4, seed=0, model="brain-fdg")
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    objective.set_num_subsets(2)
    objective.set_up(scan.template)

    recon = sirf_diffusion.LikelihoodScheduledReconstructor(
        objective,
        sirf_diffusion.ScoreModel.load(args.model, device="auto"),
        num_steps=6 if args.quick else args.steps,
        num_samples=2 if args.quick else args.samples,
        seed=args.seed,
    )
    recon.set_up()
    recon.process()

    # the record says what was aimed at and what was reached, step by step
    print("schedule:", recon.record["schedule"]["rule"], f"{recon.record['schedule']['target']:.7g}")
    for step in recon.record["trace"][:: max(1, len(recon.record["trace"]) // 5)]:
        reached = sum(step["log_likelihood_after"]) / len(step["log_likelihood_after"])
        print(f"  sigma {step['sigma']:7.3f}  target {step['target']:.7g}  reached {reached:.7g}")

    mean, deviation = recon.get_output(), recon.get_uncertainty()
    for number, sample in enumerate(recon.get_samples()):
        print(f"sample {number}: {common.error(sample, scan.truth)}")
    common.finish(args, {"mean of samples": mean, "standard deviation": deviation}, scan.truth)


main()
print(f"\n=== done with {__file__}")
