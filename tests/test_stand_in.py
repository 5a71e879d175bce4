"""The embedded engine's projector in the place of SIRF's and STIR's own, against the real ones."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from sirf_scan import bundled, list_mode, time_of_flight
from small_scan import relative

from sirf_diffusion import DDSReconstructor, ScoreModel, as_objective, get_engine, reconstruct
from sirf_diffusion.engines.embedded.stand_in import LARGEST_DIFFERENCE, StandInObjective, ToolkitData
from sirf_diffusion.files.interfile import write_projection_data
from sirf_diffusion.geometry.projdata import ProjDataGeometry

NUM_SUBSETS = 6


@pytest.fixture(scope="module")
def scan(pet):
    return bundled(pet, num_rays=5)


@pytest.fixture(scope="module")
def obj(pet, scan):
    return scan.objective(pet, NUM_SUBSETS)


@pytest.fixture(scope="module")
def stand_in(obj):
    return as_objective(obj, projector="embedded")


def check_same_numbers(stand_in):
    """Values, gradients and sensitivities of each subset and of all data are nearly the toolkit's."""
    own, x = stand_in.toolkit, stand_in.early_image() + 1
    assert stand_in.num_subsets == own.num_subsets
    assert float(stand_in.value(x)) == pytest.approx(float(own.value(x)), rel=1e-3)
    for subset in (None, *range(own.num_subsets)):
        assert relative(stand_in.sensitivity(subset), own.sensitivity(subset)) < 0.02
        error = stand_in.gradient(x, subset) - own.gradient(x, subset)
        assert float(error.norm() / own.sensitivity(subset).norm()) < 0.02


@pytest.mark.requires_sirf
@pytest.mark.parametrize("example", ["brain2d", "brain3d"])
def test_numbers_are_sirfs(pet, example, caplog):
    caplog.set_level(logging.INFO, "sirf_diffusion")
    stand_in = as_objective(bundled(pet, example, num_rays=5).objective(pet, NUM_SUBSETS), projector="embedded")
    check_same_numbers(stand_in)
    assert 0 < stand_in.difference < 0.003
    assert "the embedded engine projects instead of sirf" in caplog.text
    x = stand_in.early_image()
    assert torch.equal(stand_in.to_tensor(stand_in.to_image(x)), x)


@pytest.mark.requires_sirf
@pytest.mark.parametrize("speed", ["accurate", "balanced"])
def test_a_sampler_gives_the_image_of_sirfs_projector(pet, obj, speed):
    images, model = [], ScoreModel.load("brain-fdg", precision="float32")
    for projector in ("toolkit", "embedded"):
        sampler = DDSReconstructor(obj, model, projector=projector, speed=speed, num_steps=10, seed=3)
        images.append(sampler.process().get_output())
    assert isinstance(images[1], pet.ImageData)
    assert relative(*(torch.from_numpy(image.as_array()) for image in reversed(images))) < 0.01


@pytest.mark.requires_sirf
def test_data_exchanged_in_the_objective_function_want_another_one(pet):
    scan, engine = bundled(pet, num_rays=5), get_engine("sirf")
    obj = scan.objective(engine, NUM_SUBSETS)
    stand_in = as_objective(obj, projector="embedded")
    obj.set_acquisition_data(scan.prompts * 2)
    obj.set_up(scan.truth)
    with pytest.raises(RuntimeError, match="given other data or another model"):
        stand_in.value(stand_in.early_image())


@pytest.mark.requires_sirf
def test_the_record_says_whose_projector_it_was(obj, stand_in):
    result = reconstruct(obj, "osem", projector="embedded", settings={"num_iterations": 1})
    engine = result.record["engine"]
    assert engine["name"] == "sirf"
    assert engine["projector"].startswith("embedded")
    assert float(engine["projector_difference"]) == pytest.approx(stand_in.difference, rel=0.05)
    assert as_objective(stand_in, projector="embedded") is stand_in


def without_model(pet, scan, folder):
    import sirf.STIR

    obj = sirf.STIR.make_Poisson_loglikelihood(scan.prompts, acq_model=scan.model)
    obj.set_num_subsets(NUM_SUBSETS)
    obj.set_up(scan.template)
    return obj


def with_model(change):
    def make(pet, scan, folder):
        scan = bundled(pet, num_rays=5)
        change(pet, scan)
        return scan.objective(pet)

    return make


def blur(pet, scan, fwhm=6.0):
    gaussian = pet.SeparableGaussianImageFilter()
    gaussian.set_fwhms((0, fwhm, fwhm))
    scan.model.set_image_data_processor(gaussian)
    scan.model.set_up(scan.prompts, scan.template)


def other_matrix(pet, scan):
    model = pet.AcquisitionModelUsingMatrix(scan.model.get_matrix())
    model.set_acquisition_sensitivity(scan.model.asm)
    model.set_additive_term(scan.model.at)
    model.set_up(scan.prompts, scan.template)
    scan.model = model


def events(pet, scan, folder):
    sinograms, data = list_mode(pet, folder)
    obj = pet.PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin()
    obj.set_acquisition_model(sinograms.model)
    obj.set_acquisition_data(data)
    obj.set_cache_path(str(folder))
    obj.set_num_subsets(2)
    obj.set_up(sinograms.template)
    return obj


REFUSED = {
    "model not known": (without_model, "SIRF does not hand back acquisition data and model"),
    "one ray": (with_model(lambda pet, scan: scan.model.set_num_tangential_LORs(1)), r"points differs by \d+ % \(L2\)"),
    "filter": (with_model(blur), "filters within the acquisition model"),
    "narrow filter": (with_model(partial(blur, fwhm=2.0)), "filters within the acquisition model"),
    "matrix": (with_model(other_matrix), "the model is AcquisitionModelUsingMatrix, not"),
    "corners": (
        with_model(lambda pet, scan: scan.model.get_matrix().set_restrict_to_cylindrical_FOV(False)),
        "'restrict to cylindrical fov' must be 1",
    ),
    "time of flight": (lambda pet, scan, folder: time_of_flight(pet).objective(pet, 1), "time-of-flight data"),
    "list mode": (events, "list mode data have no sinograms"),
}


@pytest.mark.requires_sirf
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(pet, scan, tmp_path, case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        as_objective(make(pet, scan, tmp_path), projector="embedded")
    assert "projector='embedded'" in str(caught.value)


def test_blocks_are_refused_by_name(tmp_path):
    layout = ProjDataGeometry.from_scanner("ECAT 953", span=1, max_ring_difference=0)

    def write(name):
        write_projection_data(name, torch.ones(layout.shape), layout)
        text = Path(name).read_text(encoding="utf-8")
        old = "!END OF"
        blocks = f"Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic) := BlocksOnCylindrical\n{old}"
        Path(name).write_text(text.replace(old, blocks, 1), encoding="utf-8")

    data = ToolkitData(write, "", torch.ones(layout.shape), None, None, torch.clone)
    with pytest.raises(ValueError, match=r"no cylinder.*projector='embedded'"):
        data.layout()


@pytest.mark.requires_stir
@pytest.mark.parametrize("options", [{"example": "brain2d"}, {"example": "brain3d", "max_segment": 0}], ids=str)
def test_numbers_are_stirs(options):
    from stir_scan import stir_objective

    stand_in = as_objective(stir_objective(**options, num_subsets=NUM_SUBSETS)[0], projector="embedded")
    check_same_numbers(stand_in)
    assert stand_in.engine["name"] == "stir"


def zero_ends(obj):
    obj.set_zero_seg0_end_planes(True)


def corners(obj):
    import stir

    matrix = stir.ProjMatrixByBinUsingRayTracing()
    matrix.set_restrict_to_cylindrical_FOV(False)
    obj.set_projector_pair_sptr(stir.ProjectorByBinPairUsingProjMatrixByBin(matrix))


def separate(obj):
    import stir

    pair = obj.get_projector_pair()
    pair = stir.ProjectorByBinPairUsingSeparateProjectors(pair.get_forward_projector(), pair.get_back_projector())
    obj.set_projector_pair_sptr(pair)


@pytest.mark.requires_stir
@pytest.mark.parametrize(("change", "message"), [
    (zero_ends, "zero end planes"), (corners, "'restrict to cylindrical fov' must be 1"),
    (separate, "the projector pair is Separate Projectors, not Matrix"),
])  # fmt: skip
def test_stirs_refusals(change, message):
    from stir_scan import stir_objective

    obj, truth = stir_objective(set_up=False)
    change(obj)
    assert obj.set_up(truth).succeeded()
    with pytest.raises(ValueError, match=message):
        as_objective(obj, projector="embedded")


def test_the_option_is_checked_and_embedded_objectives_stay_as_they_are():
    from sirf_diffusion.data import load_example

    objective = load_example("brain2d").acquisition.objective(2)
    assert as_objective(objective, projector="embedded") is objective
    for call in (lambda: as_objective(objective, projector="cuda"), lambda: reconstruct(objective, projector="cuda")):
        with pytest.raises(ValueError, match="projector must be one of toolkit, embedded"):
            call()
    assert issubclass(StandInObjective, type(objective))
    assert LARGEST_DIFFERENCE == 0.005
