"""A model for one patient: registrations that are good are used, others never; pseudo-PETs; resuming; whose model."""

import hashlib
import json
import shutil
import signal
from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations

import h5py
import numpy as np
import pytest
import torch
from fresh import DieAt, exit_code
from small_scan import write_small_scan
from tiny_model import tiny_model

from sirf_diffusion.cli import main
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.expected_image import bytes_of
from sirf_diffusion.models.storage import read_config
from sirf_diffusion.patient.deformable import Limits, Quality, _jacobian, _unfolded, dice, register_deformable
from sirf_diffusion.personalise import PersonalOptions, personalise
from sirf_diffusion.personalise.members import outcomes, warped_images
from sirf_diffusion.personalise.pipeline import recipe_of
from sirf_diffusion.personalise.pseudo import mix, recontrasted
from sirf_diffusion.personalise.report import write_report
from sirf_diffusion.simulation.parametric_head import simulate_parametric_head
from sirf_diffusion.training import train
from sirf_diffusion.training.data.phantom_data import PhantomOptions, build_phantoms
from sirf_diffusion.training.data.volume_file import VolumeFile

pytest.importorskip("nilearn")
pytest.importorskip("SimpleITK")

pytestmark = pytest.mark.usefixtures("undrawn")
SHAPE, VOXEL = (56, 64, 56), 4.0


@lru_cache
def head(seed: int):
    """MR and labels (grey matter 1) ``[z, y, x]`` of a subject: every one is the same template, deformed anew."""
    from sirf_diffusion.simulation import simulate_anatomy

    anatomy = simulate_anatomy(seed, SHAPE, VOXEL)
    return anatomy.t1[::-1].copy(), anatomy.labels[::-1].copy()


def test_grey_matter_of_other_subjects_comes_onto_the_patients():
    found = register_deformable(head(9200)[0], head(9201)[0], (VOXEL,) * 3)
    assert dice(found.warp(head(9201)[1], labels=True) == 1, head(9200)[1] == 1) >= 0.77
    assert found.quality.reasons() == []
    assert found.jacobian.min() > 0


def test_a_fold_is_smoothed_away_and_what_is_far_from_it_stays():
    import SimpleITK as sitk

    values = np.zeros((24, 24, 24, 3))
    values[:, :, 8:] += 1.0
    values[10:14, 10:14, 10:12, 0] = -5.0
    field = sitk.GetImageFromArray(values, isVector=True)
    assert _jacobian(field).min() < 0
    mended = _unfolded(field)
    assert _jacobian(mended).min() > 0
    np.testing.assert_allclose(sitk.GetArrayFromImage(mended)[:, :, :2], values[:, :, :2], atol=1e-4)


GOOD = Quality(0.1, 3.0, 0.5, 0.8, 4.0, 0.95, 0.8)


@pytest.mark.parametrize(("change", "reason"), [
    ({"jacobian": 0.0}, "folds"), ({"jacobian": float("nan")}, "folds"), ({"information": 0.48}, "mutual information"),
    ({"inverse_mm": 9.0}, "inverse"), ({"overlap": 0.5}, "overlap"), ({"similarity": 0.5}, "correlate"),
])  # fmt: skip
def test_each_gate_closes(change, reason):
    assert GOOD.reasons() == []
    reasons = replace(GOOD, **change).reasons()
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_what_is_no_such_head_is_left_out():
    """A quick registration folds and returns less well than a whole one: what tells is whether structures correlate."""
    mr = head(9201)[0]
    for image, wrong in (
        (mr, False),
        (np.random.default_rng(0).random(SHAPE).astype(np.float32), True),
        (mr[::-1].copy(), True),  # upside down
        (np.where(mr > 0.1, 1.6 - mr, 0).clip(0), True),  # of inverted contrast
    ):
        reasons = register_deformable(head(9200)[0], image, (VOXEL,) * 3, quick=True).quality.reasons()
        assert any("structures correlate" in reason for reason in reasons) == wrong, reasons


def test_the_same_registration_on_any_number_of_threads():
    import SimpleITK as sitk

    pair, warped = [head(seed)[0][8:36, 16:48, 14:42] for seed in (9200, 9201)], []
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        for threads in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            warped.append(register_deformable(*pair, (VOXEL,) * 3).warp(pair[1]))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*warped)


MM = 8.0
LENIENT = Limits(inverse_mm=12.0, similarity=0.3)
OPTIONS = PersonalOptions(
    pseudo_pets=9, least_members=2, steps=4, batch_size=2, limits=LENIENT, quick_registration=True
)


def write_mr(path, seed):
    """The MR of a parametric head as NIfTI, which has z to the head."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(simulate_parametric_head(seed, (28, 32, 28), MM).mr[::-1].copy())
    image.SetSpacing((MM,) * 3)
    image.SetOrigin(tuple(-MM * (n - 1) / 2 for n in image.GetSize()))  # around the scanner's axis
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module", autouse=True)
def registered():
    """A pair of the same images is registered once, processes of their own apart."""
    known = {}

    def register(fixed, moving, *more, **options):
        pair = fixed.tobytes(), moving.tobytes()
        if pair not in known:
            known[pair] = register_deformable(fixed, moving, *more, **options)
        return known[pair]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sirf_diffusion.personalise.members.register_deformable", register)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bank of three heads and one without an MR, two patients' MRs, a small model; and the model for the first."""
    folder = tmp_path_factory.mktemp("personal")
    build_phantoms(folder / "bank.h5", PhantomOptions(body="head-parametric", subjects=4, voxel_size=MM), workers=1)
    with h5py.File(folder / "bank.h5", "r+") as file:
        group = file["volumes/00002"]
        del group["anatomy"]
        group.attrs.update({"modality": "", "anatomy_sha256": ""})
    for name, seed in (("own", 50), ("other", 51)):
        write_mr(folder / f"{name}.nii.gz", seed)
    population = tiny_model()
    population.voxel_size = (MM,) * 3
    population.save(folder / "population.safetensors")
    make(folder, folder / "P.safetensors")
    return folder


def make(folder, out, options=OPTIONS, **others):
    torch.set_num_threads(1)
    bank, model = others.pop("bank", folder / "bank.h5"), others.pop("model", "population.safetensors")
    model = str(folder / model) if model.endswith(".safetensors") else model
    return personalise(bank, folder / "own.nii.gz", out, model=model, options=options, device="cpu", **others)


def test_the_model_tells_its_patient_and_its_members(folder):
    made_for = read_config(folder / "P.safetensors").training["personalised"]
    assert made_for["mr_sha256"] == hashlib.sha256((folder / "own.nii.gz").read_bytes()).hexdigest()
    assert (made_for["members"], made_for["left_out"]) == (3, 1)
    assert read_config(folder / "P.safetensors").tracer == VolumeFile(folder / "bank.h5").tracer
    found = outcomes(folder / "P.safetensors.personalise" / "members.h5")
    assert [m.reason for m in found] == ["", "", "nothing instead of an MR", ""]
    assert all(m.quality["jacobian"] > 0 for m in found if not m.reason)
    before = ScoreModel.load(folder / "population.safetensors")
    own = ScoreModel.load(folder / "P.safetensors")
    assert own.hash != before.hash
    members = torch.stack([image.float() for image in warped_images(folder / "P.safetensors.personalise/members.h5")])
    kept = torch.from_numpy(own.expected_image.image.values)
    assert torch.equal(bytes_of(kept), bytes_of(members.mean(0)))


def test_killed_at_every_stage_it_ends_at_the_same_bits(folder, tmp_path):
    work, stages = partial(make, folder, tmp_path / "P.safetensors"), set()
    for renamings in (5, 14, 12):  # among the members, the pseudo-PETs, the steps of the training
        assert exit_code(partial(silently, work), DieAt(renamings, ("os.rename",), tmp_path)) == -signal.SIGKILL
        stages.add(frozenset(path.name for path in (tmp_path / "P.safetensors.personalise").glob("*.*")))
    assert not (tmp_path / "P.safetensors").exists()
    work()
    assert len(stages) == 3
    assert (tmp_path / "P.safetensors").read_bytes() == (folder / "P.safetensors").read_bytes()


def test_low_rank_changes_become_part_of_the_weights(folder, tmp_path):
    shutil.copytree(folder / "P.safetensors.personalise", tmp_path / "work")
    training = tmp_path / "work" / "training"
    recipe = replace(recipe_of(ScoreModel.load(folder / "population.safetensors"), OPTIONS, 32), rank=2)
    before = ScoreModel.load(folder / "population.safetensors").network.state_dict()
    shutil.rmtree(training)
    options = {"data": tmp_path / "work" / "pseudo.h5", "init": folder / "population.safetensors", "device": "cpu"}
    train(recipe, tmp_path / "a.safetensors", max_steps=2, **options)
    train(recipe, tmp_path / "a.safetensors", **options)
    train(recipe, tmp_path / "b.safetensors", **options)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    for name, weight in ScoreModel.load(tmp_path / "a.safetensors").network.state_dict().items():
        if weight.shape != before[name].shape:  # of the first layer, which takes one image more
            assert weight[:, 1].any()
            weight = weight[:, :1]
        change = (weight - before[name]).reshape(len(weight), -1)
        assert torch.linalg.matrix_rank(change, atol=3e-3) <= 2  # of what float16 keeps


def test_orientations_that_are_trained(folder):
    model = ScoreModel.load("brain-fdg")
    assert recipe_of(model, OPTIONS, 32).planes == (0, 1, 2)
    assert recipe_of(model, replace(OPTIONS, transverse=True), 32).planes == (0,)
    with pytest.raises((TypeError, ValueError), match="transverse"):
        PersonalOptions(transverse=1)


def silently(work):
    work()


@pytest.mark.parametrize(("change", "message"), [
    ({"options": replace(OPTIONS, limits=Limits(jacobian=0.9))}, "only 0 of 4 members .* folds"),
    ({"model": "brain-fdg"}, "voxels of"), ({"model": "P.safetensors"}, "made for one patient"),
])  # fmt: skip
def test_what_cannot_be_personalised_is_refused(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make(folder, tmp_path / "P.safetensors", **change)
    assert not (tmp_path / "P.safetensors").exists()


def test_images_of_one_subject_are_one_member(folder, tmp_path):
    shutil.copy(folder / "bank.h5", tmp_path / "bank.h5")
    with h5py.File(tmp_path / "bank.h5", "r+") as file:
        for volume in file["volumes"].values():
            volume.attrs["subject"] = "one"
    with pytest.raises(ValueError, match="the 3 good members of the bank are of 1 subjects, expected at least 2"):
        make(folder, tmp_path / "P.safetensors", bank=tmp_path / "bank.h5")


def test_another_run_in_the_work_folder_is_refused(folder):
    with pytest.raises(ValueError, match=r"another run: options.seed differ"):
        make(folder, folder / "P.safetensors", replace(OPTIONS, seed=1))


def test_a_pseudo_pet_is_a_mixture_with_lesions_and_the_mean_is_of_the_others():
    members = [torch.full((12, 12, 12), float(k), dtype=torch.float16) for k in (1, 2, 4, 8)]
    voxels = (12.0, 12.0, 12.0)
    drawn = [mix(members, voxels, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_array_equal(drawn[3], mix(members, voxels, np.random.default_rng(3)))
    subsets = {frozenset(m) for n in (1, 2) for m in combinations((1.0, 2.0, 4.0, 8.0), n)}
    for image, others in drawn:
        used = [s for s in subsets if np.isclose(others.mean(), (15 - sum(s)) / (4 - len(s)))]
        assert any(0.8 * min(s) <= np.median(image) <= 1.25 * max(s) for s in used)
    assert any(image.max() > 1.2 * np.median(image) for image, _ in drawn)
    assert any(image.min() < 0.8 * np.median(image) for image, _ in drawn)


def test_contrast_of_tissues_changes_and_air_and_means_stay():
    image = np.zeros((24, 24, 24), np.float32)
    image[6:18, 6:18, 6:18] = 1 + np.indices((12, 12, 12)).sum(0) % 2 * 0.5
    inside = image > 0
    for power in (0.0, 0.5, 1.0, 1.4):
        changed = recontrasted(image, (8.0, 8.0, 8.0), power)
        assert not changed[~inside].any()
        assert changed[inside].mean() == pytest.approx(1.25, rel=0.05)
        assert np.ptp(changed[9:15, 9:15, 9:15]) == pytest.approx(1.25 * (1.2**power - 0.8**power), abs=0.01)


class TestWhosePatientItIs:
    def recon(self, folder, out, *options):
        scan = write_small_scan(out.parent / "scan")
        more = ("--set", "num_steps=2", "--samples", "1", "--device", "cpu", "--out", str(out))
        return main(["recon", *scan.options, "--model", str(folder / "P.safetensors"), *more, *options])

    def test_the_record_says_for_which_mr_the_model_was_made(self, folder, tmp_path):
        copy = tmp_path / "copy.nii"
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.load(folder / "own.nii.gz"), copy)
        assert self.recon(folder, tmp_path / "out", "--anatomical", str(copy)) == 0
        model = json.loads((tmp_path / "out" / "record.json").read_text())["model"]
        assert model["made_for"]["mr_sha256"] == hashlib.sha256((folder / "own.nii.gz").read_bytes()).hexdigest()
        assert model["mr_compared"] is True

    def test_another_patients_mr_is_refused(self, folder, tmp_path, capsys):
        assert self.recon(folder, tmp_path / "out", "--anatomical", str(folder / "other.nii.gz")) == 2
        assert "made for another patient's MR" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_at_every_door(self, folder):
        model, geometry = ScoreModel.load(folder / "P.safetensors"), ImageGeometry((1, 16, 16), (MM,) * 3)
        shown = model.on(geometry, 1.0).anatomy
        assert float(shown.std()) > 0.1
        assert torch.equal(model.guided_by(folder / "own.nii.gz").on(geometry, 1.0).anatomy, shown)
        assert model.on(geometry, 1.0).conditioning == model.guided_by(None).on(geometry, 1.0).conditioning
        for door in (model.guided_by, lambda mr: model.on(geometry, 1.0, anatomical=mr)):
            with pytest.raises(ValueError, match="another patient's MR"):
                door(folder / "other.nii.gz")
            with pytest.raises(ValueError, match="give the MR's file"):
                door(torch.ones(geometry.shape))


def test_the_command_and_its_page(folder, capsys):
    arguments = ["personalise", "--bank", folder / "bank.h5", "--mr", folder / "own.nii.gz", "--out",
                 folder / "C.safetensors", "--model", folder / "population.safetensors", "--report", folder / "report",
                 "--steps", "2", "--min-members", "4", "--workers", "1", "--quick-registration"]  # fmt: skip
    assert main([str(a) for a in arguments]) == 2
    assert "only 3 of 4 members of the bank could be registered" in capsys.readouterr().err
    made = make(folder, folder / "P.safetensors")
    page = write_report(made, str(folder / "population.safetensors"), folder / "report").read_text()
    assert "3 of 4 members" in page
    assert "nothing instead of an MR" in page
    files = {path.name for path in (folder / "report").iterdir()}
    assert {"00000.png", "denoising.png", "pseudo.png", "report.json"} <= files
