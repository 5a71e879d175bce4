"""Reconstruct by OSEM, one subiteration at a time.

The same script runs on SIRF and on the engine that comes with this package: only --engine differs.
"""

import common

import sirf_diffusion

args = common.parse(__doc__, subsets=9, epochs=2)
pet = sirf_diffusion.get_engine(args.engine)


def main():
    scan = common.load(pet, args.path)

    # the Poisson log-likelihood of the data, which is maximised
    objective = pet.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.acq_model)

    recon = pet.OSMAPOSLReconstructor()
    recon.set_objective_function(objective)
    recon.set_num_subsets(args.subsets)
    recon.set_num_subiterations(args.epochs * args.subsets)
    image = scan.template.get_uniform_copy(1.0)
    recon.set_up(image)
    recon.set_current_estimate(image)

    for subiteration in range(1, args.epochs * args.subsets + 1):
        recon.update_current_estimate()
        if subiteration % args.subsets == 0:
            image = recon.get_current_estimate()
            print(f"epoch {subiteration // args.subsets}: log-likelihood {objective.value(image):.7g}")

    common.finish(args, {"OSEM": image}, scan.truth)


main()
print(f"\n=== done with {__file__}")
