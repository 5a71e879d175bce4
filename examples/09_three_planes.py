"""A volume with a two-dimensional network, which sees transverse, coronal and sagittal slices in turn.

With transverse slices alone each plane would be denoised on its own and the planes would not fit together.
"""

import common

import sirf_diffusion
from sirf_diffusion.models import intensity_scale

args = common.parse(__doc__, data="brain3d", subsets=2, steps=45, samples=1, seed=0, model="brain-fdg")
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    obj_fun = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, obj_fun, scan.template, args.subsets, 4)

    # the model is bound to the image's grid here, because it shall use all three
    objective = sirf_diffusion.as_objective(obj_fun)
    scale = intensity_scale(objective.to_tensor(start), objective.geometry)
    model = sirf_diffusion.ScoreModel.load(args.model, device="auto")
    model = model.on(objective.geometry, scale, planes="alternating")

    recon = sirf_diffusion.DDSReconstructor(
        objective,
        model,
        num_steps=4 if args.quick else args.steps,
        num_samples=args.samples,
        seed=args.seed,
        eta=1.0,
        smoothing=8.0,
        anchor_strength=5.0,
        anchor_exponent=1.0,
    )
    recon.set_up(start)
    recon.process()
    seconds = recon.record["seconds"]
    print(f"{seconds['total']:.0f} s, of which the network took {seconds['network']:.0f}")
    common.finish(args, {"OSEM": start, "DDS, three planes": recon.get_output()}, scan.truth)


main()
print(f"\n=== done with {__file__}")
