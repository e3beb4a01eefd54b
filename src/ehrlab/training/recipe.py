"""How a phase is trained: the protocol's numbers, the same for every model unless its paper's phase says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ehrlab.core.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """One phase's training settings.

    optimizer         parameters -> Optimizer; called once per turn
    scheduler         Optimizer -> scheduler, stepped once per epoch (ReduceLROnPlateau sees `scheduler_monitor`)
    batch_size        samples per step over all devices together, so that results do not depend on their number
    monitor, mode     the validation score that selects the checkpoint ("val/f1", "max")
    patience          stop after this many epochs without a better score; 0 never stops early
    gradient_clip     largest gradient norm per turn; 0 does not clip
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    scheduler: Callable[[Optimizer], LRScheduler]
    scheduler_monitor: str
    batch_size: int
    max_epochs: int
    monitor: str
    mode: str
    patience: int
    gradient_clip: float

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max") or ("loss" in self.monitor) != (self.mode == "min"):
            raise InputError(
                f"training.monitor={self.monitor}, training.mode={self.mode}: expected mode=min for a loss and max "
                "for a score, or the worst epoch would be kept. Set both."
            )
        if self.max_epochs < 1:
            raise InputError(f"training.max_epochs: expected at least 1, found {self.max_epochs}")
