import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.nn.ddpm import NoiseSchedule, timestep_embedding

N = 1000


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(N, 1e-4, 2e-2)


def test_signal_and_noise_variances_sum_to_one_and_signal_falls(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(N + 1))
    assert (schedule.signal.diff() < 0).all()
    assert (schedule.signal[0], schedule.noise[0]) == (1, 0)


@given(st.lists(st.integers(1, N), min_size=3, max_size=3))
def test_clean_data_is_recovered_from_the_true_noise(steps: list[int]) -> None:
    schedule = NoiseSchedule(N, 1e-4, 2e-2).double()
    x, noise, n = torch.randn(3, 5, 8).double(), torch.randn(3, 5, 8).double(), torch.tensor(steps)
    torch.testing.assert_close(schedule.estimate_clean(schedule.add_noise(x, n, noise), n, noise), x)


def test_last_reverse_step_adds_no_noise_and_lands_on_the_clean_data(schedule: NoiseSchedule) -> None:
    x, noise, n = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.ones(3, dtype=torch.long)
    assert (schedule.posterior_noise(n, noise) == 0).all()
    torch.testing.assert_close(schedule.posterior_mean(schedule.add_noise(x, n, noise), n, noise), x)


def test_last_step_with_signal_is_the_last_one(schedule: NoiseSchedule) -> None:
    last = schedule.last_step_with_signal(0.5)
    assert schedule.signal[last] ** 2 >= 0.5 > schedule.signal[last + 1] ** 2
    assert schedule.last_step_with_signal(0.0) == N
    assert schedule.last_step_with_signal(1.0) == 0


def test_reverse_process_with_the_optimal_denoiser_gives_the_data_distribution(schedule: NoiseSchedule) -> None:
    """For data N(mean, std^2) the best eps is linear in x_n; the loop from pure noise must end at that mean and std."""
    torch.manual_seed(0)
    mean, std = 1.5, 0.5
    x = torch.randn(4_000, 1)
    for step in range(N, 0, -1):
        n = torch.full((len(x),), step)
        signal, noise = schedule.signal[step], schedule.noise[step]
        best = noise * (x - signal * mean) / (signal**2 * std**2 + noise**2)
        x = schedule.posterior_mean(x, n, best) + schedule.posterior_noise(n, torch.randn_like(x))
    assert abs(x.mean() - mean) < 0.03
    assert abs(x.std() - std) < 0.03


def test_timestep_embedding_is_a_cosine_and_a_sine_per_frequency() -> None:
    embedding = timestep_embedding(torch.tensor([3, 700]), 6)
    for row, n in zip(embedding.double(), (3, 700)):
        for i in range(3):
            angle = torch.tensor(n * 10_000 ** (-i / 3), dtype=torch.float64)
            torch.testing.assert_close(row[i], angle.cos(), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(row[3 + i], angle.sin(), rtol=1e-4, atol=1e-4)


def test_timestep_embeddings_of_all_steps_differ() -> None:
    distance = torch.cdist(*[timestep_embedding(torch.arange(1, N + 1), 128)] * 2)
    assert (distance + 9 * torch.eye(N)).min() > 1e-2
