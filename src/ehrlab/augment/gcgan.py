"""GcGAN on visit embeddings: a generator of MedDiffusion's Table 4, which groups a record's visits with its label.

Shapes from the authors' code of MedDiffusion; the paper's reference is not certain. Most likely Yang et al. 2019 (doi
10.1109/BIBM47256.2019.8983215), of which only the title was found: docs/papers/gan_augmenters.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.nn.stepwise import StepwiseAttention


class RowGenerator(nn.Module):
    """The rows of a record, its label first and then its visits, as a densely connected net.

    a = relu(W_1 g), b = mix_1[g; a], c = relu(W_2 b), d = mix_2[c; b; g], out = W_3 d
    W acts on each row alone, mix (a convolution of width 1 with rows as channels) on each dimension alone.
    """

    def __init__(self, num_rows: int, latent_dim: int) -> None:
        super().__init__()
        self.row_1, self.row_2, self.row_3 = (nn.Linear(latent_dim, latent_dim) for _ in range(3))
        self.mix_1 = nn.Conv1d(2 * num_rows, num_rows, 1)
        self.mix_2 = nn.Conv1d(3 * num_rows, num_rows, 1)

    def forward(self, g: Float[Tensor, "B R L"], real: Float[Tensor, "B R 1"]) -> Float[Tensor, "B R L"]:
        g = g * real  # rows that are no visit are 0 wherever rows are mixed
        a = F.relu(self.row_1(g)) * real
        b = self.mix_1(torch.cat([g, a], dim=1)) * real
        c = F.relu(self.row_2(b)) * real
        d = self.mix_2(torch.cat([c, b, g], dim=1))
        return self.row_3(d)


class GcGAN(Augmenter):
    """e'_1 .. e'_V = Dec(G(y, z_1 .. z_V)), z ~ N(0, I): all visits of a record and its label are one matrix of rows.

    The critic judges a visit together with the label: D(e, y) = sigmoid(w e + b + sum_k (2 y_k - 1)(u_k e + c_k)).
    With `attention`, the generated visit attends to the history before it. Records are filled with rows of 0 up to
    spec.max_visits, so neither padding nor batch-mates change what G sees.
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
    ) -> None:
        super().__init__()
        self.max_visits, self.latent_dim = spec.max_visits, latent_dim
        self.label = nn.Linear(spec.num_labels, latent_dim)
        self.generator = RowGenerator(1 + spec.max_visits, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim, decoder_dim), nn.ReLU(), nn.Linear(decoder_dim, embed_dim))
        condition = "attention" if attention else "visit_only"
        self.attention = StepwiseAttention(embed_dim, hidden_dim, attention_dim, condition)
        self.critic = nn.Linear(embed_dim, 1 + spec.num_labels)  # w, u_1 .. u_K

    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        num_visits = e.shape[1]
        assert num_visits <= self.max_visits, (num_visits, self.max_visits)
        noise = torch.randn(int(mask.sum()), self.latent_dim, dtype=e.dtype, device=e.device)
        z = noise.new_zeros(*mask.shape, self.latent_dim).index_put((mask,), noise)
        rows = torch.cat([self.label(2 * labels - 1)[:, None], z], dim=1)
        fill = self.max_visits - num_visits
        real = F.pad(F.pad(mask, (1, 0), value=True), (0, fill))[..., None]  # the label's row, visits, rows of 0
        generated = self.generator(F.pad(rows, (0, 0, 0, fill)), real.to(rows.dtype))
        return self.attention(self.decoder(generated[:, 1 : 1 + num_visits]), h_prev)

    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e', y), the mean over real visits."""
        e, h_prev = e.detach(), h_prev.detach()  # no player may move the real visits to where the critic is blind
        fake = self._score(self.sample(e, h_prev, mask, labels), labels)
        return {"loss": F.softplus(-fake[mask]).mean()}

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def critic_loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """-log D(e, y) - log(1 - D(e', y)), the mean over real visits."""
        with torch.no_grad():
            fake = self.sample(e, h_prev, mask, labels)
        real_score, fake_score = self._score(e, labels)[mask], self._score(fake, labels)[mask]
        return {"loss": F.softplus(-real_score).mean() + F.softplus(fake_score).mean()}

    def _score(self, e: Float[Tensor, "B V E"], labels: Float[Tensor, "B K"]) -> Float[Tensor, "B V"]:
        per_class = self.critic(e)
        return per_class[..., 0] + (per_class[..., 1:] * (2 * labels - 1)[:, None]).sum(-1)
