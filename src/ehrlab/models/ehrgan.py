"""ehrGAN (Che et al. 2017, ICDM, arXiv 1709.01648): a GAN learns p(x~ | x), variations of a patient x, and a CNN learns
from both x and x~ under the label of x.

Departs from the paper: the code embeddings come from the same CNN trained on real patients, where the paper (as
recalled) trains them on the codes alone; no batch normalisation. What was chosen: docs/papers/ehrgan.md.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, LossDict, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum


class TextCNN(nn.Module):
    """The paper's basic model: filters over 3, 4 and 5 windows, ReLU, the maximum over time, a linear layer."""

    def __init__(self, embed_dim: int, num_filters: int, kernel_sizes: Sequence[int], outputs: int, dropout: float):
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(embed_dim, num_filters, size) for size in kernel_sizes)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_filters * len(kernel_sizes), outputs)

    def forward(self, x: Float[Tensor, "B E T"]) -> Float[Tensor, "B O"]:
        return self.head(self.dropout(torch.cat([F.relu(filters(x)).amax(2) for filters in self.filters], dim=1)))


class TransitionGenerator(nn.Module):
    """x~ ~ p(x~ | x): encode, replace a random part of the code by noise, decode."""

    def __init__(self, embed_dim: int, hidden_dim: int, kernel_size: int, noise_share: float) -> None:
        super().__init__()
        self.noise_share = noise_share
        middle, size, pad = 2 * hidden_dim, kernel_size, kernel_size // 2
        self.encoder = nn.Sequential(
            nn.Conv1d(embed_dim, middle, size, padding=pad),
            nn.ReLU(),
            nn.Conv1d(middle, hidden_dim, size, padding=pad),
            nn.Tanh(),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose1d(hidden_dim, middle, size, padding=pad),
            nn.ReLU(),
            nn.ConvTranspose1d(middle, embed_dim, size, padding=pad),
        )

    def mix(self, h: Float[Tensor, "B D T"]) -> Float[Tensor, "B D T"]:
        """h~ = m * z + (1 - m) * h: m is 1 with probability `noise_share`, z uniform over the range of h."""
        z = 2 * torch.rand_like(h) - 1
        return torch.where(torch.rand_like(h) < self.noise_share, z, h)

    def forward(self, x: Float[Tensor, "B E T"]) -> Float[Tensor, "B E T"]:
        return self.decoder(self.mix(self.encoder(x)))


class EhrGAN(RiskModel):
    """Phases: `embedding` (the CNN on real patients), `generator` (the GAN), `predictor` (the CNN on x and x~).

    days_per_window, num_windows  a patient is cut into windows of so many days, counted back from the last visit; older
                                  visits fall into the oldest window
    noise_share                   how much of a patient's code is replaced by noise
    rho                           weight of the squared distance between x~ and x, a mean over entries, in its loss
    mu                            weight of x~ in the predictor's loss
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        hidden_dim: int = 64,
        num_filters: int = 100,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        kernel_size: int = 3,
        days_per_window: float = 90.0,
        num_windows: int = 40,
        noise_share: float = 0.5,
        rho: float = 10.0,
        mu: float = 0.5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if days_per_window <= 0 or not 0 <= noise_share <= 1 or kernel_size % 2 == 0:
            raise InputError(
                "EhrGAN: expected days_per_window > 0, noise_share in [0, 1] and an odd kernel_size, "
                f"found {days_per_window}, {noise_share} and {kernel_size}"
            )
        if num_windows < max(kernel_sizes):
            raise InputError(f"EhrGAN: expected num_windows >= {max(kernel_sizes)} (its filters), found {num_windows}")
        self.days_per_window, self.num_windows, self.rho, self.mu = days_per_window, num_windows, rho, mu
        self.codes = CodeSum(spec.num_codes, embed_dim)
        self.predictor = TextCNN(embed_dim, num_filters, kernel_sizes, spec.num_labels, dropout)
        self.generator = TransitionGenerator(embed_dim, hidden_dim, kernel_size, noise_share)
        self.discriminator = TextCNN(embed_dim, num_filters, kernel_sizes, 1, dropout)

    def windows(self, visits: Visits) -> Float[Tensor, "B E T"]:
        """x: the sum of the embeddings of a window's codes, once per visit; oldest window first, 0 where there is none.

        Every patient has `num_windows`, as the paper pads its records to one length.
        """
        e = self.codes(visits.codes) * visits.mask[..., None]
        back = (visits.days_before_last / self.days_per_window).long().clamp(max=self.num_windows - 1)
        x = e.new_zeros(len(e), self.num_windows, e.shape[2])
        place = (self.num_windows - 1 - back)[..., None].expand_as(e)
        return x.scatter_add(1, place, e).transpose(1, 2)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.visits is not None
        return self.predictor(self.windows(batch.visits))

    def discriminator_loss(self, batch: Batch) -> LossDict:
        """-log D(x) - log(1 - D(x~))"""
        x, synthetic = self._generated(batch)
        loss = F.softplus(-self.discriminator(x)) + F.softplus(self.discriminator(synthetic))
        return {"loss": loss.mean()}

    def generator_loss(self, batch: Batch) -> LossDict:
        """-log D(x~) + rho |x~ - x|^2: a variation of x, and neither a copy nor somebody else."""
        x, synthetic = self._generated(batch)
        adversarial = F.softplus(-self.discriminator(synthetic)).mean()
        distance = F.mse_loss(synthetic, x)
        return {"loss": adversarial + self.rho * distance, "adversarial": adversarial, "distance": distance}

    def loss(self, batch: Batch) -> LossDict:
        """L(x, y) + mu E[L(x~, y)], one x~ per patient and step, drawn anew each time."""
        assert batch.labels is not None
        x, synthetic = self._generated(batch)
        risk = F.binary_cross_entropy_with_logits(self.predictor(x), batch.labels)
        risk_synthetic = F.binary_cross_entropy_with_logits(self.predictor(synthetic), batch.labels)
        return {"loss": risk + self.mu * risk_synthetic, "risk": risk, "risk_synthetic": risk_synthetic}

    def _generated(self, batch: Batch) -> tuple[Float[Tensor, "B E T"], Float[Tensor, "B E T"]]:
        assert batch.visits is not None
        x = self.windows(batch.visits)
        return x, self.generator(x)

    def phases(self) -> Sequence[AnyPhase]:
        def basic() -> Iterable[nn.Parameter]:
            return [*self.codes.parameters(), *self.predictor.parameters()]

        players = (
            Turn(self.discriminator_loss, self.discriminator.parameters, "discriminator"),
            Turn(self.generator_loss, self.generator.parameters, "generator"),
        )
        return [
            Phase("embedding", (Turn(super().loss, basic),)),
            Phase("generator", players, select="last"),
            Phase("predictor", (Turn(self.loss, self.predictor.parameters),)),
        ]
