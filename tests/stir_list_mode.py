"""A list-mode file that STIR reads: events of the direct sinograms of a Siemens mMR, at random near the axis."""

from pathlib import Path

import numpy as np

NUM_RINGS, NUM_VIEWS, NUM_BINS = 64, 252, 344

HEADER = """\
!INTERFILE:=
!originating system:=2008
%SMS-MI header name space:=PETLINK bin address
%SMS-MI version number:=3.4
!GENERAL DATA:=
!data offset in bytes:=0
name of data file := events.l
!GENERAL IMAGE DATA:=
!type of data:=PET
%study date (yyyy:mm:dd):=2017:03:27
%study time (hh:mm:ss GMT+00:00):=17:00:35
%patient orientation:=FFS
PET data type:=Emission
data format:=CoincidenceList
number of energy windows:=1
%energy window lower level (keV) [1]:=430
%energy window upper level (keV) [1]:=610
!PET STUDY (Emission data):=
PET scanner type:=cylindrical
number of rings:=64
image duration (sec):=1
%LM event and tag words format (bits):=32
%axial compression:=1
%maximum ring difference:={most}
%number of projections:=344
%number of views:=252
%number of segments :={number}
%segment table :={{{table}}}
"""

PAR = """\
OSMAPOSLParameters :=
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin
PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin Parameters :=
  list mode filename := {folder}/events.l.hdr
  maximum absolute segment number to process := 0
  Matrix type := Ray Tracing
    Ray Tracing Matrix Parameters :=
    End Ray Tracing Matrix Parameters :=
  recompute sensitivity := 1
  zoom := 0.12
  XY output image size (in pixels) := 14
  cache path := {folder}
  recompute cache := 1
end PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin Parameters :=
number of subsets := 2
number of subiterations := 4
output filename prefix := unused
END :=
"""


def write_list_mode(folder: Path, num_events: int = 20_000) -> Path:
    """Write events, header and a parameter file, whose path is returned."""
    generator = np.random.default_rng(5)
    ring = generator.integers(0, NUM_RINGS, num_events)
    view = generator.integers(0, NUM_VIEWS, num_events)
    bin_number = NUM_BINS // 2 + generator.integers(-30, 30, num_events)
    prompt = 1 << 30
    events = ((ring * NUM_VIEWS + view) * NUM_BINS + bin_number) | prompt
    ticks = (1 << 31) | np.arange(num_events // 100)  # milliseconds
    words = np.concatenate((ticks[:, None], events.reshape(-1, 100)), axis=1).astype("<u4")
    (folder / "events.l").write_bytes(words.tobytes())
    table = "127,115, 115, 93, 93 ,71, 71, 49, 49, 27, 27"
    (folder / "events.l.hdr").write_text(HEADER.format(most=60, number=11, table=table))
    path = folder / "list_mode.par"
    path.write_text(PAR.format(folder=folder))
    return path
