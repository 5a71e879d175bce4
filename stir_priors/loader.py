"""Putting the compiled shim into a running process, and proving that STIR sees it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from .build import Build, ShimError, find_builds

__all__ = ["ShimError", "load", "watch"]

logger = logging.getLogger("stir_priors")

NAME = "stir_priors._shim"
_HOSTS = ("stir", "sirf.STIR")


def load(path: str | os.PathLike[str] | None = None) -> ModuleType:
    """Register this package's priors and filters in the STIR of this process; the compiled module.

    Works with STIR-Python (``stir``) and SIRF (``sirf.STIR``), imported before or not; if neither is, the one that is
    installed gets imported. Calling it again does nothing. Nothing is compiled here: ``stir-diffusion build`` does.
    ``path`` is the file of the module; by default the one in the cache that was built for this STIR.

    Raises
    ------
    ShimError
        If there is no STIR, no shim for its version, or STIR does not see what was registered.
    """
    if NAME in sys.modules:
        return sys.modules[NAME]
    hosts = _hosts()
    module_file = Path(path) if path is not None else _choose(hosts).module
    module = _import(module_file)
    try:
        for host in hosts:
            _check_version(host, module, module_file)
            _prove(host)
    except BaseException:
        del sys.modules[NAME]
        raise
    logger.info("priors and filters registered in STIR %s (%s)", module.stir_version, module_file)
    return module


def watch(
    objective: Any, *, order: Sequence[int] | None = None, map_model: str = "additive", prior: Any = None
) -> None:
    """Tell a prior the sensitivities of the OSMAPOSL run that follows, and count where STIR limits its effect.

    A score prior with memory then keeps its updates stable. STIR keeps OSMAPOSL's denominator within a factor 10 of the
    sensitivity, silently: voxels at which it does are counted, and logged once, when the prior is set up anew or
    deleted. The executables of this package do both by themselves; STIR-Python and SIRF's own classes need this call,
    after each set-up.

    Parameters
    ----------
    objective
        Objective function of STIR-Python or SIRF that has been set up and holds the prior.
    order
        Subsets in the order of their use; ``0, 1, ...`` if omitted.
    map_model
        ``"additive"`` (STIR's default) or ``"multiplicative"``.
    prior
        The Python object behind the prior; by default the latest of this package's priors that is alive.

    Raises
    ------
    ValueError
        If there is no such prior, or the MAP model is unknown.
    """
    import numpy as np

    if map_model not in ("additive", "multiplicative"):
        raise ValueError(f"map_model must be 'additive' or 'multiplicative', found {map_model!r}")
    shim = load()
    living = [key for key, _, obj in shim.living_priors() if prior in (None, obj, getattr(obj, "prior", obj))]
    if not living:
        raise ValueError("none of this package's priors is alive in this process" if prior is None else "no such prior")
    order = range(objective.get_num_subsets()) if order is None else order
    images = [np.ascontiguousarray(_as_array(objective.get_subset_sensitivity(k)), dtype=np.float32) for k in order]
    multiplicative = map_model == "multiplicative"
    shim.watch(living[-1], images, np.ones_like(images[0]) if multiplicative else np.sum(images, 0), multiplicative)


def _as_array(image: Any) -> Any:
    if hasattr(image, "as_array"):
        return image.as_array()
    import stirextra

    return stirextra.to_numpy(image)


def _hosts() -> list[ModuleType]:
    """Modules of this process that hold a STIR."""
    found = [sys.modules[name] for name in _HOSTS if name in sys.modules]
    if found:
        return found
    problems = []
    for name in _HOSTS:
        try:
            return [importlib.import_module(name)]
        except ImportError as problem:
            problems.append(f"{name}: {problem}")
    raise ShimError(
        f"neither STIR's Python module nor SIRF can be imported ({'; '.join(problems)}). Install one, for instance "
        "conda install -c conda-forge stir, or run parameter files with stir-diffusion run"
    )


def _choose(hosts: Sequence[ModuleType]) -> Build:
    builds = find_builds()
    if not builds:
        raise ShimError("the shim is not compiled for this Python and these sources: run stir-diffusion build")
    for build in builds:
        if all(_same_version(_version(host), build.stir_version) for host in hosts):
            return build
    running = ", ".join(f"{host.__name__} has STIR {_version(host)}" for host in hosts)
    built = ", ".join(build.stir_version for build in builds)
    raise ShimError(f"the shim is compiled for STIR {built}, but {running}: run stir-diffusion build with that STIR")


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise ShimError(f"{path}: no such file; run stir-diffusion build")
    spec = importlib.util.spec_from_file_location(NAME, path, loader=ExtensionFileLoader(NAME, str(path)))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, RuntimeError) as problem:
        raise ShimError(f"{path} cannot be loaded: {problem}") from problem
    sys.modules[NAME] = module
    return module


def _check_version(host: ModuleType, module: ModuleType, path: Path) -> None:
    version = _version(host)
    if not _same_version(version, module.stir_version):
        raise ShimError(
            f"{path} is compiled for STIR {module.stir_version}, but {host.__name__} has STIR {version}: run "
            "stir-diffusion build with that STIR"
        )


def _version(host: ModuleType) -> str:
    """Version of the STIR inside a module: complete for SIRF, the first two numbers for STIR-Python."""
    if hasattr(host, "get_STIR_version_string"):
        return host.get_STIR_version_string()
    # STIR-Python does not tell; the folder of its configuration files, compiled in, does.
    for library in sorted(Path(host.__file__).parent.glob("_stir*")):
        found = re.search(rb"STIR-(\d+\.\d+)/config", library.read_bytes())
        if found:
            return found[1].decode()
    return ""


def _same_version(running: str, compiled: str) -> bool:
    numbers = running.split(".")
    return not running or compiled.split(".")[: len(numbers)] == numbers


def _prove(host: ModuleType) -> None:
    """Let the host parse a prior of ours: it answers only if its registry is the one that we wrote to."""
    with tempfile.TemporaryDirectory(prefix="stir-priors-") as folder:
        path = Path(folder, "proof.par")
        path.write_text(_PROOF, encoding="utf-8")
        parse = getattr(host, "OSMAPOSLReconstruction3DFloat", None) or host.OSMAPOSLReconstructor
        with _quiet(host):
            reconstruction = parse(str(path))  # kept: STIR-Python's objective function lives no longer than it
            seen = reconstruction.get_objective_function().get_prior() is not None
    if not seen:
        raise ShimError(
            f"{host.__name__} does not see the priors that were registered: its STIR keeps a registry of its own "
            "(compiled with hidden symbols?). Use the executables instead: stir-diffusion run"
        )


@contextmanager
def _quiet(host: ModuleType) -> Iterator[None]:
    """Without the parameters that STIR prints whenever it reads a file."""
    verbosity = getattr(host, "Verbosity", None)
    get, put = (verbosity.get, verbosity.set) if verbosity else (host.get_verbosity, host.set_verbosity)
    before = get()
    put(0)
    try:
        yield
    finally:
        put(before)


_PROOF = """OSMAPOSLParameters :=
objective function type := PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
prior type := Quadratic Anchor
Quadratic Anchor Parameters :=
END Quadratic Anchor Parameters :=
END PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters :=
output filename prefix := proof
END :=
"""
