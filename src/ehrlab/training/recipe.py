"""How a phase is trained: the protocol's numbers, the same for every model unless its paper's phase says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


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
