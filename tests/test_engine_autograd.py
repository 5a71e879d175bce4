"""Log-likelihoods as differentiable functions, on engines that need pip alone."""

import pytest
import torch
from toy_objective import make_toy

from sirf_diffusion.engines.autograd import log_likelihood


@pytest.fixture
def objective():
    return make_toy((1, 4, 5), num_subsets=4)[0]


@pytest.mark.parametrize("leading", [(), (3,), (2, 2)])
@pytest.mark.parametrize("subset", [None, 1])
def test_gradcheck(objective, generator, leading, subset):
    x = 1 + torch.rand(*leading, 1, 4, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: log_likelihood(objective, v, subset), x.requires_grad_())


def test_works_inside_a_larger_function(objective):
    x = torch.linspace(0.5, 2, 40, dtype=torch.float64).reshape(2, 1, 4, 5).requires_grad_()
    weights = torch.tensor([2.0, 0.0], dtype=torch.float64)
    loss = -(weights * log_likelihood(objective, x.square())).sum() + 3 * x.sum()
    loss.backward()
    expected = 3 - 2 * objective.gradient(x[0].detach() ** 2) * 2 * x[0].detach()
    assert torch.allclose(x.grad[0], expected)
    assert torch.equal(x.grad[1], torch.full((1, 4, 5), 3.0, dtype=torch.float64))


def test_images_that_do_not_matter_cost_no_back_projection(objective):
    x = torch.ones(3, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    value = log_likelihood(objective, x)
    before = objective.counter.back
    value[1].backward()
    assert objective.counter.back == before + 1
    assert not bool(x.grad[0].any())
    assert bool(x.grad[1].any())


def test_the_image_may_change_before_the_backward_pass(objective):
    x = torch.ones(1, 4, 5, dtype=torch.float64, requires_grad=True)
    value = log_likelihood(objective, x)
    expected = objective.gradient(x.detach().clone())
    with torch.no_grad():
        x.mul_(2)
    value.backward()
    assert torch.allclose(x.grad, expected)


def test_kind_of_the_image_is_kept():
    objective, _ = make_toy((1, 4, 5), dtype=torch.float32)
    x = torch.ones(1, 4, 5, dtype=torch.float32, requires_grad=True)
    value = log_likelihood(objective, x)
    assert value.dtype == torch.float64
    value.backward()
    assert x.grad.dtype == torch.float32
