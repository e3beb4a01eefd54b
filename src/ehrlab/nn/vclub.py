"""vCLUB (Cheng et al. 2020, arXiv 2006.12013): an upper bound on mutual information by a learned conditional.

    I(x; y) <= E_p(x,y)[log q(y|x)] - E_p(x)p(y)[log q(y|x)]

which holds where q is close enough to the true p(y|x). Two players take turns: the estimator fits q by maximum
likelihood to features that are data to it; the encoders lower the bound while q stands still.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VClub(nn.Module):
    """q(y|x) = N(mu(x), diag exp(log_var(x))), each an MLP.

    log_var lies in -max_log_var .. max_log_var: one sample that is fitted exactly must not make the bound infinite.
    """

    def __init__(self, x_dim: int, y_dim: int, hidden_dim: int, max_log_var: float = 4.0) -> None:
        super().__init__()
        self.max_log_var = max_log_var

        def mlp() -> nn.Sequential:
            return nn.Sequential(nn.Linear(x_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, y_dim))

        self.mean, self.log_var = mlp(), mlp()

    def conditional(self, x: Float[Tensor, "B X"]) -> tuple[Float[Tensor, "B Y"], Float[Tensor, "B Y"]]:
        """(mu, log variance) of q(.|x)"""
        log_var = self.max_log_var * torch.tanh(self.log_var(x) / self.max_log_var)
        return self.mean(x), log_var

    def negative_log_likelihood(self, x: Float[Tensor, "B X"], y: Float[Tensor, "B Y"]) -> Float[Tensor, ""]:
        """-mean_i log q(y_i|x_i): the estimator's loss. Features get no gradient."""
        mean, log_var = self.conditional(x.detach())
        density = (y.detach() - mean).square() / log_var.exp() + log_var + math.log(2 * math.pi)
        return density.sum(1).mean() / 2

    def bound(self, x: Float[Tensor, "B X"], y: Float[Tensor, "B Y"]) -> Float[Tensor, ""]:
        """mean_i log q(y_i|x_i) - mean_ij log q(y_j|x_i), in nats; gradients pass through q, the caller leaves q alone.

        Normalising terms cancel. mean_j (y_j - mu_i)^2 = var(y) + (mean(y) - mu_i)^2: without the B x B pairs.
        """
        mean, log_var = self.conditional(x)
        matched = (y - mean).square()
        shuffled = y.var(0, unbiased=False) + (y.mean(0) - mean).square()
        return ((shuffled - matched) / log_var.exp()).sum(1).mean() / 2
