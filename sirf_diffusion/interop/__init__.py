"""Objects for scripts of SIRF and CIL, and what STIR calls."""

from __future__ import annotations

import importlib
import logging
from functools import lru_cache
from types import ModuleType

__all__ = ["get_engine"]

logger = logging.getLogger(__name__)


def get_engine(name: str = "auto") -> ModuleType:
    """The module that offers ``ImageData``, ``AcquisitionData``, ``OSMAPOSLReconstructor``, ... to a script.

    Parameters
    ----------
    name
        ``"sirf"`` for all of ``sirf.STIR`` and this package's priors besides
        (:mod:`sirf_diffusion.interop.sirf`), ``"embedded"`` for the same names without SIRF, ``"auto"`` for SIRF if it
        can be imported and the embedded engine otherwise; which one it became is logged once.

    Raises
    ------
    ValueError
        For another name.
    ImportError
        If SIRF was asked for by name and cannot be imported.

    Examples
    --------
    >>> get_engine("embedded").__name__
    'sirf_diffusion.interop.sirf_names'
    """
    if name == "auto":
        return _automatic()
    if name == "embedded":
        return importlib.import_module("sirf_diffusion.interop.sirf_names")
    if name == "sirf":
        try:
            importlib.import_module("sirf.STIR")
        except ImportError as problem:
            raise ImportError(
                f"engine 'sirf' was asked for, but sirf.STIR cannot be imported ({problem}). Install SIRF, for "
                "instance from the image ghcr.io/synerbi/sirf, or use get_engine('embedded')"
            ) from problem
        return importlib.import_module("sirf_diffusion.interop.sirf")
    raise ValueError(f"engine must be 'auto', 'embedded' or 'sirf', found {name!r}")


@lru_cache(maxsize=1)
def _automatic() -> ModuleType:
    try:
        module = get_engine("sirf")
    except ImportError:
        module = get_engine("embedded")
        logger.info("SIRF is not installed: using the embedded engine")
    else:
        logger.info("using SIRF")
    return module
