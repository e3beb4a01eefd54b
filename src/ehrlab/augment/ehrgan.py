"""ehrGAN (Che et al. 2017, arXiv 1709.01648) on visit embeddings: a generator of MedDiffusion's Table 4.

A convolutional encoder and decoder over a patient's visits; between them, noise replaces a random part of the code. So
e' is drawn in the neighbourhood of the patient's own record and keeps its label. What departs from the paper, and why:
docs/papers/gan_augmenters.md.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.nn.batchnorm import BatchNorm
from ehrlab.nn.stepwise import StepwiseAttention


class VisitConv(nn.Module):
    """BN(leaky_relu(conv of three neighbouring visits)); padding enters and leaves as 0 and is not in the statistics.

    Also the decoder's layer: with stride 1, a transposed convolution is a convolution.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim_in, dim_out, 3, padding=1)
        self.norm = BatchNorm(dim_out)

    def forward(self, x: Float[Tensor, "B V I"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B V O"]:
        y = self.conv((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        real = self.norm(F.leaky_relu(y[mask]))
        return real.new_zeros(y.shape).index_put((mask,), real)


class Critic(nn.Module):
    """A logit for each patient: filters over windows of visits, the largest response of each over the real visits."""

    def __init__(self, embed_dim: int, num_filters: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.filters = nn.ModuleList(nn.Conv1d(embed_dim, num_filters, window) for window in windows)
        self.score = nn.Linear(num_filters * len(windows), 1)

    def forward(self, x: Float[Tensor, "B V E"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, " B"]:
        x = (x * mask[..., None]).transpose(1, 2)
        pooled = []
        for window, filters in zip(self.windows, self.filters):
            response = F.relu(filters(F.pad(x, (window // 2, (window - 1) // 2))))
            pooled.append((response * mask[:, None]).amax(-1))  # no response is below 0
        return self.score(torch.cat(pooled, dim=1)).squeeze(-1)


class EhrGAN(Augmenter):
    """h = Enc(e), h~ = m z + (1 - m) h, e' = Dec(h~); z ~ N(0, I), m ~ Bernoulli(noise_share) in every dimension.

    With `attention`, the encoder reads the visits attended with the history before each (e_hat of MedDiffusion's Eq.
    3.11) in place of e. The convolutions let e'_k depend on e_{k+1} and e_{k+2}; no prediction passes through them.
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int,
        hidden_dim: int,
        attention: bool = False,
        attention_dim: int = 64,
        latent_dim: int = 64,
        noise_share: float = 0.5,
        windows: Sequence[int] = (3, 4, 5),
        critic_dim: int = 100,
    ) -> None:
        super().__init__()
        self.noise_share = noise_share
        condition = "attention" if attention else "visit_only"
        self.attention = StepwiseAttention(embed_dim, hidden_dim, attention_dim, condition)
        between = embed_dim // 2
        self.encoder = nn.ModuleList([VisitConv(embed_dim, between), VisitConv(between, latent_dim)])
        self.decoder = VisitConv(latent_dim, between)
        self.leave = nn.Conv1d(between, embed_dim, 3, padding=1)
        self.critic = Critic(embed_dim, critic_dim, windows)

    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        h = self.attention(e, h_prev)
        for layer in self.encoder:
            h = layer(h, mask)
        real = h[mask]
        m = torch.rand_like(real) < self.noise_share
        mixed = torch.where(m, torch.randn_like(real), real)
        return self._decode(h.index_put((mask,), mixed), mask)

    def _decode(self, h: Float[Tensor, "B V L"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
        return self.leave(self.decoder(h, mask).transpose(1, 2)).transpose(1, 2)

    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e'), the mean over patients."""
        e, h_prev = e.detach(), h_prev.detach()  # no player may move the real visits to where the critic is blind
        return {"loss": F.softplus(-self.critic(self.sample(e, h_prev, mask, labels), mask)).mean()}

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def critic_loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e) - log(1 - D(e')), the mean over patients."""
        with torch.no_grad():
            fake = self.sample(e, h_prev, mask, labels)
        return {"loss": F.softplus(-self.critic(e, mask)).mean() + F.softplus(self.critic(fake, mask)).mean()}
