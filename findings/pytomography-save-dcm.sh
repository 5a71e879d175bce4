#!/usr/bin/env bash
# PyTomography's save_dcm scales the caller's reconstruction to 65535, so that a second save is wrong. Run: bash findings/pytomography-save-dcm.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytomography==3.4.0 torch==2.13.0 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
from pathlib import Path

import numpy as np
import pydicom
import pytomography
import torch
from pydicom.uid import ExplicitVRLittleEndian, NuclearMedicineImageStorage, generate_uid
from pytomography.io.SPECT.dicom import save_dcm

# The projections of a SPECT scan: two views of 8 x 8 pixels by one detector. save_dcm takes the study's data from it.
scan = pydicom.Dataset()
scan.file_meta = pydicom.dataset.FileMetaDataset()
scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
scan.SOPClassUID, scan.SOPInstanceUID, scan.Modality = NuclearMedicineImageStorage, generate_uid(), "NM"
scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
scan.PatientID = scan.PatientName = "phantom"
scan.StudyDate, scan.StudyTime, scan.StudyID, scan.Manufacturer = "20240101", "120000", "1", "none"
scan.ImageType = ["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"]
scan.FrameIncrementPointer = [0x00540010, 0x00540020, 0x00540050, 0x00540090]
scan.EnergyWindowVector = scan.DetectorVector = scan.RotationVector = [1, 1]
scan.AngularViewVector = [1, 2]
scan.NumberOfEnergyWindows = scan.NumberOfDetectors = scan.NumberOfRotations = 1
window, energies, detector, rotation = (pydicom.Dataset() for _ in range(4))
energies.EnergyWindowLowerLimit, energies.EnergyWindowUpperLimit = 126, 154
window.EnergyWindowRangeSequence = [energies]
scan.EnergyWindowInformationSequence = [window]
detector.CollimatorType, detector.ImagePositionPatient = "PARA", [-14, -14, 28]
detector.ImageOrientationPatient, detector.StartAngle, detector.RadialPosition = [1, 0, 0, 0, 0, -1], 0, [200, 200]
scan.DetectorInformationSequence = [detector]
rotation.StartAngle, rotation.AngularStep, rotation.RotationDirection, rotation.ScanArc = 0, 90, "CC", 180
rotation.NumberOfFramesInRotation, rotation.ActualFrameDuration, rotation.TableHeight = 2, 1000, 0
scan.RotationInformationSequence = [rotation]
scan.Rows = scan.Columns = 8
scan.NumberOfFrames, scan.PixelSpacing = 2, [4, 4]
scan.SamplesPerPixel, scan.PhotometricInterpretation = 1, "MONOCHROME2"
scan.BitsAllocated, scan.BitsStored, scan.HighBit, scan.PixelRepresentation = 16, 16, 15, 0
scan.PixelData = np.ones((2, 8, 8), "<u2").tobytes()
scan.save_as("scan.dcm", enforce_file_format=True)


def highest(folder):
    slices = [pydicom.dcmread(path) for path in Path(folder).glob("*.dcm")]
    return round(max(float(one.RescaleSlope) * int(one.pixel_array.max()) for one in slices), 3)


pytomography.set_device("cpu")
reconstruction = torch.ones(8, 8, 8)
reconstruction[4, 4, 4] = 5
print(f"PyTomography {pytomography.__version__}: a reconstruction on the CPU, with a highest value of {reconstruction.max().item()}")
save_dcm("first", reconstruction, "scan.dcm")
kept = reconstruction.max().item()
save_dcm("second", reconstruction, "scan.dcm")
print("expected: 5.0 in both saved series, and a reconstruction that saving leaves as it was")
print(f"seen:     {highest('first')} in the first series, {highest('second')} in the second; the tensor now holds {kept}")
assert (highest("first"), kept, highest("second")) == (5, 65535, 65535), "the behaviour has changed"
PYTHON
