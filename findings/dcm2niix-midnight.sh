#!/usr/bin/env bash
# dcm2niix sets the start of PET frames after midnight to 0. Run: bash findings/dcm2niix-midnight.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dcm2niix==1.0.20260724 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
import json
import subprocess
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import dcm2niix
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

frames = [(0, 60), (60, 60), (120, 60), (180, 120), (300, 300)]  # start and length in s


def write(folder, begin):
    """A dynamic PET series of four slices for each frame; the tracer is given at its start."""
    Path(folder).mkdir()
    series, study, reference, number = generate_uid(), generate_uid(), generate_uid(), 0
    for start, length in frames:
        moment = begin + timedelta(seconds=start)
        for k in range(4):
            number += 1
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID, image.SOPInstanceUID = PositronEmissionTomographyImageStorage, generate_uid()
            image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = series, study, reference
            image.Modality, image.PatientID, image.PatientName = "PT", "phantom", "phantom"
            image.Manufacturer, image.ImageType, image.PatientPosition = "SIEMENS", ["ORIGINAL", "PRIMARY"], "HFS"
            image.StudyDate = image.SeriesDate = f"{begin:%Y%m%d}"
            image.StudyTime = image.SeriesTime = f"{begin:%H%M%S}"
            image.AcquisitionDate, image.AcquisitionTime = f"{moment:%Y%m%d}", f"{moment:%H%M%S}"
            image.SeriesNumber, image.InstanceNumber, image.ImageIndex = 1, number, number
            image.Units, image.SeriesType, image.DecayCorrection = "BQML", ["DYNAMIC", "IMAGE"], "START"
            image.NumberOfSlices, image.NumberOfTimeSlices = 4, len(frames)
            image.FrameReferenceTime, image.ActualFrameDuration = str(1000 * (start + length / 2)), str(1000 * length)
            tracer = pydicom.Dataset()
            tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "370000000", "6586.2"
            tracer.RadiopharmaceuticalStartTime = f"{begin:%H%M%S}"
            tracer.RadiopharmaceuticalStartDateTime = f"{begin:%Y%m%d%H%M%S}"
            image.RadiopharmaceuticalInformationSequence = [tracer]
            image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness, image.Rows, image.Columns = [2, 2], 3, 8, 8
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
            image.RescaleSlope, image.RescaleIntercept = "1", "0"
            image.PixelData = np.full((8, 8), number, "<i2").tobytes()
            image.save_as(f"{folder}/{number}.dcm", enforce_file_format=True)


def convert(folder):
    run = subprocess.run([dcm2niix.bin, "-b", "y", "-f", folder, "-o", ".", folder], capture_output=True, text=True, check=True)
    sidecar = json.loads(Path(f"{folder}.json").read_text())
    assert sidecar["FrameDuration"] == [length for _, length in frames]
    return sidecar["FrameTimesStart"], [line for line in (run.stdout + run.stderr).splitlines() if "arning" in line or "rror" in line]


write("day", datetime(2024, 1, 1, 10, 0, 0))
write("night", datetime(2024, 1, 1, 23, 58, 0))
(day, by_day), (night, by_night) = convert("day"), convert("night")
right = [start for start, _ in frames]
print(f"dcm2niix {version('dcm2niix')}: FrameTimesStart of a dynamic PET scan that starts at 10:00:00, and at 23:58:00")
print(f"expected: {right} s for both: the files of the night have dates, and say when frames are from the scan's start")
print(f"seen:     {day} s, and {night} s")
print("matters:  BIDS takes the times of a time-activity curve from this list, and the messages are those of the right result")
assert day == right
assert night == [0, 60, 0, 0, 0], "the behaviour has changed"
assert by_day == by_night, f"the behaviour has changed: it warns now: {by_night}"
PYTHON
