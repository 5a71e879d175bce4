"""Python priors in STIR: the numbers of STIR's own priors, in its programs and in STIR-Python; views; errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from stir_shim_blocks import prior, processor, python, stock
from stir_shim_scan import Scan, relative, run_program, run_python, simulate

import stir_priors
from sirf_diffusion.interop.stir.blocks import DATA_PROCESSORS, PRIORS
from sirf_diffusion.priors import RelativeDifferencePenalty

pytestmark = [pytest.mark.requires_stir, pytest.mark.requires_shim]

# The copies compute the same formula in another order of single-precision operations.
SAME = 1e-5


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return simulate(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def stir():
    stir_priors.load()
    import stir

    before = stir.Verbosity.get()
    stir.Verbosity.set(0)
    yield stir
    stir.Verbosity.set(before)


PAIRS = {
    "quadratic": (stock("Quadratic", 3.0), python("QuadraticPenalty", 3.0, module="sirf_diffusion.priors")),
    "RDP": (
        stock("Relative Difference Prior", 2.0, gamma_value=1.5, epsilon_value=0.02),
        python("RelativeDifferencePenalty", 2.0, module="sirf_diffusion.priors", gamma=1.5, epsilon=0.02),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_osmaposl_gives_the_image_of_stirs_own_prior(name, scan):
    for who, block in zip(("stock", "ours"), PAIRS[name], strict=True):
        ran = run_program("OSMAPOSL", scan.par(f"{who}_{name}", block), cwd=scan.folder)
        assert ran.returncode == 0, ran.output
    without = run_program("OSMAPOSL", scan.par("none"), cwd=scan.folder)
    assert without.returncode == 0
    assert relative(scan.image(f"ours_{name}_8"), scan.image(f"stock_{name}_8")) < SAME
    assert relative(scan.image(f"ours_{name}_8"), scan.image("none_8")) > 0.05, "the prior has no effect to compare"


def test_ossps_gives_the_image_of_stirs_own_prior(scan):
    # STIR's own RDP is none that its OSSPS takes.
    for who, block in zip(("sps_stock", "sps_ours"), PAIRS["quadratic"], strict=True):
        par = scan.par(who, block, algorithm="OSSPS", subsets=4, subiterations=12)
        ran = run_program("OSSPS", par, cwd=scan.folder)
        assert ran.returncode == 0, ran.output
    assert relative(scan.image("sps_ours_12"), scan.image("sps_stock_12")) < SAME


@pytest.mark.parametrize("name", PAIRS)
def test_stir_python_gives_the_image_of_stirs_own_prior(name, scan, stir):
    for who, block in zip(("py_stock", "py_ours"), PAIRS[name], strict=True):
        reconstruction = stir.OSMAPOSLReconstruction3DFloat(str(scan.par(f"{who}_{name}", block)))
        assert reconstruction.reconstruct().succeeded()
    assert relative(scan.image(f"py_ours_{name}_8"), scan.image(f"py_stock_{name}_8")) < SAME


def test_ossps_in_stir_python_gives_the_image_of_stirs_own_prior(scan, stir, monkeypatch):
    monkeypatch.chdir(scan.folder)
    for who, block in zip(("pysps_stock", "pysps_ours"), PAIRS["quadratic"], strict=True):
        par = scan.par(who, block, algorithm="OSSPS", subsets=4, subiterations=12)
        assert stir.OSSPSReconstruction3DFloat(str(par)).reconstruct().succeeded()
    assert relative(scan.image("pysps_ours_12"), scan.image("pysps_stock_12")) < SAME


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
@pytest.mark.parametrize("name", PAIRS)
def test_a_parameter_file_in_sirf_gives_the_image_of_stirs_own_prior(name, scan):
    pars = [scan.par(f"{who}_{name}", block) for who, block in zip(("stock", "ours"), PAIRS[name], strict=True)]
    ran = run_python(SIRF_RUN, "OSMAPOSLReconstructor", *pars, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    images = [scan.image(f"{who}_{name}_sirf") for who in ("ours", "stock")]
    assert relative(*images) < SAME


@pytest.mark.requires_sirf
def test_a_parameter_file_of_ossps_in_sirf_gives_the_image_of_stirs_own_prior(scan):
    pars = [
        scan.par(f"{who}_sps", block, algorithm="OSSPS", subsets=4, subiterations=12)
        for who, block in zip(("stock", "ours"), PAIRS["quadratic"], strict=True)
    ]
    ran = run_python(SIRF_RUN, "OSSPSReconstructor", *pars, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    assert relative(scan.image("ours_sps_sirf"), scan.image("stock_sps_sirf")) < SAME


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
    value, gradient, product = penalty_of(
        stir, scan.par("ours", python("RelativeDifferencePenalty", factor, module="sirf_diffusion.priors", epsilon=0.1)), x, v
    )
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
    blocks = {
        "native": prior("Quadratic Anchor", penalisation_factor=5.0, anchor_filename=anchor),
        "copied": python("TenLines", 5.0, level=2.0),
    }
    for name, block in blocks.items():
        par = scan.par(f"anchor_{name}", block, algorithm="OSSPS", subsets=4, subiterations=12)
        ran = run_program("OSSPS", par, cwd=scan.folder)
        assert ran.returncode == 0, ran.output
    assert relative(scan.image("anchor_native_12"), scan.image("anchor_copied_12")) < SAME


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
    ran = run_python(
        SIRF_PRIOR,
        scan.par("handle", python("RelativeDifferencePenalty", 0.7, module="sirf_diffusion.priors", epsilon=0.1)),
        x,
        v,
        cwd=scan.folder,
    )
    assert ran.returncode == 0, ran.output
    found = np.load(scan.folder / "sirf_prior.npz")
    ours = RelativeDifferencePenalty(scan.geometry, 0.7, 2.0, 0.1)
    image, direction = torch.from_numpy(scan.image("x")), torch.from_numpy(scan.image("v"))
    assert float(found["value"]) == pytest.approx(float(ours.value(image)), rel=1e-6)
    assert relative(found["gradient"], ours.gradient(image).numpy()) < 1e-6
    assert relative(found["product"], ours.hessian_times(image, direction).numpy()) < 1e-6


def test_arrays_are_views_on_the_grid_of_the_estimate(scan):
    par = scan.par("seen", python("Seen", 1.0), subiterations=1)
    ran = run_program("OSMAPOSL", par, cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    seen = np.load(scan.folder / "seen_geometry.npz")
    assert tuple(seen["shape"]) == scan.geometry.shape
    np.testing.assert_allclose(seen["voxel"], scan.geometry.voxel_size, rtol=1e-5)
    np.testing.assert_allclose(seen["origin"], scan.geometry.origin, atol=1e-4)
    np.testing.assert_allclose(np.load(scan.folder / "seen_image.npy"), scan.image("start"), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("error", "ZeroDivisionError: deliberately"),
        ("nan", "has 1 NaN or infinite values"),
        ("infinity", "has 3 NaN or infinite values"),
        ("returns", "must fill its argument `out`"),
    ],
)
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


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (python("TenLines", 1.0).replace("prior type := Python", "prior type := Pyton"), "'prior type := Pyton'"),
        (processor("post-filter type", "Diffusion Denoisr"), "'post-filter type := Diffusion Denoisr'"),
        (python("TenLines", 1.0).replace("class :=", "klass :="), "has no key 'klass'"),
        (python("TenLines", 1.0).replace("END Python", "END Pyton"), "has no key 'end pyton parameters'"),
        (python("Nobody", 1.0), "has no class Nobody"),
        (python("TenLines", 1.0, module="nowhere"), "No module named 'nowhere'"),
        (python("TenLines", 1.0).replace("{}", "{level: 2}"), "is not JSON"),
        (prior("Diffusion Score", penalisation_factor=1, model_filename="nothing.safetensors"), "nothing.safetensors"),
        (prior("Diffusion Score", penalisation_factor=1, noise_level="-1"), "noise level := -1"),
        (prior("Quadratic Anchor", penalisation_factor=1, anchor_filename="nothing.hv"), "nothing.hv"),
    ],
)
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
    start = processor("post-filter type", "Python", module="stir_shim_priors", cls="Halve")
    for name, block in (("plain", ""), ("halved", start)):
        ran = run_program("OSMAPOSL", scan.par(name, extra=block), cwd=scan.folder)
        assert ran.returncode == 0, ran.output
    np.testing.assert_allclose(scan.image("halved_8"), 0.5 * scan.image("plain_8"), rtol=1e-6)
    block = processor("Postfilter type", "Python", module="stir_shim_priors", cls="Halve")
    (scan.folder / "filter.par").write_text(f"PostFilteringParameters :=\n{block}END PostFiltering Parameters :=\n")
    ran = run_program("postfilter", "quarter", "halved_8.hv", "filter.par", cwd=scan.folder)
    assert ran.returncode == 0, ran.output
    np.testing.assert_allclose(scan.image("quarter"), 0.25 * scan.image("plain_8"), rtol=1e-6)


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


def test_the_documented_keys_are_those_of_the_compiled_module():
    shim = stir_priors.load()
    assert {name: dict(keys) for name, keys in shim.prior_blocks().items()} == PRIORS
    assert {name: dict(keys) for name, keys in shim.processor_blocks().items()} == DATA_PROCESSORS
    assert set(PRIORS) <= set(shim.prior_names())
    assert set(DATA_PROCESSORS) <= set(shim.processor_names())
