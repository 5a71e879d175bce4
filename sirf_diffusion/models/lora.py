"""Adapters: small changes to a network's weights, learnt from one scan, kept apart from the weights themselves."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..files.weights import WeightsFileError, WeightsFormat, check_tensors
from ..geometry.checks import check_flag, check_real
from .score_model import ScoreModel

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Layers that tell the network the noise level and the orientation: what they say does not depend on the scan.
EMBEDDINGS = r"(^|[._])(time|timestep|t|class|label)_?emb|emb_layers|embedding"


class AdapterFileError(WeightsFileError):
    """An adapter file cannot be used; the message names the file and what is wrong with it."""


_FORMAT = WeightsFormat("an adapter", "sirf_diffusion_adapter", "make the adapter afresh", AdapterFileError)


@dataclass(frozen=True)
class AdapterConfig:
    r"""Which weights of a network may change, and how.

    Low rank: every weight ``W [out, in, ...]`` of a chosen layer becomes

    .. math:: W + \mathrm{scale} \cdot B A

    with ``B [out, r]`` zero and ``A [r, in * kernel]`` of standard deviation ``1 / r`` at the start (Hu et al. 2022,
    arXiv:2106.09685; convolutions are taken as matrices).

    Parameters
    ----------
    rank, scale
        ``r``; 0 leaves the network as it is, None makes every chosen weight free (full fine-tuning). And the factor of
        the low-rank change.
    targets, exclude
        Regular expressions that the names of the layers must and must not contain (linear, 1D, 2D and 3D convolutional
        layers; all kinds for ``rank=None``); layers that embed time and orientation are excluded unless given.
    biases
        Whether the biases of all layers but the excluded ones, those of normalisation layers included, are free too.
    """

    rank: int | None = 4
    scale: float = 1.0
    targets: str = ""
    exclude: str = EMBEDDINGS
    biases: bool = True

    def __post_init__(self) -> None:
        if self.rank is not None and (type(self.rank) is not int or not 0 <= self.rank <= 4096):
            found = f"found {self.rank!r}"
            raise ValueError(f"rank must be a whole number from 0 to 4096, or None for all weights, {found}")
        check_real("scale", self.scale, -1e6, 1e6)
        check_flag("biases", self.biases)
        for name in ("targets", "exclude"):
            try:
                re.compile(getattr(self, name))
            except (re.error, TypeError) as error:
                raise ValueError(f"{name} must be a regular expression, found {getattr(self, name)!r}") from error

    def chooses(self, name: str) -> bool:
        """Whether the layer of this name is one of the chosen."""
        return re.search(self.targets, name) is not None and not self.excludes(name)

    def excludes(self, name: str) -> bool:
        """Whether the layer of this name must stay as it is."""
        return bool(self.exclude) and re.search(self.exclude, name) is not None


class LowRank(nn.Module):
    """Parametrisation of a weight: the weight plus ``scale`` times the product of two thin matrices."""

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        columns = weight[0].numel()
        down = torch.randn(rank, columns, generator=generator) / rank
        self.down = nn.Parameter(down.to(weight), requires_grad=False)
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank), requires_grad=False)
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        change = (self.up @ self.down).reshape(weight.shape)
        # A copy is laid out in memory as the weight is, a sum need not be: other layouts can mean other rounding.
        return weight.clone().add_(change, alpha=self.scale)


def attach_low_rank(network: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Make low-rank changes of a network's layers, and nothing else of it, trainable; returns them. See AdapterConfig.

    For a training; `plain_weights` are what comes of it. Layers that embed time and orientation stay as they are.
    """
    generator, config, free = torch.Generator().manual_seed(seed), AdapterConfig(rank=rank), []
    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if isinstance(layer, _LAYERS) and config.chooses(name):
            change = LowRank(layer.weight, rank, config.scale, generator)
            parametrize.register_parametrization(layer, "weight", change, unsafe=True)
            free += [change.up.requires_grad_(), change.down.requires_grad_()]
    return free


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """State of a network, the changes of `attach_low_rank` being part of its weights."""
    state = {name: value for name, value in network.state_dict().items() if ".parametrizations." not in f".{name}"}
    with torch.no_grad():
        for name, layer in network.named_modules():
            if parametrize.is_parametrized(layer, "weight"):
                state[f"{name}.weight"] = layer.weight.detach()
    return state


class Adapter:
    """A score model with weights that may change, on a copy of its network; the given model is never touched.

    :attr:`model` is the adapted model: as the base model, bound where that is, with the changed network and the base's
    hash. At the start it gives what the base gives, to the bit. Raises ValueError if the network has no weights to
    adapt.

    Parameters
    ----------
    model, config
        The base model, whose network must be a ``torch.nn.Module``, and which of its weights may change.
    seed
        Of the initial matrices.
    stored
        What an adapter file holds: its names say what may change, whatever ``config`` chooses.
    """

    def __init__(
        self,
        model: ScoreModel,
        config: AdapterConfig | None = None,
        *,
        seed: int = 0,
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        network = getattr(model, "network", None)
        if not isinstance(network, nn.Module):
            raise ValueError("adaptation needs a model whose network is a torch.nn.Module; this one's has no weights")
        self.config, self.base_hash = config or AdapterConfig(), model.hash
        self._base_network = network
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.model = copy.copy(model)
        self.model.network = self.network
        self.model.__dict__["hash"] = self.base_hash
        self._free: dict[str, nn.Parameter] = {}
        self._low_rank: dict[str, nn.Module] = {}
        if self.config.rank != 0:
            self._attach(torch.Generator().manual_seed(seed), stored)
            if not self._free:
                raise ValueError(f"no layer of this network is chosen by targets = {self.config.targets!r}")

    def _attach(self, generator: torch.Generator, stored: Mapping[str, Tensor] | None) -> None:
        for name, layer in list(self.network.named_modules()):
            own = dict(layer.named_parameters(recurse=False))
            if stored is None:
                chosen, low_rank = self._chosen(name, own)
            else:
                chosen, low_rank = [key for key in own if f"{name}.{key}" in stored], f"{name}.weight.up" in stored
            for key in sorted(chosen):
                self._free[f"{name}.{key}"] = own[key]
            if self.config.rank and low_rank and isinstance(layer, _LAYERS):
                change = LowRank(layer.weight, self.config.rank, self.config.scale, generator)
                # Unsafe only spares a call of the change: shape and type are known to be kept.
                parametrize.register_parametrization(layer, "weight", change, unsafe=True)
                self._low_rank[name] = layer
                self._free[f"{name}.weight.up"], self._free[f"{name}.weight.down"] = change.up, change.down

    def _chosen(self, name: str, own: Mapping[str, nn.Parameter]) -> tuple[list[str], bool]:
        """Which parameters of a layer are free, and whether its weight may change."""
        config = self.config
        if config.rank is None:
            return list(own) if config.chooses(name) else [], False
        free_bias = config.biases and "bias" in own and not config.excludes(name)
        return ["bias"] if free_bias else [], config.chooses(name)

    def parameters(self) -> list[nn.Parameter]:
        """What may be optimised, within :meth:`adapting`."""
        return list(self._free.values())

    @contextmanager
    def adapting(self) -> Iterator[None]:
        """Within the ``with`` block, gradients of the loss are kept for what may change; none are left after it."""
        # Not all the time: PyTorch may take other kernels, with other rounding, for weights that ask for gradients.
        for parameter in self.parameters():
            parameter.requires_grad_()
        try:
            yield
        finally:
            for parameter in self.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None

    @property
    def num_parameters(self) -> int:
        """How many numbers may change."""
        return sum(parameter.numel() for parameter in self._free.values())

    def tensors(self) -> dict[str, Tensor]:
        """Present values of all that may change, by name; not copies."""
        return {name: parameter.detach() for name, parameter in self._free.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Set what may change; names and shapes must be those of :meth:`tensors`.

        Raises ValueError if they are not, or values are not finite.
        """
        try:
            check_tensors(tensors, self._free)
        except ValueError as error:
            raise ValueError(f"its tensors do not fit this network: {error}") from error
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._free[name].copy_(tensor)

    def merge(self) -> ScoreModel:
        """The adapted model as an ordinary one: the change becomes part of copied weights, and the hash a new one.

        It can be saved and used like any other model; this adapter stays as it is.
        """
        merged = copy.copy(self.model)
        # From the base's network: a copy of the changed one would share its property "weight", which lies in the class.
        merged.network = copy.deepcopy(self._base_network).requires_grad_(False)
        for name, value in self._free.items():
            layer, _, kind = name.rpartition(".")
            if kind not in ("up", "down") or layer.rpartition(".")[0] not in self._low_rank:
                merged.network.get_parameter(name).copy_(value)
        with torch.no_grad():
            for name, changed in self._low_rank.items():
                merged.network.get_submodule(name).weight.copy_(changed.weight)
        del merged.__dict__["hash"]
        return merged

    @property
    def hash(self) -> str:
        """SHA-256 of what may change."""
        digest = hashlib.sha256(self.base_hash.encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.to("cpu", torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> Path:
        """Write what has changed, and the hash of the base model, to a ``.safetensors`` file in an existing folder.

        ``about`` is its provenance: anything that JSON can hold.
        """
        document = {"base": self.base_hash, "config": asdict(self.config), "about": about or {}}
        _FORMAT.write(path, self.tensors(), document)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ScoreModel) -> Adapter:
        """The adapter of a file, on a copy of the model that it was made for.

        Raises FileNotFoundError if there is no such file, and AdapterFileError if it is no adapter file, or belongs to
        another base model.
        """
        content, tensors, _ = _FORMAT.read(path)
        base = str(content.get("base"))
        if base != model.hash:
            raise AdapterFileError(
                f"adapter {path} was made for another model: its base has the hash {base[:12]}..., this model has "
                f"{model.hash[:12]}...; use it with the model that it was made for"
            )
        with _FORMAT.guarded(path):
            config = AdapterConfig(**content["config"])
            ranks = {tensor.shape[-1] for name, tensor in tensors.items() if name.endswith(".weight.up")}
            if ranks - {config.rank}:
                raise ValueError(f"its matrices have the ranks {sorted(ranks)}, its configuration {config.rank}")
            # No pattern of a file is searched for: a hostile one may take for ever.
            adapter = cls(model, config, stored=tensors)
            adapter.load_tensors(tensors)
            return adapter
