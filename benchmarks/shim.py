"""What a Python prior costs in STIR: an identity gradient against a bare copy, and our RDP against STIR's.

    python benchmarks/shim.py [--shape 127 344 344] [--repeats 5] [--threads 2]

Needs STIR-Python and the compiled module (``stir-diffusion build``). All gradients are timed in C++, around the call
that STIR's algorithms make, on the same image. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

import numpy as np

VOXEL_SIZE = (2.03125, 2.08626, 2.08626)
FACTOR, EPSILON = 3.0, 0.05


class Identity:
    """The least that a prior can do: its gradient is the image. Notes where the arrays are."""

    def __init__(self) -> None:
        self.addresses: set[int] = set()
        self.owned = False

    def value(self, x: np.ndarray) -> float:
        """Half the squared image."""
        return 0.5 * float(np.vdot(x, x))

    def gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        """Copy."""
        self.addresses.add(x.ctypes.data)
        self.owned |= x.flags.owndata or out.flags.owndata
        np.copyto(out, x)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(127, 344, 344))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before anything starts its threads

    import torch

    import stir_priors
    from sirf_diffusion.geometry.images import ImageGeometry
    from sirf_diffusion.interop.stir.callbacks import hold
    from sirf_diffusion.priors import RelativeDifferencePenalty

    torch.set_num_threads(arguments.threads)
    shim = stir_priors.load()
    shape = tuple(arguments.shape)
    x = np.random.default_rng(0).random(shape, dtype=np.float32)

    def held(obj: Any, factor: float) -> str:
        token = json.dumps({"token": hold(obj)})
        keys = (
            f"penalisation factor := {factor}\nmodule := sirf_diffusion.interop.stir.callbacks\n"
            f"class := held\narguments := {token}\n"
        )
        return f"prior type := Python\nPython Parameters :=\n{keys}END Python Parameters :=\n"

    def run(text: str) -> dict[str, Any]:
        result = shim.evaluate(text, x, VOXEL_SIZE, arguments.repeats + 1)
        result["median"] = statistics.median(result["seconds"][1:])  # the first touches new memory
        return result

    out = np.empty_like(x)
    copies = []
    for _ in range(arguments.repeats + 1):
        start = time.perf_counter()
        np.copyto(out, x)
        copies.append(time.perf_counter() - start)
    copy = statistics.median(copies[1:])
    identity = Identity()
    plain, scaled = run(held(identity, 1.0)), run(held(identity, FACTOR))
    block = "Relative Difference Prior"
    keys = f"penalisation factor := {FACTOR}\ngamma value := 2\nepsilon value := {EPSILON}\n"
    stock = run(f"prior type := {block}\n{block} Parameters :=\n{keys}END {block} Parameters :=\n")
    ours = run(held(RelativeDifferencePenalty(ImageGeometry(shape, VOXEL_SIZE), 1.0, 2.0, EPSILON), FACTOR))
    difference = np.abs(ours["gradient"] - stock["gradient"]).max() / np.abs(stock["gradient"]).max()
    report = {
        "shape": shape,
        "threads": arguments.threads,
        "stir": shim.stir_version,
        "copy_ms": 1e3 * copy,
        "identity_ms": 1e3 * plain["median"],
        "identity_with_factor_ms": 1e3 * scaled["median"],
        "identity_per_copy": plain["median"] / copy,
        "arrays_are_views_of_one_image": not identity.owned and len(identity.addresses) <= 2,
        "stir_rdp_s": stock["median"],
        "our_rdp_s": ours["median"],
        "rdp_gradient_difference": float(difference),
        "rdp_value_difference": abs(ours["value"] / stock["value"] - 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
