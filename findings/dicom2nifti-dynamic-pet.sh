#!/usr/bin/env bash
# dicom2nifti converts no dynamic PET: it asks for the repetition time of an MR. Run: bash findings/dicom2nifti-dynamic-pet.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dicom2nifti==2.6.2 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6
cd "$folder" && venv/bin/python 2> log <<'PYTHON'
import os
from importlib.metadata import version

import dicom2nifti
import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid


def series(folder, frames):
    """Time frames of a minute, of five slices each."""
    os.makedirs(folder)
    uids = generate_uid(), generate_uid(), generate_uid()
    for frame in range(frames):
        for k in range(5):
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID, image.SOPInstanceUID, image.Modality = PositronEmissionTomographyImageStorage, generate_uid(), "PT"
            image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = uids
            image.PatientID = image.PatientName = "phantom"
            image.InstanceNumber = image.ImageIndex = 5 * frame + k + 1
            image.Units, image.SeriesType = "BQML", ["DYNAMIC" if frames > 1 else "STATIC", "IMAGE"]
            image.NumberOfSlices, image.NumberOfTimeSlices = 5, frames
            image.AcquisitionDate, image.AcquisitionTime = "20260101", f"10{frame:02}00"
            image.FrameReferenceTime, image.ActualFrameDuration = str(30000 + 60000 * frame), "60000"
            image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness = [2, 2], 3
            image.Rows = image.Columns = 8
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
            image.RescaleSlope, image.RescaleIntercept = "1", "0"
            image.PixelData = np.full((8, 8), 100 * (frame + 1) + k, "<i2").tobytes()
            image.save_as(f"{folder}/{image.InstanceNumber:02}.dcm", enforce_file_format=True)


written = {}
for name, frames in (("static", 1), ("dynamic", 2)):
    series(name, frames)
    os.makedirs(f"{name}-nifti")
    dicom2nifti.convert_directory(name, f"{name}-nifti")
    written[name] = len(os.listdir(f"{name}-nifti"))
print(f"dicom2nifti {version('dicom2nifti')}: files of a static PET series, and of two time frames")
print("expected: one NIfTI file of each, or an exception")
print(f"seen:     {written}; convert_directory returns as if all were well")
assert written == {"static": 1, "dynamic": 0}, "the behaviour has changed"
PYTHON
grep "no attribute 'RepetitionTime'" "$folder/log"
