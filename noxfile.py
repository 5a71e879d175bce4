"""The fast tests on other versions: ``nox`` for a covering few, ``nox -s tests`` for all that there are.

Every session installs the package with its tests' needs, and runs the files of `FAST` without those marked slow. The
newest torch is what pip gives; ``PIP_EXTRA_INDEX_URL`` may name an index of builds for processors alone.
"""

from itertools import product

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NUMPY = {"1.26": "numpy==1.26.*", "2": "numpy>=2"}
TORCH = {"2.8": "torch==2.8.*", "newest": "torch"}
MONAI = {"1.5": "monai==1.5.*", "newest": "monai"}
#: Every version, and every two of different libraries, together in one of these.
COVERING = {
    ("3.10", "1.26", "2.8", "1.5"),
    ("3.11", "2", "newest", "newest"),
    ("3.12", "1.26", "newest", "newest"),
    ("3.12", "2", "2.8", "newest"),
    ("3.13", "2", "newest", "1.5"),
}
#: Readers and writers, models of every architecture, engines, each reconstructor, commands: 3 minutes on one core.
FAST = (
    "packaging", "versions", "interfile", "parfile", "geometry", "storage", "score_model", "import_schedulers", "osem",
    "dds", "lisch", "outputs", "projector", "priors", "troubleshooting",
)

nox.options.tags = ["covering"]


def _sessions():
    for versions in product(PYTHONS, NUMPY, TORCH, MONAI):
        if versions[:2] != ("3.13", "1.26"):  # which was never built
            name = "python {}, numpy {}, torch {}, monai {}".format(*versions)
            yield nox.param(*versions, id=name, tags=["covering"] if versions in COVERING else [])


@nox.session
@nox.parametrize(["python", "numpy", "torch", "monai"], list(_sessions()))
def tests(session, numpy, torch, monai):
    """Install these versions and run the fast tests; words after ``--`` go to pytest instead."""
    session.install("-e", ".[test]", NUMPY[numpy], TORCH[torch], MONAI[monai])
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")
    fast = [f"tests/test_{name}.py" for name in FAST]
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["-m", "not slow", *fast]))
