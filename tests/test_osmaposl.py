"""OSEM as a parameter file asks for it: STIR's OSMAPOSL, voxel for voxel."""

import numpy as np
import pytest
import torch
from toy_objective import make_toy

from sirf_diffusion.files.parfile import ParFile, ParFileError
from sirf_diffusion.files.parfile.run import ParRun
from sirf_diffusion.reconstructors.em.osmaposl import OSMAPOSL, StirUpdates, make_positive
from sirf_diffusion.study.reconstruction import reconstruct

KEYS = {
    "plain": "",
    "limits": "maximum relative change := 1.2\nminimum relative change := 0.9",
    "late start": "start at subiteration number := 3\nstart at subset := 1\nmaximum relative change := 1.1",
    "no positivity": "enforce initial positivity condition := 0",
}


@pytest.mark.requires_stir
@pytest.mark.requires_shim
@pytest.mark.parametrize("initial", ["start.hv", "negative.hv"])
@pytest.mark.parametrize("keys", KEYS)
def test_the_image_is_that_of_osmaposl_in_every_voxel(keys, initial, scan):
    if initial == "negative.hv":
        scan.write("negative", scan.truth - 0.1 * scan.truth.max())
    updates = 10 if keys == "late start" else 8
    options = {"extra": KEYS[keys], "initial": initial, "subsets": 2, "subiterations": updates}
    own = scan.run("own", **options)
    found = reconstruct(str(scan.par("own", **options)), "osem", engine="stir").image.numpy()
    assert np.abs(found - own).max() <= 1e-5 * own.max()
    assert found[own > 0].min() > 0, "the rim of the field of view is zero"


def test_limits_hold_from_the_second_subiteration_on():
    objective = make_toy((1, 6, 6))[0].divided(2)
    x = torch.full((1, 6, 6), 3.0)
    for first, limited in ((1, False), (2, True)):
        run = OSMAPOSL(objective, 1, StirUpdates((0, 1), first, (0.95, 1.05)))
        run.set_up(x)
        ratio = run.process().get_output() / x
        assert (float(ratio.min()) >= 0.95**2 * (1 - 1e-6)) == limited


def test_values_that_are_not_positive_are_raised_as_stir_raises_them():
    assert make_positive(torch.tensor([-1.0, 0.0, 2.0, 3.0])).tolist() == pytest.approx([2e-6, 2e-6, 2.0, 3.0])
    assert make_positive(torch.tensor([-1.0, 0.0])).tolist() == pytest.approx([1e-6, 1e-6])


@pytest.mark.parametrize(("keys", "message"), [
    ("maximum relative change := 0.5", "maximum relative change"),
    ("minimum relative change := much", "must be a number"),
    ("relaxation parameter := 1", "is not a key of osmaposlparameters"),
    ("number of subsets := 1000000", "out of range"),
])  # fmt: skip
def test_keys_that_cannot_be_obeyed_are_refused_by_name(keys, message):
    objective = "objective function type := P\nP Parameters :=\nEnd P Parameters :=\n"
    with pytest.raises(ParFileError, match=message):
        ParRun.of(ParFile.parse(f"OSMAPOSLParameters :=\n{objective}{keys}\nEND :=\n"))


def test_keys_without_meaning_for_another_method_are_said(caplog):
    objective = "objective function type := P\nP Parameters :=\nEnd P Parameters :=\n"
    text = f"OSMAPOSLParameters :=\n{objective}MAP model := multiplicative\nmaximum relative change := 2\nEND :=\n"
    ParRun.of(ParFile.parse(text)).say_osem_only("lisch")
    assert "map model" in caplog.text
    assert "lisch has no use for maximum relative change" in caplog.text
