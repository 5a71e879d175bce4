"""STIR's parameter files: reading and editing them, and what they ask for."""

from .file import ParFile
from .tree import ParBlock, ParFileError, ParKey, ParProblem, check_keys, fold

__all__ = ["ParBlock", "ParFile", "ParFileError", "ParKey", "ParProblem", "check_keys", "fold"]
