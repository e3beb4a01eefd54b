"""actGAN on visit embeddings: a generator of MedDiffusion's Table 4, which oversamples the positives.

Shapes from the authors' code of MedDiffusion; the paper's reference is not certain. Most likely Koivu et al. 2020 (doi
10.1093/jamia/ocaa127), of which only the abstract was read: docs/papers/gan_augmenters.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.nn.batchnorm import BatchNorm
from ehrlab.nn.stepwise import StepwiseAttention


class Generator(nn.Module):
    """z_{i+1} = relu(BN_i(W_i z_i)) + z_i, then a decoder whose output layer has the activation of its data.

    A visit embedding is real-valued in every dimension: the identity.
    """

    def __init__(self, latent_dim: int, decoder_dim: int, embed_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(latent_dim, latent_dim, bias=False) for _ in range(num_layers))
        self.norms = nn.ModuleList(BatchNorm(latent_dim) for _ in range(num_layers))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, decoder_dim), nn.ReLU(), nn.Linear(decoder_dim, embed_dim))

    def forward(self, z: Float[Tensor, "R L"]) -> Float[Tensor, "R E"]:
        for layer, norm in zip(self.layers, self.norms):
            z = F.relu(norm(layer(z))) + z
        return self.decoder(z)


class ActGAN(Augmenter):
    """e' = Dec(G(z)), z ~ N(0, I), for every visit of a patient with a positive label; e' = e for all others.

    Both players see the visits of positives alone, so G learns their distribution; losses are means over these visits
    and 0 in a batch without any. With `attention`, the generated visit attends to the history before it.
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int,
        hidden_dim: int,
        attention: bool = False,
        attention_dim: int = 64,
        latent_dim: int = 64,
        decoder_dim: int = 128,
        num_layers: int = 2,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.generator = Generator(latent_dim, decoder_dim, embed_dim, num_layers)
        condition = "attention" if attention else "visit_only"
        self.attention = StepwiseAttention(embed_dim, hidden_dim, attention_dim, condition)
        self.critic = nn.Linear(embed_dim, 1)

    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        z = torch.randn(int(mask.sum()), self.latent_dim, dtype=e.dtype, device=e.device)
        visits = self.generator(z)
        generated = self.attention(visits.new_zeros(e.shape).index_put((mask,), visits), h_prev)
        return torch.where(self._positive(mask, labels)[..., None], generated, e)

    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e')"""
        e, h_prev = e.detach(), h_prev.detach()  # no player may move the real visits to where the critic is blind
        fake = self.critic(self.sample(e, h_prev, mask, labels))
        return {"loss": self._mean(F.softplus(-fake), mask, labels)}

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def critic_loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e) - log(1 - D(e'))"""
        with torch.no_grad():
            fake = self.sample(e, h_prev, mask, labels)
        return {"loss": self._mean(F.softplus(-self.critic(e)) + F.softplus(self.critic(fake)), mask, labels)}

    @staticmethod
    def _positive(mask: Bool[Tensor, "B V"], labels: Float[Tensor, "B K"]) -> Bool[Tensor, "B V"]:
        return mask & labels.bool().any(1, keepdim=True)

    def _mean(
        self, x: Float[Tensor, "B V 1"], mask: Bool[Tensor, "B V"], labels: Float[Tensor, "B K"]
    ) -> Float[Tensor, ""]:
        chosen = self._positive(mask, labels)
        return (x.squeeze(-1) * chosen).sum() / chosen.sum().clamp(min=1)
