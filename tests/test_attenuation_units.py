"""Attenuation images are in 1/cm, and what looks like another unit is refused wherever it is read."""

import pytest
import torch
from small_scan import write_small_scan

from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.attenuation import check_attenuation_units
from sirf_diffusion.files.interfile import read_image, write_image


def body(lung=0.027, water=0.096, metal=0):
    image = torch.zeros(8, 20, 20)
    image[:, 4:16, 4:16] = water
    image[:, 6:12, 6:9] = lung
    image[0, 10, 10 : 10 + metal] = 1.5
    return image


@pytest.mark.parametrize("image", [body(), body(metal=3), torch.zeros(2, 3, 3), body() * (torch.rand(8, 20, 20) > 0.3)])
def test_tissue_in_1_per_cm_and_air_are_taken(image, caplog):
    check_attenuation_units(image)
    assert caplog.text == ""
    check_attenuation_units(1.6 * image.clamp(max=1))
    assert ("lower energy" in caplog.text) == bool(image.any())


@pytest.mark.parametrize(("image", "reason"), [
    (body() / 10, "mu looks like 1/mm"), (body(metal=3) / 10, "mu looks like 1/mm"),
    (body(metal=1).clamp(max=0.1) / 10 + 0.0005 * torch.rand(8, 20, 20), "mu looks like 1/mm"),
    (body() * 100, "mu reaches 9.6"), (body() - 0.01, "mu has negative"),
])  # fmt: skip
def test_other_units_are_refused(image, reason):
    with pytest.raises(ValueError, match=reason):
        check_attenuation_units(image, "mu")


def test_a_reconstruction_refuses_the_file(tmp_path):
    scan = write_small_scan(tmp_path)
    mu, geometry = read_image(scan.mu_hv)
    write_image(tmp_path / "mm.hv", mu / 10, geometry)
    with pytest.raises(ValueError, match=r"mm.hv.*looks like 1/mm.*multiply it by 10"):
        Acquisition.from_files(scan.prompts_hs, attenuation=tmp_path / "mm.hv").objective()
