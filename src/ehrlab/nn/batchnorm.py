"""Batch normalisation that knows what to do with a batch of one."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation; a batch of one visit has no spread and is normalised by the running statistics."""

    def forward(self, x: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
        if len(x) == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)
