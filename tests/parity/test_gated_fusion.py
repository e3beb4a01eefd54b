"""Yang & Wu's gate against its equations, and which stream is which."""

import pytest
import torch
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.gated_fusion import Gate, GatedFusion
from modal_batches import MODAL_SPEC, modal_batch
from parity.naive import affine, lstm_states

SIZES = {"width": 12, "head_dim": 4, "num_filters": 9, "stay_dim": 15, "note_dim": 7, "demographics_dim": 3}


def make(main: str, encoder: str = "lstm") -> GatedFusion:
    torch.manual_seed(0)
    built = GatedFusion(MODAL_SPEC, main=main, encoder=encoder, feedforward_dim=5, **SIZES).double()
    for name, parameter in built.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter)
    return built.eval()


def naive_length(x: Tensor) -> Tensor:
    return sum(x_i * x_i for x_i in x).sqrt()


def naive_gate(gate: Gate, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    w_y = affine(gate.weigh_first, torch.cat([x, y])).sigmoid()
    w_z = affine(gate.weigh_second, torch.cat([x, z])).sigmoid()
    a = affine(gate.shift, torch.cat([w_y * y, w_z * z]))
    alpha = min(gate.beta * naive_length(x) / naive_length(a), torch.tensor(1.0).double())
    moved = x + alpha * a
    normed = (moved - moved.mean()) / torch.sqrt(moved.var(unbiased=False) + gate.norm.eps)
    return normed * gate.norm.weight + gate.norm.bias


def naive_stay(model: GatedFusion, stays: Tensor) -> Tensor:
    """The LSTM's last state of each stay, projected; the mean over stays."""
    encoder = model.stay
    last = [lstm_states(encoder.rnn, list(stay))[-1] for stay in stays.double()]
    return torch.stack([torch.relu(affine(encoder.project, h)) for h in last]).mean(0)


def naive_logits(model: GatedFusion, batch: Batch) -> Tensor:
    assert batch.stays is not None
    assert batch.notes is not None
    assert batch.demographics is not None
    logits = []
    for row in range(len(batch)):
        stays = batch.stays.features[row][batch.stays.mask[row]]
        stay = naive_stay(model, stays if len(stays) else torch.zeros(1, *stays.shape[1:]))
        vectors = batch.notes.vectors[row][batch.notes.mask[row]].double()
        mean = vectors.mean(0) if len(vectors) else torch.zeros(vectors.shape[1]).double()
        notes = torch.tanh(affine(model.pooler, mean))
        main, other = (notes, stay) if model.main == "notes" else (stay, notes)
        demographics = affine(model.demographics, batch.demographics[row].double())
        logits.append(affine(model.head, naive_gate(model.gate, main, demographics, other)))
    return torch.stack(logits)


@pytest.mark.parametrize("beta", [0.01, 0.5, 100.0])
@pytest.mark.parametrize("main", ["notes", "stay"])
def test_logits_equal_the_equations(main: str, beta: float) -> None:
    model, batch = make(main), modal_batch()
    nn.init.constant_(model.gate.beta, beta)
    expected = naive_logits(model, batch)
    torch.testing.assert_close(model.float()(batch), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_the_others_move_the_main_vector_by_at_most_beta_times_its_length(beta: float) -> None:
    gate = make("notes").gate
    nn.init.constant_(gate.beta, beta)
    gate.norm = nn.Identity()
    main, first, second = (torch.randn(50, n).double() for n in (7, 3, 15))
    moved = (gate(main, first, second) - main).norm(dim=1) / main.norm(dim=1)
    assert (moved <= beta + 1e-9).all()
    assert (moved > beta - 1e-9).any()


def test_a_main_vector_of_length_0_is_not_moved_and_has_a_finite_gradient() -> None:
    gate = make("notes").gate
    main = torch.zeros(2, 7, dtype=torch.float64, requires_grad=True)
    first, second = torch.randn(2, 3).double(), torch.randn(2, 15).double()
    out = gate(main, first, second)
    torch.testing.assert_close(out, gate.norm.bias.expand(2, -1))
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), [main, gate.beta]))


@pytest.mark.parametrize(("main", "wide"), [("notes", 7), ("stay", 15)])
def test_the_risk_is_read_from_the_stream_that_leads(main: str, wide: int) -> None:
    assert make(main).head.in_features == wide


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(InputError, match="expected notes or stay, found 'text'"):
        GatedFusion(MODAL_SPEC, main="text")
    with pytest.raises(InputError, match="expected lstm, cnn, star or encoder, found 'gru'"):
        GatedFusion(MODAL_SPEC, encoder="gru")
