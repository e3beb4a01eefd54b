"""Sets of codes: encoded without their multi-hot vectors, and predicted where some were hidden (MedHMP)."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.nn.embedding import CodeSum
from ehrlab.nn.fusion import FeedForward

TARGETS = ("vocabulary", "masked")


class CodeSetEncoder(nn.Module):
    """ReLU(LN(W_2 ReLU(LN(W_1 x + b_1)) + b_2)), x the multi-hot vector of a set, which is never made."""

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        self.codes = CodeSum(num_codes, dim)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm = nn.LayerNorm(dim)
        self.rest = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU())

    def forward(self, codes: Int[Tensor, "B V C"]) -> Float[Tensor, "B V E"]:
        """V sets for each sample. An empty set has a vector, too."""
        return self.rest(F.relu(self.norm(self.codes(codes) + self.bias)))

    def one(self, codes: Int[Tensor, "B C"]) -> Float[Tensor, "B E"]:
        """One set for each sample."""
        return self(codes[:, None]).squeeze(1)


class MaskedCodes(nn.Module):
    """Which codes of a set were hidden? p = sigmoid(W z + b), one for each code; squared error against 1 where hidden.

    targets       "vocabulary"   the error is the mean over all codes (authors' code)
                  "masked"       over what the mask covers: `rate` of all codes, present or not (the product in the
                                 paper's Eq. 9)
    count         whether the set's vector is told how many codes are hidden (authors' code, not the paper)
    feedforward   a block of its own before W (authors' code, not the paper)
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        rate: float = 0.15,
        targets: str = "vocabulary",
        count: bool = False,
        feedforward: bool = False,
    ) -> None:
        super().__init__()
        if targets not in TARGETS:
            raise InputError(f"masked code prediction: expected targets {' or '.join(TARGETS)}, found {targets!r}")
        if not 0 < rate < 1:
            raise InputError(f"masked code prediction: expected a mask rate between 0 and 1, found {rate}")
        self.rate, self.targets, self.num_codes = rate, targets, num_codes
        self.count = nn.Linear(1, dim) if count else None
        self.stream = FeedForward(dim) if feedforward else nn.Identity()
        self.output = nn.Linear(dim, num_codes - 1)  # id 0 is padding

    def draw(self, codes: Int[Tensor, "B C"]) -> tuple[Bool[Tensor, "B C"], Bool[Tensor, "B W"] | None]:
        """Which codes are hidden, and for targets "masked" the mask over ids 1 .. num_codes - 1 that hides them."""
        if self.targets == "vocabulary":
            return (torch.rand(codes.shape, device=codes.device) < self.rate) & (codes > 0), None
        mask = torch.rand(len(codes), self.num_codes - 1, device=codes.device) < self.rate
        return mask.gather(1, (codes - 1).clamp(min=0)) & (codes > 0), mask

    def see(
        self, encoder: CodeSetEncoder, codes: Int[Tensor, "B C"], hidden: Bool[Tensor, "B C"]
    ) -> Float[Tensor, "B E"]:
        """The vector of what is left of each set."""
        seen = encoder.one(codes.masked_fill(hidden, 0))
        return seen if self.count is None else seen + self.count(hidden.sum(1, keepdim=True).to(seen.dtype))

    def errors(
        self,
        z: Float[Tensor, "B E"],
        codes: Int[Tensor, "B C"],
        hidden: Bool[Tensor, "B C"],
        mask: Bool[Tensor, "B W"] | None,
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Each set's sum of squared errors, and over how many codes it is.

        (p - 1)^2 = p^2 + 1 - 2 p: of the target, which is 0 nearly everywhere, only its ones are looked at.
        """
        p = self.output(self.stream(z)).sigmoid()
        ones = torch.where(hidden, 1 - 2 * p.gather(1, (codes - 1).clamp(min=0)), 0.0).sum(1)
        if mask is None:
            return p.square().sum(1) + ones, torch.full_like(ones, self.num_codes - 1)
        return (p.square() * mask).sum(1) + ones, mask.sum(1).to(ones.dtype)
