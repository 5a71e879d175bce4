"""The keys that STIR's headers of images and projection data know, spelled as `standardise` leaves them."""

from ...geometry.scanners import standardise

# Keys with elements ``key [n]``, and what their number follows.
ELEMENTS = {
    "matrix size": "dimensions",
    "matrix axis label": "dimensions",
    "scaling factor (mm/pixel)": "dimensions",
    "first pixel offset (mm)": "offsets",
    "image scaling factor": "data sets",
    "data offset in bytes": "data sets",
    "image relative start time (sec)": "frames",
    "image duration (sec)": "frames",
    "energy window lower level": "windows",
    "energy window upper level": "windows",
    "image data type description": "types",
    "radionuclide name": "radionuclides",
    "radionuclide halflife (sec)": "radionuclides",
    "radionuclide branching factor": "radionuclides",
}
COUNTS = {
    "number of dimensions": "dimensions",
    "number of time frames": "frames",
    "number of image data types": "types",
    "number of energy windows": "windows",
}
# Known only after 'type of data := PET'.
ONLY_PET = frozenset({"pet data type", "data offset in bytes"})
# What these say is settled by the first of the ring differences.
RING_DIFFERENCES = frozenset({"minimum ring difference per segment", "maximum ring difference per segment"})
LAYOUT = frozenset({"number of dimensions", "matrix size", "matrix axis label"})
# Ignored whatever their value and index.
WITHOUT_VALUE = frozenset(
    standardise(key)
    for key in (
        "general data", "general image data", "pet study (emission data)", "pet study (image data)",
        "pet study (general)", "image data description", "spect study (general)", "spect study (acquired data)",
        "number of radionuclides", "process status", "data format", "maximum pixel count", "minimum pixel count",
        "scanner parameters", "scanner type", "end scanner parameters",
    )
)  # fmt: skip
# Field of Scanner, its key, and what one unit of the key is in mm (None for whole numbers).
SCANNER_FIELDS = (
    ("num_rings", "number of rings", None),
    ("num_detectors_per_ring", "number of detectors per ring", None),
    ("max_num_non_arccorrected_bins", "maximum number of non-arc-corrected bins", None),
    ("default_num_arccorrected_bins", "default number of arc-corrected bins", None),
    ("inner_ring_radius", "inner ring diameter (cm)", 5.0),
    ("average_depth_of_interaction", "average depth of interaction (cm)", 10.0),
    ("ring_spacing", "distance between rings (cm)", 10.0),
    ("default_bin_size", "default bin size (cm)", 10.0),
)
SCANNER_OPTIONAL = ("max_num_non_arccorrected_bins", "default_num_arccorrected_bins", "default_bin_size")
SCANNER_BLOCKS = {
    "num_axial_blocks_per_bucket": "number of blocks per bucket in axial direction",
    "num_transaxial_blocks_per_bucket": "number of blocks per bucket in transaxial direction",
    "num_axial_crystals_per_block": "number of crystals per block in axial direction",
    "num_transaxial_crystals_per_block": "number of crystals per block in transaxial direction",
    "num_axial_crystals_per_singles_unit": "number of crystals per singles unit in axial direction",
    "num_transaxial_crystals_per_singles_unit": "number of crystals per singles unit in transaxial direction",
    "num_detector_layers": "number of detector layers",
}
_SINGLE = (
    "imaging modality", "version of keys", "%sms-mi version number", "name of data file", "originating system",
    "calibration factor", "isotope name", "study date", "study time", "type of data", "patient orientation",
    "patient rotation", "imagedata byte order", "number format", "number of bytes per pixel", "quantification units",
    "start horizontal bed position (mm)", "start vertical bed position (mm)", "index nesting level",
    "tof mashing factor", "transaxial fov diameter (cm)", "view offset (degrees)", "energy resolution",
    "reference energy (in kev)", "maximum number of (unmashed) tof time bins", "tof bin order",
    "size of unmashed tof time bins (ps)", "tof timing resolution (ps)",
    "scanner geometry (blocksoncylindrical/cylindrical/generic)", "distance between crystals in axial direction (cm)",
    "distance between crystals in transaxial direction (cm)", "distance between blocks in axial direction (cm)",
    "distance between blocks in transaxial direction (cm)", "name of crystal map", "effective central bin size (cm)",
    "applied corrections",
)  # fmt: skip
#: Of Siemens' headers and of tools that write images from them; not known to STIR's readers of images.
SIEMENS_POSITION = "%patient orientation"
DATA_KINDS = ("Static", "Dynamic", "Tomographic", "Curve", "ROI", "PET", "Other")
DATA_TYPES = ("Emission", "Transmission", "Blank", "AttenuationCorrection", "Normalisation", "Image")
ALIASES = {
    "%tof mashing factor": "tof mashing factor",
    "number of tof time bins": "maximum number of (unmashed) tof time bins",
    "size of timing bin (ps)": "size of unmashed tof time bins (ps)",
    "timing resolution (ps)": "tof timing resolution (ps)",
}
KNOWN = WITHOUT_VALUE | RING_DIFFERENCES | ELEMENTS.keys() | COUNTS.keys() | ONLY_PET | set(_SINGLE)
KNOWN |= {key for _, key, _ in SCANNER_FIELDS} | set(SCANNER_BLOCKS.values())
#: Numbers that may be words, which set nothing.
NUMBER_OR_WORDS = frozenset((
    "quantification units", "image relative start time (sec)", "image duration (sec)", "calibration factor",
    "energy window lower level", "energy window upper level", "radionuclide halflife (sec)",
    "radionuclide branching factor",
))  # fmt: skip
