"""Images in, enhanced images out: the command, its formats, patches and chains, and the filters of STIR and SIRF."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from patient_images import SHAPE, activity, dicom_series, write_dicom, write_interfile, write_nifti
from test_enhancement_model import EXACT, LATENT, VOLUMES, seeded

from sirf_diffusion.cli import main
from sirf_diffusion.files.interfile import read_exam_info, read_image
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models.doses import DoseSchedule
from sirf_diffusion.models.enhancement import EnhancementModel, EnhancementModelConfig, LowDoseConfig
from sirf_diffusion.models.intensity import intensity_scale
from sirf_diffusion.models.latent import EnhancementConfig
from sirf_diffusion.patient.derived import OriginalImage
from sirf_diffusion.reconstructors.enhancement import Enhancer, image_filter

TABLE = ((1.0, 0.01), (0.25, 0.1), (0.02, 1.0))
PLAIN = replace(EXACT, ct="none")
pytestmark = pytest.mark.usefixtures("undrawn")


def make_model(architecture: EnhancementConfig = PLAIN, size=(4.0, 4.0, 4.0), changed: float = 0.02):
    torch.manual_seed(0)
    config = EnhancementModelConfig(
        architecture, DoseSchedule(), LowDoseConfig(), size, noise_by_dose=TABLE, licence="Apache-2.0"
    )
    model = EnhancementModel(config).eval().requires_grad_(False)
    for parameter in model.network.parameters():
        parameter.add_(changed * torch.randn(parameter.shape, generator=seeded()))
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models with and without CT, and one image in three formats."""
    folder = tmp_path_factory.mktemp("enhance")
    make_model().save(folder / "plain.safetensors")
    make_model(EXACT).save(folder / "ct.safetensors")
    stir = activity()
    write_interfile(folder / "pet.hv", stir, ("head_in", "supine"))
    write_nifti(folder / "pet.nii.gz", stir)
    write_nifti(folder / "psl.nii", stir, "PSL")
    write_dicom(folder / "dicom", stir)
    write_nifti(folder / "ct.nii.gz", 1000 * (activity(1) > 0.5) - 1000.0)
    return folder


def enhance(files, image, out, *options, model="plain"):
    return main(
        ["enhance", str(files / image), "--model", str(files / f"{model}.safetensors"), "--out", str(out), *options,
         "--device", "cpu"]
    )  # fmt: skip


@pytest.mark.draws
@pytest.mark.parametrize("image", ["pet.hv", "pet.nii.gz", "psl.nii", "dicom"])
def test_the_result_has_the_format_and_place_of_the_image(files, tmp_path, image):
    assert enhance(files, image, tmp_path / "out", "--dose-ratio", "0.1") == 0
    before = OriginalImage.read(files / image)
    after = OriginalImage.read(tmp_path / "out" / before.name("enhanced"))
    assert after.source.kind == before.source.kind
    np.testing.assert_allclose(after.source.affine, before.source.affine, atol=1e-4)
    assert after.source.position == before.source.position
    stir = OriginalImage.read(files / "pet.hv")
    torch.testing.assert_close(before.values, stir.values, rtol=1e-3, atol=1e-3)
    model = EnhancementModel.load(files / "plain.safetensors", "cpu")
    expected = Enhancer(model, 0.1)(stir.values, stir.geometry)
    assert float((after.values - expected).abs().max()) < 2e-3 * float(expected.max())
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert (record["dose_ratio"], record["dose_ratio_from"], record["format"]) == (0.1, "given", before.source.kind)
    for name in ("report.png", "references.bib"):
        assert (tmp_path / "out" / name).stat().st_size > 100


@pytest.mark.parametrize(("image", "named"), [("pet.hv", "both"), ("dicom", "nifti"), ("psl.nii", "both")])
def test_nifti_of_any_format_lies_where_the_image_does(files, tmp_path, image, named):
    assert enhance(files, image, tmp_path / "out", "--dose-ratio", "0.1", "--format", named) == 0
    before, after = OriginalImage.read(files / image), OriginalImage.read(tmp_path / "out/enhanced.nii.gz")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-4)
    expected = Enhancer(EnhancementModel.load(files / "plain.safetensors", "cpu"), 0.1)(before.values, before.geometry)
    torch.testing.assert_close(after.values, expected, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "out" / before.name("enhanced")).exists() == (named == "both")


def test_an_interfile_image_becomes_dicom_of_a_study(files, tmp_path, capsys):
    import pydicom

    assert enhance(files, "pet.hv", tmp_path / "out", "--dose-ratio", "0.1", "--like", str(files / "dicom")) == 0
    before, after = OriginalImage.read(tmp_path / "out/enhanced.hv"), OriginalImage.read(tmp_path / "out/dicom")
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-3)
    assert float((after.values - before.values).abs().max()) < 1e-3 * float(before.values.max())
    file = pydicom.dcmread(tmp_path / "out/dicom/00001.dcm")
    assert list(file.ImageType) == ["DERIVED", "PRIMARY"]
    assert "sirf-diffusion" in file.DerivationDescription
    assert enhance(files, "pet.nii.gz", tmp_path / "no", "--like", str(files / "dicom")) == 2
    assert "--like is for Interfile" in capsys.readouterr().err


@pytest.mark.parametrize("position", [("head_in", "prone"), ("feet_in", "supine")])
def test_the_network_sees_patients_as_in_training_however_they_lay(tmp_path, position):
    from sirf_diffusion.patient import PatientGrid, resample
    from sirf_diffusion.patient.readers import read_source

    path = tmp_path / "pet.hv"
    write_interfile(path, activity(), position)
    original = OriginalImage.read(path)
    grid = PatientGrid(SHAPE, (4.0,) * 3, tuple(original.affine[:3, 3]))
    np.testing.assert_array_equal(original.values.numpy(), resample(read_source(path), grid))
    original.write(tmp_path / "again.hv", original.values, "")
    assert torch.equal(read_image(tmp_path / "again.hv")[0], read_image(path)[0])
    assert read_exam_info(tmp_path / "again.hv") == read_exam_info(path)


@pytest.fixture(scope="module")
def neighbours():
    return make_model(replace(PLAIN, neighbours=1))


def test_a_network_is_shown_the_neighbours_of_each_slice(neighbours):
    """Only of it: planes are not averaged before; images of other planes are resampled along the axis, too."""
    torch.manual_seed(0)
    image, geometry = torch.rand(6, 32, 32), ImageGeometry((6, 32, 32), (4.0,) * 3)
    enhancer = Enhancer(neighbours, 0.1, scale=1.0)
    assert enhancer.axial_fwhm == 0
    clean, changed = enhancer(image, geometry), image.clone()
    changed[4] += 1
    differs = (enhancer(changed, geometry) - clean).abs().amax((1, 2)) > 0
    assert differs.tolist() == [False, False, False, True, True, True]
    for plane, shown in ((2, (1, 2, 3)), (0, (1, 0, 1))):
        stack = image[list(shown)][None]
        torch.testing.assert_close(neighbours.clean(stack[..., :16, :16], 0.1, None).shape, (1, 1, 16, 16))
        whole = enhancer.estimate(image[:, None], 0.1, None)[plane, 0, 4, 4]
        torch.testing.assert_close(whole, neighbours.clean(stack[..., :16, :16], 0.1, None)[0, 0, 4, 4])
    fine = ImageGeometry((12, 32, 32), (2.0, 4.0, 4.0))
    assert neighbours.grid(fine).latent_geometry.voxel_size == (4.0, 4.0, 4.0)
    assert neighbours.grid(geometry).latent_geometry.shape == (6, 32, 32)


def test_a_single_slice_has_no_neighbours_which_is_said(neighbours, caplog):
    geometry = ImageGeometry((1, 32, 32), (4.0,) * 3)
    assert Enhancer(neighbours, 0.1, scale=1.0)(torch.rand(1, 32, 32), geometry).shape == (1, 32, 32)
    assert "trained with neighbouring slices" in caplog.text


def test_files_from_before_neighbours_were_shown_load(neighbours):
    content = neighbours.config.architecture.to_dict()
    assert EnhancementConfig.from_dict(content).neighbours == 1
    assert EnhancementConfig.from_dict({k: v for k, v in content.items() if k != "neighbours"}).neighbours == 0
    for network, compression in ((VOLUMES, 1), (PLAIN.network, 2)):
        with pytest.raises(ValueError, match="neighbours"):
            EnhancementConfig(network, "none", "sinogram", compression, patch=16, neighbours=1)


def test_one_time_frame_of_several_is_written_alone(tmp_path):
    import nibabel

    write_nifti(tmp_path / "one.nii", activity())
    one = nibabel.load(tmp_path / "one.nii")
    both = np.stack([one.get_fdata(), 2 * one.get_fdata()], -1).astype(np.float32)
    dynamic = nibabel.Nifti1Image(both, one.affine)
    dynamic.header["toffset"], dynamic.header["pixdim"][4] = 10, 60
    nibabel.save(dynamic, tmp_path / "two.nii")
    original = OriginalImage.read(f"{tmp_path}/two.nii#2")
    original.write(tmp_path / "again.nii.gz", original.values, "")
    again = nibabel.load(tmp_path / "again.nii.gz")
    np.testing.assert_allclose(again.get_fdata(), both[..., 1], rtol=1e-6)
    np.testing.assert_allclose(again.affine, one.affine)
    assert (float(again.header["toffset"]), float(again.header["pixdim"][4])) == (70, 60)


def test_dicom_keeps_units_position_and_time_frame(tmp_path):
    import pydicom

    told = {"Units": "BQML", "PatientPosition": "HFS", "ActualFrameDuration": 120000, "FrameReferenceTime": 5.0,
            "FrameOfReferenceUID": "1.2.3", "AcquisitionTime": "101500", "DecayCorrection": "START"}  # fmt: skip
    stored = (1000 * activity()).astype(np.int16)
    mapping = pydicom.Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 2.0, 0.0
    stale = {"RealWorldValueMappingSequence": [mapping], "LargestPixelValueInSeries": 999, "LargestImagePixelValue": 9}
    dicom_series(tmp_path / "in", stored, [(0, 0, 4.0 * k) for k in range(len(stored))], **told, **stale)
    original = OriginalImage.read(tmp_path / "in")
    original.write(tmp_path / "out", 3 * original.values, "three times")
    assert float((OriginalImage.read(tmp_path / "out").values - 3 * original.values).abs().max()) < 1
    before, after = ([pydicom.dcmread(f) for f in sorted((tmp_path / name).iterdir())] for name in ("in", "out"))
    assert len({f.SOPInstanceUID for f in before + after}) == 2 * len(before)
    assert {f.SeriesInstanceUID for f in after}.isdisjoint({f.SeriesInstanceUID for f in before})
    for file in after:
        assert {name: file[name].value for name in told} == told
        assert file.ImageType[0] == "DERIVED"
        assert not set(stale) & set(file.dir())
        assert file.PatientID == before[0].PatientID


def test_dicom_files_named_by_their_uids_stay_apart_and_enhanced_ones_are_refused(tmp_path):
    import pydicom

    stored = (1000 * activity()).astype(np.int16)
    dicom_series(tmp_path / "in", stored, [(0, 0, 4.0 * k) for k in range(len(stored))])
    for k, file in enumerate(sorted((tmp_path / "in").iterdir())):
        file.rename(tmp_path / "in" / f"PT.1.2.840.{k}")
    original = OriginalImage.read(tmp_path / "in")
    original.write(tmp_path / "out", original.values, "")
    again = OriginalImage.read(tmp_path / "out").values
    torch.testing.assert_close(again, original.values, rtol=1e-3, atol=0.5)
    for file in (tmp_path / "in").iterdir():
        header, group, macro = pydicom.dcmread(file), pydicom.Dataset(), pydicom.Dataset()
        macro.RescaleSlope, macro.RescaleIntercept = 0.5, 0
        group.PixelValueTransformationSequence = [macro]
        header.SharedFunctionalGroupsSequence = [group]
        header.save_as(file)
    enhanced = OriginalImage.read(tmp_path / "in")
    with pytest.raises(ValueError, match=r"enhanced DICOM .* ask for NIfTI"):
        enhanced.check_writer()
    enhanced.convert(tmp_path / "out.nii.gz", enhanced.values)
    torch.testing.assert_close(OriginalImage.read(tmp_path / "out.nii.gz").values, enhanced.values)


def test_one_time_frame_of_a_dicom_series_is_written_alone(tmp_path):
    import pydicom

    stored, number = (1000 * activity()).astype(np.int16), len(activity())
    places = [(0, 0, 4.0 * (k % number)) for k in range(2 * number)]

    def change(k, tags):
        tags["FrameReferenceTime"] = 1000.0 * (1 + k // number)

    dicom_series(tmp_path / "in", np.concatenate([stored, 2 * stored]), places, change)
    second = OriginalImage.read(f"{tmp_path}/in#2")
    second.check_writer()
    second.write(tmp_path / "out", second.values, "")
    torch.testing.assert_close(OriginalImage.read(tmp_path / "out").values, second.values, rtol=1e-3, atol=0.5)
    assert {pydicom.dcmread(file).FrameReferenceTime for file in (tmp_path / "out").iterdir()} == {2000}


def test_a_ct_image_of_another_grid_is_resampled_and_said(files, tmp_path, capsys):
    write_nifti(tmp_path / "coarse.nii.gz", 1000.0 * (activity(1)[::2, ::2, ::2] > 0.5) - 1000, voxel=8.0)
    assert enhance(files, "pet.nii.gz", tmp_path / "a", "--ct", str(files / "ct.nii.gz"), model="ct") == 0
    assert "resampled" not in capsys.readouterr().out
    assert enhance(files, "psl.nii", tmp_path / "b", "--ct", str(tmp_path / "coarse.nii.gz"), model="ct") == 0
    assert "the CT image was resampled: {'shape': [" in capsys.readouterr().out
    records = [json.loads((tmp_path / name / "record.json").read_text())["ct"] for name in "ab"]
    assert [record["resampled"] for record in records] == [False, True]


@pytest.mark.parametrize(("model", "options", "words"), [
    ("ct", (), "trained with CT images: give one"), ("plain", ("--ct", "CT"), "trained without CT images"),
    ("plain", ("--dose-ratio", "2"), "dose-ratio"), ("plain", ("--steps", "0"), "steps"),
    ("plain", ("--steps", "1", "--samples", "2"), "they would be alike"),
    ("brain", (), "not an enhancement model"),
])  # fmt: skip
def test_what_does_not_suit_is_one_line(files, tmp_path, capsys, model, options, words):
    options = [str(files / "ct.nii.gz") if word == "CT" else word for word in options]
    name = model if model == "brain" else str(files / f"{model}.safetensors")
    try:
        code = main(["enhance", str(files / "pet.hv"), "--model", name, "--out", str(tmp_path / "o"), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_ct_model_does_without_if_it_is_told(files, tmp_path, caplog):
    assert enhance(files, "pet.hv", tmp_path / "o", "--without-ct", model="ct") == 0
    assert "without the CT image" in caplog.text


def test_a_series_of_another_modality_is_refused_and_another_patients_ct_told(files, tmp_path, capsys, caplog):
    import pydicom

    ct = write_dicom(tmp_path / "ct", activity(1), modality="CT")
    mr = write_dicom(tmp_path / "mr", activity(1), modality="MR")
    assert enhance(files, mr, tmp_path / "o", "--without-ct", model="ct") == 2
    assert "DICOM of modality MR, not PT" in capsys.readouterr().err
    assert enhance(files, "dicom", tmp_path / "o", "--ct", str(mr), model="ct") == 2
    assert "mr is of modality MR" in capsys.readouterr().err
    for name, same in (("A", True), ("B", False)):
        if not same:
            for file in ct.iterdir():
                header = pydicom.dcmread(file)
                header.PatientID = name
                header.save_as(file)
        assert enhance(files, "dicom", tmp_path / name, "--ct", str(ct), model="ct") == 0
        assert json.loads((tmp_path / name / "record.json").read_text())["ct"]["same_patient_id"] is same
        assert ("different patients by PatientID" in caplog.text) is not same


def test_a_map_of_attenuation_is_no_ct(files, tmp_path, caplog):
    mu = write_nifti(tmp_path / "mu.nii.gz", 0.096 * (activity(1) > 0.5))
    for ct, said in ((mu, True), (files / "ct.nii.gz", False)):
        caplog.clear()
        assert enhance(files, "pet.hv", tmp_path / f"out-{said}", "--ct", str(ct), model="ct") == 0
        assert ("values of at most 0.096, like a map of attenuation" in caplog.text) is said
        assert json.loads((tmp_path / f"out-{said}/record.json").read_text())["ct"]["same_patient_id"] is None


def test_another_image_of_the_same_name_is_another_result(files, tmp_path, capsys):
    image = write_nifti(tmp_path / "pet.nii.gz", activity())
    assert enhance(files, image, tmp_path / "o") == 0
    assert enhance(files, image, tmp_path / "o") == 0
    write_nifti(image, activity(2))
    assert enhance(files, image, tmp_path / "o") == 2
    assert "holds another result: contents.image differ" in capsys.readouterr().err


def test_a_ct_image_elsewhere_is_refused(files, tmp_path, capsys):
    import nibabel

    moved = nibabel.load(files / "ct.nii.gz")
    affine = moved.affine.copy()
    affine[2, 3] += 500
    nibabel.save(nibabel.Nifti1Image(moved.get_fdata().astype(np.float32), affine), tmp_path / "ct.nii.gz")
    assert enhance(files, "pet.nii.gz", tmp_path / "o", "--ct", str(tmp_path / "ct.nii.gz"), model="ct") == 2
    assert "only 0% in common" in capsys.readouterr().err


@pytest.mark.parametrize("image", ["feet.hv", "psl.nii", "dicom"])
def test_samples_lie_as_the_image_beside_them(files, tmp_path, image):
    write_interfile(files / "feet.hv", activity(), ("feet_in", "supine"))
    assert enhance(files, image, tmp_path / "out", "--samples", "2", "--steps", "2", "--dose-ratio", "0.1") == 0
    written = OriginalImage.read(tmp_path / "out" / OriginalImage.read(files / image).name("enhanced")).source
    with h5py.File(tmp_path / "out/samples.h5") as file:
        data = file["samples"]
        mean, about = data[:].mean(0), dict(data.attrs)
    np.testing.assert_allclose(mean, written.values, atol=2e-3 * float(written.values.max()))
    if image == "feet.hv":
        assert list(about["patient_position"]) == ["feet_in", "supine"]
        assert about["origin_mm"].tolist() == list(read_image(files / image)[1].origin)
    else:
        np.testing.assert_allclose(about["affine_lps_mm"], written.affine, atol=1e-3)


def test_samples_come_with_their_standard_deviation_and_a_stopped_run_goes_on(files, tmp_path, monkeypatch):
    options = ("--samples", "3", "--steps", "2", "--dose-ratio", "0.1")
    assert enhance(files, "pet.hv", tmp_path / "whole", *options) == 0
    chain, calls = Enhancer._chain, []

    def stopping(self, *arguments):
        calls.append(arguments[-1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return chain(self, *arguments)

    monkeypatch.setattr(Enhancer, "_chain", stopping)
    assert enhance(files, "pet.hv", tmp_path / "stopped", *options) == 130
    assert not (tmp_path / "stopped/record.json").exists()
    assert enhance(files, "pet.hv", tmp_path / "stopped", *options) == 0
    assert calls == [0, 1, 2, 2]
    for name in ("enhanced.v", "uncertainty.v"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert float(read_image(tmp_path / "whole/uncertainty.hv")[0].max()) > 0
    assert enhance(files, "pet.hv", tmp_path / "whole", *options, "--seed", "1") == 2


@pytest.mark.parametrize("architecture", [PLAIN, replace(LATENT, ct="none")], ids=["slices", "volumes"])
def test_patches_together_are_patches_one_by_one_and_leave_no_seams(architecture):
    model = make_model(architecture, changed=0.01)
    enhancer = Enhancer(model, 0.1)
    shape = (2, 1, 40, 48) if architecture.spatial_dims == 2 else (1, 1, 24, 32, 40)
    ramp = torch.linspace(0.5, 1.5, shape[-1]).expand(shape).contiguous()
    together, alone = (enhancer.estimate(ramp, 0.1, None, n) for n in (8, 1))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    flat = torch.ones(shape)
    # Away from the image's own edge a flat image stays flat: what varies is the network's own edges, and seams.
    model = make_model(architecture, changed=0.0)
    same = Enhancer(model, 0.1).estimate(flat, 0.1, None)
    if architecture.compression == 1:
        assert float((same - flat).abs().max()) < 5e-3


def test_one_step_from_the_standard_dose_or_many_keep_the_scale():
    model, image = make_model(), torch.from_numpy(activity())
    geometry = ImageGeometry(SHAPE, (4.0,) * 3)
    once, scaled = (Enhancer(model, 0.1)(factor * image, geometry) for factor in (1.0, 1000.0))
    torch.testing.assert_close(scaled, 1000 * once, rtol=1e-3, atol=1e-2)
    result = Enhancer(model, 0.1, num_steps=4).enhance(image, geometry)
    assert result.dose == 0.1
    _, gain = Enhancer(model, 0.1)._with_neighbours(image, geometry)
    assert result.start_step == DoseSchedule().step_of(0.1 * gain)
    assert result.intensity_scale == pytest.approx(intensity_scale(image, geometry))


@pytest.mark.parametrize("spacing", [4.0, 2.0])
def test_neighbouring_planes_lend_a_slice_their_counts(spacing):
    """The variance of white noise falls by the gain in dose; a plane of half the width has half the counts."""
    geometry, noise = ImageGeometry((60, 16, 16), (spacing, 4.0, 4.0)), torch.randn(60, 16, 16, generator=seeded())
    for width in (0.0, 6.0):
        smooth, gain = Enhancer(make_model(), axial_fwhm=width)._with_neighbours(noise, geometry)
        less = float(noise[6:-6].var() / smooth[6:-6].var())
        assert gain == pytest.approx(less * spacing / 4, rel=0.1)
    volumes = Enhancer(make_model(replace(LATENT, ct="none")))
    assert volumes._with_neighbours(noise, geometry)[1] == 1
    assert volumes._with_neighbours(noise, geometry)[0] is noise


def test_a_chain_adds_the_counts_that_are_missing(monkeypatch):
    """With an estimator that knows the truth, the image of the last step has the weight of its own counts."""
    model, geometry = make_model(), ImageGeometry((1, 16, 16), (4.0,) * 3)
    truth, image, seen = torch.full((1, 1, 16, 16), 2.0), torch.full((1, 16, 16), 1.0), []
    monkeypatch.setattr(Enhancer, "estimate", lambda self, batch, dose, ct: seen.append((batch, dose)) or truth)
    Enhancer(model, 0.1, num_steps=3, scale=1.0)(image, geometry)
    assert [dose for _, dose in seen] == sorted(dose for _, dose in seen)
    for batch, dose in seen:
        share = DoseSchedule().dose(DoseSchedule().step_of(0.1)) / dose
        torch.testing.assert_close(batch, share * image[None] + (1 - share) * truth)


def test_the_dose_is_estimated_and_said(files, tmp_path, capsys):
    assert enhance(files, "pet.hv", tmp_path / "o") == 0
    assert "of the standard (noise of the image)" in capsys.readouterr().out
    assert json.loads((tmp_path / "o/record.json").read_text())["dose_ratio_from"] == "noise of the image"


def test_memory_is_bounded_by_patches(monkeypatch):
    """The network never sees more voxels at once than its share, whatever the image."""
    from sirf_diffusion.reconstructors import enhancement

    monkeypatch.setattr(enhancement, "_VOXELS_AT_ONCE", 2 * 16**3)
    model, sizes = make_model(replace(LATENT, ct="none", compression=1, network=VOLUMES)), []
    clean = EnhancementModel.clean
    monkeypatch.setattr(EnhancementModel, "clean", lambda self, x, *a: sizes.append(x.numel()) or clean(self, x, *a))
    Enhancer(model, 0.1).estimate(torch.ones(1, 1, 40, 40, 40), 0.1, None)
    assert max(sizes) <= 2 * 16**3


class TestFilters:
    def test_a_model_file_says_which_filter_it_is_for(self, files):
        from sirf_diffusion.models.denoiser import Denoiser

        path = files / "plain.safetensors"
        assert isinstance(image_filter("brain", "cpu"), Denoiser)
        assert isinstance(image_filter(path, "cpu", dose_ratio=0.1), Enhancer)
        wrong = (("brain", {"dose_ratio": 0.1}, "score model"), (path, {"noise_level": 0.3}, "noise"))
        for name, options, words in (*wrong, (path, {"planes": "three"}, "planes")):
            with pytest.raises(ValueError, match=words):
                image_filter(name, "cpu", **options)

    def test_stirs_block_takes_an_enhancement_model(self, files):
        from sirf_diffusion.interop.stir.blocks import block_of
        from sirf_diffusion.interop.stir.filters import DenoiserCallback

        block = block_of("data processor", "Diffusion Denoiser")
        options = {"model filename": str(files / "ct.safetensors"), "dose ratio": "0.1", "device": "cpu",
                   "anatomical image filename": str(files / "ct.nii.gz")}  # fmt: skip
        original = OriginalImage.read(files / "pet.hv")
        geometry = read_image(files / "pet.hv")[1]
        callback = DenoiserCallback.of(block.values(options))
        callback.set_up(geometry)
        image = original.values.numpy().copy()
        callback.apply(image)
        model = EnhancementModel.load(files / "ct.safetensors", "cpu").guided_by(files / "ct.nii.gz")
        expected = Enhancer(model, 0.1)(original.values, geometry)
        torch.testing.assert_close(torch.from_numpy(image), expected)
        assert not np.array_equal(image, original.values.numpy())

    def test_sirfs_processor_takes_an_enhancement_model(self, files):
        from sirf_diffusion.interop import get_engine

        pet = get_engine("embedded")
        image = pet.ImageData(str(files / "pet.hv"))
        processor = pet.ScoreImageProcessor(str(files / "plain.safetensors"), dose_ratio=0.1, device="cpu")
        result = processor.process(image)
        model = EnhancementModel.load(files / "plain.safetensors", "cpu")
        expected = Enhancer(model, 0.1)(torch.from_numpy(image.as_array()), read_image(files / "pet.hv")[1])
        np.testing.assert_allclose(result.as_array(), expected.numpy(), rtol=1e-5, atol=1e-6)
        assert processor.get_dose_ratio() == 0.1
        with pytest.raises(Exception, match="dose ratio, not a noise level"):
            processor.set_noise_level(0.3)
