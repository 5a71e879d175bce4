"""Score prior, denoiser and sampler in STIR: against analytic denoisers and this package's own reconstructors."""

import numpy as np
import pytest
import torch
from stir_shim_blocks import prior, processor, python
from stir_shim_scan import relative, run_program, simulate
from toy_denoisers import gaussian_score_model

from sirf_diffusion.interop.stir.blocks import block_of
from sirf_diffusion.interop.stir.callbacks import ScorePriorCallback, hold
from sirf_diffusion.interop.stir.check import check
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.denoiser import Denoiser
from sirf_diffusion.priors import AnchorPenalty
from sirf_diffusion.reconstructors import MAPEM, DDSReconstructor
from sirf_diffusion.reconstructors.diffusion.deft import DEFTReconstructor

pytestmark = [pytest.mark.requires_stir, pytest.mark.requires_shim]

MEAN, VARIANCE = 1.2, 0.3
MODEL = {"model_filename": "brain-fdg"}


def score_callback(scan, options):
    values = block_of("prior", "Diffusion Score").values(options)
    return ScorePriorCallback(values, model=gaussian_score_model(VARIANCE, MEAN, voxel_size=scan.geometry.voxel_size))


def objective_of(stir, par):
    """This package's objective of a parameter file's objective function, which must be kept with it."""
    from sirf_diffusion.engines.stir import StirObjective

    reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(par))
    reconstruction.set_up(stir.FloatVoxelsOnCartesianGrid.read_from_file(str(par.parent / "start.hv")))
    return reconstruction, StirObjective(reconstruction.get_objective_function())


def test_ossps_with_the_score_prior_converges_to_the_analytic_map_image(stir, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scan = simulate(tmp_path, counts=5e6)  # no empty bins, which make the steps of STIR's OSSPS tiny
    sigma, scale, factor = 0.3, 12.0, 2000.0
    callback = score_callback(scan, {"noise level": str(sigma), "intensity scale": str(scale), "memory": "0"})
    block = python("held", factor, module="sirf_diffusion.interop.stir.callbacks", token=hold(callback))
    par = scan.par(
        "map", block, algorithm="OSSPS", subsets=1, subiterations=100, extra="relaxation gamma := 0", initial="start.hv"
    )
    assert stir.OSSPSReconstruction3DFloat(str(par)).reconstruct().succeeded()

    # The penalty of the smoothed Gaussian is an anchor at its mean, with its precision.
    strength = factor / (scale**2 * (VARIANCE + sigma**2))
    anchor = torch.full(scan.geometry.shape, scale * MEAN)
    kept, objective = objective_of(stir, scan.par("likelihood", subsets=1))
    reference = MAPEM(objective, AnchorPenalty(anchor, strength), num_iterations=100)
    reference.set_up(torch.from_numpy(scan.image("start")))
    expected = objective.to_tensor(reference.process().get_output())

    seen = (objective.sensitivity() > 1e-3 * objective.sensitivity().max()).numpy()
    slope = objective.gradient(expected) - strength * (expected - anchor)
    free = seen & (expected.numpy() > 1e-3)
    assert float(slope[torch.from_numpy(free)].abs().max()) < 1e-3 * float(objective.sensitivity().max())
    assert relative(scan.image("map_100")[seen], expected.numpy()[seen]) < 1e-3
    assert relative(expected.numpy()[seen], anchor.numpy()[seen]) > 0.05, "the data have no say"
    del kept


def test_noise_levels_follow_each_other(scan, stir):
    levels = {"noise level": "{0.8, 0.4, 0.2}", "number of subiterations per noise level": "2"}
    callback = score_callback(scan, {**levels, "intensity scale": "0.5"})
    levels = []
    residual = callback.prior.gradient
    callback.prior.gradient = lambda x: (levels.append(callback.prior.noise_level), residual(x))[1]
    block = python("held", 0.1, module="sirf_diffusion.interop.stir.callbacks", token=hold(callback))
    assert stir.OSMAPOSLReconstruction3DFloat(str(scan.par("annealed", block))).reconstruct().succeeded()
    assert levels == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2]


def test_kappa_multiplies_the_gradient_that_is_written(scan):
    kappa = scan.write("kappa", np.linspace(0.5, 2, scan.truth.size).reshape(scan.truth.shape))
    x = torch.from_numpy(scan.run("early", subiterations=2))
    block = prior(
        "Diffusion Score", **MODEL, penalisation_factor=0.01, noise_level=0.3, memory=0, intensity_scale=0.5,
        kappa_filename=kappa, gradient_filename_prefix="gradient",
    )  # fmt: skip
    scan.run("kappa", block, subiterations=1, initial="early_2.hv")
    residual = ScoreModel.load("brain-fdg").on(scan.geometry, 0.5).residual(x, 0.3).numpy()
    expected = scan.image("kappa") ** 2 * residual / (0.5 * 0.3) ** 2
    # STIR raised the zeros of its estimate to a tiny positive value before.
    assert relative(scan.image("gradient_1"), expected) < 1e-3


def test_the_sampler_gives_the_image_of_the_dds_reconstructor(scan, stir):
    steps, interval, seed, eta = 4, 2, 3, 0.6
    block = processor("inter-iteration filter type", "Diffusion Sampler", **MODEL, eta=eta, random_seed=seed)
    extra = f"inter-iteration filter subiteration interval := {interval}\n{block}"
    par = scan.par("dds", extra=extra, subiterations=(steps + 1) * interval)
    ran = run_program("OSMAPOSL", par, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    assert f"{steps} steps" in ran.output
    warm = scan.run("warm", subiterations=interval)

    kept, objective = objective_of(stir, scan.par("likelihood2"))
    warm = torch.from_numpy(warm)
    reconstructor = DDSReconstructor.published(
        objective, ScoreModel.load("brain-fdg").for_data(objective, warm, sampling=True), num_steps=steps, seed=seed,
        eta=eta, num_inner=interval, anchor_strength=0.0, smoothing=0.0,
    )  # fmt: skip
    assert_image_of(reconstructor, warm, scan.image(f"dds_{(steps + 1) * interval}"), 1e-3)
    del kept


def assert_image_of(reconstructor, warm, found, tolerance):
    """The image that STIR's chain left is the reconstructor's, and not the one that both began with."""
    reconstructor.set_up(warm)
    expected = reconstructor.objective.to_tensor(reconstructor.process().get_output()).numpy()
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    assert relative(found, warm.numpy()) > 0.1, "the chain did nothing"


def test_the_sampler_with_an_h_transform_gives_the_image_of_deft(scan, stir):
    """STIR itself writes the sensitivity that the filter reads, in the same run."""
    steps, seed = 4, 3
    keys = {"h-transform filename": "brain-fdg-deft", "sensitivity filename": "sensitivity.hv", "random seed": seed}
    keys |= {"model filename": "brain-fdg", "precision": "float32"}
    block = processor("inter-iteration filter type", "Diffusion Sampler", **keys)
    extra = f"inter-iteration filter subiteration interval := 1\n{block}"
    writes = "use subset sensitivities := 0\nrecompute sensitivity := 1\nsensitivity filename := sensitivity.hv\n"
    par = scan.par("deft", writes, extra=extra, subsets=1, subiterations=steps + 1)
    assert not check(par).errors
    ran = run_program("OSMAPOSL", par, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    assert "unlike those" not in ran.output
    warm = torch.from_numpy(scan.run("warm1", subsets=1, subiterations=1))

    kept, objective = objective_of(stir, scan.par("likelihood3", subsets=1))
    model = ScoreModel.load("brain-fdg", precision="float32")
    model = model.for_data(objective, warm, sampling=True, box="object")
    reconstructor = DEFTReconstructor(objective, model, num_steps=steps, seed=seed)
    assert_image_of(reconstructor, warm, scan.image(f"deft_{steps + 1}"), 1e-4)
    del kept


def test_the_sampler_moves_the_quadratic_anchor(scan):
    moved = {}
    for strength in (0, 30):
        block = processor("inter-iteration filter type", "Diffusion Sampler", **MODEL, eta=0, anchor_strength=strength)
        extra = f"inter-iteration filter subiteration interval := 12\n{block}"
        name = f"moving{strength}"
        last = scan.run(name, prior("Quadratic Anchor"), extra=extra, subiterations=24, save=12)
        # Subiteration 12 ended with a denoising: the twelve that follow fit the data, held back by the anchor.
        moved[strength] = np.linalg.norm(last - scan.image(f"{name}_12"))
    assert moved[30] < 0.9 * moved[0]


@pytest.mark.parametrize(("subiterations", "steps", "message"), [
    (6, 3, "(3 + 1) x 2 = 8"), (2, 0, "(1 + 1) x 2 = 4"), (7, 0, "multiple of the interval"),
])  # fmt: skip
def test_the_sampler_wants_subiterations_that_fit(subiterations, steps, message, scan):
    block = processor("inter-iteration filter type", "Diffusion Sampler", **MODEL, number_of_steps=steps)
    extra = f"inter-iteration filter subiteration interval := 2\n{block}"
    ran = run_program("OSMAPOSL", scan.par("misfit", extra=extra, subiterations=subiterations), cwd=scan.folder)
    assert ran.returncode == 2, ran.output
    assert message in ran.output


def assert_filters_as(denoise, scan, **keys):
    noisy = torch.from_numpy(scan.run("noisy"))
    block = processor("Postfilter type", "Diffusion Denoiser", **keys)
    (scan.folder / "filter.par").write_text(f"PostFilteringParameters :=\n{block}END PostFiltering Parameters :=\n")
    ran = run_program("postfilter", "filtered", "noisy_8.hv", "filter.par", cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    expected = denoise(noisy, scan.geometry).numpy()
    assert relative(scan.image("filtered"), expected) < 1e-4
    assert relative(expected, noisy.numpy()) > 0.05


def test_the_post_filter_is_the_denoiser(scan):
    denoiser = Denoiser(ScoreModel.load("brain-fdg"), 0.4, num_steps=3)
    assert_filters_as(denoiser, scan, **MODEL, noise_level=0.4, number_of_steps=3)


def test_the_post_filter_takes_an_enhancement_model(scan):
    from sirf_diffusion.models.enhancement import EnhancementModel
    from sirf_diffusion.reconstructors.enhancement import Enhancer

    model = "body-fdg-enhance"
    enhancer = Enhancer(EnhancementModel.load(model, "cpu"), 0.1, without_ct=True)
    assert_filters_as(enhancer, scan, model_filename=model, dose_ratio=0.1, guidance_weight=-1, device="cpu")
