"""TabDDPM (Kotelnikov et al. 2023, arXiv 2209.15421): diffusion of table rows, then a predictor on real and drawn ones.

A row is a patient: for each code a column of two categories (in the record or not), and three numeric columns. Rows are
independent, which patients are and a patient's visits are not; and it is the patient who has the label.

Departs from the paper: drawn rows are added to the real ones, there they replace them. And from MedDiffusion, whose row
has an LSTM as the predictor: a drawn row has no order that one could read. More: docs/papers/tabddpm.md.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.model import AnyPhase, EstimatorPhase, LossDict, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.ddpm import NoiseSchedule, timestep_embedding

NUMERIC = 3  # columns of TabDDPM.numbers
LEVELS = torch.linspace(0.01, 0.99, 99)  # not 0 and 1: the extremes of a column are single patients' values
LARGEST = 2.5758  # Phi^-1 of the last rank: no real row has a larger number
ROWS_AT_ONCE = 256


def mlp(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    """The paper's blocks: dropout(ReLU(Linear(x)))."""
    return nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(widths)))


class Denoiser(nn.Module):
    """Blocks on Linear(x_n) + Linear(SiLU(Linear(embedding of n))) + embedding of y, then a linear head.

    Returns the logits of the clean record's code columns, and the noise in the numeric ones.
    """

    def __init__(self, num_codes: int, num_labels: int, width: int, hidden_dim: int, num_layers: int) -> None:
        super().__init__()
        self.width, self.num_codes = width, num_codes
        self.enter = nn.Linear(num_codes + NUMERIC, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Linear(num_labels, width, bias=False)
        self.blocks = mlp(width, *[hidden_dim] * num_layers)
        self.leave = nn.Linear(hidden_dim, num_codes + NUMERIC)

    def forward(
        self, row: Float[Tensor, "B R"], n: Int[Tensor, " B"], y: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B M"], Float[Tensor, "B F"]]:
        x = self.enter(row) + self.time(timestep_embedding(n, self.width)) + F.silu(self.label(y))
        logit, noise = self.leave(self.blocks(x)).split([self.num_codes, NUMERIC], dim=1)
        return logit, noise


class TabDDPM(RiskModel):
    """Phases: `columns` (the quantile transform), `generator` (diffusion), `predictor` (MLP on real and drawn rows).

    num_steps      N; beta_n goes linearly from 0.1 / N to 20 / N, so that nothing is left of x_0 whatever N is
    width          of the denoiser's input projection and its embeddings of n and y
    num_synthetic  rows drawn before the predictor's training; they are in memory, never in a checkpoint
    """

    reads_order = False
    quantiles: Tensor
    seed: Tensor

    def __init__(
        self,
        spec: DataSpec,
        num_steps: int = 100,
        width: int = 128,
        denoiser_dim: int = 256,
        denoiser_layers: int = 3,
        hidden_dim: int = 256,
        dropout: float = 0.1,
        num_synthetic: int = 4096,
    ) -> None:
        super().__init__()
        self.num_codes = spec.num_codes - 1  # without padding
        self.positive_rate, self.num_synthetic = spec.positive_rate, num_synthetic
        self.schedule = NoiseSchedule(num_steps, 0.1 / num_steps, min(20 / num_steps, 0.999))
        self.denoiser = Denoiser(self.num_codes, spec.num_labels, width, denoiser_dim, denoiser_layers)
        blocks = mlp(self.num_codes + NUMERIC, hidden_dim, hidden_dim, dropout=dropout)
        self.predictor = nn.Sequential(blocks, nn.Linear(hidden_dim, spec.num_labels))
        self.register_buffer("quantiles", torch.zeros(NUMERIC, len(LEVELS)))
        # Part of the weights, so that a resumed run draws the same rows, and a run of another seed others.
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.drawn: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def numbers(visits: Visits) -> Float[Tensor, "B F"]:
        """Number of visits, days from the first to the last, codes per visit."""
        num_visits, num_codes = visits.mask.sum(1).float(), (visits.codes > 0).flatten(1).sum(1)
        return torch.stack([num_visits, visits.days_before_last.amax(1), num_codes / num_visits], dim=1)

    def row(self, visits: Visits) -> Float[Tensor, "B R"]:
        """1 or 0 for each code, then the numbers through the paper's quantile transform: Phi^-1 of their rank among the
        training rows, the middle one of equals. Nothing maps back, since the predictor reads the same columns.
        """
        codes = visits.codes.flatten(1)
        bits = torch.zeros(len(codes), 1 + self.num_codes, device=codes.device).scatter_(1, codes, 1.0)
        values = self.numbers(visits).T.contiguous()
        low, high = (torch.searchsorted(self.quantiles, values, right=right) for right in (False, True))
        normal = torch.special.ndtri((1 + low + high) / (2 * (1 + len(LEVELS))))
        return torch.cat([bits[:, 1:], normal.T], dim=1)

    def posterior(
        self, x_n: Float[Tensor, "B M"], x_0: Float[Tensor, "B M"], n: Int[Tensor, " B"]
    ) -> Float[Tensor, "B M"]:
        """q(x_{n-1} = 1 | x_n, x_0) of multinomial diffusion with K = 2 categories; x_0 may be a probability.

        pi = [alpha_n x_n + (1 - alpha_n) / K] * [abar_{n-1} x_0 + (1 - abar_{n-1}) / K], normalised over both.
        """
        alpha, abar_before = 1 - self.schedule.beta[n, None], self.schedule.signal[n - 1, None].square()
        one = _mix(x_n, alpha) * _mix(x_0, abar_before)
        zero = _mix(1 - x_n, alpha) * _mix(1 - x_0, abar_before)
        return one / (one + zero)

    def diffusion_loss(self, batch: Batch) -> LossDict:
        """L_simple + sum_i L_i / C: the noise's squared error over numeric columns, plus the mean over code columns of
        L_i = sum_n KL(q(x_{n-1} | x_n, x_0) || q(x_{n-1} | x_n, x_0 = prediction)); at n = 1 that is -log p(x_0).
        One n is drawn for a row, and stands for the sum of all N as in the release.
        """
        assert batch.visits is not None
        assert batch.labels is not None
        x, z = self.row(batch.visits).split([self.num_codes, NUMERIC], dim=1)
        n = torch.randint(1, self.schedule.num_steps + 1, (len(x),), device=x.device)
        x_n = _draw(_mix(x, self.schedule.signal[n, None].square()))
        noise = torch.randn_like(z)
        logit, noise_hat = self.denoiser(torch.cat([x_n, self.schedule.add_noise(z, n, noise)], 1), n, batch.labels)
        q, p = self.posterior(x_n, x, n), self.posterior(x_n, logit.float().sigmoid(), n)
        kl, error = self.schedule.num_steps * bernoulli_kl(q, p).mean(), F.mse_loss(noise_hat, noise)
        return {"loss": error + kl, "numeric": error, "codes": kl}

    @torch.no_grad()
    def sample(self, y: Float[Tensor, "B K"]) -> Float[Tensor, "B R"]:
        """Rows of patients with these labels: all reverse steps from pure noise."""
        x = _draw(torch.full((len(y), self.num_codes), 0.5, device=y.device))
        z = torch.randn(len(y), NUMERIC, device=y.device)
        for step in range(self.schedule.num_steps, 0, -1):
            n = torch.full((len(y),), step, device=y.device)
            logit, noise = self.denoiser(torch.cat([x, z], dim=1), n, y)
            x = _draw(self.posterior(x, logit.sigmoid(), n))
            z = self.schedule.posterior_mean(z, n, noise) + self.schedule.posterior_noise(n, torch.randn_like(z))
        return torch.cat([x, z.clamp(-LARGEST, LARGEST)], dim=1)

    def synthetic(self) -> tuple[Float[Tensor, "N R"], Float[Tensor, "N K"]]:
        """Drawn rows and their labels, as frequent as in the training split; made at the first call."""
        if self.drawn is None:
            with torch.random.fork_rng():
                torch.manual_seed(int(self.seed))
                labels = _draw(self.quantiles.new_tensor(self.positive_rate).expand(self.num_synthetic, -1))
                rows = labels.new_empty(len(labels), self.num_codes + NUMERIC, dtype=torch.half)
                for few, y in zip(rows.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE)):
                    few.copy_(self.sample(y))
            self.drawn = rows, labels
        return self.drawn

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.visits is not None
        return self.predictor(self.row(batch.visits))

    def loss(self, batch: Batch) -> LossDict:
        """Cross-entropy over the batch's patients and as many drawn rows."""
        assert batch.labels is not None
        rows, labels = self.synthetic()
        chosen = torch.randint(len(rows), (len(batch),), device=rows.device)
        logits = torch.cat([self(batch), self.predictor(rows[chosen].float())])
        return {"loss": F.binary_cross_entropy_with_logits(logits, torch.cat([batch.labels, labels[chosen]]))}

    def fit(self, training: Iterable[Batch], tuning: Iterable[Batch]) -> dict[str, float]:
        """The numeric columns' quantiles among the training rows."""
        numbers = torch.cat([self.numbers(batch.visits) for batch in training if batch.visits is not None])
        self.quantiles.copy_(numbers.quantile(LEVELS.to(numbers), dim=0).T)
        return {"rows": float(len(numbers))}

    def forget(self) -> None:
        self.drawn = None  # rows of the generator as it was before its training

    def phases(self) -> Sequence[AnyPhase]:
        return [
            EstimatorPhase("columns", self.fit),
            Phase("generator", (Turn(self.diffusion_loss, self.denoiser.parameters),), select="loss"),
            Phase("predictor", (Turn(self.loss, self.predictor.parameters),), begin=self.forget),
        ]


def bernoulli_kl(q: Float[Tensor, "B M"], p: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    """KL(q || p) of every entry; p is kept 1e-7 from 0 and 1."""
    p = p.clamp(1e-7, 1 - 1e-7)
    return torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q) - q * p.log() - (1 - q) * torch.log1p(-p)


def _mix(x: Float[Tensor, "B M"], keep: Float[Tensor, "B 1"]) -> Float[Tensor, "B M"]:
    """keep x + (1 - keep) / 2: an entry stays with probability `keep`, else one of two categories is drawn."""
    return keep * x + (1 - keep) / 2


def _draw(probability: Float[Tensor, "B M"]) -> Float[Tensor, "B M"]:
    # A third of torch.bernoulli's time on a CPU.
    return (torch.rand_like(probability) < probability).to(probability.dtype)
