#!/usr/bin/env bash
# SimpleITK reads a DICOM PET series in the number type of its first slice. Run: bash findings/simpleitk-pet-slopes.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet simpleitk==2.5.7 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

# Bq/ml of three slices, and the slopes that they are stored with: PET scanners choose one for each slice.
values, slopes = [2.0, 0.5, 40000.0], ["1", "0.25", "2"]
series, study, frame = generate_uid(), generate_uid(), generate_uid()
for k, (value, slope) in enumerate(zip(values, slopes)):
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID, image.Modality = PositronEmissionTomographyImageStorage, generate_uid(), "PT"
    image.SeriesInstanceUID, image.StudyInstanceUID, image.FrameOfReferenceUID = series, study, frame
    image.PatientID = image.PatientName = "phantom"
    image.InstanceNumber = image.ImageIndex = k + 1
    image.Units, image.SeriesType, image.NumberOfSlices = "BQML", ["STATIC", "IMAGE"], 3
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 3 * k], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [2, 2], 3
    image.Rows = image.Columns = 8
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleSlope, image.RescaleIntercept = slope, "0"
    image.PixelData = np.full((8, 8), round(value / float(slope)), "<i2").tobytes()
    image.save_as(f"{k}.dcm", enforce_file_format=True)

reader = sitk.ImageSeriesReader()
reader.SetFileNames(reader.GetGDCMSeriesFileNames("."))
read = reader.Execute()
seen = sitk.GetArrayFromImage(read)[:, 0, 0].tolist()
alone = [float(sitk.GetArrayFromImage(sitk.ReadImage(f"{k}.dcm")).flat[0]) for k in range(3)]
print(f"SimpleITK {sitk.Version.VersionString()}: three slices of {values} Bq/ml, stored with slopes {slopes}")
print(f"expected: {values}, as each file gives by itself: {alone}")
print(f"seen:     {seen}, {read.GetPixelIDTypeAsString()}: the first slope is a whole number, and no warning is given")
assert alone == values
assert seen == [2, 0, -25536], "the behaviour has changed"
PYTHON
