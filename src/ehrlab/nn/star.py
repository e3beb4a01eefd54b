"""Star-Transformer (Guo et al. 2019, arXiv 1902.09113): attention along a ring and through one relay node."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError


class NodeAttention(nn.Module):
    """Multi-head attention in which a node is projected once, however many others look at it.

    head_dim  width of one head; divides `dim`
    """

    def __init__(self, dim: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        if dim % head_dim:
            raise InputError(f"Star-Transformer: expected a width divisible by head_dim={head_dim}, found {dim}")
        self.head_dim = head_dim
        self.query = nn.Linear(dim, dim)
        # Without a bias: q . b is the same for all keys of a query, the softmax cancels it.
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def heads(self, x: Float[Tensor, "*n E"]) -> Float[Tensor, "*n A P"]:
        """A heads of P = head_dim dimensions."""
        return x.unflatten(-1, (-1, self.head_dim))

    def attend(
        self, query: Float[Tensor, "*n A P"], key: Float[Tensor, "*n C A P"], value: Float[Tensor, "*n C A P"]
    ) -> Float[Tensor, "*n E"]:
        """softmax_c(q . k_c / sqrt(P)) v_c over the C nodes that each query sees."""
        scores = (query.unsqueeze(-3) * key).sum(-1) / self.head_dim**0.5  # *n C A
        weights = self.dropout(scores.softmax(-2))
        return self.out((weights.unsqueeze(-1) * value).sum(-3).flatten(-2))


class StarTransformer(nn.Module):
    """`num_cycles` updates of satellites h_1 .. h_H and of the relay s; the weights are the same in every cycle.

    h_i = LN(ReLU(MultiAtt(h_i; [h_{i-1}, h_i, h_{i+1}, e_i, s])))        h_0 is h_H: a ring
    s   = LN(ReLU(MultiAtt(s; [s, h_1 .. h_H])))
    """

    def __init__(self, dim: int, head_dim: int, num_cycles: int, dropout: float) -> None:
        super().__init__()
        self.num_cycles = num_cycles
        self.satellite = NodeAttention(dim, head_dim, dropout)
        self.relay = NodeAttention(dim, head_dim, dropout)
        self.norm_satellite = nn.LayerNorm(dim)
        self.norm_relay = nn.LayerNorm(dim)

    def forward(self, e: Float[Tensor, "R H E"]) -> tuple[Float[Tensor, "R H E"], Float[Tensor, "R E"]]:
        h, s = e, e.mean(1)
        # Inputs and weights are the same in every cycle: two of a satellite's six projections are made once.
        given = self.satellite.key(e), self.satellite.value(e)
        for _ in range(self.num_cycles):
            h = self.norm_satellite(F.relu(self.around(h, given, s)))
            s = self.norm_relay(F.relu(self.through(h, s)))
        return h, s

    def around(
        self,
        h: Float[Tensor, "R H E"],
        given: tuple[Float[Tensor, "R H E"], Float[Tensor, "R H E"]],
        s: Float[Tensor, "R E"],
    ) -> Float[Tensor, "R H E"]:
        """Every satellite looks at its two neighbours, itself, its input (given: its key and value) and the relay."""
        unit = self.satellite

        def seen(project: nn.Linear, given: Float[Tensor, "R H E"]) -> Float[Tensor, "R H 5 A P"]:
            own = unit.heads(project(h))
            relay = unit.heads(project(s))[:, None].expand_as(own)
            return torch.stack([own.roll(1, 1), own, own.roll(-1, 1), unit.heads(given), relay], dim=2)

        key, value = seen(unit.key, given[0]), seen(unit.value, given[1])
        return unit.attend(unit.heads(unit.query(h)), key, value)

    def through(self, h: Float[Tensor, "R H E"], s: Float[Tensor, "R E"]) -> Float[Tensor, "R E"]:
        """The relay looks at itself and at every satellite."""
        unit, nodes = self.relay, torch.cat([s[:, None], h], dim=1)
        return unit.attend(unit.heads(unit.query(s)), unit.heads(unit.key(nodes)), unit.heads(unit.value(nodes)))
