"""Use an MR image of the same head: a Bowsher prior in MAP-EM, the same prior inside DDS, and a conditional model.

The Bowsher prior smooths only between voxels that look alike in the MR image, which has to be aligned. It needs no
training. A score model that was trained with MR images as a second input takes the image through
`model.guided_by(mr, guidance)`: the bundled brain-fdg-mr where there is one, or another with --conditional-model. A
model with one input refuses an anatomical image.
"""

import common

import sirf_diffusion
from sirf_diffusion.models import intensity_scale, list_models
from sirf_diffusion.priors import BowsherPenalty, QuadraticPenalty

args = common.parse(
    __doc__,
    subsets=2,
    iterations=60,
    steps=30,
    model="brain-fdg",
    conditional_model={"metavar": "NAME|FILE", "help": "a score model with two input images"},
    guidance=0.25,
    strength=3.0,
    neighbours=5,
)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)
    if scan.mr is None:
        raise SystemExit(f"{args.path} holds no MR image: put one on the grid of the reconstruction there, as mr.hv")
    obj_fun = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, obj_fun, scan.template, args.subsets, 3)

    # priors as functions of tensors: what this package's reconstructors take, on any engine
    objective = sirf_diffusion.as_objective(obj_fun)
    geometry, mr = objective.geometry, objective.to_tensor(scan.mr)
    scale = intensity_scale(objective.to_tensor(start), geometry)
    factor = args.strength / scale**2  # a quadratic penalty is proportional to the square of the image
    bowsher = BowsherPenalty(geometry, factor, mr, num_neighbours=args.neighbours)

    conditional, name = None, args.conditional_model
    if name is None and "brain-fdg-mr" in list_models():
        name = "brain-fdg-mr"
    if name is not None:
        conditional = sirf_diffusion.ScoreModel.load(name, device="auto").guided_by(mr, args.guidance)

    iterations, steps = (5, 3) if args.quick else (args.iterations, args.steps)
    images = {}
    for name, prior in (("quadratic", QuadraticPenalty(geometry, factor / 3)), ("Bowsher", bowsher)):
        recon = sirf_diffusion.MAPEM(objective, prior, iterations)
        recon.set_up(start)
        images[name] = recon.process().get_output()

    # in DDS the prior acts beside the network, and needs less strength
    options = {"num_steps": steps, "num_samples": 1 if args.quick else 2, "eta": 1.0, "num_inner": 6}
    model = sirf_diffusion.ScoreModel.load(args.model, device="auto")
    bowsher.penalisation_factor = factor / 3
    recon = sirf_diffusion.DDSReconstructor(objective, model, prior=bowsher, **options)
    recon.set_up(start)
    images["DDS, Bowsher"] = recon.process().get_output()

    if conditional is not None:
        recon = sirf_diffusion.DDSReconstructor(objective, conditional, **options)
        recon.set_up(start)
        images["DDS, conditional"] = recon.process().get_output()

    common.finish(args, images, scan.truth)


main()
print(f"\n=== done with {__file__}")
