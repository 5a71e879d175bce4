"""Compiling the shim and the executables against an installed STIR, into a cache.

The cache is ``$SIRF_DIFFUSION_CACHE`` or ``~/.cache``, with one folder
``sirf-diffusion/stir-<version>-<python>-<hash of sources and STIR>`` per STIR; its ``build.json`` says what it is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("stir_priors")

PROGRAMS = ("OSMAPOSL", "OSSPS", "postfilter")
OLDEST = (6, 2)
SOURCES = Path(__file__).resolve().parent
_LOG_LINES = 25


class ShimError(RuntimeError):
    """STIR, or what connects it with Python, cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Build:
    """A finished build: its folder, the STIR it belongs to, and the Python that its programs start."""

    folder: Path
    stir_version: str
    stir_dir: str
    python: str

    @property
    def module(self) -> Path:
        """The extension module."""
        return self.folder / f"_shim{sysconfig.get_config_var('EXT_SUFFIX')}"

    def program(self, name: str) -> Path:
        """Path of ``OSMAPOSL``, ``OSSPS`` or ``postfilter``; ShimError if it was not built."""
        path = self.folder / name
        if name not in PROGRAMS:
            raise ShimError(f"there is no program {name!r}: expected one of {', '.join(PROGRAMS)}")
        if not path.is_file():
            raise ShimError(f"{path} was not built: this Python ({self.python}) has no library to embed")
        return path


def build(stir_dir: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
    """Compile against an installed STIR unless that is done already (or ``force``); the folder with the products.

    Takes a minute or two, and pybind11 and CMake from pip (``pip install "sirf-diffusion[stir]"``). ``stir_dir`` is the
    folder of ``STIRConfig.cmake``, or the prefix that STIR is installed in; searched for if omitted, see `find_stir`.

    Raises
    ------
    ShimError
        If STIR or a tool is missing or unsuitable, or the compiler fails; the message says which and what to do.
    """
    config = find_stir(stir_dir)
    version = stir_version(config)
    check_stir(config, version)
    target = cache_root() / f"stir-{version}-{sys.implementation.cache_tag}-{_fingerprint(config)}"
    if target.is_dir() and not force:
        return target
    tools = _tools()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as name:
        scratch, made = Path(name, "cmake"), Path(name, "made")
        log = target.parent / f"{target.name}.log"
        logger.info("compiling the shim for STIR %s (%s); log: %s", version, config, log)
        _compile(scratch, config, *tools, log)
        made.mkdir()
        for product in (f"_shim{sysconfig.get_config_var('EXT_SUFFIX')}", *PROGRAMS):
            if (scratch / product).is_file():
                shutil.copy2(scratch / product, made)
        about = {"stir_version": version, "stir_dir": str(config), "python": sys.executable}
        (made / "build.json").write_text(json.dumps(about, indent=2) + "\n")
        if target.is_dir():
            shutil.rmtree(target)
        made.rename(target)
    if not (target / PROGRAMS[0]).is_file():
        logger.warning("the programs were left out, as this Python has no library to embed; the module is there")
    return target


def build_if_possible() -> Path | None:
    """`build` for an installation: where that is not possible, say so in the log and return None."""
    try:
        return build()
    except ShimError as problem:
        logger.info("STIR's priors are not compiled: %s", problem)
    except Exception:
        logger.warning("compiling STIR's priors failed", exc_info=True)
    return None


def find_builds() -> list[Build]:
    """Builds of the present sources for this Python, newest first."""
    found = []
    for path in cache_root().glob(f"stir-*-{sys.implementation.cache_tag}-*/build.json"):
        about = json.loads(path.read_text(encoding="utf-8"))
        item = Build(path.parent, about["stir_version"], about["stir_dir"], about["python"])
        if path.parent.name.endswith(_fingerprint(Path(item.stir_dir))) and item.module.is_file():
            found.append((path.stat().st_mtime, item))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def cache_root() -> Path:
    """Folder of all builds."""
    root = os.environ.get("SIRF_DIFFUSION_CACHE")
    return (Path(root) if root else Path.home() / ".cache") / "sirf-diffusion"


def find_stir(stir_dir: str | os.PathLike[str] | None = None) -> Path:
    """Folder of ``STIRConfig.cmake``; ShimError if it is nowhere, or not where the argument or ``STIR_DIR`` says.

    Looked for in: the argument; the environment variable ``STIR_DIR``; around the ``stir`` and ``sirf`` modules; the
    conda environment; ``/usr/local`` and ``/usr``; around the STIR programs on ``PATH``.
    """
    for given, origin in ((stir_dir, "the argument"), (os.environ.get("STIR_DIR"), "STIR_DIR")):
        if given:
            config = _config_in(Path(given).expanduser())
            if config is None:
                raise ShimError(
                    f"{given} (from {origin}) has no STIRConfig.cmake: give the folder that STIR was installed in. A "
                    "STIR without CMake files was not installed for development; conda-forge's stir has them"
                )
            return config
    for prefix in _prefixes():
        config = _config_in(prefix)
        if config is not None:
            return config
    raise ShimError(
        "no STIR found: give the folder that it was installed in (stir-diffusion build --stir-dir DIR, or STIR_DIR); "
        "conda install -c conda-forge stir installs one"
    )


def stir_version(config: Path) -> str:
    """Version of an installed STIR, such as ``"6.2.0"``."""
    path = config / "STIRConfigVersion.cmake"
    found = re.search(r'PACKAGE_VERSION\s+"([\d.]+)"', path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        raise ShimError(f"{path} does not tell STIR's version: the installation is incomplete")
    return found[1]


def check_stir(config: Path, version: str) -> None:
    """Raise `ShimError` unless this STIR is new enough and has headers and static libraries."""
    if tuple(int(n) for n in version.split(".")[:2]) < OLDEST:
        raise ShimError(f"STIR {version} ({config}) is too old: 6.2 or newer is needed; conda-forge has one")
    prefix = config.parents[2]
    include = prefix / "include" / f"STIR-{'.'.join(version.split('.')[:2])}"
    if not any((folder / "stir" / "DataProcessor.h").is_file() for folder in (include, prefix / "include")):
        raise ShimError(f"STIR {version} has no headers ({include} lacks them): install its development files")
    targets = "".join(path.read_text(encoding="utf-8") for path in sorted(config.glob("STIRTargets*.cmake")))
    libraries = re.findall(r'IMPORTED_LOCATION\w*\s+"([^"]+)"', targets)
    missing = [p for p in (lib.replace("${_IMPORT_PREFIX}", str(prefix)) for lib in libraries) if not Path(p).is_file()]
    if missing:
        raise ShimError(
            f"STIR {version} has no libraries to link: {missing[0]} and {len(missing) - 1} others are missing; install "
            "STIR with its libraries"
        )


def _config_in(folder: Path) -> Path | None:
    candidates = [folder, *sorted(folder.glob("lib*/cmake/STIR*"), reverse=True)]
    return next((path.resolve() for path in candidates if (path / "STIRConfig.cmake").is_file()), None)


def _prefixes() -> Iterator[Path]:
    """Folders that STIR may be installed in."""
    for name in ("stir", "sirf"):
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            yield from list(Path(spec.origin).resolve().parents)[:6]
    for variable in ("CONDA_PREFIX", "SIRF_INSTALL_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    yield from (Path(sys.prefix), Path("/usr/local"), Path("/usr"))
    program = shutil.which("stir_math")
    if program:
        yield Path(program).resolve().parents[1]


def _tools() -> tuple[str, str | None]:
    """CMake and Ninja, if that is there; `ShimError` if something is missing."""
    advice = 'pip install "sirf-diffusion[stir]"'
    if importlib.util.find_spec("pybind11") is None:
        raise ShimError(f"pybind11 is missing: {advice}")
    cmake, ninja = _which("cmake"), _which("ninja")
    if cmake is None:
        raise ShimError(f"cmake is missing: {advice}")
    compiler = os.environ.get("CXX", "").split()
    if not any(shutil.which(name) for name in (compiler[:1] or ["c++", "g++", "clang++"])):
        what = f"CXX={compiler[0]} is not there" if compiler else "there is no C++ compiler"
        raise ShimError(f"{what}: install one (apt install g++, or conda install -c conda-forge cxx-compiler)")
    if ninja is None and shutil.which("make") is None:
        raise ShimError(f"neither ninja nor make is there: {advice}")
    return cmake, ninja


def _which(name: str) -> str | None:
    """A program beside this Python, else on PATH: pip puts it there even if the environment is not activated."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _compile(scratch: Path, config: Path, cmake: str, ninja: str | None, log: Path) -> None:
    configure = [cmake, "-S", str(SOURCES), "-B", str(scratch), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DSTIR_DIR={config}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "1")
    with log.open("w", encoding="utf-8") as stream:
        for command in (configure, [cmake, "--build", str(scratch), "--parallel", jobs]):
            result = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
            if result.returncode != 0:
                stream.flush()
                raise ShimError(_explain(log, command[1] == "--build"))


def _explain(log: Path, compiling: bool) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    end = "\n".join(text.splitlines()[-_LOG_LINES:])
    if "recompile with -fPIC" in text or "recompile with `-fPIC" in text:
        return (
            "STIR's static libraries cannot be put into a module, as they were not compiled with -fPIC: build STIR "
            f"with -DCMAKE_POSITION_INDEPENDENT_CODE=ON. Log: {log}"
        )
    return f"{'compiling' if compiling else 'configuring'} the shim failed; the end of {log}:\n{end}"


def _fingerprint(config: Path) -> str:
    """Hash of the sources and of which STIR and Python they are compiled for."""
    digest = hashlib.sha256(f"{config}\n{sys.prefix}\n".encode())
    for path in [SOURCES / "CMakeLists.txt", *sorted((SOURCES / "src").glob("*"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
