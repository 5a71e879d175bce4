"""Blocks of parameter files, as text."""

import json


def stock(name: str, factor: float, **keys: object) -> str:
    """A block of one of STIR's own priors."""
    title = {"Quadratic": "Quadratic Prior", "Relative Difference Prior": "Relative Difference Prior"}[name]
    return _block(f"prior type := {name}", title, {"penalisation factor": factor, **_spaced(keys)})


def python(cls: str, factor: float, module: str = "stir_shim_priors", **arguments: object) -> str:
    """``prior type := Python``."""
    keys = {"penalisation factor": factor, "module": module, "class": cls, "arguments": json.dumps(arguments)}
    return _block("prior type := Python", "Python", keys)


def prior(name: str, **keys: object) -> str:
    """One of this package's priors; underscores in keys are blanks."""
    return _block(f"prior type := {name}", name, _spaced(keys))


def processor(slot: str, name: str, **keys: object) -> str:
    """One of this package's filters behind a key such as ``post-filter type``."""
    return _block(f"{slot} := {name}", name, _spaced(keys))


def _spaced(keys: dict[str, object]) -> dict[str, object]:
    return {("class" if key == "cls" else key.replace("_", " ")): value for key, value in keys.items()}


def _block(selection: str, title: str, keys: dict[str, object]) -> str:
    lines = "".join(f"  {key} := {value}\n" for key, value in keys.items())
    return f"{selection}\n{title} Parameters :=\n{lines}END {title} Parameters :=\n"
