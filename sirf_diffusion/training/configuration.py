"""A training in a TOML file: read, checked, and written with every default for the user to start from."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any

from ..files.documents import read_text
from ..geometry.checks import check_choice, check_keys
from ..models.networks import NetworkConfig
from ..models.schedules import NoiseSchedule
from .loop import RunOptions
from .recipes import Recipe

#: Largest file that is read, in bytes.
_LARGEST = 1_000_000
#: The recipe that a configuration changes: for a file of the user's own volumes.
DEFAULT = Recipe(
    name="own", batch_size=16, cycles=(30_000,), decay="cosine", crops=(96,),
    architecture=NetworkConfig(
        channels=(32, 64, 128), attention_levels=(False, False, False), num_res_blocks=2, num_head_channels=32,
        patch_size=2,
    ),
)  # fmt: skip

_TABLES = ("", "data", "noise", "optimiser", "validation")
#: Tables that are one object each, with what is said of them.
_PARTS = {
    "schedule": "vp (beta_min, beta_max), ve (sigma_min, sigma_max), ddpm (num_train_steps, beta_start, beta_end, "
    "betas, zero_snr)",
    "augmentation": "random changes of the training images, see sirf_diffusion.training.Augmentation",
    "enhancement": "see sirf_diffusion.models.latent.EnhancementConfig",
    "doses": "of the diffusion, see sirf_diffusion.models.doses.DoseSchedule",
    "scan": "that lower doses are drawn of, see sirf_diffusion.models.enhancement.LowDoseConfig",
}
_NETWORK = {
    "channels": "channels of each resolution level",
    "attention_levels": "self-attention at each level",
    "num_res_blocks": "residual blocks per level",
    "norm_num_groups": "groups of the normalisation; divides all channels",
    "num_head_channels": "channels of an attention head",
    "num_class_embeds": "slice orientations that the network tells apart",
    "in_channels": "1, or 2 for a network that is shown the anatomical image (MR or CT); 5 for --supervised",
    "out_channels": "always 1",
    "patch_size": "blocks of pixels that the network works on: 2 is four times faster than 1, and a little less sharp",
    "spatial_dims": "2: slices; 3: volumes, trained on cubes (num_class_embeds is 0 then, and planes have no meaning)",
    "num_networks": "3: a network of its own for each slice orientation (num_class_embeds is 0 then)",
    "norm_eps": "added to the variance by the normalisation",
    "kind": "unet, or drunet: a convolutional denoiser (takes channels and num_res_blocks; prediction x0, schedule ve)",
}


@dataclass(frozen=True)
class Configuration:
    """What a file says: the recipe and how it runs."""

    recipe: Recipe
    options: RunOptions


def read_configuration(path: str | os.PathLike[str], default: Recipe = DEFAULT) -> Configuration:
    """Configuration of a TOML file; what it does not mention is as in ``default``."""
    text = read_text(path, _LARGEST)
    try:
        return configuration(_parse(text), default)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"configuration {path}: {error}") from error


def configuration(content: dict[str, Any], default: Recipe = DEFAULT) -> Configuration:
    """Configuration of parsed TOML."""
    keys_of, parts = _keys(default), _parts(default)
    tables = {"": {k: v for k, v in content.items() if not isinstance(v, dict)}}
    tables |= {k: v for k, v in content.items() if isinstance(v, dict)}
    known = [*(name for name in keys_of if name), "network", *parts, "run"]
    if unknown := sorted(set(tables) - {"", *known}):
        raise ValueError(f"unknown tables {unknown}; known are {known}")
    changes: dict[str, Any] = {}
    for table, keys in keys_of.items():
        for key, value in _known(table, tables.get(table, {}), keys).items():
            changes[keys[key].name] = _like(table, key, value, getattr(default, keys[key].name))
    network = _network(tables.get("network", {}), default.architecture)
    if "network" in tables:
        changes["architecture"] = network
    for table, part in parts.items():
        if table == "schedule":
            changes |= {"schedule": _schedule(tables[table])} if table in tables else {}
        else:
            part = replace(part, network=network) if table == "enhancement" else part
            changes[table] = _filled(table, tables, part)
    if changes.get("prediction") == "edm":
        noise = {"prediction": "v", "weighting": "edm", "log_sigma_mean": -1.2, "log_sigma_sd": 1.2}
        changes = noise | changes | {"prediction": "v"}
    return Configuration(replace(default, **changes), _filled("run", tables, RunOptions()))


def default_text(default: Recipe = DEFAULT) -> str:
    """The defaults as a TOML file that `read_configuration` reads, each with a line that says what it is."""
    supervised = "--supervised --init MODEL --scanner F.hs " if default.supervised else ""
    kind = "--latent " if default.enhances else supervised
    lines = [f"# Configuration of `sirf-diffusion train {kind}--data F.h5 --config THIS --out MODEL`: the defaults."]
    for table, keys in _keys(default).items():
        lines += ["", f"[{table}]"] if table else [""]
        lines += [_line(key, getattr(default, i.name), i.metadata["text"]) for key, i in keys.items()]
    lines += ["", "[network]"]
    lines += [_line(key, getattr(default.architecture, key), text) for key, text in _NETWORK.items()]
    for table, part in _parts(default).items():
        values = part.to_config() if table == "schedule" else _plain(part)
        lines += ["", f"[{table}]  # {_PARTS[table]}", *(_line(key, value) for key, value in values.items())]
    lines += ["", "[run]  # has no influence on the result"]
    lines += [_line(i.name, i.default, i.metadata["text"]) for i in fields(RunOptions)]
    return "\n".join(lines) + "\n"


def _keys(default: Recipe) -> dict[str, dict[str, Any]]:
    """Fields of a recipe by table and key of the file; without those that mean nothing to this kind."""
    items = [item for item in fields(default) if item.name not in default.unused]
    return {
        table: {i.metadata["key"] or i.name: i for i in items if i.metadata.get("table") == table} for table in _TABLES
    }


def _parts(default: Recipe) -> dict[str, Any]:
    """The objects of a recipe that have a table of their own."""
    known = [table for table in _PARTS if hasattr(default, table) and table not in default.unused]
    return {table: getattr(default, table) for table in known}


def _plain(part: Any) -> dict[str, Any]:
    """Settings of an object; a network in it has its own table."""
    return {item.name: getattr(part, item.name) for item in fields(part) if item.name != "network"}


def _parse(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError("TOML files need Python 3.11, or: pip install tomli") from error
    return tomllib.loads(text)


def _network(table: dict[str, Any], default: NetworkConfig) -> NetworkConfig:
    defaults = {item.name: getattr(default, item.name) for item in fields(NetworkConfig)}
    _known("network", table, defaults)
    if table.get("spatial_dims", 2) == 3 or table.get("num_networks", 1) != 1 or table.get("kind") == "drunet":
        defaults["num_class_embeds"] = 0
    if table.get("kind") == "drunet":
        defaults["patch_size"] = 1
    return NetworkConfig.from_dict(defaults | table)


def _schedule(table: dict[str, Any]) -> NoiseSchedule:
    kinds = {kind.name: kind for kind in NoiseSchedule.__subclasses__()}
    name = check_choice("[schedule] name", table.get("name", DEFAULT.schedule.name), tuple(kinds))
    return NoiseSchedule.from_config(kinds[name]().to_config() | table)


def _filled(table: str, tables: dict[str, dict[str, Any]], default: Any) -> Any:
    """The dataclass ``default`` with the values of a table."""
    entries = _known(table, tables.get(table, {}), _plain(default))
    return replace(default, **{k: _like(table, k, v, getattr(default, k)) for k, v in entries.items()})


def _known(table: str, entries: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    check_keys(f"table [{table}]" if table else "the top of the file", entries, known, all_needed=False)
    return entries


def _like(table: str, key: str, value: Any, default: Any) -> Any:
    """The value, of the type of the default: a whole number may stand for a number, a list for a tuple."""
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_like(table, key, item, default[0]) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"[{table}] {key} must be of type {type(default).__name__}, found {value!r}")
    return value


def _line(key: str, value: Any, text: str = "") -> str:
    return f"{key} = {_toml(value)}" + (f"  # {text}" if text else "")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)
