#!/usr/bin/env bash
# pysuv leaves out whole days between injection and scan. Run: bash findings/pysuv-days.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pysuv==0.1.0 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON' 2> messages
import numpy as np
import pydicom
import pysuv
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid


def write(path, half_life, date, time):
    """A slice of 1000 Bq/ml at the scan start, of a patient of 70 kg who got 70 MBq on 1 January 2024 at 09:00:00."""
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = PositronEmissionTomographyImageStorage, generate_uid(), "PT"
    image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = [generate_uid() for _ in range(3)]
    image.PatientID = image.PatientName = "phantom"
    image.PatientWeight, image.InstanceNumber, image.ImageIndex = "70", 1, 1
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = date
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = time
    image.Units, image.SeriesType, image.NumberOfSlices = "BQML", ["STATIC", "IMAGE"], 1
    image.DecayCorrection, image.CorrectedImage = "START", ["DECY", "ATTN", "SCAT", "NORM"]
    image.FrameReferenceTime, image.ActualFrameDuration = "150000", "300000"
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "70000000", str(half_life)
    tracer.RadiopharmaceuticalStartTime, tracer.RadiopharmaceuticalStartDateTime = "090000", "20240101090000"
    image.RadiopharmaceuticalInformationSequence = [tracer]
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness, image.Rows, image.Columns = [2, 2], 3, 8, 8
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = "1", "0"
    image.PixelData = np.full((8, 8), 1000, "<i2").tobytes()
    image.save_as(path, enforce_file_format=True)


# Both scans start one half-life after injection: F-18 on the same day, and Zr-89 (78.41 h) on the fourth day.
write("f18.dcm", 6586, "20240101", "104946")
write("zr89.dcm", 282276, "20240104", "152436")
seen = {}
for name in ("f18", "zr89"):
    hours = pysuv.get_suv_parameters(f"{name}.dcm").elapsed_time_min / 60
    seen[name] = round(float(pysuv.compute_suv(f"{name}.dcm").max()), 3), round(hours, 2)
print(f"pysuv {pysuv.__version__}: 1000 Bq/ml at the scan start, one half-life after 70 MBq, in 70 kg, for F-18 and for Zr-89")
print("expected: SUV 2 for both: 1000 Bq/ml x 70000 g / 35 MBq; 1.83 h and 78.41 h, as the dates and times in the files say")
print(f"seen:     SUV {seen['f18'][0]} after {seen['f18'][1]} h, and SUV {seen['zr89'][0]} after {seen['zr89'][1]} h")
print("matters:  89Zr and 64Cu antibodies are imaged days after injection; the days left out are a factor of 1.9 here")
assert seen["f18"] == (2, 1.83)
assert seen["zr89"] == (1.058, 6.41), "the behaviour has changed"
PYTHON
if [ -s messages ]; then cat messages; echo "the behaviour has changed: it warns now"; exit 1; fi
