"""Images become training volumes: the same patient from every format, reasons for what is left out, kills survived."""

import csv
import json
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest
import torch
from fresh import DieAt, exit_code, run
from patient_images import (
    NAME,
    PATIENT_ID,
    SHAPE,
    VOXEL,
    activity,
    dicom_series,
    write_dicom,
    write_interfile,
    write_nifti,
)

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.intensity import intensity_scale
from sirf_diffusion.training.data.image_data import ImageOptions, build_from_images
from sirf_diffusion.training.data.manifest import ImageInput, assign_splits, find_images, read_manifest, subject_of
from sirf_diffusion.training.data.volume_file import VolumeFile, VolumeFileError, rejected_inputs
from sirf_diffusion.training.data.volume_parts import NothingUsable, PartStore
from sirf_diffusion.training.data.volumes import SPLITS

pytest.importorskip("nibabel")
pytest.importorskip("scipy")

NATIVE = ImageOptions((VOXEL,) * 3, margin=None)


def build(tmp_path, *inputs, options=NATIVE, **others):
    """The file, and what became of each input."""
    out = tmp_path / "out.h5"
    inputs = [i if isinstance(i, ImageInput) else ImageInput(i) for i in inputs]
    return out, build_from_images(inputs, out, options, **others)


def expected(stir):
    return stir / intensity_scale(torch.from_numpy(stir), ImageGeometry(stir.shape, (VOXEL,) * 3))


def assert_kept(out, rtol=1e-3, atol=1e-4):
    """The file holds the voxels of `activity`."""
    np.testing.assert_allclose(VolumeFile(out).volume(0).float(), expected(activity()), rtol=rtol, atol=atol)


class TestOneAxesConvention:
    @pytest.mark.parametrize("axes", ["RAS", "LPS", "LPI", "SAL", "IRP", "ASR"])
    def test_nifti_of_any_orientation_gives_the_same_voxels(self, tmp_path, axes):
        assert_kept(build(tmp_path, write_nifti(tmp_path / "a.nii.gz", activity(), axes))[0])

    @pytest.mark.parametrize("position", [None, ("head_in", "supine"), ("head_in", "prone"), ("feet_in", "supine"),
                                          ("feet_in", "prone")])  # fmt: skip
    def test_interfile_follows_the_patient_position(self, tmp_path, position):
        assert_kept(build(tmp_path, write_interfile(tmp_path / "a.hv", activity(), position))[0])

    def test_dicom_with_a_slope_per_slice_and_no_identifier_in_the_file(self, tmp_path):
        pytest.importorskip("pydicom")
        out, _ = build(tmp_path, write_dicom(tmp_path / "Jane_Doe", activity()))
        assert_kept(out, 2e-3, 1e-3)
        content = out.read_bytes()
        for word in (NAME, "JANE", "Jane", PATIENT_ID, "19500101", str(tmp_path)):
            assert word.encode() not in content

    def test_an_oblique_image_is_turned_back(self, tmp_path):
        import nibabel

        path = write_nifti(tmp_path / "a.nii.gz", activity())
        image = nibabel.load(path)
        angle = np.deg2rad(20)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        # the object is turned in the world by the header, and by as much the other way in the array
        from scipy.ndimage import affine_transform

        centre = (np.asarray(image.shape) - 1) / 2
        array = affine_transform(image.get_fdata(), turn[:3, :3], centre - turn[:3, :3] @ centre, order=1)
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), image.affine @ turn), path)
        out, _ = build(tmp_path, path)
        stored = VolumeFile(out).volume(0).float().numpy()
        middle = tuple((s - n) // 2 for s, n in zip(stored.shape, SHAPE, strict=True))
        inner = stored[tuple(slice(m, m + n) for m, n in zip(middle, SHAPE, strict=True))]
        assert np.corrcoef(inner.ravel(), expected(activity()).ravel())[0, 1] > 0.95
        organs = [np.argwhere(a > 0.5 * a.max()).mean(0) for a in (inner, activity())]
        np.testing.assert_allclose(*organs, atol=0.3)

    def test_unknown_orientation_is_refused_until_it_is_told(self, tmp_path):
        path = write_nifti(tmp_path / "a.nii", activity(), "LPI", coded=False)
        with pytest.raises(NothingUsable) as error:
            build(tmp_path, path)
        assert "--assume" in error.value.outcomes[0].reason
        assert_kept(build(tmp_path, path, options=ImageOptions((VOXEL,) * 3, None, assumed="LPI"))[0])


class TestGrid:
    @pytest.mark.parametrize("size", [2.0, 8.0])
    def test_resampling_keeps_the_place_and_the_mean(self, tmp_path, size):
        smooth = np.full(SHAPE, 0.0, np.float32)
        smooth[6:18, 6:16, 5:15] = 2.0
        out, _ = build(tmp_path, write_nifti(tmp_path / "a.nii", smooth), options=ImageOptions((size,) * 3, None))
        stored = VolumeFile(out).volume(0).float().numpy()
        assert VolumeFile(out).voxel_size == (size,) * 3
        for axis, n in enumerate(SHAPE):
            profile = stored.sum(tuple(k for k in range(3) if k != axis))
            centre = (profile * (np.arange(len(profile)) - (len(profile) - 1) / 2)).sum() / profile.sum() * size
            wanted = smooth.sum(tuple(k for k in range(3) if k != axis))
            wanted = (wanted * (np.arange(n) - (n - 1) / 2)).sum() / wanted.sum() * VOXEL
            assert centre == pytest.approx(wanted, abs=0.1 * size)
        info = VolumeFile(out).infos[0]
        total = stored.sum() * size**3 * info.intensity_scale
        assert total == pytest.approx(smooth.sum() * VOXEL**3, rel=0.05)

    def test_cropping_keeps_the_activity_and_the_margin(self, tmp_path):
        small = np.zeros(SHAPE, np.float32)
        small[10:14, 9:13, 8:12] = 1.0
        path = write_nifti(tmp_path / "a.nii", small)
        out, _ = build(tmp_path, path, options=ImageOptions((VOXEL,) * 3, margin=8.0))
        stored = VolumeFile(out).volume(0)
        assert stored.shape < torch.Size(SHAPE)
        assert (stored > 0).sum() == (small > 0).sum()
        assert float(stored[0].max()) == float(stored[:, :, -1].max()) == 0

    def test_anatomy_in_another_grid_lands_on_the_emission_image(self, tmp_path):
        pet = write_nifti(tmp_path / "pet.nii.gz", activity())
        fine = activity().repeat(2, 0).repeat(2, 1).repeat(2, 2)
        mr = write_nifti(tmp_path / "t1.nii.gz", 300 * fine, "SAL", voxel=VOXEL / 2)
        out, outcomes = build(tmp_path, ImageInput(pet, anatomy=mr, modality="MR"))
        file = VolumeFile(out)
        emission, anatomy = file.volume(0).float().numpy(), file.volume(0, "anatomy").float().numpy()
        assert outcomes[0].status == "used"
        assert file.infos[0].modality == "MR"
        assert np.corrcoef(emission.ravel(), anatomy.ravel())[0, 1] > 0.97
        np.testing.assert_allclose(anatomy.mean(), emission.mean(), rtol=0.1)

    def test_the_fingerprint_tells_another_anatomy(self, tmp_path):
        pet = write_nifti(tmp_path / "pet.nii.gz", activity())
        found = []
        for name, image in (("a", activity()), ("b", activity() ** 2), ("none", None)):
            mr = None if image is None else write_nifti(tmp_path / f"{name}.nii.gz", image)
            (tmp_path / name).mkdir()
            out, _ = build(tmp_path / name, ImageInput(pet, anatomy=mr, modality="" if mr is None else "MR"))
            found.append(VolumeFile(out).fingerprint)
        assert len(set(found)) == 3

    def test_ct_becomes_a_density(self, tmp_path):
        pet = write_nifti(tmp_path / "pet.nii.gz", activity())
        inside = activity() > 0
        ct = write_nifti(tmp_path / "ct.nii.gz", np.where(inside, 0.0, -1000.0).astype(np.float32))
        out, _ = build(tmp_path, ImageInput(pet, anatomy=ct, modality="CT"))
        density = VolumeFile(out).volume(0, "anatomy").float().numpy()
        assert density[~inside].max() < 1e-3
        assert density[inside].std() < 1e-3 < density[inside].mean()


class TestWhatCannotBeUsed:
    def test_every_kind_is_listed_with_its_reason_and_the_rest_is_built(self, tmp_path):
        good, bad = activity(), activity()
        bad[3, 3, 3] = np.nan
        inputs = {
            "good": write_nifti(tmp_path / "good.nii.gz", good),
            "not finite": write_nifti(tmp_path / "nan.nii.gz", bad),
            "same value": write_nifti(tmp_path / "constant.nii.gz", np.ones(SHAPE, np.float32)),
            "duplicate of input 1": write_nifti(tmp_path / "again.nii.gz", good, "LPS"),
            "negative": write_nifti(tmp_path / "negative.nii.gz", good - 0.9),
            "no such file": tmp_path / "missing.nii.gz",
            "no readable NIfTI": tmp_path / "noise.nii.gz",
            "2 time frames: choose one by NAME#1": tmp_path / "dynamic.nii.gz",
            "wrong sizes": write_nifti(tmp_path / "metres.nii.gz", good, voxel=0.004),
            "right angles": tmp_path / "sheared.nii.gz",
            "unknown kind": tmp_path / "image.png",
            "no readable Interfile": tmp_path / "broken.hv",
        }
        import nibabel

        (tmp_path / "noise.nii.gz").write_bytes(inputs["good"].read_bytes()[:400])
        (tmp_path / "image.png").write_bytes(b"png")
        (tmp_path / "broken.hv").write_text("!INTERFILE :=\nname of data file := nothing.v\n")
        frames = nibabel.Nifti1Image(np.stack([good, 2 * good], -1), np.diag([4, 4, 4, 1]))
        nibabel.save(frames, inputs["2 time frames: choose one by NAME#1"])
        shear = np.diag([4.0, 4.0, 4.0, 1.0])
        shear[0, 1] = 2.0
        sheared = nibabel.Nifti1Image(good, shear)
        nibabel.save(sheared, inputs["right angles"])
        out, outcomes = build(tmp_path, *inputs.values())
        assert len(VolumeFile(out)) == 1
        for (words, _), outcome in zip(inputs.items(), outcomes, strict=True):
            if words == "good":
                assert outcome.status == "used"
            else:
                assert outcome.status == "left out", outcome
                assert words in outcome.reason
        stored = rejected_inputs(out)
        assert [n for n, _, _ in stored] == [o.number for o in outcomes if o.status == "left out"]
        assert [r for _, _, r in stored] == [o.reason for o in outcomes if o.status == "left out"]
        assert str(tmp_path).encode() not in out.read_bytes()
        assert not (tmp_path / "out.h5.parts").exists()

    @pytest.mark.parametrize("other", ["A", "B"])
    def test_an_image_of_two_subjects_may_be_one_person(self, tmp_path, caplog, other):
        paths = [write_nifti(tmp_path / f"{k}.nii.gz", activity()) for k in range(2)]
        _, outcomes = build(tmp_path, ImageInput(paths[0], "A"), ImageInput(paths[1], other))
        assert outcomes[1].reason.startswith("duplicate of input 1")
        assert ("of another subject" in outcomes[1].reason) == ("of another subject" in caplog.text) == (other == "B")

    def test_a_bad_anatomy_is_left_out_and_the_emission_image_kept(self, tmp_path):
        import nibabel

        pet = write_nifti(tmp_path / "pet.nii.gz", activity())
        mr = write_nifti(tmp_path / "mr.nii.gz", activity())
        away = nibabel.load(mr).affine.copy()
        away[0, 3] += 500.0
        nibabel.save(nibabel.Nifti1Image(activity(), away), mr)
        out, outcomes = build(tmp_path, ImageInput(pet, anatomy=mr, modality="MR"))
        assert outcomes[0].status == "used in part"
        assert "MR left out: it covers 0%" in outcomes[0].reason
        assert not VolumeFile(out).has_anatomy

    def test_an_mr_of_another_patient_is_left_out(self, tmp_path):
        pydicom = pytest.importorskip("pydicom")
        pet, mr = (write_dicom(tmp_path / m, activity(), modality=m) for m in ("PT", "MR"))
        assert build(tmp_path, ImageInput(pet, anatomy=mr, modality="MR"))[1][0].status == "used"
        for file in mr.iterdir():
            header = pydicom.dcmread(file)
            header.PatientID = "another"
            header.save_as(file)
        root = bids(tmp_path, "sub-01_pet", "sub-02_T1w")
        named = ImageInput(root / "sub-01_pet.nii.gz", anatomy=root / "sub-02_T1w.nii.gz", modality="MR")
        for source, why in ((ImageInput(pet, anatomy=mr, modality="MR"), "by PatientID"), (named, "by its name")):
            _, outcomes = build(tmp_path, source, overwrite=True)
            assert outcomes[0].status == "used in part"
            assert "MR left out: of another" in outcomes[0].reason
            assert why in outcomes[0].reason

    def test_a_little_negative_activity_is_noted(self, tmp_path):
        image = activity() - 0.05
        out, outcomes = build(tmp_path, write_nifti(tmp_path / "a.nii.gz", image))
        assert "was negative" in outcomes[0].reason
        assert float(VolumeFile(out).volume(0).min()) == 0


def bids(root, *names):
    """Files of these names; those of a subject differ."""
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_nifti(root / f"{name}.nii.gz", activity(k))
    return root


class TestWhatAFolderMeans:
    def test_of_bids_names_only_pet_is_taken_and_the_rest_is_told(self, tmp_path):
        root = bids(
            tmp_path / "bids", "sub-01/pet/sub-01_trc-FDG_pet", "sub-01/anat/sub-01_T1w", "sub-02/ses-1/pet/sub-02_pet",
            "sub-02/anat/sub-02_desc-brain_mask", "sub-02/pet/sub-02_recon-acdyn_blood", "sub-02/anat/scan", "template",
        )  # fmt: skip
        found = {i.image.relative_to(root).as_posix().removesuffix(".nii.gz"): i.left_out for i in find_images([root])}
        taken = [name for name, reason in found.items() if not reason]
        assert taken == ["sub-01/pet/sub-01_trc-FDG_pet", "sub-02/ses-1/pet/sub-02_pet"]
        for name, words in {"sub-01/anat/sub-01_T1w": "T1w by its name", "sub-02/anat/sub-02_desc-brain_mask": "mask",
                            "sub-02/pet/sub-02_recon-acdyn_blood": "suffix", "sub-02/anat/scan": "BIDS folder",
                            "template": "nothing says"}.items():  # fmt: skip
            assert words in found[name]
        out, outcomes = build(tmp_path, *find_images([root]))
        assert len(VolumeFile(out)) == 2
        assert [n for n, _, _ in rejected_inputs(out)] == [o.number for o in outcomes if o.status == "left out"]

    def test_pet_without_attenuation_correction_is_left_out_of_a_folder(self, tmp_path):
        names = [f"sub-01/pet/sub-01_rec-{r}_pet" for r in ("acstat", "nacstat")]
        root = bids(tmp_path / "bids", *names, "sub-02/pet/sub-02_pet")
        (root / "sub-02" / "pet" / "sub-02_pet.json").write_text('{"Modality": "PT", "AttenuationCorrection": "NONE"}')
        found = {i.image.name[:-7]: i.left_out for i in find_images([root])}
        said = "PET without attenuation correction: give it by itself if it is meant"
        assert found == {"sub-01_rec-acstat_pet": "", "sub-01_rec-nacstat_pet": said, "sub-02_pet": said}
        assert not find_images([root / f"{names[1]}.nii.gz"])[0].left_out

    @pytest.mark.parametrize(("corrections", "taken"), [(["DECY", "ATTN"], True), (["DECY", "RAN"], False), ("", True)])
    def test_dicom_tells_whether_attenuation_was_corrected(self, tmp_path, corrections, taken):
        pydicom = pytest.importorskip("pydicom")
        write_dicom(tmp_path / "a" / "pet", activity())
        for file in (tmp_path / "a" / "pet").iterdir():
            data = pydicom.dcmread(file)
            data.CorrectedImage = corrections
            data.save_as(file)
        assert [not image.left_out for image in find_images([tmp_path / "a"])] == [taken]
        assert not find_images([tmp_path / "a" / "pet"])[0].left_out

    @pytest.mark.parametrize("modality", ["MR", "CT", "NM"])
    def test_series_of_another_modality_are_left_out_and_a_stray_file_hides_none(self, tmp_path, modality):
        pytest.importorskip("pydicom")
        pet, other = (write_dicom(tmp_path / "a" / m, activity(), modality=m) for m in ("PT", modality))
        assert [i.left_out for i in find_images([other])] == [f"DICOM of modality {modality}, not PET"]
        with pytest.raises(NothingUsable) as error:
            build(tmp_path, other)
        assert f"modality {modality}, not PT" in error.value.outcomes[0].reason
        write_nifti(tmp_path / "a" / "template.nii.gz", activity(1))
        assert [i.image for i in find_images([tmp_path / "a"]) if not i.left_out] == [pet]

    @pytest.mark.parametrize("name", ["t1", "mr", "sub1_ct", "umap", "brain_mask", "mu", "T1_brain", "aparc+aseg",
                                      "brainmask", "CTAC", "MNI152_T1_2mm_brain", "PET_mask"])  # fmt: skip
    def test_usual_names_of_other_images_are_known(self, tmp_path, name):
        images = bids(tmp_path / "a", "patient1", name)
        assert [i.image.name for i in find_images([images]) if not i.left_out] == ["patient1.nii.gz"]

    def test_derivatives_and_source_data_of_a_bids_data_set_are_left_out(self, tmp_path):
        names = "sub-01/pet/sub-01_pet", "derivatives/p/sub-01/pet/sub-01_desc-mean_pet", "sourcedata/x_pet"
        root = bids(tmp_path, *names)
        assert not any(i.left_out for i in find_images([root]))
        (root / "dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.10.0"}')
        assert [i.left_out.split()[1] for i in find_images([root]) if i.left_out] == ["derivatives", "sourcedata"]
        assert not any(i.left_out for i in find_images([root / "derivatives"]))

    def test_of_two_series_in_a_folder_the_reading_says_so(self, tmp_path):
        pytest.importorskip("pydicom")
        for number, name in enumerate(("one/pet", "two/pet", "two/pet")):
            stored = (activity(number) * 1000).astype(np.int16)
            places = [(0, 0, 4.0 * k) for k in range(len(stored))]
            folder = dicom_series(tmp_path / "more", stored, places, kind="PT", SeriesInstanceUID=f"1.2.{number}")
            for file in folder.iterdir():
                (tmp_path / name).mkdir(parents=True, exist_ok=True)
                shutil.move(file, tmp_path / name / f"{number}{file.name}")
        _, outcomes = build(tmp_path, *find_images([tmp_path]))
        assert [o.status for o in outcomes] == ["used", "left out"]
        assert "holds 2 series" in outcomes[1].reason

    def test_whose_an_mr_is_must_be_told_and_pairs_are_listed(self, tmp_path, capsys):
        root = bids(tmp_path, "pet/s1", "pet/s10", "mr/s1_t1", "mr/s10_t1")
        words = ["data", "build", str(root / "pet"), "--out", str(tmp_path / "a.h5"), "--mr"]
        assert main([*words, str(root / "mr")]) == 2
        assert "holds 2 images, and nothing says whose each is" in capsys.readouterr().err
        assert main([*words, *(str(root / f"mr/{name}_t1.nii.gz") for name in ("s1", "s10"))]) == 0
        printed = capsys.readouterr().out
        assert "s10_t1.nii.gz" in printed
        assert "emission, with MR" in printed

    def test_a_sidecar_tells_the_modality(self, tmp_path):
        root = bids(tmp_path / "a", "first", "second")
        (root / "first.json").write_text('{"Modality": "MR"}')
        (root / "second.json").write_text('{"Modality": "PT"}')
        assert [bool(i.left_out) for i in find_images([root])] == [True, False]

    def test_participants_tsv_is_a_manifest(self, tmp_path):
        root = bids(tmp_path, "sub-01/pet/sub-01_pet", "sub-01/anat/sub-01_T1w", "sub-02/anat/sub-02_T1w")
        (root / "participants.tsv").write_text("participant_id\tage\tsplit\nsub-01\t60\ttest\n02\tn/a\tn/a\n")
        inputs = read_manifest(root / "participants.tsv")
        taken = [i for i in inputs if not i.left_out]
        assert taken == [ImageInput(root / "sub-01/pet/sub-01_pet.nii.gz", "sub-01", split="test")]
        assert inputs[-1] == ImageInput(root / "sub-02", "sub-02", left_out="no image *_pet of this participant")
        (root / "participants.tsv").write_text("participant_id\n../../etc\n")
        with pytest.raises(ValueError, match="participant_id must be"):
            read_manifest(root / "participants.tsv")

    def test_a_dry_run_lists_and_writes_nothing(self, tmp_path, capsys):
        root = bids(tmp_path / "bids", "sub-01/pet/sub-01_pet", "sub-01/anat/sub-01_T1w")
        assert main(["data", "build", str(root), "--out", str(tmp_path / "a.h5"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert "T1w by its name, not PET" in printed
        assert "sub-01_pet.nii.gz" in printed
        assert [p.name for p in tmp_path.iterdir()] == ["bids"]

    @pytest.mark.parametrize("ratio", [20, 40])
    def test_a_hot_object_takes_over_neither_the_scale_nor_the_crop(self, tmp_path, ratio):
        """A bladder, say: the body around it is kept, and the file tells of it."""
        grid = (np.indices((36, 40, 40)).transpose(1, 2, 3, 0) - 18) * 4.0
        body = (np.hypot(grid[..., 1], grid[..., 2]) < 60).astype(np.float32)
        scales = []
        for name, hot in (("plain", 1), ("hot", ratio)):
            image = np.where(np.linalg.norm(grid - (30, 0, 0), axis=-1) < 16, hot * body, body)
            (tmp_path / name).mkdir()
            out, outcomes = build(tmp_path / name, write_nifti(tmp_path / f"{name}.nii", image),
                                  options=ImageOptions((4.0,) * 3))  # fmt: skip
            info = VolumeFile(out).infos[0]
            scales.append((info.intensity_scale, info.shape))
        assert scales[0][1] == scales[1][1]
        assert scales[1][0] == pytest.approx(scales[0][0], rel=0.1)
        assert "a hot object" in outcomes[0].reason


class TestSubjectsAndSplits:
    def test_splits_are_by_subject_seeded_and_near_the_fractions_and_decided_ones_stay(self):
        subjects = [f"s{k // 3}" for k in range(90)]
        first = assign_splits(subjects, (0.8, 0.1, 0.1), seed=1)
        assert first == assign_splits(subjects[::-1], (0.8, 0.1, 0.1), seed=1)
        assert first != assign_splits(subjects, (0.8, 0.1, 0.1), seed=2)
        assert [list(first.values()).count(s) for s in ("train", "validation", "test")] == [24, 3, 3]
        fixed = {f"s{k}": "train" for k in range(8)}
        splits = assign_splits([f"s{k}" for k in range(10)], (0.8, 0.1, 0.1), 0, fixed)
        assert all(splits[s] == "train" for s in fixed)
        assert {splits["s8"], splits["s9"]} == {"validation", "test"}

    def test_images_of_one_subject_share_a_split(self, tmp_path):
        images = []
        for k in range(6):
            folder = tmp_path / f"sub-{k // 2:02d}" / f"ses-{k % 2}"
            folder.mkdir(parents=True)
            images.append(write_nifti(folder / "pet.nii.gz", activity(k)))
        assert find_images([tmp_path]) == [ImageInput(image) for image in images]
        out, _ = build(tmp_path, *images)
        infos = VolumeFile(out).infos
        assert len({i.subject for i in infos}) == 3
        assert len({(i.subject, i.split) for i in infos}) == 3
        assert {i.split for i in infos} == {"train", "validation", "test"}

    def test_manifest_in_both_forms(self, tmp_path):
        rows = [{"subject": "a", "image": "a.nii", "mr": "t1.nii", "split": "test"}, {"image": "b.nii"}]
        (tmp_path / "m.json").write_text(json.dumps(rows))
        with (tmp_path / "m.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["subject", "image", "mr", "split"])
            writer.writeheader()
            writer.writerows(rows)
        table = read_manifest(tmp_path / "m.csv")
        assert table == read_manifest(tmp_path / "m.json")
        assert table[0] == ImageInput(tmp_path / "a.nii", "a", tmp_path / "t1.nii", "MR", "test")
        assert table[1] == ImageInput(tmp_path / "b.nii")
        (tmp_path / "m.csv").write_text("\n" + (tmp_path / "m.csv").read_text())
        assert table == read_manifest(tmp_path / "m.csv")

    @pytest.mark.parametrize(("text", "words"), [
        ("subject,image\na,\n", "no 'image'"), ("image,pet\na,b\n", "unknown column 'pet'"),
        ("image,split\na.nii,dev\n", "split must be"), ("image,mr,ct\na,b,c\n", "both 'mr' and 'ct'"),
        ("subject,image,split\ns,a,train\ns,b,test\n", "both train and test"), ("", "no rows"),
        ("image,split\nsub-01/a_pet,train\nsub-01/b_pet,test\n", "'sub-01' is in both train and test"),
    ])  # fmt: skip
    def test_errors_in_a_manifest_are_named(self, tmp_path, text, words):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ValueError, match=words):
            read_manifest(tmp_path / "m.csv")

    def test_additions_with_the_key_know_subjects_and_duplicates(self, tmp_path, caplog):
        images = [write_nifti(tmp_path / f"{k}.nii.gz", activity(k)) for k in range(5)]
        key = bytes(32)
        inputs = [ImageInput(p, subject=f"s{k % 4}") for k, p in enumerate(images)]
        out, _ = build(tmp_path, *inputs[:4], key=key)
        before = {i.subject: i.split for i in VolumeFile(out).infos}
        outcomes = build_from_images([inputs[4], inputs[0]], out, NATIVE, add=True, key=key)
        infos = VolumeFile(out).infos
        assert [o.status for o in outcomes] == ["used", "left out"]
        assert len(infos) == 5
        assert {i.subject: i.split for i in infos} == before
        new = ImageInput(write_nifti(tmp_path / "5.nii.gz", activity(5)), subject="s1")
        for other in (None, bytes(31) + b"1"):
            with pytest.raises(ValueError, match="--add needs the --key"):
                build_from_images([new], out, NATIVE, add=True, key=other)
        there = before[next(i.subject for i in infos if i.data_sha256 == infos[1].data_sha256)]
        elsewhere = replace(new, split=next(split for split in SPLITS if split != there))
        with pytest.raises(ValueError, match="Correct the column 'split'"):
            build_from_images([elsewhere], out, NATIVE, add=True, key=key)
        with h5py.File(out, "r+") as file:
            del file.attrs["key_check"]  # as of files that were built before
        shutil.rmtree(tmp_path / "out.h5.parts")
        build_from_images([new], out, NATIVE, add=True, key=key)
        assert "does not tell the --key" in caplog.text

    def test_a_subjects_folder_is_found_from_within_and_not_above_the_data(self, tmp_path, monkeypatch):
        (tmp_path / "sub-01" / "ses-1" / "pet").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "sub-01" / "ses-1" / "pet")
        assert subject_of(ImageInput(Path("a.nii"))) == "sub-01"
        monkeypatch.chdir(tmp_path / "sub-01")
        bids(tmp_path / "sub-01", "visit1/scan")
        assert [subject_of(image) for image in find_images([Path()])] == ["sub-01"]
        monkeypatch.chdir(tmp_path)
        assert subject_of(ImageInput(Path("sub-01/ses-1/pet/sub-02_pet.nii"))) == "sub-02"
        (tmp_path / "sub-lab" / "images").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "sub-lab" / "images")
        assert subject_of(ImageInput(Path("p1.nii"))).startswith("image ")


def build_and_die(at, *arguments):
    """Builds from images, and is killed when so many data sets were about to be written."""
    create, calls = h5py.Group.create_dataset, []

    def create_or_die(*given, **others):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return create(*given, **others)

    h5py.Group.create_dataset = create_or_die
    main(["data", "build", "--voxel-size", "4", "--no-crop", "--out", *arguments])


def build_silently(build) -> None:
    build()


class TestInterruptions:
    @pytest.mark.parametrize(("at", "kept"), [(6, 2), (9, 4)], ids=["within a volume", "while putting together"])
    def test_a_killed_build_goes_on_and_ends_like_an_undisturbed_one(self, tmp_path, monkeypatch, at, kept):
        images = [write_nifti(tmp_path / f"{k}.nii.gz", activity(k)) for k in range(4)]
        killed = tmp_path / "killed.h5"
        code, _ = run(build_and_die, at, str(killed), *map(str, images), cwd=tmp_path)
        assert code == -signal.SIGKILL
        assert not killed.exists()
        with pytest.raises(VolumeFileError, match="unfinished build"):
            VolumeFile(killed)
        from sirf_diffusion.training.data import image_data

        taken = []
        original = image_data.take_in
        monkeypatch.setattr(image_data, "take_in", lambda source, *o: taken.append(source) or original(source, *o))
        build_from_images([ImageInput(p) for p in images], killed, NATIVE)
        assert len(taken) == len(images) - kept
        assert not (tmp_path / "killed.h5.parts").exists()
        whole, _ = build(tmp_path, *images)
        # subjects are hashed with other keys, so that splits may differ; the data do not
        digests = [[i.data_sha256 for i in VolumeFile(p).infos] for p in (killed, whole)]
        assert digests[0] == digests[1]

    def test_killed_at_any_renaming_or_removal_the_same_build_ends_alike(self, tmp_path):
        path = write_nifti(tmp_path / "a.nii.gz", activity())
        whole, _ = build(tmp_path, path, key=bytes(32))
        content, kills, known = whole.read_bytes(), 0, 0
        whole.unlink()
        again = partial(build, tmp_path, path, key=bytes(32))
        events = ("os.rename", "os.remove", "os.rmdir")
        while exit_code(partial(build_silently, again), DieAt(kills, events, tmp_path)) != 0:
            if (tmp_path / "out.h5.parts" / "assembled.json").exists() and whole.exists():
                other = write_nifti(tmp_path / "b.nii.gz", activity(1))
                with pytest.raises(ValueError, match="exists: --add"):
                    build(tmp_path, other, key=bytes(32))
            outcomes = None
            with suppress(ValueError):  # "exists": nothing tells any more that the file was made by this very command
                outcomes = again()[1]
            if outcomes is not None:
                known += [outcome.status for outcome in outcomes] == ["used"]
                assert not (tmp_path / "out.h5.parts").exists()
            assert whole.read_bytes() == content
            whole.unlink()
            shutil.rmtree(tmp_path / "out.h5.parts", ignore_errors=True)
            kills += 1
        assert kills > 8
        assert known >= kills - 3

    def test_a_data_file_that_changed_since_is_read_again(self, tmp_path, monkeypatch):
        x = activity()
        geometry, plain = ImageGeometry(x.shape, (VOXEL,) * 3), torch.from_numpy(x.copy())
        write_image(tmp_path / "a.hv", plain, geometry)
        self._stopped(tmp_path, tmp_path / "a.hv", monkeypatch)
        (2 * np.fromfile(tmp_path / "a.v", "f4")).tofile(tmp_path / "a.v")
        out, _ = build(tmp_path, tmp_path / "a.hv")
        assert VolumeFile(out).infos[0].intensity_scale == pytest.approx(2 * intensity_scale(plain, geometry), rel=1e-3)

    def test_inputs_are_looked_at_anew_after_a_build_that_found_nothing(self, tmp_path):
        with pytest.raises(NothingUsable):
            build(tmp_path, tmp_path / "a.nii.gz")
        assert list(tmp_path.iterdir()) == []
        assert_kept(build(tmp_path, write_nifti(tmp_path / "a.nii.gz", activity()))[0])

    def _stopped(self, tmp_path, path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(PartStore, "assemble", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                build(tmp_path, path)

    def test_parts_of_other_settings_and_existing_files_are_not_touched(self, tmp_path, monkeypatch):
        path = write_nifti(tmp_path / "a.nii.gz", activity())
        self._stopped(tmp_path, path, monkeypatch)
        with pytest.raises(ValueError, match="made with other settings: voxel_size"):
            build(tmp_path, path, options=ImageOptions((3.0,) * 3, None))
        out, _ = build(tmp_path, path)
        with pytest.raises(ValueError, match="--overwrite"):
            build(tmp_path, path)
        assert len(VolumeFile(out)) == 1
        out.unlink()
        self._stopped(tmp_path, path, monkeypatch)
        build(tmp_path, path, options=ImageOptions((3.0,) * 3, None), restart=True)


class TestReadingAFile:
    def test_damage_is_noticed(self, tmp_path):
        out, _ = build(tmp_path, write_nifti(tmp_path / "a.nii.gz", activity()))
        with h5py.File(out) as file:
            dataset = file["volumes/00000/emission"]
            where = dataset.id.get_chunk_info(0)
        content = bytearray(out.read_bytes())
        content[where.byte_offset + where.size // 2] ^= 0xFF
        out.write_bytes(content)
        with pytest.raises(VolumeFileError, match="damaged"):
            VolumeFile(out).volume(0)
        out.write_bytes(content[: len(content) // 2])
        with pytest.raises(VolumeFileError, match="incomplete or damaged"):
            VolumeFile(out)

    def test_a_split_without_volumes_is_refused(self, tmp_path):
        out, _ = build(tmp_path, write_nifti(tmp_path / "a.nii.gz", activity()))
        with pytest.raises(VolumeFileError, match="no volumes in split 'test'"):
            VolumeFile(out, "test")


def test_commands_build_and_show(tmp_path, capsys):
    for k in range(3):
        write_nifti(tmp_path / f"pet{k}.nii.gz", activity(k))
        write_nifti(tmp_path / f"t1{k}.nii.gz", 100 * activity(k))
    (tmp_path / "broken.nii").write_bytes(b"x")
    pets, mrs = ([str(tmp_path / f"{stem}{k}.nii.gz") for k in range(3)] for stem in ("pet", "t1"))
    out = str(tmp_path / "train.h5")
    assert main(["data", "build", "--out", out, *pets, str(tmp_path / "broken.nii"), "--voxel-size", "4",
                 "--mr", *mrs, str(tmp_path / "broken.nii"), "--tracer", "[18F]FDG"]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "broken.nii" in printed
    assert "3 volumes" in printed
    assert main(["data", "show", out]) == 0
    printed = capsys.readouterr().out
    assert "1 inputs were left out" in printed
    assert "[18F]FDG" in printed
    assert (tmp_path / "train.png").stat().st_size > 10_000
    assert main(["data", "build", "--out", out, *pets]) == 2
    assert main(["data", "build", "--out", str(tmp_path / "x.h5"), *pets, "--mr", mrs[0]]) == 2
    assert "3 images and 1 MR images" in capsys.readouterr().err
    assert Path(out).exists()
