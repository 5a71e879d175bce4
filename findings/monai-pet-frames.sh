#!/usr/bin/env bash
# MONAI's PydicomReader makes one volume of two PET frames, and of slices with a gap. Run: bash findings/monai-pet-frames.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet monai==1.6.1 torch==2.13.0 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON' 2> messages
from pathlib import Path

import monai
import numpy as np
import pydicom
from monai.data import PydicomReader
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid


def write(folder, places, frames):
    """A series of slices 3 mm apart at these places, frame by frame: DICOM keeps a dynamic PET scan in one series."""
    Path(folder).mkdir()
    series, study, reference, number = generate_uid(), generate_uid(), generate_uid(), 0
    for t in range(frames):
        for k in places:
            number += 1
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID, image.SOPInstanceUID = PositronEmissionTomographyImageStorage, generate_uid()
            image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = series, study, reference
            image.Modality, image.PatientID, image.PatientName = "PT", "phantom", "phantom"
            image.InstanceNumber = image.ImageIndex = number
            image.Units, image.SeriesType = "BQML", ["DYNAMIC" if frames > 1 else "STATIC", "IMAGE"]
            image.NumberOfSlices, image.NumberOfTimeSlices, image.FrameReferenceTime = len(places), frames, 6e5 * t
            image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness = [2, 2], 3
            image.Rows = image.Columns = 8
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
            image.RescaleSlope, image.RescaleIntercept = "1", "0"
            image.PixelData = np.full((8, 8), (k + 1) * 10**t, "<i2").tobytes()
            image.save_as(f"{folder}/{number}.dcm", enforce_file_format=True)


def seen(folder):
    reader = PydicomReader()
    values, meta = reader.get_data(reader.read(folder))
    return values[0, 0].tolist(), round(float(meta["affine"][2, 2]), 4)


write("frames", range(4), 2)
write("gap", (0, 1, 3, 4), 1)
print(f"MONAI {monai.__version__}: two frames of four slices 3 mm apart, then four slices of which the third is missing")
print("expected: two volumes, or an error; slices that are 3 mm apart, or an error")
frames, gap = seen("frames"), seen("gap")
print(f"seen:     {frames[0]}, {frames[1]} mm apart")
print(f"          {gap[0]}, {gap[1]} mm apart")
assert frames == ([1, 2, 3, 4, 10, 20, 30, 40], 1.2857), "the behaviour has changed"
assert gap == ([1, 2, 4, 5], 4.0), "the behaviour has changed"
PYTHON
grep -i -E "spacing|gap|frame|position" messages && { echo "the behaviour has changed: it warns now"; exit 1; } || true
