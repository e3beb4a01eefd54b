"""Step-wise attention between a visit to generate and the history before it (MedDiffusion 3.3.3)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError

CONDITIONS = ("attention", "equal", "visit_only")


class StepwiseAttention(nn.Module):
    """e_hat_k = gamma_e e_k + gamma_h W_h h_{k-1}    (MedDiffusion Eq. 3.11)

    [gamma_e, gamma_h] = softmax(W_a tanh(W_b [e_k; W_h h_{k-1}] + b_b)); W_h and W_a have no bias, as in the paper.

    condition   "attention"   as above
                "equal"       gamma_e = gamma_h = 0.5                   (ablation AS-2)
                "visit_only"  e_hat = e, the history is not looked at   (ablation AS-1)
    The first visit has no history: e_hat_1 = e_1.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, attention_dim: int, condition: str = "attention") -> None:
        super().__init__()
        if condition not in CONDITIONS:
            raise InputError(f"condition of the step-wise attention: expected one of {CONDITIONS}, found {condition!r}")
        self.condition = condition
        if condition != "visit_only":
            self.project = nn.Linear(hidden_dim, embed_dim, bias=False)  # W_h
        if condition == "attention":
            self.score = nn.Sequential(
                nn.Linear(2 * embed_dim, attention_dim),  # W_b, b_b
                nn.Tanh(),
                nn.Linear(attention_dim, 2, bias=False),  # W_a
            )

    def forward(self, e: Float[Tensor, "B V E"], h_prev: Float[Tensor, "B V D"]) -> Float[Tensor, "B V E"]:
        if self.condition == "visit_only":
            return e
        history = self.project(h_prev)
        if self.condition == "equal":
            mixed = 0.5 * e + 0.5 * history
        else:
            gamma = self.score(torch.cat([e, history], dim=-1)).softmax(-1)
            mixed = gamma[..., :1] * e + gamma[..., 1:] * history
        first = torch.arange(e.shape[1], device=e.device)[:, None] == 0
        # Not a slice from the second visit on: in a batch of one-visit patients the weights would leave the graph, and
        # distributed training waits for every weight's gradient.
        return torch.where(first, e, mixed)
