"""What STIR 6 knows in the parameter file of a reconstruction: keys by block, and which of them make an object.

Keys and registered names are in STIR's standard form: lower case, runs of blanks, ``_`` and ``!`` folded to one blank.
"""

from __future__ import annotations

#: Kind of object by the key that selects it.
SLOTS = {
    "objective function type": "objective function",
    "prior type": "prior",
    "projector pair type": "projector pair",
    "forward projector type": "forward projector",
    "back projector type": "back projector",
    "matrix type": "matrix",
    "bin normalisation type": "bin normalisation",
    "bin normalisation to apply first": "bin normalisation",
    "bin normalisation to apply second": "bin normalisation",
    "inter-update filter type": "data processor",
    "inter-iteration filter type": "data processor",
    "post-filter type": "data processor",
    "postfilter type": "data processor",
    "filter type": "data processor",
    "data processor to apply first": "data processor",
    "data processor to apply second": "data processor",
    "pre data processor": "data processor",
    "post data processor": "data processor",
}

#: All keys whose value names a registered class, which reads the block that follows.
OBJECT_KEYS = frozenset(
    (
        *SLOTS, "original forward projector type", "original back projector type", "normalisation type",
        "bin normalisation type for pre-normalisation", "bin normalisation type for post-normalisation",
        "image filter type", "map a la mrp filter type", "output file format type", "output file format",
        "individual output file format type", "reconstruction method", "reconstruction type", "rebinning type",
        "scatter simulation type", "transformation type", "rigid object 3d motion type", "shape type",
        "roi shape type", "singles rates", "time interval for reference position type", "symmetries type", "type",
        "matrix type to use after positron range blurring", "gate scanner type", "forward projector for mask type",
    )
)  # fmt: skip

#: Keys of a reconstruction that say which updates are made.
ITERATIONS = (
    "objective function type", "number of subsets", "number of subiterations", "start at subiteration number",
    "start at subset", "uniformly randomise subset order", "initial estimate", "enforce initial positivity condition",
)  # fmt: skip

#: Filters, by the key that switches them on (the post-filter has none but itself).
FILTERS = {
    "post-filter type": "post-filter type",
    "inter-iteration filter type": "inter-iteration filter subiteration interval",
    "inter-update filter type": "inter-update filter subiteration interval",
}

#: What a reconstruction writes and says.
OUTPUT = (
    "output filename prefix", "output file format type", "save estimates at subiteration intervals", "verbosity",
    "disable output", "report objective function values interval", "write update image",
)  # fmt: skip

#: Limits of OSMAPOSL's updates.
RELATIVE_CHANGE = ("minimum relative change", "maximum relative change")

#: Keys that only STIR's own algorithm understands, by the first key of its file.
ALGORITHM = {
    "osmaposlparameters": ("map model",),
    "osspsparameters": (
        "upper bound", "precomputed denominator", "relaxation parameter", "relaxation gamma", "do line search",
    ),
}  # fmt: skip

_COMMON = (*ITERATIONS, *OUTPUT, *(key for pair in list(FILTERS.items())[:2] for key in dict.fromkeys(pair)))

#: Program and its keys, by the first key of its file; None for keys that are not checked.
PROGRAMS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "osmaposlparameters": (
        "OSMAPOSL",
        (*_COMMON, *list(FILTERS.items())[2], *RELATIVE_CHANGE, *ALGORITHM["osmaposlparameters"]),
    ),
    "osspsparameters": ("OSSPS", (*_COMMON, *ALGORITHM["osspsparameters"])),
    "kosmaposlparameters": ("KOSMAPOSL", None),
    "postfiltering parameters": ("postfilter", ("postfilter type",)),
    "postfilteringparameters": ("postfilter", ("postfilter type",)),
}

#: First lines of the files that are known here, as one writes them.
FIRST_LINES = ("OSMAPOSLParameters", "OSSPSParameters", "PostFiltering Parameters")

#: The objective function that reads projection data.
PROJECTION_DATA = "poissonloglikelihoodwithlinearmodelformeanandprojdata"

#: Keys of STIR's own blocks by registered name; a name that is missing here is not checked for unknown keys.
BLOCKS = {
    PROJECTION_DATA: (
        "input file", "prior type", "projector pair type", "bin normalisation type", "additive sinogram",
        "sensitivity filename", "subset sensitivity filenames", "recompute sensitivity", "use subset sensitivities",
        "use time-of-flight sensitivities", "time frame definition filename", "time frame number",
        "maximum absolute segment number to process", "zero end planes of segment 0", "zoom", "z zoom",
        "xy output image size (in pixels)", "z output image size (in pixels)", "z offset (in mm)",
        # Of STIR's distribution over several computers: they change no number.
        "enable distributed caching", "enable distributed tests", "enable message timings",
        "message timings threshold", "enable rpc timings",
    ),
    "relative difference prior": (
        "penalisation factor", "only 2d", "kappa filename", "weights", "gradient filename prefix", "gamma value",
        "epsilon value",
    ),
    "quadratic": ("penalisation factor", "only 2d", "kappa filename", "weights", "gradient filename prefix"),
}  # fmt: skip

#: Keys whose value is a file to read. The value 0 or 1 is no file in some of them.
INPUT_FILES = frozenset(
    (
        "input file", "list mode filename", "additive sinogram", "normalisation projdata filename",
        "attenuation image filename", "initial estimate", "precomputed denominator", "time frame definition filename",
        "kappa filename", "anatomical filename", "anatomical image filename", "anchor filename", "weight filename",
        "filter kernel",
    )
)  # fmt: skip
