"""The diffusion on visit embeddings (Zhong et al. 2024, MedDiffusion, arXiv 2310.02520, sec. 3.3).

Equation -> code, the differences between the paper and its code, and every choice the paper leaves open:
docs/papers/meddiffusion.md.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ehrlab.core.errors import InputError
from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.nn.ddpm import NoiseSchedule
from ehrlab.nn.stepwise import StepwiseAttention

SYNTHESES = ("ancestral", "ancestral_from_visit", "one_step", "residual")


class Diffusion(Augmenter):
    """A DDPM per visit, conditioned on the patient's history h_{k-1} by step-wise attention at every step.

    One step n per patient, drawn uniformly; an own eps for every visit.

    denoiser    eps_theta: called with (spec, embed_dim), gives a module (x "B V E", n "B") -> "B V E"
    condition   see StepwiseAttention
    synthesis   how e' is made:
                "ancestral"             the paper's Algorithm 1: from pure noise e_N through all N reverse steps
                "ancestral_from_visit"  the same loop, started at the noised visit e_n of a drawn n
                "one_step"              the clean visit that the denoiser sees behind that e_n, in one evaluation
                "residual"              the authors' code: e' = e_hat + (eps - eps_theta), attention before the noise
    min_signal  the two that start at a noised visit draw n among the steps with abar_n >= min_signal
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int,
        hidden_dim: int,
        denoiser: Callable[..., nn.Module],
        attention_dim: int = 64,
        condition: str = "attention",
        synthesis: str = "one_step",
        num_steps: int = 1000,
        beta_first: float = 1e-4,
        beta_last: float = 2e-2,
        min_signal: float = 0.5,
    ) -> None:
        super().__init__()
        if synthesis not in SYNTHESES:
            raise InputError(f"synthesis of the diffusion: expected one of {SYNTHESES}, found {synthesis!r}")
        self.synthesis = synthesis
        self.schedule = NoiseSchedule(num_steps, beta_first, beta_last)
        self.last_start = self.schedule.last_step_with_signal(min_signal)
        if self.last_start == 0:
            raise InputError(
                f"min_signal of the diffusion: expected at most the share that one step keeps ({1 - beta_first}), "
                f"found {min_signal}"
            )
        self.attention = StepwiseAttention(embed_dim, hidden_dim, attention_dim, condition)
        self.denoiser = denoiser(spec=spec, embed_dim=embed_dim)

    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """Eq. 3.18, as the mean over real visits, dimensions and the drawn steps."""
        n = self._draw_steps(e, self.schedule.num_steps)
        noise = torch.randn_like(e)
        if self.synthesis == "residual":
            predicted = self._denoise(self.schedule.add_noise(self.attention(e, h_prev), n, noise), n, mask)
        else:
            predicted = self._predict_noise(self.schedule.add_noise(e, n, noise), n, h_prev, mask)
        per_visit = (noise - predicted).square().mean(-1)
        return {"loss": (per_visit * mask).sum() / mask.sum()}

    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        noise = torch.randn_like(e)
        if self.synthesis == "ancestral":
            from_noise = torch.full((len(e),), self.schedule.num_steps, device=e.device)
            return self._reverse(noise, from_noise, self.schedule.num_steps, h_prev, mask)
        if self.synthesis == "residual":
            n = self._draw_steps(e, self.schedule.num_steps)
            attended = self.attention(e, h_prev)
            return attended + noise - self._denoise(self.schedule.add_noise(attended, n, noise), n, mask)
        n = self._draw_steps(e, self.last_start)
        noisy = self.schedule.add_noise(e, n, noise)
        if self.synthesis == "ancestral_from_visit":
            return self._reverse(noisy, n, self.last_start, h_prev, mask)
        return self.schedule.estimate_clean(noisy, n, self._predict_noise(noisy, n, h_prev, mask))

    def _draw_steps(self, e: Float[Tensor, "B V E"], last: int) -> Int[Tensor, " B"]:
        return torch.randint(1, last + 1, (len(e),), device=e.device)

    def _denoise(
        self, x: Float[Tensor, "B V E"], n: Int[Tensor, " B"], mask: Bool[Tensor, "B V"]
    ) -> Float[Tensor, "B V E"]:
        return self.denoiser(x * mask[..., None], n)

    def _predict_noise(
        self, x: Float[Tensor, "B V E"], n: Int[Tensor, " B"], h_prev: Float[Tensor, "B V D"], mask: Bool[Tensor, "B V"]
    ) -> Float[Tensor, "B V E"]:
        """eps_theta(e_hat_{k,n}, n), e_hat_{k,n} = gamma_e e_{k,n} + gamma_h W_h h_{k-1}    (Eq. 3.11, 3.12)"""
        return self._denoise(self.attention(x, h_prev), n, mask)

    def _reverse(
        self,
        x: Float[Tensor, "B V E"],
        start: Int[Tensor, " B"],
        last: int,
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
    ) -> Float[Tensor, "B V E"]:
        """The reverse process of Eq. 3.10 from step `start` (<= `last`) of each patient down to 0."""
        for step in range(last, 0, -1):
            # Recomputed in the backward pass: a thousand steps' activations do not fit into memory, a thousand x do.
            x = checkpoint(self._reverse_step, x, step, start, h_prev, mask, use_reentrant=False)
        return x

    def _reverse_step(
        self,
        x: Float[Tensor, "B V E"],
        step: int,
        start: Int[Tensor, " B"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
    ) -> Float[Tensor, "B V E"]:
        """One draw of p_theta(e_{n-1} | e_n, h_{k-1}) for the patients that have reached step n; the others wait."""
        n = torch.full_like(start, step)
        mean = self.schedule.posterior_mean(x, n, self._predict_noise(x, n, h_prev, mask))
        drawn = mean + self.schedule.posterior_noise(n, torch.randn_like(x))
        return torch.where((step <= start)[:, None, None], drawn, x)
