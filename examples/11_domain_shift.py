"""Data unlike those the network was trained on: how to notice, and how to adapt the network to them.

Without --path a case of the domain-shift suite is simulated (needs nilearn): another tracer, scanner or anatomy. The
network is used as it is (LiSch), and fitted to the data while it samples: DDIP (Hashimoto and Gong 2026), and steerable
sampling (Webber et al. 2025).
"""

import tempfile
from pathlib import Path

import common
import torch

import sirf_diffusion
from benchmarks.bench.domain_shift import CASES, simulate_case, write_case
from sirf_diffusion.reconstructors.methods import build_adaptation
from sirf_diffusion.study.fitness import check_distribution

case = {"choices": list(CASES), "default": "amyloid-negative", "help": "what is simulated; default: amyloid-negative"}
args = common.parse(__doc__, data="", case=case, subject=9003, steps=40, samples=5, seed=0, model="brain-fdg")
pet = sirf_diffusion.get_engine(args.engine)


def load():
    if args.path is not None:
        return common.load(pet, args.path)
    with tempfile.TemporaryDirectory() as folder:
        write_case(simulate_case(args.case, args.subject), folder)
        print(f"{args.case}: {CASES[args.case].about}")
        return common.load(pet, Path(folder))


def main():
    scan = load()
    obj_fun = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)
    start = common.osem(pet, obj_fun, scan.template, 2, 4)
    objective = sirf_diffusion.as_objective(obj_fun)
    model = sirf_diffusion.ScoreModel.load(args.model, device="auto")
    model = model.for_data(objective, sampling=True)

    images = {"OSEM": start}
    for name, adaptation in (("LiSch", None), ("LiSch with DDIP", "ddip"), ("steerable LiSch", "steerable")):
        recon = sirf_diffusion.LikelihoodScheduledReconstructor(
            objective,
            model,
            num_steps=2 if args.quick else args.steps,
            num_samples=1 if args.quick else args.samples,
            seed=args.seed,
            # low-rank changes of the network's weights, for this scan only: the model stays as it is
            adaptation=None if adaptation is None else build_adaptation(adaptation),
        )
        recon.set_up()
        recon.process()
        images[name] = recon.get_output()
        if adaptation is None:
            samples = torch.stack([objective.to_tensor(sample) for sample in recon.get_samples()])
            check = check_distribution(model, samples.mean(0), samples=samples, objective=objective)
            print(check.message)
    common.finish(args, images, scan.truth)


main()
print(f"\n=== done with {__file__}")
