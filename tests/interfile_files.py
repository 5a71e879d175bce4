"""Small Interfile files for tests, in the words in which STIR writes them, and scanners that no table lists."""

import logging
import math
from datetime import datetime, timezone

import numpy as np
import torch

from sirf_diffusion.geometry.exam import ExamInfo, Radionuclide
from sirf_diffusion.geometry.projdata import Scanner

# (number format, bytes per pixel, numpy type)
NUMBER_TYPES = [
    ("signed integer", 1, "i1"),
    ("unsigned integer", 1, "u1"),
    ("signed integer", 2, "i2"),
    ("unsigned integer", 2, "u2"),
    ("signed integer", 4, "i4"),
    ("unsigned integer", 4, "u4"),
    ("float", 4, "f4"),
    ("float", 8, "f8"),
]

IMAGE_HEADER = """!INTERFILE  :=
!imaging modality := PT
!version of keys := STIR6.0
name of data file := {data}
!GENERAL DATA :=
patient orientation := head_in
!GENERAL IMAGE DATA :=
!type of data := PET
imagedata byte order := {order}
number of radionuclides := 1
!PET STUDY (General) :=
!PET data type := Image
process status := Reconstructed
!number format := {format}
!number of bytes per pixel := {bytes}
number of dimensions := 3
matrix axis label [1] := x
!matrix size [1] := 5
scaling factor (mm/pixel) [1] := 2.08626
matrix axis label [2] := y
!matrix size [2] := 4
scaling factor (mm/pixel) [2] := 2.5
matrix axis label [3] := z
!matrix size [3] := 3
scaling factor (mm/pixel) [3] := 2.03125
first pixel offset (mm) [1] := -4.17252
first pixel offset (mm) [2] := -5
first pixel offset (mm) [3] := 1.5
number of time frames := 1
image duration (sec)[1] := 60
image relative start time (sec)[1] := 0
{more}!END OF INTERFILE :=
"""

PROJDATA_HEADER = """!INTERFILE  :=
!imaging modality := PT
name of data file := {data}
originating system := {system}
!version of keys := STIR6.0
!GENERAL DATA :=
!GENERAL IMAGE DATA :=
!type of data := PET
imagedata byte order := {order}
number of radionuclides := 1
!PET STUDY (General) :=
!PET data type := Emission
applied corrections := {{{corrections}}}
!number format := {format}
!number of bytes per pixel := {bytes}
number of dimensions := 4
matrix axis label [4] := segment
!matrix size [4] := 3
matrix axis label [{view}] := view
!matrix size [{view}] := 8
matrix axis label [{axial}] := axial coordinate
!matrix size [{axial}] := {{ 3,4,3}}
matrix axis label [1] := tangential coordinate
!matrix size [1] := 7
minimum ring difference per segment := {{ -1,0,1}}
maximum ring difference per segment := {{ -1,0,1}}
{scanner}number of time frames := 1
{more}start vertical bed position (mm) := 12
start horizontal bed position (mm) := -3
!END OF INTERFILE :=
"""

SCANNER = """Scanner parameters:=
  Scanner type := unknown
  Number of rings                          := 4
  Number of detectors per ring             := 32
  Inner ring diameter (cm)                 := 20
  Average depth of interaction (cm)        := 0.5
  Distance between rings (cm)              := 0.4
  Default bin size (cm)                    := 0.25
  View offset (degrees)                    := -7.5
  Maximum number of non-arc-corrected bins := 16
  Default number of arc-corrected bins     := 15
  Energy resolution         := 0.145
  Reference energy (in keV) := 511
  Number of blocks per bucket in transaxial direction         := 4
  Number of blocks per bucket in axial direction              := 1
  Number of crystals per block in axial direction             := 4
  Number of crystals per block in transaxial direction        := 8
  Number of detector layers                                   := 1
  Number of crystals per singles unit in axial direction      := 1
  Number of crystals per singles unit in transaxial direction := 1
  Scanner geometry (BlocksOnCylindrical/Cylindrical/Generic)  := Cylindrical
End scanner parameters:=
effective central bin size (cm) := 0.2
"""
NUM_BINS = 10 * 8 * 7


def _write(header, text, data, values, /, *, byte_order="<", number=("float", 4, "f4"), offset=0, **changes):
    content = b"\xff" * offset + np.asarray(values).astype(byte_order + number[2]).tobytes()
    header.with_name(data).write_bytes(content)
    keys = {
        "data": data,
        "order": "LITTLEENDIAN" if byte_order == "<" else "BIGENDIAN",
        "format": number[0],
        "bytes": number[1],
        "more": f"data offset in bytes[1] := {offset}\n" if offset else "",
    } | changes
    header.write_text(text.format(**keys))
    return header


def write_image_files(folder, values, **changes):
    return _write(folder / "image.hv", IMAGE_HEADER, "image.v", values, **changes)


def write_projdata_files(folder, values=None, **changes):
    keys = {"system": "unknown", "corrections": "None", "view": 3, "axial": 2, "scanner": SCANNER} | changes
    values = np.arange(NUM_BINS) if values is None else values
    return _write(folder / "data.hs", PROJDATA_HEADER, "data.s", values, **keys)


def replace_in(header, old, new):
    text = header.read_text(encoding="utf-8")
    assert old in text
    header.write_text(text.replace(old, new))
    return header


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def asymmetric(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))


SCANNERS = {
    "by name": "ECAT 953",
    "by parameters": Scanner("my own", 6, 48, 150.5, 3.25, 4.4, 2.2, 0.1, 24, 23),
    "barely known": Scanner("my other", 6, 48, 150.5, 0.0, 4.4, 0.0),
}

EXAM = ExamInfo(
    orientation="feet_in", rotation="prone", originating_system="Siemens mMR", time_frames=((30.0, 600.5),),
    start_time=datetime(2017, 3, 27, 17, 0, 35, 250000, tzinfo=timezone.utc),
    radionuclide=Radionuclide("^18^Fluorine", half_life=6584.04, branching_ratio=0.9686), calibration_factor=1.25e-3,
    energy_window=(430.0, 610.0),
)  # fmt: skip
