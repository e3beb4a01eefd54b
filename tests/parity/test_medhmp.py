"""MedHMP against its equations, one admission, one stay, one head, one pair at a time."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.models.lstm import LSTM
from ehrlab.models.medhmp import MedHMP
from ehrlab.nn.code_sets import CodeSetEncoder, MaskedCodes
from ehrlab.nn.contrast import info_nce
from ehrlab.nn.fusion import AttentionPool
from ehrlab.nn.stay_encoder import StayDecoder, StayEncoder
from modal_batches import DEMOGRAPHICS, FEATURES, HOURS, MODAL_SPEC, NUM_DIAGNOSES, STAYS, modal_batch
from parity.naive import affine, code_sum, softmax

E, HEADS = 8, 4


def double(batch: Batch) -> Batch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + layer.eps) * layer.weight + layer.bias


def naive_pool(pool: AttentionPool, tokens: list[Tensor]) -> Tensor:
    """Tokens that are there, head by head, query by query."""
    attention, size = pool.attention, E // HEADS
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    out = []
    for query in tokens:
        heads = []
        for head in range(HEADS):
            rows = slice(head * size, (head + 1) * size)
            weights = softmax([(w_q @ query)[rows] @ (w_k @ key)[rows] / math.sqrt(size) for key in tokens])
            heads.append(sum((w * (w_v @ value)[rows] for w, value in zip(weights, tokens)), torch.zeros(size)))
        out.append(layer_norm(pool.norm, query + attention.out_proj.weight @ torch.cat(heads)))
    return torch.stack([torch.stack([token[dim] for token in out]).max() for dim in range(E)])


def lstm_steps(rnn: nn.LSTM, inputs: list[Tensor], h: Tensor, layer: int = 0) -> tuple[list[Tensor], Tensor]:
    """Hidden states and the last cell state of one layer, from h and c = 0."""
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[layer]
    c, states = torch.zeros_like(h), []
    for x in inputs:
        i, f, g, o = (w_ih @ x + b_ih + w_hh @ h + b_hh).view(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return states, c


def naive_stay(encoder: StayEncoder, hours: Tensor, demographics: Tensor) -> Tensor:
    states, cell = lstm_steps(encoder.hours.first, list(hours), torch.zeros(E))
    if encoder.hours.rest is not None and encoder.hours.between is not None:
        norm = encoder.hours.between[1]
        assert isinstance(norm, nn.LayerNorm)
        states = [layer_norm(norm, h) for h in states]
        for layer in range(encoder.hours.rest.num_layers):
            states, cell = lstm_steps(encoder.hours.rest, states, torch.zeros(E), layer)
    first, _, second = encoder.demographics
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    return naive_pool(encoder.fusion, [cell, affine(second, torch.relu(affine(first, demographics)))])


def naive_set(encoder: CodeSetEncoder, codes: list[int]) -> Tensor:
    x = torch.relu(layer_norm(encoder.norm, code_sum(encoder.codes.table.weight, codes) + encoder.bias))
    linear, norm, _ = encoder.rest
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    return torch.relu(layer_norm(norm, affine(linear, x)))


def naive_project(layers: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layers, nn.Sequential)
    linear, norm, _ = layers
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.LayerNorm)
    return torch.relu(layer_norm(norm, affine(linear, x)))


def real(ids: Tensor) -> list[int]:
    return [int(i) for i in ids if i > 0]


def naive_tokens(model: MedHMP, batch: Batch, i: int) -> list[Tensor | None]:
    """Notes, diagnoses, drugs, stays of one admission; None where it has none."""
    assert batch.stays is not None
    assert batch.codes is not None
    assert batch.notes is not None
    assert batch.demographics is not None
    notes = batch.notes.vectors[i][batch.notes.mask[i]]
    stays = [
        naive_stay(model.stay_encoder, hours.double(), batch.demographics[i])
        for hours, there in zip(batch.stays.features[i], batch.stays.mask[i])
        if there
    ]
    slots = torch.cat([*stays, torch.zeros((STAYS - len(stays)) * E)])
    diagnoses, drugs = real(batch.codes.diagnoses[i]), real(batch.codes.drugs[i])
    return [
        naive_project(model.notes, notes.mean(0)) if len(notes) else None,
        naive_set(model.diagnoses, diagnoses) if diagnoses else None,
        naive_set(model.drugs, drugs) if drugs else None,
        naive_project(model.stays, slots) if stays else None,
    ]


@pytest.fixture(autouse=True)
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def build(unit: str, **settings: object) -> MedHMP:
    sizes = {"embed_dim": E, "demographics_dim": 5, "num_heads": HEADS}
    model = MedHMP(replace(MODAL_SPEC, unit=unit), lambda spec: LSTM(spec, E, 6), **{**sizes, **settings})  # type: ignore[arg-type]
    for module in model.modules():  # a LayerNorm that does nothing would hide where it stands
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_stay_encoder_equals_its_equations(num_layers: int) -> None:
    model, batch = build("stay", num_layers=num_layers), double(modal_batch())
    assert batch.stays is not None
    assert batch.demographics is not None
    found = model.stay_encoder.each(batch.stays, batch.demographics)
    for i, s in batch.stays.mask.nonzero().tolist():
        expected = naive_stay(model.stay_encoder, batch.stays.features[i, s].double(), batch.demographics[i])
        torch.testing.assert_close(found[i, s], expected)


@pytest.mark.parametrize("start", ["state", "input"])
def test_reconstruction_equals_its_equations(start: str) -> None:
    model, batch = build("stay", pretrain=["stay"], decoder=start), double(modal_batch())
    assert batch.stays is not None
    assert batch.demographics is not None
    decoder, errors = model.stay_decoder, []
    for i, mask in enumerate(batch.stays.mask):
        if not mask.any():
            continue
        x = batch.stays.features[i, int(mask.sum()) - 1].double()
        b = naive_stay(model.stay_encoder, x, batch.demographics[i])
        if start == "state":
            inputs, h = [torch.tensor([hour / (HOURS - 1)]) for hour in range(HOURS)], b
        else:
            inputs, h = [b, *[torch.zeros(E)] * (HOURS - 1)], torch.zeros(E)
        made = torch.stack([affine(decoder.output, state) for state in lstm_steps(decoder.rnn, inputs, h)[0]])
        errors.append((made - x).square().mean())
    torch.testing.assert_close(model.reconstruction(batch)["loss"], torch.stack(errors).mean())


def test_stay_risk_reads_the_last_stay() -> None:
    model, batch = build("stay"), double(modal_batch())
    assert batch.stays is not None
    assert batch.demographics is not None
    head = model.head[-1]
    assert isinstance(head, nn.Linear)
    for i, mask in enumerate(batch.stays.mask):
        hours = batch.stays.features[i, int(mask.sum()) - 1].double() if mask.any() else torch.zeros(HOURS, FEATURES)
        expected = affine(head, naive_stay(model.stay_encoder, hours, batch.demographics[i]))
        torch.testing.assert_close(model(batch)[i], expected)


def test_admission_risk_equals_its_equations() -> None:
    model, batch = build("admission"), double(modal_batch())
    head = model.head[-1]
    assert isinstance(head, nn.Linear)
    for i in range(len(batch)):
        tokens = [token for token in naive_tokens(model, batch, i) if token is not None]
        torch.testing.assert_close(model(batch)[i], affine(head, naive_pool(model.modalities, tokens)))


@pytest.mark.parametrize("targets", ["vocabulary", "masked"])
@pytest.mark.parametrize("mask_count", [False, True])
def test_losses_of_admissions_equal_their_equations(targets: str, mask_count: bool) -> None:
    model, batch = build("admission", targets=targets, mask_count=mask_count, mask_rate=0.4), double(modal_batch())
    assert batch.codes is not None
    kinds = [(1, model.diagnoses, model.mcp_diagnoses, batch.codes.diagnoses)]
    kinds += [(2, model.drugs, model.mcp_drugs, batch.codes.drugs)]
    torch.manual_seed(3)
    drawn = [mcp.draw(codes) for _, _, mcp, codes in kinds]
    assert all(hidden.any() for hidden, _ in drawn)

    expected = []
    for (place, encoder, mcp, codes), (hidden, mask) in zip(kinds, drawn):
        errors = []
        for i in range(len(batch)):
            tokens = naive_tokens(model, batch, i)
            if tokens[place] is None:
                continue
            away = real(codes[i][hidden[i]])
            token = naive_set(encoder, [code for code in real(codes[i]) if code not in away])
            if mcp.count is not None:
                token = token + affine(mcp.count, torch.tensor([float(len(away))]))
            there = [
                token if j == place else other for j, other in enumerate(tokens) if j == place or other is not None
            ]
            p = affine(mcp.output, naive_pool(model.modalities, there)).sigmoid()  # type: ignore[arg-type]
            for code in range(1, mcp.num_codes):
                if mask is None or mask[i, code - 1]:
                    errors.append((p[code - 1] - float(code in away)) ** 2)
        expected.append(torch.stack(errors).mean())
    torch.manual_seed(3)
    losses = model.masked_codes_and_contrast(batch)
    torch.testing.assert_close(losses["mcp"], sum(expected) / 2)

    terms = []
    for r in range(3):
        pairs = []
        for i in range(len(batch)):
            tokens = naive_tokens(model, batch, i)
            rest = [token for j, token in enumerate(tokens) if j != r and token is not None]
            if tokens[r] is not None and rest:
                pairs.append((tokens[r], naive_pool(model.modalities, rest)))
        terms.append(naive_info_nce(pairs, 0.1))  # type: ignore[arg-type]
    torch.testing.assert_close(losses["contrast"], sum(terms) / 3)
    torch.testing.assert_close(losses["loss"], losses["mcp"] + 0.1 * losses["contrast"])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm())


def naive_info_nce(pairs: list[tuple[Tensor, Tensor]], temperature: float) -> Tensor:
    losses = []
    for i, (anchor, own) in enumerate(pairs):
        others = sum(torch.exp(cosine(anchor, a) / temperature) for j, (_, a) in enumerate(pairs) if j != i)
        losses.append(-torch.log(torch.exp(cosine(anchor, own) / temperature) / others))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("num_rows", [2, 7])
def test_contrastive_loss_equals_a_double_loop(num_rows: int) -> None:
    anchor, other = torch.randn(num_rows, 5), torch.randn(num_rows, 5)
    expected = naive_info_nce(list(zip(anchor, other)), 0.1)
    for chunk in (1, 3, 100):
        torch.testing.assert_close(info_nce(anchor, other, 0.1, chunk), expected)


def test_visits_of_a_patient_are_sets_of_diagnoses() -> None:
    model, batch = build("patient"), double(modal_batch())
    assert batch.visits is not None
    spec = MODAL_SPEC.codes
    assert spec is not None
    embedded = model.body.embed(batch.visits)
    for i, v in batch.visits.mask.nonzero().tolist():
        diagnoses = [spec.of_visit_codes[code] for code in real(batch.visits.codes[i, v])]
        torch.testing.assert_close(embedded[i, v], naive_set(model.diagnoses, diagnoses))


def test_masked_targets_hide_absent_codes_too() -> None:
    head = MaskedCodes(NUM_DIAGNOSES, E, rate=0.5, targets="masked")
    codes = torch.tensor([[3, 7, 0]])
    hidden, mask = head.draw(codes)
    assert mask is not None
    assert hidden.tolist() == [[bool(mask[0, 2]), bool(mask[0, 6]), False]]
    assert mask.shape == (1, NUM_DIAGNOSES - 1)
    assert mask.sum() > hidden.sum()


def test_decoder_and_encoder_have_the_sizes_of_the_spec() -> None:
    assert StayDecoder(FEATURES, HOURS, E)(torch.zeros(2, E)).shape == (2, HOURS, FEATURES)
    encoder = StayEncoder(FEATURES, DEMOGRAPHICS, E)
    assert encoder(torch.zeros(2, HOURS, FEATURES), torch.zeros(2, DEMOGRAPHICS)).shape == (2, E)
