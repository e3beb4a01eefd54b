"""The protocol of core/model.py in its shortest form: phases in order, players in turns."""

from collections.abc import Sequence

import torch
from torch import nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import EstimatorPhase, Model, Phase


def gradient_phases(model: Model) -> list[Phase]:
    return [phase for phase in model.phases() if isinstance(phase, Phase)]


def train(model: Model, batches: Sequence[Batch], learning_rate: float = 1e-3, seed: int = 0) -> list[float]:
    """One step per batch in each phase. Returns every turn's loss in order; a fitted estimator's loss on each batch."""
    torch.manual_seed(seed)
    model.train()
    losses = []
    for phase in model.phases():
        if isinstance(phase, EstimatorPhase):
            phase.fit(batches, batches)
            losses += [model.loss(batch)["loss"].item() for batch in batches]
            continue
        phase.begin()
        params = [list(turn.params()) for turn in phase.turns]
        optimisers = [torch.optim.Adam(group, lr=learning_rate) for group in params]
        for batch in batches:
            for turn, group, optimiser in zip(phase.turns, params, optimisers):
                for _ in range(turn.repeat):
                    loss = turn.loss(batch)["loss"]
                    set_gradients(group, loss)
                    optimiser.step()
                    losses.append(loss.item())
    return losses


def set_gradients(params: Sequence[nn.Parameter], loss: torch.Tensor) -> None:
    """Gradients of `loss` for these parameters and no others; None where it does not depend on one."""
    for param, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True)):
        param.grad = grad
