import torch
from torch import Tensor

from ehrlab.core.batch import Labs
from ehrlab.nn.mltm import LabDecoder, LabEncoder, draw_mask, masked_lab_loss
from modal_batches import TESTS, modal_batch

WIDTH = 8


def parts() -> tuple[LabEncoder, LabDecoder]:
    torch.manual_seed(0)
    encoder = LabEncoder(TESTS, WIDTH, depth=2, num_heads=2, dropout=0.0)
    decoder = LabDecoder(TESTS, WIDTH, depth=1, num_heads=4, dropout=0.0)
    with torch.no_grad():  # away from the initial .02, so that what is read is seen
        for parameter in (encoder.scale, encoder.test, encoder.whole, decoder.test, decoder.mask_token):
            parameter.normal_()
    return encoder.eval(), decoder.eval()


def labs_of(num_samples: int = 6) -> Labs:
    labs = modal_batch(num_samples).labs
    assert labs is not None
    return labs


def loss_with(values: Tensor, labs: Labs, hidden: Tensor) -> Tensor:
    return masked_lab_loss(*parts(), Labs(values, labs.observed), hidden)


def test_exactly_three_quarters_of_each_samples_observed_tests_are_hidden() -> None:
    observed = torch.arange(20) < torch.tensor([[20], [9], [4], [1], [0]])
    shuffled = observed[:, torch.randperm(20)]
    hidden = draw_mask(shuffled, 0.75)
    assert hidden.sum(1).tolist() == [15, 6, 3, 0, 0]
    assert not (hidden & ~shuffled).any()


def test_which_tests_are_hidden_is_random() -> None:
    observed = torch.ones(400, 8, dtype=torch.bool)
    share = draw_mask(observed, 0.75).float().mean(0)
    assert ((share - 0.75).abs() < 0.1).all()


def test_loss_ignores_what_a_missing_test_holds() -> None:
    labs = labs_of()
    hidden = draw_mask(labs.observed, 0.75)
    changed = torch.where(labs.observed, labs.values, float("nan"))
    assert torch.equal(loss_with(changed, labs, hidden), loss_with(labs.values, labs, hidden))


def test_loss_asks_for_hidden_tests_and_not_for_visible_ones() -> None:
    labs = labs_of()
    hidden = draw_mask(labs.observed, 0.75)
    target = labs.values.clone().requires_grad_()
    encoder, decoder = parts()
    visible = labs.observed & ~hidden
    restored = decoder(*encoder(labs.values, visible), visible)
    expected = ((restored - target)[hidden & labs.observed] ** 2).mean()
    torch.testing.assert_close(loss_with(labs.values, labs, hidden), expected)
    (gradient,) = torch.autograd.grad(expected, target)
    assert (gradient != 0).any()
    assert (gradient[visible] == 0).all()


def test_encoder_cannot_see_what_is_hidden() -> None:
    labs = labs_of()
    hidden = draw_mask(labs.observed, 0.75)
    visible = labs.observed & ~hidden
    encoder, decoder = parts()
    changed = torch.where(visible, labs.values, 99.0)
    before, after = (decoder(*encoder(values, visible), visible) for values in (labs.values, changed))
    assert torch.equal(before, after)
    moved = torch.where(visible, labs.values + 1, labs.values)
    assert not torch.allclose(decoder(*encoder(moved, visible), visible), before)


def test_a_tests_restored_value_depends_on_which_test_it_is() -> None:
    encoder, decoder = parts()
    labs = labs_of()
    nothing = torch.zeros_like(labs.observed)
    restored = decoder(*encoder(labs.values, nothing), nothing)[0]
    assert len(restored.detach().unique()) == TESTS


def test_width_of_the_batch_does_not_change_a_samples_vector() -> None:
    encoder, _ = parts()
    labs = labs_of()
    together, _ = encoder(labs.values, labs.observed)
    for row in range(len(together)):
        alone, _ = encoder(labs.values[row : row + 1], labs.observed[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


def test_samples_without_two_tests_have_loss_zero_and_finite_gradients() -> None:
    encoder, decoder = parts()
    labs = labs_of()
    one = Labs(labs.values, torch.zeros_like(labs.observed))
    one.observed[0, 2] = True
    loss = masked_lab_loss(encoder, decoder, one, draw_mask(one.observed, 0.75))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_pretraining_learns_that_one_test_is_the_negative_of_another() -> None:
    torch.manual_seed(1)
    encoder = LabEncoder(2, 8, depth=1, num_heads=2, dropout=0.0)
    decoder = LabDecoder(2, 8, depth=1, num_heads=2, dropout=0.0)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(120):
        x = torch.randn(64, 1)
        labs = Labs(torch.cat([x, -x], dim=1), torch.ones(64, 2, dtype=torch.bool))
        loss = masked_lab_loss(encoder, decoder, labs, draw_mask(labs.observed, 0.75))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.3  # the variance of what is to be guessed is 1
