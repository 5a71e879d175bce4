"""All methods on one example: what the demo shows and the tests of quality measure."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import Example
from ..reconstructors.methods import METHODS, QUICK_NUM_SAMPLES, get_method
from .metrics import image_quality, nrmse
from .reconstruction import reconstruct
from .report import Panel, comparison_figure, format_table
from .result import Reconstruction

logger = logging.getLogger(__name__)

COLUMNS = {
    "method": "s",
    "nrmse": ".3f",
    "psnr": ".2f",
    "ssim": ".3f",
    "log_likelihood": ".0f",
    "forward": ".1f",
    "back": ".1f",
    "seconds": ".1f",
}


@dataclass(frozen=True)
class Comparison:
    """Reconstructions of one example by several methods, and how near each is to the truth."""

    example: Example
    results: dict[str, Reconstruction]
    true_log_likelihood: float

    def metrics(self) -> dict[str, dict[str, float]]:
        """By method: NRMSE, PSNR, SSIM, log-likelihood, projections (forward plus back) and seconds."""
        return {
            name: {
                **image_quality(result.image, self.example.truth).as_dict(),
                "log_likelihood": result.record["log_likelihood"],
                "projections": sum(result.record["projections"][kind] for kind in ("forward", "back")),
                "seconds": result.record["seconds"]["total"],
            }
            for name, result in self.results.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """The numbers of the table, one dictionary per method: `metrics` with forward and back projections apart."""
        results, metrics = self.results, self.metrics()
        return [{"method": n, **row, **results[n].record["projections"]} for n, row in metrics.items()]

    def table(self) -> str:
        """The numbers as text, one line per method."""
        return format_table(self.rows(), COLUMNS)

    def seconds(self) -> dict[str, float]:
        """Seconds of all reconstructions, of reading and preparing data for them, and of checking what came out."""
        kinds = {"reconstructions": "total", "data": "data", "checks": "check"}
        records = [result.record["seconds"] for result in self.results.values()]
        return {name: sum(record[kind] for record in records) for name, kind in kinds.items()}

    def figure(self, path: Path) -> None:
        """Draw the comparison."""
        panels = [
            Panel(
                METHODS[name].title,
                result.image,
                result.uncertainty,
                result.trace if METHODS[name].samples else None,
                f"NRMSE {nrmse(result.image, self.example.truth):.3f}",
            )
            for name, result in self.results.items()
        ]
        prompts = float(self.example.acquisition.prompts.double().sum())
        comparison_figure(
            path,
            self.example.truth,
            panels,
            self.example.acquisition.geometry,
            anatomy=self.example.mr,
            true_log_likelihood=self.true_log_likelihood,
            title=f"{self.example.name}: {prompts:.3g} prompts",
        )

    def images(self) -> dict[str, Tensor]:
        """Images by file name stem: ``truth``, each method, and its ``-uncertainty`` where there is one."""
        images = {"truth": self.example.truth}
        for name, result in self.results.items():
            images[name] = result.image
            if result.uncertainty is not None:
                images[f"{name}-uncertainty"] = result.uncertainty
        return images


def compare(
    example: Example,
    methods: Sequence[str] = ("osem", "map-rdp", "map-score", "dds", "hqs", "lisch"),
    *,
    model: Any = None,
    num_samples: int | None = None,
    quick: bool = False,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Comparison:
    """Reconstruct an example by each method.

    Parameters
    ----------
    example
        The data, with the truth.
    methods
        Names of methods.
    model, num_samples
        For the methods that use a score model, and that draw samples: 5, or 2 with ``quick``, unless given.
    quick, options
        As of `sirf_diffusion.study.reconstruction.Study`.
    settings
        By method, settings that differ from its defaults.
    """
    results = {}
    for name in methods:
        method = get_method(name)
        logger.info("%s: %s", example.name, name)
        results[name] = reconstruct(
            example.acquisition,
            name,
            model=model if method.uses_model else None,
            num_samples=(num_samples or (QUICK_NUM_SAMPLES if quick else None)) if method.samples else None,
            settings=(settings or {}).get(name),
            quick=quick,
            **options,
        )
    return Comparison(example, results, float(example.acquisition.objective().value(example.truth)))
