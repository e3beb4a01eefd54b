import math

import pytest
import torch
from torch import Tensor

from ehrlab.nn.vclub import VClub

DIM = 2


def correlated(rho: float, num: int) -> tuple[Tensor, Tensor]:
    """DIM independent pairs of standard normal numbers with correlation rho: I = -DIM / 2 log(1 - rho^2) nats."""
    x = torch.randn(num, DIM)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(num, DIM)


def closed_form(rho: float) -> float:
    """vCLUB at the true conditional: I(x; y) + KL(p(x) p(y) || p(x, y)) = DIM rho^2 / (1 - rho^2). It bounds I."""
    return DIM * rho**2 / (1 - rho**2)


def fitted(rho: float, num_steps: int = 200) -> VClub:
    torch.manual_seed(0)
    vclub = VClub(DIM, DIM, hidden_dim=16)
    optimiser = torch.optim.Adam(vclub.parameters(), lr=1e-2)
    for _ in range(num_steps):
        optimiser.zero_grad()
        vclub.negative_log_likelihood(*correlated(rho, 256)).backward()
        optimiser.step()
    return vclub


@pytest.fixture(scope="module")
def estimates() -> dict[float, float]:
    torch.manual_seed(5)
    found = {}
    for rho in (0.0, 0.3, 0.6, 0.8):
        found[rho] = fitted(rho).bound(*correlated(rho, 20_000)).item()
    return found


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.8])
def test_estimate_is_the_closed_form_for_correlated_gaussians(estimates: dict[float, float], rho: float) -> None:
    assert estimates[rho] == pytest.approx(closed_form(rho), rel=0.2, abs=0.05)


def test_estimate_is_an_upper_bound_on_mutual_information(estimates: dict[float, float]) -> None:
    assert all(estimates[rho] > -DIM / 2 * math.log(1 - rho**2) for rho in (0.3, 0.6, 0.8))


def test_estimate_rises_with_correlation(estimates: dict[float, float]) -> None:
    assert estimates[0.0] < estimates[0.3] < estimates[0.6] < estimates[0.8]


def test_estimate_is_near_zero_for_independent_gaussians(estimates: dict[float, float]) -> None:
    assert abs(estimates[0.0]) < 0.02


def test_bound_equals_the_mean_over_all_pairs() -> None:
    torch.manual_seed(2)
    vclub = VClub(3, 4, hidden_dim=5)
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    mean, log_var = vclub.conditional(x)
    q = torch.distributions.Normal(mean, (log_var / 2).exp())
    matched = q.log_prob(y).sum(1).mean()
    pairs = torch.stack([q.log_prob(y[j]).sum(1) for j in range(6)]).mean()
    torch.testing.assert_close(vclub.bound(x, y), matched - pairs)


def test_likelihood_is_that_of_a_gaussian() -> None:
    torch.manual_seed(3)
    vclub = VClub(3, 4, hidden_dim=5)
    x, y = torch.randn(6, 3), torch.randn(6, 4)
    mean, log_var = vclub.conditional(x)
    expected = -torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(y).sum(1).mean()
    torch.testing.assert_close(vclub.negative_log_likelihood(x, y), expected)


def test_features_are_data_to_the_estimator_and_not_to_the_bound() -> None:
    vclub = VClub(3, 4, hidden_dim=5)
    x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(vclub.negative_log_likelihood(x, y), [x])
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(vclub.bound(x, y), [x, y]))


def test_a_batch_of_one_has_no_information() -> None:
    assert VClub(3, 4, hidden_dim=5).bound(torch.randn(1, 3), torch.randn(1, 4)).item() == pytest.approx(0, abs=1e-6)
