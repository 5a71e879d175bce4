"""What STIR 6 itself knows in a reconstruction's parameter file: registered names by kind, and keys by block.

Used to check a file before STIR reads it. Names come from the compiled executables where there are some
(`sirf_diffusion.interop.stir.registry`); the table here serves where there are none. Names and keys are in STIR's
standard form: lower case, runs of blanks, ``_`` and ``!`` folded to one blank.
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

#: Names that STIR 6 registers, those that depend on how it was built included.
NAMES = {
    "objective function": (
        "PoissonLogLikelihoodWithLinearModelForMeanAndProjData",
        "PoissonLogLikelihoodWithLinearModelForMeanAndListModeDataWithProjMatrixByBin",
        "PoissonLogLikelihoodWithLinearModelForMeanAndGatedProjDataWithMotion",
    ),
    "prior": (
        "FilterRootPrior",
        "Quadratic",
        "Relative Difference Prior",
        "Logcosh",
        "PLS",
        "Gibbs Quadratic",
        "Gibbs Relative Difference",
        "Cuda Gibbs Quadratic",
        "Cuda Gibbs Relative Difference",
        "Cuda Relative Difference Prior",
    ),
    "projector pair": ("Matrix", "Separate Projectors", "Parallelproj", "NiftyPET"),
    "forward projector": ("Matrix", "Pre Smoothing", "Post Smoothing", "Ray Tracing", "Parallelproj", "NiftyPET"),
    "back projector": ("Interpolation", "Matrix", "Post Smoothing", "Parallelproj", "NiftyPET"),
    "matrix": ("From File", "Interpolation", "Ray Tracing", "SPECT UB", "Pinhole SPECT UB"),
    "bin normalisation": (
        "Chained",
        "From Attenuation Image",
        "From ECAT7",
        "From ECAT8",
        "From GE HDF5",
        "From PETSIRD",
        "From ProjData",
        "PETComponents",
        "SPECT",
    ),
    "data processor": (
        "Chained Data Processor",
        "Gamma",
        "HUToMu",
        "Maximal",
        "Median",
        "Minimal",
        "Nonseparable Convolution Using Real DFT Image Filter",
        "Separable Cartesian Metz",
        "Separable Convolution",
        "Separable Gaussian",
        "Threshold Min To Small Positive Value",
        "Truncate To Cylindrical FOV",
        "Wiener",
    ),
}

_RECONSTRUCTION = (
    "output filename prefix",
    "output file format type",
    "post-filter type",
    "disable output",
    "verbosity",
    "objective function type",
    "number of subiterations",
    "start at subiteration number",
    "save estimates at subiteration intervals",
    "initial estimate",
    "number of subsets",
    "start at subset",
    "uniformly randomise subset order",
    "inter-iteration filter subiteration interval",
    "inter-iteration filter type",
    "report objective function values interval",
    "enforce initial positivity condition",
    "write update image",
)

_OSMAPOSL = (
    *_RECONSTRUCTION,
    "inter-update filter subiteration interval",
    "inter-update filter type",
    "map model",
    "maximum relative change",
    "minimum relative change",
)

#: Keys by the block's first key, for programs.
PROGRAMS = {
    "osmaposlparameters": ("OSMAPOSL", _OSMAPOSL),
    "osspsparameters": (
        "OSSPS",
        (
            *_RECONSTRUCTION,
            "upper bound",
            "precomputed denominator",
            "relaxation parameter",
            "relaxation gamma",
            "do line search",
        ),
    ),
    # Its own keys are left out: the file is refused where it would meet one of our priors.
    "kosmaposlparameters": ("KOSMAPOSL", None),
    "postfiltering parameters": ("postfilter", ("postfilter type",)),
    "postfilteringparameters": ("postfilter", ("postfilter type",)),
}

#: First lines of the files that are known here, as one writes them.
FIRST_LINES = ("OSMAPOSLParameters", "OSSPSParameters", "PostFiltering Parameters")

_LIKELIHOOD = (
    "prior type",
    "sensitivity filename",
    "subset sensitivity filenames",
    "recompute sensitivity",
    "use subset sensitivities",
    "additive sinogram",
    "time frame definition filename",
    "time frame number",
    "maximum absolute segment number to process",
    "use time-of-flight sensitivities",
    "zoom",
    "z zoom",
    "xy output image size (in pixels)",
    "z output image size (in pixels)",
    "z offset (in mm)",
)

#: Keys of STIR's own blocks by registered name; a name that is missing here is not checked for unknown keys.
BLOCKS = {
    "poissonloglikelihoodwithlinearmodelformeanandprojdata": (
        *_LIKELIHOOD,
        "input file",
        "zero end planes of segment 0",
        "projector pair type",
        "bin normalisation type",
        "enable distributed caching",
        "enable distributed tests",
        "enable message timings",
        "message timings threshold",
        "enable rpc timings",
    ),
    "relative difference prior": (
        "penalisation factor",
        "only 2d",
        "kappa filename",
        "weights",
        "gradient filename prefix",
        "gamma value",
        "epsilon value",
    ),
    "quadratic": ("penalisation factor", "only 2d", "kappa filename", "weights", "gradient filename prefix"),
}

#: Keys whose value is a file to read. The value 0 or 1 is no file in some of them.
INPUT_FILES = {
    "input file",
    "list mode filename",
    "additive sinogram",
    "normalisation projdata filename",
    "attenuation image filename",
    "initial estimate",
    "precomputed denominator",
    "time frame definition filename",
    "kappa filename",
    "anatomical filename",
    "anatomical image filename",
    "anchor filename",
    "weight filename",
    "filter kernel",
}
