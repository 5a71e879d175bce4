"""SIRF containers as tensors: memory, orientation and position, against the real SIRF."""

import gc

import numpy as np
import pytest
import torch
from sirf_scan import bundled, quiet_sirf

from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.geometry.images import ImageGeometry

pytestmark = pytest.mark.requires_sirf

SHAPE, SIZES = (3, 6, 5), (4.0625, 2.08626, 3.0)


@pytest.fixture
def image(pet):
    made = pet.ImageData()
    made.initialise(SHAPE, SIZES)
    made.fill(np.arange(90, dtype=np.float32).reshape(SHAPE))
    return made


def test_tensors_own_their_memory_unless_asked_otherwise(image):
    from sirf_diffusion.interop.sirf import to_tensor

    owning, view = to_tensor(image), to_tensor(image, copy=False)
    assert torch.equal(owning, torch.arange(90.0).reshape(SHAPE))
    view[1, 2, 3] = -7
    assert image.as_array()[1, 2, 3] == -7
    assert owning[1, 2, 3] == 43
    owning.zero_()
    assert image.as_array()[2, 5, 4] == 89


def test_a_view_outlives_the_name_of_its_image(image):
    from sirf_diffusion.interop.sirf import to_tensor

    view = to_tensor(image.clone(), copy=False)
    gc.collect()
    assert torch.equal(view, torch.arange(90.0).reshape(SHAPE))


def test_images_are_new_and_keep_what_a_tensor_cannot_carry(pet):
    from sirf_diffusion.interop.sirf import to_image, to_tensor

    template = bundled(pet).truth
    before = template.as_array().copy()
    x = torch.rand(template.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    image = to_image(x[:, :, ::1], template)
    assert torch.equal(to_tensor(image), x.detach().float())
    assert image.get_info() == template.get_info()
    assert np.array_equal(template.as_array(), before)
    assert torch.equal(to_tensor(to_image(x.mT, template)), x.detach().float().mT)


def test_acquisition_data_too(pet):
    from sirf_diffusion.interop.sirf import to_image, to_tensor

    prompts = bundled(pet).prompts
    y = to_tensor(prompts)
    assert y.shape == tuple(prompts.shape)
    assert torch.equal(to_tensor(to_image(2 * y, prompts)), 2 * y)
    assert prompts.sum() == pytest.approx(float(y.sum(dtype=torch.float64)))


def test_no_view_where_sirf_has_none(tmp_path, monkeypatch):
    from sirf_diffusion.interop.sirf import to_tensor

    monkeypatch.chdir(tmp_path)
    with quiet_sirf("file") as pet:
        prompts = bundled(pet).prompts
        with pytest.raises(ValueError, match="copy=True"):
            to_tensor(prompts, copy=False)
        assert float(to_tensor(prompts).sum(dtype=torch.float64)) == pytest.approx(prompts.sum())


def test_shapes_must_agree(image):
    from sirf_diffusion.interop.sirf import to_image

    with pytest.raises(ValueError, match=r"\(3, 6, 5\)"):
        to_image(torch.zeros(3, 5, 6), image)


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (12.5, -6.0, 4.25)])
def test_geometry_is_that_of_the_file_it_is_written_to(pet, tmp_path, origin):
    from sirf_diffusion.engines.sirf.convert import image_geometry

    made = pet.ImageData()
    made.initialise(SHAPE, SIZES, origin)
    made.fill(np.arange(90, dtype=np.float32).reshape(SHAPE))
    geometry = image_geometry(made)
    assert geometry == ImageGeometry(SHAPE, SIZES, origin)
    made.write(str(tmp_path / "image.hv"))
    values, of_file = read_image(tmp_path / "image.hv")
    assert torch.equal(values, torch.arange(90.0).reshape(SHAPE))
    assert of_file.shape == geometry.shape
    assert of_file.origin == pytest.approx(geometry.origin, abs=1e-4)


@pytest.mark.parametrize("position", ["feet_in", "head_in"])
def test_the_origin_does_not_depend_on_how_the_patient_lies(pet, tmp_path, position):
    from sirf_diffusion.engines.sirf.convert import image_geometry

    made = pet.ImageData()
    made.initialise(SHAPE, SIZES, (12.5, -6.0, 4.25))
    made.fill(1)
    made.write(str(tmp_path / "image.hv"))
    header = (tmp_path / "image.hv").read_text(encoding="utf-8")
    lines = f"patient orientation := {position}\npatient rotation := prone\n"
    assert "!PET data type" in header
    (tmp_path / "image.hv").write_text(
        "".join(
            lines + line if "PET data type" in line else line
            for line in header.splitlines(keepends=True)
            if "patient" not in line
        )
    )
    read = pet.ImageData(str(tmp_path / "image.hv"))
    assert ("FFP" if position == "feet_in" else "HFP") in read.get_info()
    assert image_geometry(read).origin == pytest.approx((12.5, -6.0, 4.25), abs=1e-3)
