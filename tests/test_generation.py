"""Images from a model alone, and those of a given likelihood."""

import h5py
import pytest
import torch
from toy_model import Gaussian, ToyModel, identity
from toy_objective import make_toy

from sirf_diffusion.cli import main
from sirf_diffusion.engines.em import em_update
from sirf_diffusion.models.generation import SAMPLERS, generate
from sirf_diffusion.models.schedules import VPSchedule
from sirf_diffusion.models.score_model import ScoreModel
from sirf_diffusion.reconstructors.diffusion.iso_likelihood import IsoLikelihoodReconstructor

MEAN, SD = 1.0, 0.2
SCHEDULE = VPSchedule()


def exact_network(images, time, class_labels=None):
    """Noise in images of independent normal voxels: what a perfect network would predict, from Tweedie's formula."""
    sigma = (time / 250).exp()[:, None, None, None].to(images)
    noisy = images * (1 + sigma**2) ** 0.5  # u / gamma = u0 + sigma z of what the network is given
    return sigma * (noisy - MEAN) / (SD**2 + sigma**2)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_the_prior(sampler):
    model = ScoreModel(exact_network, SCHEDULE)
    images = generate(model, 4, (1, 48, 48), sampler, 150, seed=3)
    assert images.shape == (4, 1, 48, 48)
    # The chain starts from noise alone, whose mean is off by SD / sigma_max; the steps are finite.
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(images.std()) == pytest.approx(SD, rel=0.09)
    assert torch.equal(images, generate(model, 4, (1, 48, 48), sampler, 150, seed=3))
    assert not torch.equal(images, generate(model, 4, (1, 48, 48), sampler, 150, seed=4))


def test_the_command_writes_samples_a_sheet_and_a_record(small_model, tmp_path, capsys):
    words = ["models", "sample", str(small_model), "--num", "3", "--steps", "4", "--size", "16", "--sampler", "ode"]
    assert main([*words, "--planes", "8", "--out", str(tmp_path / "out")]) == 0
    with h5py.File(tmp_path / "out" / "samples.h5") as file:
        assert file.attrs["schema_version"] == 1
        assert file["samples"].shape == (3, 8, 16, 16)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"samples.h5", "samples.png", "record.json"}
    assert main([*words, "--seed", "1", "--out", str(tmp_path / "out")]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([*words[:4], "0", "--out", str(tmp_path / "other")])
    assert "--num" in capsys.readouterr().err


@pytest.mark.parametrize("denoiser", [Gaussian(1.0, 0.5), identity])
@pytest.mark.parametrize("iteration", [3.0, 12.5])
def test_all_samples_have_the_likelihood_of_the_mlem_iteration(denoiser, iteration):
    objective, _ = make_toy((1, 8, 8))
    x, values = objective.uniform_image(), []
    for _ in range(15):
        values.append(float(objective.value(x)))
        x = em_update(objective, x)
    whole = int(iteration)
    target = values[whole] + (iteration - whole) * (values[whole + 1] - values[whole])
    model = ToyModel(denoiser).on(objective.geometry, 1.0)
    run = IsoLikelihoodReconstructor(
        objective, model, num_steps=12, num_samples=3, noise="independent", num_em_iterations=iteration
    ).process()
    samples = run.get_samples()
    assert objective.value(samples).tolist() == pytest.approx([target] * 3, rel=2e-7)
    assert float(samples.min()) >= 0
    assert float((samples[0] - samples[1]).abs().max()) > 1e-3 or denoiser is identity


def test_the_iteration_on_the_command_line_is_for_this_method(tmp_path, capsys):
    words = ["recon", "--prompts", "p.hs", "--out", str(tmp_path / "out"), "--target-iteration", "9"]
    assert main([*words, "--method", "lisch"]) == 2
    assert "is for --method iso-likelihood" in capsys.readouterr().err
