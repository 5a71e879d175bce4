#!/usr/bin/env bash
# autods-pet divides PET images that are decay corrected to the scan start by the dose at injection. Run: bash findings/autods-pet-start-suv.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# What converts images and computes SUV, without the packages for registration and segmentation, which come later in its pipeline.
"$folder/venv/bin/pip" install --quiet simpleitk==2.5.7 pydicom==3.0.2 numpy==2.4.6 pandas==2.3.3 typer==0.29.2 rich==15.0.0 tqdm==4.70.1
"$folder/venv/bin/pip" install --quiet --no-deps autods-pet==0.1.0
cd "$folder" && venv/bin/python <<'PYTHON'
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

# 350 MBq of F-18 at 08:10:13.8, one half-life (6586.2 s) before the scan starts at 10:00:00, in a patient of 70 kg. What is
# stored of the same 5000 Bq/ml at the scan start, by the event that the image is decay corrected to (0054,1102).
stored = {"NONE": 5000, "START": 5000, "ADMIN": 10000}
for patient, value in stored.items():
    study, frame = generate_uid(), generate_uid()
    Path("data", patient).mkdir(parents=True)
    for modality, kind in (("PT", PositronEmissionTomographyImageStorage), ("CT", CTImageStorage)):
        series = generate_uid()
        for k in range(4):
            image = pydicom.Dataset()
            image.file_meta = pydicom.dataset.FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID, image.SOPInstanceUID, image.Modality = kind, generate_uid(), modality
            image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = series, study, frame
            image.PatientID = image.PatientName = patient
            image.PatientWeight, image.PatientPosition, image.InstanceNumber = "70", "HFS", k + 1
            image.StudyDate = image.SeriesDate = image.AcquisitionDate = "20240101"
            image.StudyTime = image.SeriesTime = image.AcquisitionTime = "100000"
            image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness, image.Rows, image.Columns = [2, 2], 3, 256, 256
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
            image.RescaleSlope, image.RescaleIntercept = "1", "0"
            image.PixelData = np.full((256, 256), value if modality == "PT" else 0, "<i2").tobytes()
            if modality == "PT":
                image.Units, image.SeriesType, image.NumberOfSlices, image.ImageIndex = "BQML", ["STATIC", "IMAGE"], 4, k + 1
                image.CorrectedImage = ["ATTN", "SCAT", "NORM"] + ["DECY"] * (patient != "NONE")
                image.DecayCorrection, image.FrameReferenceTime, image.ActualFrameDuration = patient, "5000", "10000"
                tracer = pydicom.Dataset()
                tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = "350000000", "6586.2"
                tracer.RadiopharmaceuticalStartTime = "081013.8"
                tracer.RadiopharmaceuticalStartDateTime = "20240101081013.8"
                image.RadiopharmaceuticalInformationSequence = [tracer]
            image.save_as(f"data/{patient}/{modality}{k}.dcm", enforce_file_format=True)
PYTHON
venv/bin/autods-pet create-config --output config.ini > messages 2>&1
sed -i -e 's/^basepath *=.*/basepath = data/' -e 's/^output_dir *=.*/output_dir = results/' config.ini
venv/bin/autods-pet convert -c config.ini >> messages 2>&1
venv/bin/autods-pet normalize -c config.ini >> messages 2>&1
venv/bin/python <<'PYTHON'
from importlib.metadata import version

import SimpleITK as sitk

seen = {}
for patient in ("NONE", "START", "ADMIN"):
    image = sitk.GetArrayFromImage(sitk.ReadImage(f"results/{patient}_results/images/PET_SUV.nii.gz"))
    assert image.min() == image.max()
    seen[patient] = round(float(image.max()), 3)
print(f"autods-pet {version('autods-pet')}: the same uptake at one half-life after injection, by the three kinds of DICOM's DecayCorrection")
print("expected: SUV 2 for each: 5000 Bq/ml x 70000 g / 175 MBq, or with both numbers as they were at injection (ADMIN)")
print(f"seen:     {seen}")
print("matters:  scanners write START, and it means the start of the scan: SUV of 18F-FDG after an hour comes out 32 % too low")
assert seen == {"NONE": 2, "START": 1, "ADMIN": 2}, "the behaviour has changed"
PYTHON
grep -i -E "decay" messages && { echo "the behaviour has changed: it warns now"; exit 1; } || true
