"""TabDDPM's multinomial diffusion against its Markov chain, its rows and its loss against loops."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.models.tabddpm import LEVELS, TabDDPM, bernoulli_kl
from steps import set_gradients

N = 20
NUM_CODES = SPEC.num_codes - 1


@pytest.fixture
def model() -> TabDDPM:
    torch.manual_seed(0)
    return TabDDPM(SPEC, num_steps=N, width=12, denoiser_dim=7, hidden_dim=6, num_synthetic=16)


@pytest.fixture
def batch() -> Batch:
    return random_batch(num_samples=6)


def transition(alpha: float) -> list[list[float]]:
    """P[a][b]: from category a to b in a step that keeps an entry with probability alpha."""
    return [[alpha * (a == b) + (1 - alpha) / 2 for b in range(2)] for a in range(2)]


def after(model: TabDDPM, step: int) -> list[list[float]]:
    """The chain's transitions from the clean record to `step`, one after the other."""
    total = [[1.0, 0.0], [0.0, 1.0]]
    for n in range(1, step + 1):
        one = transition(1 - float(model.schedule.beta[n]))
        total = [[sum(total[a][c] * one[c][b] for c in range(2)) for b in range(2)] for a in range(2)]
    return total


def naive_posterior(model: TabDDPM, x_n: int, x_0: float, step: int) -> float:
    """Bayes' rule: q(x_{n-1} | x_n, x_0) is proportional to q(x_n | x_{n-1}) q(x_{n-1} | x_0)."""
    last, before = transition(1 - float(model.schedule.beta[step])), after(model, step - 1)
    prior = [(1 - x_0) * before[0][b] + x_0 * before[1][b] for b in range(2)]
    joint = [last[b][x_n] * prior[b] for b in range(2)]
    return joint[1] / sum(joint)


@pytest.mark.parametrize("step", [1, 2, 9, N])
@pytest.mark.parametrize("x_n", [0, 1])
@pytest.mark.parametrize("x_0", [0.0, 0.3, 1.0])
def test_posterior_is_bayes_rule_on_the_markov_chain(model: TabDDPM, x_n: int, x_0: float, step: int) -> None:
    result = model.posterior(torch.tensor([[float(x_n)]]), torch.tensor([[x_0]]), torch.tensor([step]))
    assert result.item() == pytest.approx(naive_posterior(model, x_n, x_0, step), rel=1e-4, abs=1e-6)


def naive_kl(q: float, p: float) -> float:
    return sum(a * math.log(a / b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0)


@pytest.mark.parametrize("q", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.9])
def test_kl_of_two_categories(q: float, p: float) -> None:
    assert bernoulli_kl(torch.tensor([[q]]), torch.tensor([[p]])).item() == pytest.approx(naive_kl(q, p), abs=1e-6)


def test_kl_of_a_certain_prediction_is_finite_and_so_is_its_gradient() -> None:
    p = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = bernoulli_kl(torch.tensor([[0.0, 0.5]]), p).sum()
    loss.backward()
    assert loss.isfinite()
    assert p.grad is not None
    assert p.grad.isfinite().all()


def test_loss_equals_its_equation_entry_by_entry(model: TabDDPM, batch: Batch) -> None:
    model.fit([batch], [])
    torch.manual_seed(3)
    losses = model.diffusion_loss(batch)
    torch.manual_seed(3)
    n = torch.randint(1, N + 1, (len(batch),))
    uniform = torch.rand(len(batch), NUM_CODES)
    noise = torch.randn(len(batch), 3)

    row = model.row(visits_of(batch))
    x_n, z_n = torch.zeros(len(batch), NUM_CODES), torch.zeros(len(batch), 3)
    for i, step in enumerate(n.tolist()):
        chain = after(model, step)
        for c in range(NUM_CODES):
            x_n[i, c] = float(uniform[i, c] < chain[int(row[i, c])][1])
        abar = math.prod(1 - float(beta) for beta in model.schedule.beta[1 : step + 1])
        z_n[i] = abar**0.5 * row[i, NUM_CODES:] + (1 - abar) ** 0.5 * noise[i]
    assert batch.labels is not None
    logit, noise_hat = model.denoiser(torch.cat([x_n, z_n], dim=1), n, batch.labels)
    kl = [
        naive_kl(
            naive_posterior(model, int(x_n[i, c]), float(row[i, c]), step),
            naive_posterior(model, int(x_n[i, c]), logit[i, c].double().sigmoid().item(), step),
        )
        for i, step in enumerate(n.tolist())
        for c in range(NUM_CODES)
    ]
    assert losses["codes"].item() == pytest.approx(N * sum(kl) / len(kl), rel=1e-3)
    assert losses["numeric"].item() == pytest.approx((noise_hat - noise).square().mean().item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((losses["codes"] + losses["numeric"]).item())


def test_a_row_says_which_codes_and_where_the_numbers_rank(model: TabDDPM, batch: Batch) -> None:
    model.fit([batch], [])
    v = visits_of(batch)
    numbers = []
    for codes, days, mask in zip(v.codes, v.days_before_last, v.mask):
        present = [int(c) for c in codes.flatten() if c > 0]
        numbers.append([float(mask.sum()), float(days.max()), len(present) / float(mask.sum())])
    table = torch.tensor(numbers)
    torch.testing.assert_close(model.quantiles.T, torch.quantile(table, LEVELS, dim=0))
    levels = model.quantiles.tolist()
    for row, codes, values in zip(model.row(v), v.codes, table.tolist()):
        assert {c + 1 for c in range(NUM_CODES) if row[c] == 1} == set(codes.flatten().tolist()) - {0}
        for f, value in enumerate(values):
            below, up_to = sum(q < value for q in levels[f]), sum(q <= value for q in levels[f])
            expected = NormalDist().inv_cdf((1 + below + up_to) / 200)
            assert row[NUM_CODES + f].item() == pytest.approx(expected, abs=1e-4)


def test_the_columns_hold_no_single_patients_extremes(model: TabDDPM) -> None:
    batch = random_batch(num_samples=40)
    model.fit([batch], [])
    days = visits_of(batch).days_before_last.amax(1)
    assert model.quantiles[1].max() < days.max()


def test_rows_are_drawn_by_class() -> None:
    """Code 1 belongs to the positives, code 2 to the negatives, code 3 to both, no other occurs."""
    torch.manual_seed(0)
    model = TabDDPM(SPEC, num_steps=50, width=16, denoiser_dim=24, hidden_dim=6, num_synthetic=16)
    batch = random_batch(num_samples=32, num_visits=1, num_codes=2)
    assert batch.labels is not None
    own = torch.where(batch.labels > 0, 1, 2)
    visits = replace(visits_of(batch), codes=torch.cat([own, torch.full_like(own, 3)], dim=1)[:, None])
    batch = replace(batch, visits=visits)
    model.fit([batch], [])
    params = list(model.denoiser.parameters())
    optimiser = torch.optim.Adam(params, lr=0.01)
    for _ in range(400):
        set_gradients(params, model.diffusion_loss(batch)["loss"])
        optimiser.step()
    for label, expected in ((1.0, [1.0, 0.0, 1.0]), (0.0, [0.0, 1.0, 1.0])):
        rows = model.sample(torch.full((200, 1), label))
        shares = rows[:, :NUM_CODES].mean(0)
        torch.testing.assert_close(shares[:3], torch.tensor(expected), atol=0.15, rtol=0)
        assert shares[3:].max() < 0.15


def draws(model: TabDDPM) -> Tensor:
    model.forget()
    return model.synthetic()[0]


def test_drawn_rows_follow_from_the_weights_and_leave_the_random_stream_alone(model: TabDDPM) -> None:
    torch.manual_seed(1)
    first, next_number = draws(model), torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), next_number)
    other = TabDDPM(SPEC, num_steps=N, width=12, denoiser_dim=7, hidden_dim=6, num_synthetic=16)
    assert not torch.equal(draws(other), first)
    other.load_state_dict(model.state_dict())
    assert torch.equal(draws(other), first)


def test_drawn_numbers_stay_where_real_ones_are(model: TabDDPM) -> None:
    """Whatever an untrained denoiser does: its errors grow on the way back."""
    far = torch.full((1, SPEC.max_visits, 1), 1e6)
    visits = replace(visits_of(random_batch(num_samples=1, num_visits=9, lengths=[9])), days_before_last=far[..., 0])
    highest = model.row(visits)[0, NUM_CODES:].max()
    assert draws(model)[:, NUM_CODES:].abs().max().item() == pytest.approx(highest.item(), abs=2e-3)


def test_drawn_rows_are_in_no_checkpoint(model: TabDDPM) -> None:
    before = set(model.state_dict())
    model.synthetic()
    assert set(model.state_dict()) == before


def test_drawn_labels_are_as_frequent_as_the_training_splits() -> None:
    torch.manual_seed(0)
    spec = replace(SPEC, positive_rate=(0.1,))
    model = TabDDPM(spec, num_steps=1, width=4, denoiser_dim=3, hidden_dim=3, num_synthetic=2000)
    assert model.synthetic()[1].mean().item() == pytest.approx(0.1, abs=0.03)  # four deviations


def test_a_prediction_needs_neither_the_denoiser_nor_drawn_rows(model: TabDDPM, batch: Batch) -> None:
    logits = model.eval()(batch)
    for p in model.denoiser.parameters():
        torch.nn.init.constant_(p, torch.nan)
    assert torch.equal(model(batch), logits)
    assert model.drawn is None
