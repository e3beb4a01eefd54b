"""The step-wise attention and the diffusion against their definitions: Markov steps, Gaussian products, loops."""

import pytest
import torch

from ehrlab.nn.ddpm import NoiseSchedule
from ehrlab.nn.stepwise import StepwiseAttention
from parity.naive import affine, softmax

N = 50
FIRST, LAST = 1e-3, 0.2


def betas() -> list[float]:
    """beta_1 .. beta_N; index 0 is unused."""
    return [0.0] + [FIRST + (LAST - FIRST) * i / (N - 1) for i in range(N)]


def gaussian_after(steps: int, x: float) -> tuple[float, float]:
    """Mean and variance of q(x_n | x_0), by walking the Markov chain of Eq. 3.6."""
    mean, variance = x, 0.0
    for beta in betas()[1 : steps + 1]:
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
    return mean, variance


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(N, FIRST, LAST)


@pytest.mark.parametrize("step", [1, 2, 17, N])
def test_closed_form_noising_equals_the_markov_chain(schedule: NoiseSchedule, step: int) -> None:
    x, n = torch.tensor([[1.7]]), torch.tensor([step])
    mean, variance = gaussian_after(step, 1.7)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    assert schedule.add_noise(x, n, zero).item() == pytest.approx(mean, rel=1e-5)
    spread = schedule.add_noise(x, n, one) - schedule.add_noise(x, n, zero)
    assert spread.item() ** 2 == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize("step", [2, 17, N])
def test_posterior_equals_the_product_of_its_two_gaussians(schedule: NoiseSchedule, step: int) -> None:
    """q(x_{n-1} | x_n, x_0) is proportional to q(x_n | x_{n-1}) q(x_{n-1} | x_0)."""
    x, x_n, beta = 1.7, 0.4, betas()[step]
    prior_mean, prior_variance = gaussian_after(step - 1, x)
    precision = 1 / prior_variance + (1 - beta) / beta
    mean = (prior_mean / prior_variance + (1 - beta) ** 0.5 * x_n / beta) / precision

    signal_x, variance = gaussian_after(step, x)
    noise = (x_n - signal_x) / variance**0.5  # the eps that leads from x to x_n
    n = torch.tensor([step])
    result = schedule.posterior_mean(torch.tensor([[x_n]]), n, torch.tensor([[noise]]))
    assert result.item() == pytest.approx(mean, rel=1e-4)
    assert schedule.posterior_noise(n, torch.ones(1, 1)).item() ** 2 == pytest.approx(1 / precision, rel=1e-4)


def test_stepwise_attention_equals_equation_3_11_visit_by_visit() -> None:
    torch.manual_seed(0)
    layer = StepwiseAttention(embed_dim=8, hidden_dim=6, attention_dim=4).double()
    e, h_prev = torch.randn(3, 5, 8).double(), torch.randn(3, 5, 6).double()
    result = layer(e, h_prev)
    w_b, _, w_a = layer.score
    for b in range(3):
        for k in range(5):
            if k == 0:
                expected = e[b, 0]
            else:
                history = affine(layer.project, h_prev[b, k])
                gamma_e, gamma_h = softmax(list(affine(w_a, torch.tanh(affine(w_b, torch.cat([e[b, k], history]))))))
                expected = gamma_e * e[b, k] + gamma_h * history
            torch.testing.assert_close(result[b, k], expected)
