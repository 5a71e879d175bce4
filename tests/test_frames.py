"""One time frame of a file that has several, chosen by its name, from every reader and in every command."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interfile_files import NUM_BINS, replace_in, write_image_files, write_projdata_files
from patient_images import SHAPE, VOXEL, activity, dicom_series, write_ecat
from small_scan import write_small_scan

from sirf_diffusion.cli import build_parser, main
from sirf_diffusion.cli.recon import _contents
from sirf_diffusion.files.interfile import InterfileError, read_exam_info, read_image, read_projection_data, write_image
from sirf_diffusion.patient import UnusableImage, read_source
from sirf_diffusion.training.data.image_data import ImageOptions, build_from_images
from sirf_diffusion.training.data.manifest import find_images
from sirf_diffusion.training.data.volume_file import VolumeFile

pytestmark = pytest.mark.usefixtures("undrawn")
FRAMES = np.random.default_rng(3).integers(1, 30000, (3, 4, 6, 5)).astype(">i2")  # [t, z, y, x]
TIMES = "number of time frames := 3\n" + "".join(
    f"image duration (sec)[{k}] := {60 * k}\nimage relative start time (sec)[{k}] := {100 * k}\n" for k in (1, 2, 3)
)
TWO_TIMES = TIMES.replace(":= 3", ":= 2", 1).partition("image duration (sec)[3]")[0]


def interfile(folder):
    """Stored last first, each with a factor of its own."""
    header = write_image_files(folder, FRAMES[::-1, :3, :4].astype("f4"))
    places = "".join(
        f"data offset in bytes[{k}] := {(3 - k) * 240}\nimage scaling factor[{k}] := {k}\n" for k in (1, 2, 3)
    )
    text = re.sub(r"number of time frames(.|\n)*?(?=!END)", "", header.read_text())
    header.write_text(text.replace("!END", TIMES + places + "!END"))
    return header, [k * frame[:3, :4] for k, frame in enumerate(FRAMES.astype("f4"), start=1)]


def nifti(folder):
    nibabel = pytest.importorskip("nibabel")
    array = FRAMES.astype("f4").transpose(3, 2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), folder / "a.nii.gz")
    return folder / "a.nii.gz", list(np.moveaxis(array, -1, 0))


def ecat(folder):
    pytest.importorskip("nibabel")
    return write_ecat(folder / "a.v", list(FRAMES)), [frame.transpose(2, 1, 0) for frame in FRAMES]


def dicom(folder, names=("FrameReferenceTime",)):
    """Each place three times, in no order; times are numbers, or words of equal length."""
    pytest.importorskip("pydicom")

    def change(k, tags):
        tags |= dict.fromkeys(names, f"0{k // 4 + 1}0000")

    positions = [(0, 0, 4 * z) for _ in FRAMES for z in range(4)]
    dicom_series(folder / "s", FRAMES.reshape(12, 6, 5).astype("u2"), positions, change)
    return folder / "s", list(FRAMES)


def dicom_by_acquisition(folder):
    return dicom(folder, ("AcquisitionTime",))


@pytest.mark.parametrize("kind", [interfile, nifti, ecat, dicom, dicom_by_acquisition])
def test_a_frame_is_chosen_by_its_name_from_every_format(tmp_path, kind):
    path, frames = kind(tmp_path)
    for number, expected in enumerate(frames, start=1):
        np.testing.assert_allclose(read_source(f"{path}#{number}").values, expected, rtol=1e-6)
    for name, words in ((path, r"time frames?.*#1"), (f"{path}#4", "#4 was asked for, of 3"), (f"{path}#0", "count")):
        with pytest.raises(UnusableImage, match=words):
            read_source(name)
    assert not Path(f"{path}#1").exists()


def test_a_file_whose_name_ends_so_is_itself(tmp_path):
    header, frames = interfile(tmp_path)
    shutil.copy(header, tmp_path / "b.hv#2")
    np.testing.assert_allclose(read_image(f"{tmp_path}/b.hv#2#3")[0], frames[2])
    with pytest.raises(InterfileError, match="3 time frames: choose one"):
        read_image(tmp_path / "b.hv#2")


def test_slices_that_no_time_tells_apart_are_refused_by_name(tmp_path):
    path, _ = dicom(tmp_path, ("SeriesTime",))
    with pytest.raises(UnusableImage, match=r"4 places have 3 to 3 slices.*FrameReferenceTime"):
        read_source(f"{path}#2")


def dynamic_prompts(folder, offsets="", factors=""):
    values = np.arange(3 * NUM_BINS) % 1000
    header = write_projdata_files(folder, values)
    text = re.sub(r"number of time frames := 1\n(image .*\n)*", TIMES + offsets + factors, header.read_text())
    header.write_text(text)
    return header, values.reshape(3, NUM_BINS)


def test_frames_of_projection_data_follow_each_other_unless_told_otherwise(tmp_path):
    header, values = dynamic_prompts(tmp_path)
    size = 4 * NUM_BINS
    for number in (1, 2, 3):
        assert read_projection_data(f"{header}#{number}")[0].sum() == values[number - 1].sum()
        assert read_exam_info(f"{header}#{number}").time_frames == ((100.0 * number, 60.0 * number),)
    assert len(read_exam_info(header).time_frames) == 3
    header, values = dynamic_prompts(tmp_path, offsets=f"data offset in bytes[2] := {2 * size}\n")
    assert read_projection_data(f"{header}#2")[0].sum() == values[2].sum()
    for offsets, factors, words in (
        (f"data offset in bytes[2] := {size - 4}\n", "", rf"data offset in bytes \[2\]' must be at least {size}"),
        ("", "image scaling factor[2] := 2\n", "differs between segments or time frames"),
        ("", "quantification units := 2\n", "quantification units.*several time frames"),
    ):
        header, _ = dynamic_prompts(tmp_path, offsets, factors)
        with pytest.raises(InterfileError, match=words):
            read_projection_data(f"{header}#2")


def test_an_image_without_places_of_its_frames_is_refused(tmp_path):
    """STIR reads the first frame again and again there."""
    header, _ = interfile(tmp_path)
    replace_in(header, "data offset in bytes[2] := 240\n", "")
    with pytest.raises(InterfileError, match=r"data offset in bytes \[2\]' is missing"):
        read_image(f"{header}#2")


@pytest.mark.requires_stir
def test_frames_are_those_of_stirs_program(tmp_path):
    program = shutil.which("extract_single_images_from_dynamic_image")
    if program is None:
        pytest.skip("STIR's programs are not on the path")
    header, _ = interfile(tmp_path)
    subprocess.run([program, f"{tmp_path}/frame_%d", str(header)], check=True, capture_output=True)
    for number in (1, 2, 3):
        theirs = tmp_path / f"frame_{number}.hv"
        assert torch.equal(read_image(theirs)[0], read_image(f"{header}#{number}")[0])
        assert read_exam_info(theirs).time_frames == read_exam_info(f"{header}#{number}").time_frames


@pytest.mark.parametrize("number", [1, 2])
def test_recon_of_a_frame_has_its_counts_and_keeps_its_time(tmp_path, number, capsys, monkeypatch):
    scan = write_small_scan(tmp_path / "scan")
    data, header = Path(scan.prompts_s), Path(scan.prompts_hs)
    data.write_bytes(np.concatenate([k * np.fromfile(data, "f4") for k in (1, 2)]).astype("f4").tobytes())
    header.write_text(re.sub(r"number of time frames := 1\n", TWO_TIMES, header.read_text()))
    start = torch.full(scan.geometry.shape, 0.5)
    write_image(tmp_path / "start", start, scan.geometry)
    words = ["recon", *scan.options, "--method", "osem", "--set", "num_iterations=1", "--out", str(tmp_path / "out")]
    words[words.index("--prompts") + 1] += f"#{number}"
    assert main([*words, "--initial", f"{tmp_path}/start.hv#1"]) == 0
    assert read_exam_info(tmp_path / "out/reconstruction.hv").time_frames == ((100.0 * number, 60.0 * number),)
    assert main([*words[:-1], str(tmp_path / "none"), "--initial", f"{tmp_path}/start.hv#2"]) == 2
    assert "#2 was asked for, of 1" in capsys.readouterr().err
    arguments = build_parser().parse_args(words)
    study = SimpleNamespace(par=None, values={})
    before = _contents(arguments, study)["prompts"]
    data.write_bytes(np.fromfile(data, "f4")[::-1].tobytes())
    assert _contents(arguments, study)["prompts"] != before
    header = data.with_suffix(".hs")
    header.write_text(header.read_text().replace(data.name, "${THE_DATA}"))
    monkeypatch.setenv("THE_DATA", data.name)
    before = _contents(arguments, study)["prompts"]
    data.write_bytes(np.fromfile(data, "f4")[::-1].tobytes())
    assert _contents(arguments, study)["prompts"] != before
    study.values["h_transform"] = "brain-fdg-deft"
    assert len(_contents(arguments, study)["h_transform"]) == 64


def test_frames_become_volumes_of_one_subject(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    pytest.importorskip("scipy")
    array = np.stack([activity(seed) for seed in (0, 1)], -1).transpose(2, 1, 0, 3)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([VOXEL, VOXEL, VOXEL, 1])), tmp_path / "a_pet.nii")
    images = find_images([Path(f"{tmp_path}/a_pet.nii#{k}") for k in (1, 2)] + [tmp_path / "a_pet.nii"])
    options = ImageOptions((VOXEL,) * 3, margin=None)
    found = build_from_images(images, tmp_path / "out.h5", options)
    assert [outcome.status for outcome in found] == ["used", "used", "left out"]
    assert len({info.subject for info in VolumeFile(tmp_path / "out.h5").infos}) == 1
    assert "choose one by NAME#1" in found[2].reason
    assert array.shape[2::-1] == SHAPE
