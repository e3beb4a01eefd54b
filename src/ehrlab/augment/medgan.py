"""medGAN (Choi et al. 2017, arXiv 1703.06490) on visit embeddings: a generator of MedDiffusion's Table 4.

An autoencoder of visits, a generator of its codes from noise, a critic that sees each visit beside its minibatch's
average. What departs from the paper, and why: docs/papers/gan_augmenters.md.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.nn.batchnorm import BatchNorm
from ehrlab.nn.stepwise import StepwiseAttention


class Generator(nn.Module):
    """z_{i+1} = relu(BN_i(W_i z_i)) + z_i: batch normalisation and shortcuts against collapse."""

    def __init__(self, latent_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(latent_dim, latent_dim, bias=False) for _ in range(num_layers))
        self.norms = nn.ModuleList(BatchNorm(latent_dim, momentum=0.01) for _ in range(num_layers))

    def forward(self, z: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
        for layer, norm in zip(self.layers, self.norms):
            z = F.relu(norm(layer(z))) + z
        return z


class Critic(nn.Module):
    """D(x, x_bar): logits of visits being real. Minibatch averaging: x_bar, the mean of all visits judged together,
    shows the critic a generator that repeats itself."""

    def __init__(self, embed_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        widths = [2 * embed_dim, *dims]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, x: Float[Tensor, "R E"]) -> Float[Tensor, " R"]:
        y = torch.cat([x, x.mean(0).expand_as(x)], dim=-1)
        for layer in self.layers:
            y = F.relu(layer(y))
        return self.score(y).squeeze(-1)


class MedGAN(Augmenter):
    """e' = Dec(G(z)), z ~ N(0, I) for every visit; with `attention`, e' attends to the history before it.

    Losses are means over the R real visits of the batch; padding is left out before anything is computed.
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int,
        hidden_dim: int,
        attention: bool = False,
        attention_dim: int = 64,
        latent_dim: int = 64,
        autoencoder_dim: int = 128,
        num_layers: int = 3,
        critic_dims: Sequence[int] = (256, 128),
        critic_moves: int = 2,
    ) -> None:
        super().__init__()
        self.latent_dim, self.critic_moves = latent_dim, critic_moves
        self.encoder = nn.Sequential(
            nn.Linear(embed_dim, autoencoder_dim), nn.ReLU(), nn.Linear(autoencoder_dim, latent_dim), nn.ReLU()
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, autoencoder_dim), nn.ReLU(), nn.Linear(autoencoder_dim, embed_dim)
        )
        self.generator = Generator(latent_dim, num_layers)
        condition = "attention" if attention else "visit_only"
        self.attention = StepwiseAttention(embed_dim, hidden_dim, attention_dim, condition)
        self.critic = Critic(embed_dim, critic_dims)

    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        z = torch.randn(int(mask.sum()), self.latent_dim, dtype=e.dtype, device=e.device)
        visits = self.decoder(self.generator(z))
        return self.attention(visits.new_zeros(e.shape).index_put((mask,), visits), h_prev)

    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e', mean e') + |Dec(Enc(e)) - e|^2, the latter as a mean over dimensions too."""
        e, h_prev = e.detach(), h_prev.detach()  # no player may move the real visits to where the critic is blind
        fake = self.sample(e, h_prev, mask, labels)[mask]
        adversarial = F.softplus(-self.critic(fake)).mean()
        reconstruction = F.mse_loss(self.decoder(self.encoder(e[mask])), e[mask])
        return {
            "loss": adversarial + reconstruction,
            "adversarial": adversarial,
            "reconstruction": reconstruction,
        }

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def critic_loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e, mean e) - log(1 - D(e', mean e'))"""
        with torch.no_grad():
            fake = self.sample(e, h_prev, mask, labels)[mask]
        return {"loss": F.softplus(-self.critic(e[mask])).mean() + F.softplus(self.critic(fake)).mean()}
