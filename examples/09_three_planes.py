"""A volume with a two-dimensional network, which sees transverse, coronal and sagittal slices in turn.

With transverse slices alone each plane would be denoised on its own and the planes would not fit together.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, data="brain3d", subsets=2, steps=45, samples=1, seed=0, model="brain-fdg")
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    obj_fun = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, obj_fun, scan.template, args.subsets, 4)

    recon = sirf_diffusion.DDSReconstructor(
        obj_fun,
        sirf_diffusion.ScoreModel.load(args.model, device="auto"),
        num_steps=3 if args.quick else args.steps,
        num_samples=1 if args.quick else args.samples,
        seed=args.seed,
        planes="alternating",  # as volumes are seen anyway; "transverse" would be each plane by itself
    )
    recon.set_up(start)
    recon.process()
    seconds = recon.record["seconds"]
    print(f"{seconds['total']:.0f} s, of which the network took {seconds['network']:.0f}")
    common.finish(args, {"OSEM": start, "DDS, three planes": recon.get_output()}, scan.truth)


main()
print(f"\n=== done with {__file__}")
