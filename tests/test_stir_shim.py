"""Python priors in STIR: the numbers of STIR's own priors, in its programs and in STIR-Python; views; errors."""

import logging

import numpy as np
import pytest
import torch
from stir_shim_blocks import prior, processor, python, stock
from stir_shim_scan import relative, run_program, run_python

import stir_priors
from sirf_diffusion.interop.stir.blocks import BLOCKS
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.priors import RelativeDifferencePenalty, ScorePenalty

pytestmark = [pytest.mark.requires_stir, pytest.mark.requires_shim]

# The copies compute the same formula in another order of single-precision operations.
SAME = 1e-5


OURS = "sirf_diffusion.priors"
PAIRS = {
    "quadratic": (stock("Quadratic", 3.0), python("QuadraticPenalty", 3.0, module=OURS)),
    "RDP": (
        stock("Relative Difference Prior", 2.0, gamma_value=1.5, epsilon_value=0.02),
        python("RelativeDifferencePenalty", 2.0, module=OURS, gamma=1.5, epsilon=0.02),
    ),
}
# STIR's own RDP is none that its OSSPS takes.
CASES = [("OSMAPOSL", "quadratic"), ("OSMAPOSL", "RDP"), ("OSSPS", "quadratic")]
SPS = {"algorithm": "OSSPS", "subsets": 4, "subiterations": 12}


def pars_of(scan, algorithm, name, where):
    """Parameter files with STIR's own prior and with ours, and the names of the images that they give."""
    options = SPS if algorithm == "OSSPS" else {}
    names = [f"{who}_{name}_{algorithm}_{where}" for who in ("stock", "ours")]
    pars = [scan.par(each, block, **options) for each, block in zip(names, PAIRS[name], strict=True)]
    return pars, [f"{each}_{options.get('subiterations', 8)}" for each in names]


@pytest.mark.parametrize(("algorithm", "name"), CASES)
def test_programs_give_the_image_of_stirs_own_prior(algorithm, name, scan):
    options = SPS if algorithm == "OSSPS" else {}
    stock_image, ours = (scan.run(f"{k}_{algorithm}", block, **options) for k, block in enumerate(PAIRS[name]))
    assert relative(ours, stock_image) < SAME
    if algorithm == "OSMAPOSL":
        assert relative(ours, scan.run("none")) > 0.05, "the prior has no effect to compare"


@pytest.mark.parametrize(("algorithm", "name"), CASES)
def test_stir_python_gives_the_image_of_stirs_own_prior(algorithm, name, scan, stir, monkeypatch):
    monkeypatch.chdir(scan.folder)
    pars, images = pars_of(scan, algorithm, name, "python")
    for par in pars:
        assert getattr(stir, f"{algorithm}Reconstruction3DFloat")(str(par)).reconstruct().succeeded()
    assert relative(*(scan.image(image) for image in images)) < SAME


SIRF_RUN = """
import sys, sirf.STIR as pet, stir_priors
stir_priors.load()
pet.set_verbosity(0)
for par in sys.argv[2:]:
    reconstructor = getattr(pet, sys.argv[1])(par)
    start = pet.ImageData("start.hv")
    reconstructor.set_up(start)
    reconstructor.set_current_estimate(start)
    reconstructor.process()
    reconstructor.get_output().write(par.replace(".par", "_sirf.hv"))
"""


@pytest.mark.requires_sirf
@pytest.mark.parametrize(("algorithm", "name"), CASES)
def test_a_parameter_file_in_sirf_gives_the_image_of_stirs_own_prior(algorithm, name, scan):
    pars, _ = pars_of(scan, algorithm, name, "in_sirf")
    ran = run_python(SIRF_RUN, f"{algorithm}Reconstructor", *pars, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    assert relative(*(scan.image(f"{par.stem}_sirf") for par in pars)) < SAME


def penalty_of(stir, par, x, v):
    """Value, gradient and Hessian product of a prior, as its objective function's difference with and without it.

    STIR-Python cannot call the object that ``get_prior`` gives.
    """
    import stirextra

    reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(par))
    image, direction = (stir.FloatVoxelsOnCartesianGrid.read_from_file(str(path)) for path in (x, v))
    reconstruction.set_up(image)
    objective = reconstruction.get_objective_function()
    value = objective.compute_objective_function_without_penalty(image) - objective.compute_objective_function(image)
    with_it, without = image.get_empty_copy(), image.get_empty_copy()
    objective.compute_gradient(with_it, image)
    objective.compute_gradient_without_penalty(without, image)
    gradient = stirextra.to_numpy(without) - stirextra.to_numpy(with_it)
    with_it, without = image.get_empty_copy(), image.get_empty_copy()
    objective.accumulate_Hessian_times_input(with_it, image, direction)
    objective.accumulate_Hessian_times_input_without_penalty(without, image, direction)
    return value, gradient, stirextra.to_numpy(without) - stirextra.to_numpy(with_it)


def test_value_gradient_and_hessian_carry_the_penalisation_factor(scan, stir, generator):
    x = scan.write("x", scan.truth + 0.5 * torch.rand(scan.geometry.shape, generator=generator).numpy())
    v = scan.write("v", torch.rand(scan.geometry.shape, generator=generator).numpy())
    factor = 4e4  # so that little is lost in the difference from the log-likelihood
    block = python("RelativeDifferencePenalty", factor, module=OURS, epsilon=0.1)
    value, gradient, product = penalty_of(stir, scan.par("ours", block), x, v)
    ours = RelativeDifferencePenalty(scan.geometry, factor, 2.0, 0.1)
    image, direction = torch.from_numpy(scan.image("x")), torch.from_numpy(scan.image("v"))
    assert value == pytest.approx(float(ours.value(image)), rel=1e-4)
    assert relative(gradient, ours.gradient(image).numpy()) < 1e-4
    assert relative(product, ours.hessian_times(image, direction).numpy()) < 1e-4


@pytest.mark.parametrize("weighted", [False, True])
def test_the_quadratic_anchor_is_its_formula(weighted, scan, stir, generator):
    def random_image(name):
        return scan.write(name, torch.rand(scan.geometry.shape, generator=generator).numpy())

    x, v, anchor, weight = (random_image(name) for name in ("x", "v", "anchor", "weight"))
    keys = {"weight_filename": weight} if weighted else {}
    block = prior("Quadratic Anchor", penalisation_factor=1e5, anchor_filename=anchor, **keys)
    value, gradient, product = penalty_of(stir, scan.par("anchored", block), x, v)
    w = scan.image("weight") if weighted else 1.0
    difference = scan.image("x") - scan.image("anchor")
    assert value == pytest.approx(0.5e5 * float((w * difference.astype(np.float64) ** 2).sum()), rel=1e-4)
    assert relative(gradient, 1e5 * w * difference) < 1e-4
    assert relative(product, 1e5 * w * scan.image("v")) < 1e-4


def test_ossps_with_the_quadratic_anchor_is_that_with_its_python_copy(scan):
    anchor = scan.write("level", np.full(scan.geometry.shape, 2.0))
    native = scan.run("native", prior("Quadratic Anchor", penalisation_factor=5.0, anchor_filename=anchor), **SPS)
    assert relative(native, scan.run("copied", python("TenLines", 5.0, level=2.0), **SPS)) < SAME


SIRF_PRIOR = """
import sys, numpy as np, sirf.STIR as pet, stir_priors
stir_priors.load()
pet.set_verbosity(0)
reconstructor = pet.OSMAPOSLReconstructor(sys.argv[1])
prior = reconstructor.get_objective_function().get_prior()
x, v = pet.ImageData(sys.argv[2]), pet.ImageData(sys.argv[3])
prior.set_up(x)
product = x.get_uniform_copy(0)
prior.accumulate_Hessian_times_input(x, v, product)
np.savez("sirf_prior.npz", value=prior.value(x), gradient=prior.gradient(x).as_array(), product=product.as_array())
"""


@pytest.mark.requires_sirf
def test_a_handle_from_a_parameter_file_in_sirf_gives_the_numbers_of_the_prior(scan, generator):
    x = scan.write("x", 1 + torch.rand(scan.geometry.shape, generator=generator).numpy())
    v = scan.write("v", torch.rand(scan.geometry.shape, generator=generator).numpy())
    block = python("RelativeDifferencePenalty", 0.7, module=OURS, epsilon=0.1)
    ran = run_python(SIRF_PRIOR, scan.par("handle", block), x, v, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    found = np.load(scan.folder / "sirf_prior.npz")
    ours = RelativeDifferencePenalty(scan.geometry, 0.7, 2.0, 0.1)
    image, direction = torch.from_numpy(scan.image("x")), torch.from_numpy(scan.image("v"))
    assert float(found["value"]) == pytest.approx(float(ours.value(image)), rel=1e-6)
    assert relative(found["gradient"], ours.gradient(image).numpy()) < 1e-6
    assert relative(found["product"], ours.hessian_times(image, direction).numpy()) < 1e-6


def test_arrays_are_views_on_the_grid_of_the_estimate(scan):
    scan.run("seen", python("Seen", 1.0), subiterations=1)
    seen = np.load(scan.folder / "seen_geometry.npz")
    assert tuple(seen["shape"]) == scan.geometry.shape
    np.testing.assert_allclose(seen["voxel"], scan.geometry.voxel_size, rtol=1e-5)
    np.testing.assert_allclose(seen["origin"], scan.geometry.origin, atol=1e-4)
    np.testing.assert_allclose(np.load(scan.folder / "seen_image.npy"), scan.image("start"), rtol=1e-6)


@pytest.mark.parametrize(("kind", "message"), [
    ("error", "ZeroDivisionError: deliberately"), ("nan", "has 1 NaN or infinite values"),
    ("infinity", "has 3 NaN or infinite values"), ("returns", "must fill its argument `out`"),
    ("rebinds", "NaN or infinite values"),
])  # fmt: skip
def test_an_error_in_python_ends_the_run_and_keeps_saved_estimates(kind, message, scan):
    par = scan.par(f"fails_{kind}", python("FailsAt", 0.1, call=6, kind=kind), save=2)
    ran = run_program("OSMAPOSL", par, cwd=scan.folder)
    assert ran.returncode == 1
    assert message in ran.output
    assert "subiteration 6" in ran.output
    if kind == "error":
        assert "stir_shim_priors.py" in ran.output, "the traceback is missing"
    for number in (2, 4):
        assert np.isfinite(scan.image(f"fails_{kind}_{number}")).all()
    assert not (scan.folder / f"fails_{kind}_6.hv").exists()


def test_an_error_in_python_is_an_exception_of_stir_python(scan, stir):
    reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(scan.par("raises", python("FailsAt", 0.1, call=2))))
    with pytest.raises(RuntimeError, match=r"subiteration 2 .*\n(.*\n)*ZeroDivisionError: deliberately"):
        reconstruction.reconstruct()


@pytest.mark.parametrize(("block", "message"), [
    (python("TenLines", 1.0).replace("prior type := Python", "prior type := Pyton"), "'prior type := Pyton'"),
    (processor("post-filter type", "Diffusion Denoisr"), "'post-filter type := Diffusion Denoisr'"),
    (python("TenLines", 1.0).replace("class :=", "klass :="), "has no key 'klass'"),
    (python("TenLines", 1.0).replace("END Python", "END Pyton"), "has no key 'end pyton parameters'"),
    (python("Nobody", 1.0), "has no class Nobody"),
    (python("TenLines", 1.0, module="nowhere"), "No module named 'nowhere'"),
    (python("TenLines", 1.0).replace("{}", "{level: 2}"), "expected JSON"),
    (prior("Diffusion Score", penalisation_factor=1, model_filename="nothing.safetensors"), "nothing.safetensors"),
    (prior("Diffusion Score", penalisation_factor=1, noise_level="-1"), "noise level := -1"),
    (prior("Quadratic Anchor", penalisation_factor=1, anchor_filename="nothing.hv"), "nothing.hv"),
])  # fmt: skip
def test_what_stir_would_drop_or_the_file_gets_wrong_stops_the_program(block, message, scan):
    inside = block.startswith("prior")
    par = scan.par("wrong", block if inside else "", extra="" if inside else block)
    ran = run_program("OSMAPOSL", par, cwd=scan.folder)
    assert ran.returncode == 2, ran.output
    assert message in ran.output
    assert not (scan.folder / "wrong_8.hv").exists()


@pytest.mark.requires_sirf
def test_kernel_coefficients_are_refused(scan):
    par = scan.par("kernel", python("TenLines", 1.0))
    par.write_text(par.read_text(encoding="utf-8").replace("OSMAPOSLParameters", "KOSMAPOSLParameters"))
    code = "import sys, sirf.STIR as pet, stir_priors; stir_priors.load(); pet.KOSMAPOSLReconstructor(sys.argv[1])"
    ran = run_python(code, par, cwd=scan.folder)
    assert ran.returncode == 1
    assert "kernel coefficients" in ran.output


def test_filters_work_in_place(scan):
    halve = processor("post-filter type", "Python", module="stir_shim_priors", cls="Halve")
    plain = scan.run("plain")
    np.testing.assert_allclose(scan.run("halved", extra=halve), 0.5 * plain, rtol=1e-6)
    block = processor("Postfilter type", "Python", module="stir_shim_priors", cls="Halve")
    (scan.folder / "filter.par").write_text(f"PostFilteringParameters :=\n{block}END PostFiltering Parameters :=\n")
    ran = run_program("postfilter", "quarter", "halved_8.hv", "filter.par", cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    np.testing.assert_allclose(scan.image("quarter"), 0.25 * plain, rtol=1e-6)


@pytest.mark.parametrize("factor", [0.01, 300.0])
def test_osmaposl_counts_where_stir_limits_the_prior(factor, scan, stir, caplog):
    ran = run_program("OSMAPOSL", scan.par("strong", python("TenLines", factor, level=2.0)), cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    reports = [line for line in ran.output.splitlines() if "limited the prior's effect" in line]
    assert len(reports) == 1
    percent = float(reports[0].split(" effect in ")[1].split(" %")[0])
    assert percent == 0 if factor < 1 else percent > 1

    reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(scan.par("strong", python("TenLines", factor, level=2.0))))
    image = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(scan.folder / "start.hv"))
    reconstruction.set_up(image)
    stir_priors.watch(reconstruction.get_objective_function())
    reconstruction.reconstruct(image)
    with caplog.at_level(logging.INFO, logger="stir_priors"):
        reconstruction.set_up(image)  # the next run reports on the last one
    assert f"effect in {percent:.6f} %" in caplog.text


@pytest.mark.parametrize("model", ["additive", "multiplicative"])
@pytest.mark.parametrize("host", ["program", "stir"])
def test_a_prior_is_told_the_sensitivity_of_all_data(host, model, scan, stir, monkeypatch):
    import stirextra

    monkeypatch.chdir(scan.folder)
    par = scan.par("told", python("Prepared", 0.01), extra=f"MAP model := {model}", subiterations=2)
    reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(par))
    reconstruction.set_up(stir.FloatVoxelsOnCartesianGrid.read_from_file(str(scan.folder / "start.hv")))
    objective = reconstruction.get_objective_function()
    if host == "stir":
        stir_priors.watch(objective, map_model=model)
    else:
        assert run_program("OSMAPOSL", par, cwd=scan.folder).returncode == 0
    told = np.load("prepared.npz")
    expected = sum(stirextra.to_numpy(objective.get_subset_sensitivity(k)) for k in range(2))
    np.testing.assert_allclose(told["sensitivity"], np.ones_like(expected) if model == "multiplicative" else expected)
    assert told["factor"] == np.float32(0.01)
    (scan.folder / "prepared.npz").unlink()


def test_all_blocks_are_registered():
    shim = stir_priors.load()
    for block in BLOCKS:
        assert block.name in (shim.prior_names() if block.kind == "prior" else shim.processor_names())


def test_keys_that_a_block_leaves_out_have_the_defaults_of_the_score_penalty(scan, generator):
    """The compiled module asks Python for them."""
    x = 1 + torch.rand(scan.geometry.shape, generator=generator)
    text = prior("Diffusion Score", model_filename="brain-fdg", intensity_scale=0.5)
    found = stir_priors.load().evaluate(text, x.numpy(), scan.geometry.voxel_size)["gradient"]
    model = ScoreModel.load("brain-fdg")
    expected = ScorePenalty(model, intensity_scale=0.5)
    expected.set_up(scan.geometry)
    assert relative(found, expected.gradient(x).numpy()) < 1e-4
