"""ehrGAN: its windows, convolutions and transition against loops, its losses, and what prediction does without."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.ehrgan import EhrGAN, TextCNN, TransitionGenerator
from parity.naive import affine, code_sum
from steps import train

EMBED, WINDOWS = 8, 7


def small(**settings: float) -> EhrGAN:
    torch.manual_seed(0)
    sizes = {"embed_dim": EMBED, "hidden_dim": 3, "num_filters": 5, "num_windows": WINDOWS}
    return EhrGAN(SPEC, **(sizes | settings)).double()


@pytest.fixture
def model() -> EhrGAN:
    return small().eval()


@pytest.fixture
def batch() -> Batch:
    return random_batch(lengths=[5, 1, 4]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_windows(model: EhrGAN, batch: Batch) -> list[list[Tensor]]:
    v = visits_of(batch)
    patients = []
    for codes, days, mask in zip(v.codes, v.days_before_last, v.mask):
        x = [torch.zeros(EMBED, dtype=torch.float64) for _ in range(WINDOWS)]
        for row, day in zip(codes[mask], days[mask].tolist()):
            back = min(int(day // 90), WINDOWS - 1)
            x[-1 - back] = x[-1 - back] + code_sum(model.codes.table.weight, [int(c) for c in row if c > 0])
        patients.append(x)
    return patients


def naive_cnn(cnn: TextCNN, x: list[Tensor]) -> Tensor:
    found = []
    for filters in cnn.filters:
        size = filters.kernel_size[0]
        responses = [
            filters.bias + sum(filters.weight[:, :, j] @ x[t + j] for j in range(size))
            for t in range(len(x) - size + 1)
        ]
        found.append(torch.stack(responses).relu().amax(0))
    return affine(cnn.head, torch.cat(found))


def naive_same(layer: nn.Conv1d | nn.ConvTranspose1d, x: list[Tensor]) -> list[Tensor]:
    """Three taps on windows t - 1, t, t + 1; the transposed layer has them the other way round."""
    y = []
    for t in range(len(x)):
        total = layer.bias
        for j in range(3):
            source = t + j - 1 if isinstance(layer, nn.Conv1d) else t + 1 - j
            if 0 <= source < len(x):
                weight = layer.weight[:, :, j] if isinstance(layer, nn.Conv1d) else layer.weight[:, :, j].T
                total = total + weight @ x[source]
        y.append(total)
    return y


def test_logits_equal_the_equations(model: EhrGAN, batch: Batch) -> None:
    expected = [naive_cnn(model.predictor, x) for x in naive_windows(model, batch)]
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_old_visits_fall_into_the_oldest_window(model: EhrGAN) -> None:
    batch = random_batch(num_visits=9, num_samples=1, lengths=[9]).map(
        lambda t: t.double() if t.is_floating_point() else t
    )
    assert visits_of(batch).days_before_last.max() > 90 * WINDOWS
    expected = torch.stack(naive_windows(model, batch)[0], dim=1)
    torch.testing.assert_close(model.windows(visits_of(batch))[0], expected)


def test_without_noise_the_generator_is_its_encoder_and_decoder(batch: Batch) -> None:
    model = small(noise_share=0.0)
    enter, code, out, back = *model.generator.encoder[::2], *model.generator.decoder[::2]
    for x, result in zip(naive_windows(model, batch), model.generator(model.windows(visits_of(batch)))):
        h = [e.tanh() for e in naive_same(code, [e.relu() for e in naive_same(enter, x)])]
        expected = naive_same(back, [e.relu() for e in naive_same(out, h)])
        torch.testing.assert_close(result, torch.stack(expected, dim=1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mixed_code_holds_its_own_entries_and_noise_in_these_shares(share: float) -> None:
    torch.manual_seed(0)
    h = torch.full((20, 30, 40), 2.0)  # outside the range of the noise
    mixed = TransitionGenerator(EMBED, 3, 3, share).mix(h)
    own = mixed == 2
    assert own.float().mean().item() == pytest.approx(1 - share, abs=0.02)
    if share > 0:
        noise = mixed[~own]
        assert noise.abs().max() <= 1
        assert noise.mean().item() == pytest.approx(0, abs=0.03)
        assert noise.var().item() == pytest.approx(1 / 3, abs=0.03)


def test_losses_are_those_of_the_paper(batch: Batch) -> None:
    model = small(noise_share=0.0).eval()  # without noise and dropout they can be written down
    assert batch.labels is not None
    x = [torch.stack(patient, dim=1) for patient in naive_windows(model, batch)]
    synthetic = [model.generator(patient[None])[0] for patient in x]
    real_d = torch.stack([naive_cnn(model.discriminator, list(p.unbind(1))) for p in x]).sigmoid()
    fake_d = torch.stack([naive_cnn(model.discriminator, list(p.unbind(1))) for p in synthetic]).sigmoid()
    distance = torch.stack([(s - p).square().mean() for s, p in zip(synthetic, x)]).mean()
    logits = torch.stack([naive_cnn(model.predictor, list(p.unbind(1))) for p in synthetic])

    torch.testing.assert_close(
        model.discriminator_loss(batch)["loss"], -real_d.log().mean() - (1 - fake_d).log().mean()
    )
    torch.testing.assert_close(model.generator_loss(batch)["loss"], -fake_d.log().mean() + 10 * distance)
    risk = F.binary_cross_entropy_with_logits(model(batch), batch.labels)
    risk_synthetic = F.binary_cross_entropy_with_logits(logits, batch.labels)
    torch.testing.assert_close(model.loss(batch)["loss"], risk + 0.5 * risk_synthetic)


def test_the_generator_learns_variations_that_stay_near_their_patient(batch: Batch) -> None:
    model = small()
    train(model, [batch] * 150, learning_rate=0.02)
    x = model.windows(visits_of(batch))
    first, second = model.generator(x), model.generator(x)
    assert not torch.allclose(first, second)
    own = F.mse_loss(first, x)
    assert all(F.mse_loss(first, x.roll(shift, 0)) > 2 * own for shift in (1, 2))


def test_a_prediction_needs_neither_generator_nor_discriminator(model: EhrGAN, batch: Batch) -> None:
    logits = model(batch)
    for other in (model.generator, model.discriminator):
        for p in other.parameters():
            torch.nn.init.constant_(p, torch.nan)
    assert torch.equal(model(batch), logits)


@pytest.mark.parametrize(
    "wrong", [{"days_per_window": 0.0}, {"noise_share": 50.0}, {"kernel_size": 4}, {"num_windows": 4}]
)
def test_impossible_windows_and_shares_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"EhrGAN: expected"):
        small(**wrong)
