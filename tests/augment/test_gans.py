"""The four GANs of MedDiffusion's Table 4, alone (visits and states as given) and inside the composition."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SPEC, random_batch, with_flipped_labels
from ehrlab.augment.actgan import ActGAN
from ehrlab.augment.ehrgan import EhrGAN
from ehrlab.augment.gcgan import GcGAN
from ehrlab.augment.medgan import MedGAN
from ehrlab.core.model import Augmenter, LossDict
from ehrlab.models.meddiffusion import MedDiffusion
from parity.naive import affine
from steps import gradient_phases
from tiny import build, model_config

E, D = 8, 6
MASK = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
LABELS = torch.tensor([[1.0], [0.0], [1.0]])
GANS = {
    "actgan": (ActGAN, {"latent_dim": 5, "decoder_dim": 7, "num_layers": 2}),
    "ehrgan": (EhrGAN, {"latent_dim": 5, "noise_share": 0.5, "windows": [3, 4, 5], "critic_dim": 9}),
    "gcgan": (GcGAN, {"latent_dim": 5, "decoder_dim": 7}),
    "medgan": (MedGAN, {"latent_dim": 5, "autoencoder_dim": 7, "num_layers": 3, "critic_dims": [9, 4]}),
}
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    e, h_prev = torch.randn(3, 5, E, generator=generator), torch.randn(3, 5, D, generator=generator)
    return e, h_prev, MASK, LABELS


def gan(name: str, attention: bool = False, num_labels: int = 1) -> Augmenter:
    torch.manual_seed(0)
    kind, sizes = GANS[name]
    return kind(replace(SPEC, num_labels=num_labels), E, D, attention=attention, attention_dim=4, **sizes)


def sample(model: Augmenter, data: Inputs, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return model.sample(*data)


def losses(model: Augmenter, data: Inputs) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"critic": model.critic_loss(*data)["loss"], **model.loss(*data)}


def score_layers(model: Augmenter) -> list[nn.Linear]:
    """The critic's last layer: all that its answer passes through."""
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.bias is model.critic_parameters()[-1]]


@pytest.fixture(params=GANS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[False, True], ids=["plain", "att"])
def model(request: pytest.FixtureRequest, name: str) -> Augmenter:
    return gan(name, attention=request.param)


# ---- players


def test_critic_that_cannot_tell_gives_ln_4_and_its_generator_ln_2(model: Augmenter) -> None:
    (score,) = score_layers(model)
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    found = losses(model, inputs())
    assert found["critic"].item() == pytest.approx(math.log(4))
    assert found.get("adversarial", found["loss"]).item() == pytest.approx(math.log(2))


def test_critic_loss_has_gradients_for_the_critic_alone(model: Augmenter) -> None:
    e, h_prev, mask, labels = inputs()
    model.critic_loss(e.requires_grad_(), h_prev.requires_grad_(), mask, labels)["loss"].backward()
    critic = {id(p) for p in model.critic_parameters()}
    assert all((p.grad is not None) == (id(p) in critic) for p in model.parameters())
    assert h_prev.grad is None


def test_generators_loss_does_not_move_the_real_visits(model: Augmenter) -> None:
    e, h_prev, mask, labels = inputs()
    model.loss(e.requires_grad_(), h_prev.requires_grad_(), mask, labels)["loss"].backward()
    assert e.grad is None
    assert h_prev.grad is None


@pytest.mark.parametrize("attention", ["false", "true"])
def test_each_turn_in_the_composition_moves_its_player_and_no_other(name: str, attention: str) -> None:
    """Turn by turn as training does it: all gradients are computed, then one optimiser steps."""
    model = build("model=meddiffusion", f"model/augmenter={name}", f"model.augmenter.attention={attention}")
    assert isinstance(model, MedDiffusion)
    assert model.augmenter is not None
    (phase,) = gradient_phases(model)
    critic = {id(p) for p in model.augmenter.critic_parameters()}
    for turn in phase.turns:
        before = {id(p): p.detach().clone() for p in model.parameters()}
        turn.loss(random_batch())["loss"].backward()
        torch.optim.SGD(turn.params(), lr=0.1).step()
        moved = {id(p) for p in model.parameters() if not torch.equal(p, before[id(p)])}
        assert moved
        assert (moved <= critic) if turn.name == "critic" else not (moved & critic)
        model.zero_grad()


def test_medgans_critic_moves_twice_and_the_others_once() -> None:
    moves = {}
    for name in GANS:
        (phase,) = gradient_phases(build("model=meddiffusion", f"model/augmenter={name}"))
        moves[name] = [(turn.name, turn.repeat) for turn in phase.turns]
    once, twice = [("critic", 1), ("model", 1)], [("critic", 2), ("model", 1)]
    assert moves == {"actgan": once, "ehrgan": once, "gcgan": once, "medgan": twice}


def real_visits(num_samples: int) -> Inputs:
    """Visits around 2 in every dimension, no padding, all labels positive."""
    e, h_prev = 2 + 0.3 * torch.randn(num_samples, 5, E), torch.randn(num_samples, 5, D)
    return e, h_prev, torch.ones(num_samples, 5, dtype=torch.bool), torch.ones(num_samples, 1)


def learn(params: list[nn.Parameter], loss: Callable[..., LossDict], num_steps: int) -> list[float]:
    optimiser = torch.optim.Adam(params, lr=0.02)
    values = []
    for _ in range(num_steps):
        value = loss(*real_visits(16))["loss"]
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    return values


def test_critic_learns_to_tell_real_from_generated(model: Augmenter) -> None:
    assert learn(model.critic_parameters(), model.critic_loss, 100)[-1] < 0.3 * math.log(4)


def test_generator_moves_its_visits_to_where_a_trained_critic_expects_real_ones(model: Augmenter) -> None:
    """A critic that no longer moves is overshot in the end, so the nearest of some moments counts."""

    def distance() -> float:
        return (sample(model, real_visits(16)).mean((0, 1)) - 2).abs().mean().item()

    start, critic = distance(), model.critic_parameters()
    learn(critic, model.critic_loss, 100)
    others = [p for p in model.parameters() if all(p is not of_critic for of_critic in critic)]
    nearest = min((learn(others, model.loss, 2), distance())[1] for _ in range(30))
    assert nearest < 0.7 * start


# ---- padding


def test_padding_changes_neither_losses_nor_samples_nor_running_statistics(model: Augmenter) -> None:
    e, h_prev, mask, labels = inputs()
    wrong = 9 * torch.randn(3, 7, E + D)
    mask_padded = F.pad(mask, (0, 2))
    e_padded = torch.where(mask_padded[..., None], F.pad(e, (0, 0, 0, 2)), wrong[..., :E])
    h_padded = torch.where(mask_padded[..., None], F.pad(h_prev, (0, 0, 0, 2)), wrong[..., E:])
    padded = (e_padded, h_padded, mask_padded, labels)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    expected = sample(model, (e, h_prev, mask, labels))[mask], losses(model, (e, h_prev, mask, labels))
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    model.load_state_dict(start)
    result = sample(model, padded)[mask_padded], losses(model, padded)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(dict(model.named_buffers()), buffers)


def test_one_visit_in_the_whole_batch_can_be_trained_on(model: Augmenter) -> None:
    one = (torch.randn(1, 3, E), torch.zeros(1, 3, D), torch.tensor([[True, False, False]]), torch.ones(1, 1))
    assert all(value.isfinite() for value in losses(model, one).values())
    assert all(value.isfinite().all() for value in model.state_dict().values())


# ---- step-wise attention


def test_without_attention_the_history_is_not_read(name: str) -> None:
    e, h_prev, mask, labels = inputs()
    model = gan(name)
    unreadable = torch.full_like(h_prev, torch.nan)
    torch.testing.assert_close(sample(model, (e, unreadable, mask, labels)), sample(model, (e, h_prev, mask, labels)))
    assert all(value.isfinite() for value in losses(model, (e, unreadable, mask, labels)).values())
    assert list(model.attention.parameters()) == []


def test_with_attention_the_history_is_read_but_for_the_first_visit(name: str) -> None:
    e, h_prev, mask, labels = inputs()
    model = gan(name, attention=True)
    plain = sample(model, (e, h_prev, mask, labels))
    first, second = h_prev.clone(), h_prev.clone()
    first[:, 0] += 1
    second[0, 1] += 1
    torch.testing.assert_close(sample(model, (e, first, mask, labels)), plain)
    assert (sample(model, (e, second, mask, labels)) - plain)[0, 1].abs().max() > 1e-4


def test_default_is_the_row_of_the_table_without_attention(name: str) -> None:
    config = model_config("model=meddiffusion", f"model/augmenter={name}", tiny=False).augmenter
    assert config.attention is False
    assert (config.attention_dim, config.latent_dim) == (64, 64)


# ---- what generation starts from


@pytest.mark.parametrize(("name", "read"), [("actgan", False), ("ehrgan", True), ("gcgan", False), ("medgan", False)])
def test_only_ehrgan_generates_from_the_patients_own_visits(name: str, read: bool) -> None:
    e, h_prev, mask, _ = inputs()
    model, positive = gan(name), torch.ones(3, 1)
    changed = sample(model, (e + 1, h_prev, mask, positive)) - sample(model, (e, h_prev, mask, positive))
    assert (changed[mask].abs().max() > 1e-4) == read


@pytest.mark.parametrize(("name", "read"), [("actgan", True), ("ehrgan", False), ("gcgan", True), ("medgan", False)])
def test_actgan_and_gcgan_generate_per_class(name: str, read: bool) -> None:
    e, h_prev, mask, labels = inputs()
    model = gan(name)
    changed = sample(model, (e, h_prev, mask, 1 - labels)) - sample(model, (e, h_prev, mask, labels))
    assert (changed[mask].abs().max() > 1e-4) == read


def test_labels_reach_the_synthetic_path_in_training_and_never_a_prediction(name: str) -> None:
    model, batch = build("model=meddiffusion", f"model/augmenter={name}").eval(), random_batch()
    assert torch.equal(model(batch), model(with_flipped_labels(batch)))


def test_several_labels_have_a_loss_and_a_sample(name: str) -> None:
    e, h_prev, mask, _ = inputs()
    model = gan(name, num_labels=2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    assert sample(model, (e, h_prev, mask, labels)).shape == e.shape
    assert all(value.isfinite() for value in losses(model, (e, h_prev, mask, labels)).values())


def test_actgan_leaves_negatives_as_they_are_and_learns_from_positives_only(model_act: ActGAN) -> None:
    e, h_prev, mask, labels = inputs()
    result = sample(model_act, (e, h_prev, mask, labels))
    assert torch.equal(result[1], e[1])
    assert (result[mask] != e[mask])[:5].all()
    other = e.clone()
    other[1] += 5
    torch.testing.assert_close(
        losses(model_act, (other, h_prev, mask, labels)), losses(model_act, (e, h_prev, mask, labels))
    )


def test_actgan_has_nothing_to_learn_from_a_batch_without_positives(model_act: ActGAN) -> None:
    e, h_prev, mask, _ = inputs()
    found = losses(model_act, (e, h_prev, mask, torch.zeros(3, 1)))
    assert (found["critic"], found["loss"]) == (0, 0)
    found["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model_act.generator.parameters())


@pytest.fixture(params=[False, True], ids=["plain", "att"])
def model_act(request: pytest.FixtureRequest) -> ActGAN:
    model = gan("actgan", attention=request.param)
    assert isinstance(model, ActGAN)
    return model


def test_ehrgan_replaces_the_share_of_the_code_that_it_says() -> None:
    e, h_prev, mask, labels = inputs()
    model = gan("ehrgan")
    assert isinstance(model, EhrGAN)
    model.noise_share = 0.0
    autoencoded = sample(model, (e, h_prev, mask, labels), seed=1)
    torch.testing.assert_close(sample(model, (e, h_prev, mask, labels), seed=2), autoencoded)
    model.noise_share = 1.0
    torch.testing.assert_close(sample(model, (e + 1, h_prev, mask, labels)), sample(model, (e, h_prev, mask, labels)))


# ---- the distinctive part of each, in float64, one number at a time


def close(result: Tensor, expected: list[Tensor]) -> None:
    torch.testing.assert_close(result, torch.stack(expected), rtol=1e-9, atol=1e-9)


def batch_norm(norm: nn.BatchNorm1d, rows: list[Tensor]) -> list[Tensor]:
    mean = sum(rows) / len(rows)
    variance = sum((row - mean) ** 2 for row in rows) / len(rows)
    return [norm.weight * (row - mean) / (variance + norm.eps).sqrt() + norm.bias for row in rows]


def test_generator_of_medgan_equals_its_equation_layer_by_layer() -> None:
    model = gan("medgan").double()
    z = torch.randn(6, 5, dtype=torch.float64)
    rows = list(z)
    for layer, norm in zip(model.generator.layers, model.generator.norms):
        normed = batch_norm(norm, [affine(layer, row) for row in rows])
        rows = [new.relu() + row for new, row in zip(normed, rows)]
    close(model.generator(z), rows)


def test_critic_of_medgan_sees_each_visit_beside_the_average_real_visit() -> None:
    model = gan("medgan").double()
    e = inputs()[0].double()
    real = [visit for visits, flags in zip(e, MASK) for visit, flag in zip(visits, flags) if flag]
    average = sum(real) / 9
    first, second = model.critic.layers
    expected = [
        affine(model.critic.score, affine(second, affine(first, torch.cat([visit, average])).relu()).relu())[0]
        for visit in real
    ]
    close(model.critic(e[MASK]), expected)
    lone = [affine(second, affine(first, torch.cat([visit, visit])).relu()).relu() for visit in real]
    assert (torch.stack(expected) - torch.stack([affine(model.critic.score, y)[0] for y in lone])).abs().max() > 1e-3


def test_actgans_losses_are_means_over_the_visits_of_positives() -> None:
    model = gan("actgan").double()
    e, h_prev, mask, labels = (t.double() if t.is_floating_point() else t for t in inputs())
    torch.manual_seed(1)
    fake = model.sample(e, h_prev, mask, labels)
    places = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (2, 0)]
    terms = [
        -torch.log(affine(model.critic, e[p]).sigmoid()) - torch.log(1 - affine(model.critic, fake[p]).sigmoid())
        for p in places
    ]
    torch.manual_seed(1)
    close(model.critic_loss(e, h_prev, mask, labels)["loss"][None], [sum(terms)[0] / 6])


def test_gcgan_mixes_label_and_visits_row_by_row() -> None:
    model = gan("gcgan").double()
    e, h_prev, mask, labels = (t.double() if t.is_floating_point() else t for t in inputs())
    net = model.generator

    def mix(layer: nn.Conv1d, rows: list[Tensor], num_real: int) -> list[Tensor]:
        weight = layer.weight.squeeze(-1)
        return [sum(w * row for w, row in zip(weight[i], rows)) + layer.bias[i] for i in range(num_real)]

    torch.manual_seed(1)
    noise = iter(torch.randn(9, 5, dtype=torch.float64))
    torch.manual_seed(1)
    result = model.sample(e, h_prev, mask, labels)
    nothing = torch.zeros(5, dtype=torch.float64)
    for patient, num_visits in enumerate([5, 3, 1]):
        num_real = 1 + num_visits
        fill = [nothing] * (10 - num_real)  # a row for the label and for each of 9 visits
        g = [affine(model.label, 2 * labels[patient] - 1), *(next(noise) for _ in range(num_visits))]
        a = [affine(net.row_1, row).relu() for row in g]
        b = mix(net.mix_1, [*g, *fill, *a, *fill], num_real)
        c = [affine(net.row_2, row).relu() for row in b]
        d = mix(net.mix_2, [*c, *fill, *b, *fill, *g, *fill], num_real)
        into, _, out = model.decoder
        expected = [affine(out, affine(into, affine(net.row_3, row)).relu()) for row in d]
        close(result[patient, :num_visits], expected[1:])


def test_critic_of_gcgan_has_a_plane_of_its_own_for_each_class() -> None:
    model = gan("gcgan").double()
    e, _, mask, labels = (t.double() if t.is_floating_point() else t for t in inputs())
    (w, u), (b, c) = model.critic.weight, model.critic.bias
    expected = [
        w @ e[i, k] + b + (1 if labels[i] == 1 else -1) * (u @ e[i, k] + c)
        for i, num_visits in enumerate([5, 3, 1])
        for k in range(num_visits)
    ]
    close(model._score(e, labels)[mask], expected)


def windows_over(conv: nn.Conv1d, visits: list[Tensor], before: int) -> list[Tensor]:
    """conv at every visit of one patient, who has visits of 0 on both sides; `before` of the window lie before."""
    nothing = torch.zeros_like(visits[0])
    (size,) = conv.kernel_size
    answers = []
    for k in range(len(visits)):
        seen = [visits[j] if 0 <= j < len(visits) else nothing for j in range(k - before, k - before + size)]
        answers.append(sum(conv.weight[:, :, i] @ visit for i, visit in enumerate(seen)) + conv.bias)
    return answers


def test_ehrgan_without_noise_convolves_each_patient_alone_and_normalises_all_visits_together() -> None:
    model = gan("ehrgan").double()
    model.noise_share = 0.0
    e, h_prev, mask, labels = (t.double() if t.is_floating_point() else t for t in inputs())
    patients = [list(visits[flags]) for visits, flags in zip(e, mask)]
    for layer in (*model.encoder, model.decoder):
        patients = [[F.leaky_relu(y) for y in windows_over(layer.conv, visits, 1)] for visits in patients]
        normed = iter(batch_norm(layer.norm, [visit for visits in patients for visit in visits]))
        patients = [[next(normed) for _ in visits] for visits in patients]
    expected = [y for visits in patients for y in windows_over(model.leave, visits, 1)]
    close(model.sample(e, h_prev, mask, labels)[mask], expected)


def test_critic_of_ehrgan_takes_each_filters_largest_response_over_the_real_visits() -> None:
    model = gan("ehrgan").double()
    e, mask = inputs()[0].double(), MASK
    expected = []
    for visits, flags in zip(e, mask):
        pooled = []
        for window, conv in zip(model.critic.windows, model.critic.filters):
            responses = windows_over(conv, list(visits[flags]), window // 2)
            pooled += [max(max(r[f], torch.zeros_like(r[f])) for r in responses) for f in range(len(responses[0]))]
        expected.append(affine(model.critic.score, torch.stack(pooled))[0])
    close(model.critic(e, mask), expected)
