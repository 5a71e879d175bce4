#!/usr/bin/env bash
# The gradients of PyTomography's priors do not match their values. Run: bash findings/pytomography-prior-gradients.sh
set -euo pipefail
folder="$(mktemp -d)" && trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytomography==3.4.0 torch==2.13.0 pydicom==3.0.2 numpy==2.4.6
cd "$folder" && venv/bin/python <<'PYTHON'
import pytomography
import torch
from pytomography.metadata import ObjectMeta
from pytomography.priors import LogCoshPrior, QuadraticPrior, RelativeDifferencePrior

pytomography.set_device("cpu")
pytomography.set_dtype(torch.float64)
torch.manual_seed(0)
image = 1 + torch.rand(5, 5, 5)
direction = torch.randn(5, 5, 5)
step = 1e-5


def ratio(prior):
    """The slope along the direction by the prior's gradient, over the slope by the prior's values (central difference)."""
    prior.set_object_meta(ObjectMeta((2.0, 2.0, 3.0), (5, 5, 5)))
    prior.set_beta_scale(1)
    values = []
    for sign in (1, -1):
        prior.set_object(image + sign * step * direction)
        values.append(prior(derivative_order=0))
    prior.set_object(image)
    slope = (prior(derivative_order=1) * direction).sum().item()
    return round(slope / ((values[0] - values[1]) / (2 * step)), 3)


priors = {
    "RelativeDifferencePrior(gamma=2)": RelativeDifferencePrior(beta=1, gamma=2),
    "QuadraticPrior(delta=1)": QuadraticPrior(beta=1, delta=1),
    "QuadraticPrior(delta=0.1)": QuadraticPrior(beta=1, delta=0.1),
    "LogCoshPrior(delta=1)": LogCoshPrior(beta=1, delta=1),
    "LogCoshPrior(delta=0.1)": LogCoshPrior(beta=1, delta=0.1),
}
seen = {name: ratio(prior) for name, prior in priors.items()}
print(f"PyTomography {pytomography.__version__}: the slope that order 1 gives over the slope of what order 0 gives")
print("expected: 1 for each: order 0 is documented as the prior, and order 1 as its gradient at each voxel")
for name, value in seen.items():
    print(f"seen:     {value} for {name}")
assert list(seen.values()) == [0.5, 1, 0.1, 0.5, 0.05], "the behaviour has changed"
PYTHON
