"""Decomposed diffusion sampling (PET-DDS, Singh et al. 2024): denoise, fit the data a little, renoise.

The reconstructor takes the engine's objective function and gives the engine's images.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, subsets=2, steps=40, samples=2, seed=0, model="brain-fdg", anchor=5.0)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    objective.set_num_subsets(args.subsets)
    objective.set_up(scan.template)

    recon = sirf_diffusion.DDSReconstructor(
        objective,
        sirf_diffusion.ScoreModel.load(args.model, device="auto"),
        num_steps=8 if args.quick else args.steps,
        num_samples=args.samples,
        seed=args.seed,
        anchor_strength=args.anchor,  # at noise level 1; 5 lets the data move a voxel by 45 % of the mean
        callbacks=[print_step],
    )
    recon.set_up()
    recon.process()

    record = recon.record
    cost = record["projections"]
    print(f"{cost['forward']:.3g} forward and {cost['back']:.3g} back projections, {record['seconds']['total']:.1f} s")
    common.finish(args, {"DDS": recon.get_output(), "one sample": recon.get_samples()[0]}, scan.truth)


def print_step(step):
    if step.step % 8 == 0:
        print(f"step {step.step} of {step.num_steps}: noise level {step.sigma:.3g}")


main()
print(f"\n=== done with {__file__}")
