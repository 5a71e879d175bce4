"""List-mode objective functions of STIR-Python."""

import pytest
import torch
from stir_list_mode import write_list_mode

from sirf_diffusion.cli import main
from sirf_diffusion.engines.em import inside
from sirf_diffusion.files.interfile import read_image
from sirf_diffusion.files.parfile import ParFile
from sirf_diffusion.files.parfile.run import ParRun

NUM_EVENTS = 20_000


@pytest.fixture(scope="module")
def par(tmp_path_factory):
    return write_list_mode(tmp_path_factory.mktemp("events"), NUM_EVENTS)


@pytest.fixture(scope="module")
def objective(par):
    from sirf_diffusion.interop.stir.par import stir_objective

    return stir_objective(ParRun.of(ParFile.read(par)), 2)[0]


@pytest.fixture(scope="module")
def x(objective):
    image = objective.uniform_image()
    return image * torch.linspace(0.5, 1.5, image.shape[-1])


@pytest.mark.requires_stir
def test_uniform_image_explains_the_events(objective):
    """Without background the best constant predicts as many events as there are."""
    predicted = float((objective.uniform_image() * objective.sensitivity()).sum())
    assert predicted == pytest.approx(NUM_EVENTS, rel=0.02)


@pytest.mark.requires_stir
@pytest.mark.parametrize("subset", [None, 1])
def test_gradient_is_the_derivative_of_the_value_in_spite_of_stirs_sign(objective, x, subset):
    step = 0.02 * x.flip(-2) * torch.linspace(-1, 1, x.shape[-2])[:, None]
    slope = float(objective.value(x + step, subset) - objective.value(x - step, subset)) / 2
    assert slope == pytest.approx(float((objective.gradient(x, subset).double() * step).sum()), rel=1e-2, abs=0.5)


@pytest.mark.requires_stir
def test_em_raises_the_value_and_subsets_add_up(objective, x):
    s = objective.sensitivity()
    updated = x + inside(s) * x * objective.gradient(x) / s.clamp_min(1e-9)
    assert float(objective.value(updated)) > float(objective.value(x)) + 1
    parts = sum(float(objective.value(x, k)) for k in range(2))
    assert parts == pytest.approx(float(objective.value(x)), rel=1e-6)


@pytest.mark.requires_stir
def test_what_stir_python_does_not_tell_is_said_with_advice(objective, x):
    with pytest.raises(NotImplementedError, match="even number of subsets"):
        objective.expected_log_likelihood(x)


@pytest.mark.requires_stir
def test_a_par_file_with_list_mode_data_runs(par, tmp_path, capsys):
    words = ["recon", "--par", str(par), "--method=osem", "--calibration", "header", "--out", str(tmp_path / "none")]
    assert main(words) == 2
    assert "the data have no calibration factor" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()  # so before the work
    assert main(["recon", "--par", str(par), "--engine=stir", "--method=osem", "--out", str(tmp_path / "o")]) == 0
    image, _ = read_image(tmp_path / "o" / "reconstruction.hv")
    assert image.isfinite().all()
    assert float(image.max()) > 0


def test_the_embedded_engine_refuses_list_mode_by_name(par, tmp_path, capsys):
    assert main(["recon", "--par", str(par), "--engine=embedded", "--method=osem", "--out", str(tmp_path / "o")]) == 2
    assert "listmode" in capsys.readouterr().err
