"""Denoising diffusion in closed form (Ho et al. 2020, arXiv 2006.11239). Steps n = 1 .. N; n = 0 is clean data."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class NoiseSchedule(nn.Module):
    """Linear beta_1 .. beta_N and what follows from it: alpha_n = 1 - beta_n, abar_n = alpha_1 ... alpha_n, abar_0 = 1.

    All methods take one step n per sample and broadcast it over the sample's other axes.
    """

    beta: Tensor
    signal: Tensor
    noise: Tensor
    posterior_std: Tensor

    def __init__(self, num_steps: int, beta_first: float, beta_last: float) -> None:
        super().__init__()
        self.num_steps = num_steps
        # float64: 1 - abar_1 = 1e-4 and the product of a thousand factors both lose digits in float32.
        beta = torch.linspace(beta_first, beta_last, num_steps, dtype=torch.float64)
        abar = (1 - beta).cumprod(0)
        abar_before = torch.cat([abar.new_ones(1), abar[:-1]])
        variance = beta * (1 - abar_before) / (1 - abar)
        # Row n of a table belongs to step n; row 0 is clean data.
        tables = {"beta": beta, "signal": abar.sqrt(), "noise": (1 - abar).sqrt(), "posterior_std": variance.sqrt()}
        for name, table in tables.items():
            clean = 1.0 if name == "signal" else 0.0
            self.register_buffer(name, torch.cat([table.new_tensor([clean]), table]).float(), persistent=False)

    @staticmethod
    def _at(table: Float[Tensor, " N"], n: Int[Tensor, " B"], like: Float[Tensor, "B ..."]) -> Float[Tensor, "..."]:
        return table[n].view(-1, *[1] * (like.ndim - 1))

    def last_step_with_signal(self, share: float) -> int:
        """The largest n with abar_n >= share; 0 where not even the first step keeps that much."""
        return int((self.signal[1:] >= math.sqrt(share)).sum())

    def add_noise(
        self, x: Float[Tensor, "B ..."], n: Int[Tensor, " B"], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps: n steps of MedDiffusion Eq. 3.6 at once."""
        return self._at(self.signal, n, x) * x + self._at(self.noise, n, x) * noise

    def estimate_clean(
        self, x_n: Float[Tensor, "B ..."], n: Int[Tensor, " B"], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """x_0 = (x_n - sqrt(1 - abar_n) eps) / sqrt(abar_n): `add_noise` solved for x_0.

        An error in eps is multiplied by sqrt((1 - abar_n) / abar_n): 1 where half of the signal's variance is left,
        157 at step 1000 of the usual schedule.
        """
        return (x_n - self._at(self.noise, n, x_n) * noise) / self._at(self.signal, n, x_n)

    def posterior_mean(
        self, x_n: Float[Tensor, "B ..."], n: Int[Tensor, " B"], noise: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        """(x_n - beta_n / sqrt(1 - abar_n) eps) / sqrt(alpha_n): the mean of q(x_{n-1} | x_n, x_0) at eps's x_0."""
        beta, spread = self._at(self.beta, n, x_n), self._at(self.noise, n, x_n)
        return (x_n - beta / spread * noise) / (1 - beta).sqrt()

    def posterior_noise(self, n: Int[Tensor, " B"], noise: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """sqrt(betatilde_n) eps, betatilde_n = beta_n (1 - abar_{n-1}) / (1 - abar_n): 0 at the last step n = 1."""
        return self._at(self.posterior_std, n, noise) * noise


def timestep_embedding(n: Int[Tensor, " B"], dim: int, max_period: float = 10_000.0) -> Float[Tensor, "B {dim}"]:
    """[cos(n w_i), sin(n w_i)] at frequencies w_i from 1 down to about 1 / max_period; `dim` is even.

    >>> timestep_embedding(torch.tensor([0]), 4)
    tensor([[1., 1., 0., 0.]])
    """
    half = dim // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=n.device) / half)
    angle = n[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)
