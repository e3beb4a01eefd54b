"""MaskEHR (Ma et al. 2020, SDM): records of the rare class are masked and filled in anew by a GAN, a selector trained
by reinforcement keeps the good ones, a predictor learns from real and kept records.

Departs from the paper: only its abstract was at hand. What it leaves open follows the work that it builds on: MaskGAN
(Fedus et al. 2018, arXiv 1801.07736) and REINFORCE (Williams 1992). Choices: docs/papers/maskehr.md.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, LossDict, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum
from ehrlab.nn.masking import last_valid, reverse_valid


class Reader(nn.Module):
    """Two-way GRU states of visits that are given as one or more sets of codes, and a linear head for them."""

    def __init__(self, num_codes: int, num_sets: int, embed_dim: int, hidden_dim: int, num_outputs: int) -> None:
        super().__init__()
        self.codes = CodeSum(num_codes, embed_dim)
        self.forward_rnn = nn.GRU(num_sets * embed_dim, hidden_dim, batch_first=True)
        self.backward_rnn = nn.GRU(num_sets * embed_dim, hidden_dim, batch_first=True)
        self.head = nn.Linear(2 * hidden_dim, num_outputs)

    def states(self, mask: Bool[Tensor, "P V"], *sets: Int[Tensor, "P V C"]) -> Float[Tensor, "P V D"]:
        """[forward; backward]; the backward GRU starts at the last real visit."""
        e = torch.cat([self.codes(codes) for codes in sets], dim=-1)
        backward = reverse_valid(self.backward_rnn(reverse_valid(e, mask))[0], mask)
        return torch.cat([self.forward_rnn(e)[0], backward], dim=-1)


class MaskEHR(RiskModel):
    """Phases: `generator` (maximum likelihood), `predictor` (discriminator, generator, selector, predictor in turn).

    mask_visits, mask_codes  a code is hidden if its visit is chosen and then itself, with these probabilities
    lambda_s                 weight of the kept synthetic patients in the predictor's loss
    num_actions              selections tried in a step
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        hidden_dim: int = 128,
        selector_dim: int = 64,
        mask_visits: float = 0.5,
        mask_codes: float = 0.5,
        lambda_s: float = 0.5,
        num_actions: int = 16,
    ) -> None:
        super().__init__()
        if not 0 < mask_visits <= 1 or not 0 < mask_codes <= 1 or num_actions < 2:
            found = f"{mask_visits}, {mask_codes}, {num_actions}"
            raise InputError(f"MaskEHR: expected mask_visits, mask_codes in (0, 1] and num_actions > 1, found {found}")
        self.mask_visits, self.mask_codes = mask_visits, mask_codes
        self.lambda_s, self.num_actions = lambda_s, num_actions
        self.generator = Reader(spec.num_codes, 1, embed_dim, hidden_dim, spec.num_codes)
        self.discriminator = Reader(spec.num_codes, 2, embed_dim, hidden_dim, 1)
        self.predictor = Reader(spec.num_codes, 1, embed_dim, hidden_dim, spec.num_labels)
        state_dim = 2 * hidden_dim + spec.num_labels + 1
        self.selector = nn.Sequential(nn.Linear(state_dim, selector_dim), nn.Tanh(), nn.Linear(selector_dim, 1))

    def state(self, visits: Visits) -> Float[Tensor, "B D"]:
        """The predictor's GRUs once they have read all visits: at the last one and at the first one."""
        forward, backward = self.predictor.states(visits.mask, visits.codes).chunk(2, dim=-1)
        return torch.cat([last_valid(forward, visits.mask), backward[:, 0]], dim=-1)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.visits is not None
        return self.predictor.head(self.state(batch.visits))

    def masked(self, batch: Batch) -> tuple[Visits, Bool[Tensor, "P V C"], Float[Tensor, "P K"]]:
        """Visits of the positives, hidden codes, labels; without positives one patient in whom nothing is hidden."""
        assert batch.visits is not None
        assert batch.labels is not None
        positive = batch.labels.any(1)
        rows = positive.nonzero()[:, 0] if positive.any() else positive.new_zeros(1, dtype=torch.long)
        visits = batch.visits.map(lambda t: t[rows])
        chosen = (torch.rand_like(visits.days_before_last) < self.mask_visits) & positive[rows, None]
        hidden = torch.rand(visits.codes.shape, device=rows.device) < self.mask_codes
        return visits, hidden & chosen[..., None] & (visits.codes > 0), batch.labels[rows]

    def log_prob(self, visits: Visits, hidden: Bool[Tensor, "P V C"]) -> Float[Tensor, "W M"]:
        """log p(code | rest of the record) of the W visits with hidden codes; -inf for what the visit still has."""
        kept, wanted = visits.codes * ~hidden, hidden.any(-1)
        logits = self.generator.head(self.generator.states(visits.mask, kept)[wanted])
        taken = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, kept[wanted], True)
        taken[:, 0] = True  # padding
        return logits.masked_fill(taken, -torch.inf).log_softmax(1)

    def realness(self, visits: Visits, hidden: Bool[Tensor, "P V C"]) -> Float[Tensor, "P V"]:
        """D's logit that a visit's hidden codes are the real ones; it is told which were hidden."""
        states = self.discriminator.states(visits.mask, visits.codes * ~hidden, visits.codes * hidden)
        return self.discriminator.head(states).squeeze(-1)

    def fill(self, visits: Visits, hidden: Bool[Tensor, "P V C"]) -> tuple[Visits, Float[Tensor, " W"]]:
        """The visits with each hidden code drawn anew and all others where they were; log p of each filled visit.

        Draws are independent given the rest of the record. A visit is a set: a code drawn twice is there once.
        """
        wanted = hidden.any(-1)
        log_p, used = self.log_prob(visits, hidden), hidden[wanted]
        drawn = torch.multinomial(log_p.detach().exp(), used.shape[1], replacement=True) * used
        repeated = (drawn[:, :, None] == drawn[:, None, :]).tril(-1).any(-1)
        codes = visits.codes * ~hidden
        codes[wanted] += drawn * ~repeated
        return replace(visits, codes=codes), log_p.gather(1, drawn).masked_fill(~used, 0).sum(1)

    def likelihood_loss(self, batch: Batch) -> LossDict:
        """-log p(hidden code | rest of the record), the mean over hidden codes: MaskGAN's first stage."""
        visits, hidden, _ = self.masked(batch)
        wanted = hidden.any(-1)
        return {"loss": -_mean(self.log_prob(visits, hidden).gather(1, visits.codes[wanted])[hidden[wanted]])}

    def discriminator_loss(self, batch: Batch) -> LossDict:
        """-log D(real) - log(1 - D(filled in)), the mean over visits with hidden codes."""
        visits, hidden, _ = self.masked(batch)
        fake = self.realness(self.fill(visits, hidden)[0], hidden)
        loss = F.softplus(-self.realness(visits, hidden)) + F.softplus(fake)
        return {"loss": _mean(loss[hidden.any(-1)])}

    def generator_loss(self, batch: Batch) -> LossDict:
        """MaskGAN's policy gradient: a filled visit is an action, its reward log D."""
        visits, hidden, _ = self.masked(batch)
        synthetic, log_prob = self.fill(visits, hidden)
        reward = F.logsigmoid(self.realness(synthetic, hidden)[hidden.any(-1)]).detach()
        return {"loss": reinforce(log_prob, reward), "reward": _mean(reward)}

    @torch.no_grad()
    def candidates(self, batch: Batch) -> tuple[Visits, Float[Tensor, "P S"], Bool[Tensor, " P"], Float[Tensor, "P K"]]:
        """Synthetic patients, their [predictor's state; its logits; D's mean logit], whether filled at all, labels."""
        visits, hidden, labels = self.masked(batch)
        synthetic, _ = self.fill(visits, hidden)
        h, wanted = self.state(synthetic), hidden.any(-1)
        realness = (self.realness(synthetic, hidden) * wanted).sum(1) / wanted.sum(1).clamp(min=1)
        state = torch.cat([h, self.predictor.head(h), realness[:, None]], dim=1)
        return synthetic, state, wanted.any(1), labels

    def gain(
        self, h: Float[Tensor, "P D"], labels: Float[Tensor, "P K"], real: Float[Tensor, "B D"], y: Float[Tensor, "B K"]
    ) -> Float[Tensor, " P"]:
        """How fast the real patients' loss falls as the predictor's head goes down the gradient of each synthetic one:
        the product of both gradients, sum_k slope_ik sum_b slope_bk (h_b . h_i + 1).
        """
        slope = self.predictor.head(h).sigmoid() - labels
        slope_real = (self.predictor.head(real).sigmoid() - y) / y.numel()
        return ((h @ real.T + 1) @ slope_real * slope).sum(1)

    def selector_loss(self, batch: Batch) -> LossDict:
        """Policy gradient: an action is a selection among the synthetic patients, its reward their mean gain."""
        assert batch.visits is not None
        assert batch.labels is not None
        _, state, synthetic, labels = self.candidates(batch)
        logit = self.selector(state).squeeze(1).expand(self.num_actions, -1)
        actions = torch.bernoulli(logit.detach().sigmoid()) * synthetic
        log_prob = -F.binary_cross_entropy_with_logits(logit, actions, reduction="none") * synthetic
        h = state[:, : self.predictor.head.in_features]
        gain = self.gain(h, labels, self.state(batch.visits), batch.labels).detach()
        reward = actions @ gain / synthetic.sum().clamp(min=1)
        return {"loss": reinforce(log_prob.sum(1), reward), "reward": reward.mean(), "kept": _mean(logit.sigmoid())}

    def loss(self, batch: Batch) -> LossDict:
        """Cross-entropy on the real patients + lambda_s that on the synthetic ones which the selector keeps."""
        risk = super().loss(batch)["loss"]
        visits, state, synthetic, labels = self.candidates(batch)
        keep = torch.bernoulli(self.selector(state).squeeze(1).sigmoid()).bool() & synthetic
        logits = self.predictor.head(self.state(visits))
        each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        risk_synthetic = _mean((each * keep[:, None])[synthetic])
        return {"loss": risk + self.lambda_s * risk_synthetic, "risk": risk, "risk_synthetic": risk_synthetic}

    def phases(self) -> Sequence[AnyPhase]:
        players = (
            Turn(self.discriminator_loss, self.discriminator.parameters, "discriminator"),
            Turn(self.generator_loss, self.generator.parameters, "generator"),
            Turn(self.selector_loss, self.selector.parameters, "selector"),
            Turn(self.loss, self.predictor.parameters, "predictor"),
        )
        likelihood = Turn(self.likelihood_loss, self.generator.parameters)
        return [Phase("generator", (likelihood,), select="loss"), Phase("predictor", players)]


def reinforce(log_prob: Float[Tensor, " A"], reward: Float[Tensor, " A"]) -> Float[Tensor, ""]:
    """A loss whose gradient is on average that of -E[reward]: independent actions, each against the others' mean."""
    advantage = (reward - _mean(reward)) * len(reward) / max(len(reward) - 1, 1)
    return -_mean(advantage * log_prob)


def _mean(values: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """0 where there are none."""
    return values.sum() / max(values.numel(), 1)
