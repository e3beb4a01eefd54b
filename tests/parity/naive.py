"""The papers' equations one scalar, vector or visit at a time, in float64, without padding."""

import torch
from torch import Tensor, nn


def code_sum(table: Tensor, codes: list[int]) -> Tensor:
    return sum((table[code] for code in codes), torch.zeros(table.shape[1], dtype=torch.float64))


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def softmax(scores: list[Tensor]) -> list[Tensor]:
    exps = [torch.exp(score - max(scores)) for score in scores]
    return [e / sum(exps) for e in exps]


def lstm_states(rnn: nn.LSTM, inputs: list[Tensor]) -> list[Tensor]:
    h = c = torch.zeros(rnn.hidden_size, dtype=torch.float64)
    states = []
    for x in inputs:
        gates = rnn.weight_ih_l0 @ x + rnn.bias_ih_l0 + rnn.weight_hh_l0 @ h + rnn.bias_hh_l0
        i, f, g, o = gates.view(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return states


def gru_states(rnn: nn.GRU, inputs: list[Tensor]) -> list[Tensor]:
    h = torch.zeros(rnn.hidden_size, dtype=torch.float64)
    states = []
    for x in inputs:
        r_in, z_in, n_in = (rnn.weight_ih_l0 @ x + rnn.bias_ih_l0).view(3, -1)
        r_h, z_h, n_h = (rnn.weight_hh_l0 @ h + rnn.bias_hh_l0).view(3, -1)
        r, z = (r_in + r_h).sigmoid(), (z_in + z_h).sigmoid()
        h = (1 - z) * (n_in + r * n_h).tanh() + z * h
        states.append(h)
    return states
