from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from batches import SPEC
from ehrlab.core.errors import InputError
from ehrlab.nn.denoiser import ResidualMLP
from ehrlab.nn.unet import UNet


def unet(num_visits: int = 9, embed_dim: int = 8, base_channels: int = 4, groups: int = 2) -> UNet:
    spec = replace(SPEC, max_visits=num_visits)
    return UNet(spec, embed_dim, base_channels, multipliers=(1, 2), blocks_per_level=2, groups=groups)


def mlp() -> ResidualMLP:
    return ResidualMLP(SPEC, embed_dim=8, width=12, num_blocks=2)


@pytest.mark.parametrize("make", [mlp, unet])
def test_denoiser_keeps_the_shape_and_depends_on_the_step(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # the zero-initialised branches hide the step at first
    x = torch.randn(3, 5, 8)
    early, late = model(x, torch.full((3,), 2)), model(x, torch.full((3,), 900))
    assert early.shape == x.shape
    assert (early - late).abs().max() > 1e-3


def test_mlp_sees_each_visit_alone() -> None:
    x, n = torch.randn(3, 5, 8), torch.tensor([1, 5, 9])
    torch.testing.assert_close(mlp_seeded()(x, n)[:, 2:3], mlp_seeded()(x[:, 2:3], n))


def mlp_seeded() -> ResidualMLP:
    torch.manual_seed(0)
    return mlp()


def test_fresh_residual_blocks_are_the_identity() -> None:
    model = mlp()
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(model(x, torch.tensor([1, 7])), model.leave(model.enter(x)))


def test_unet_fills_missing_visits_with_zeros() -> None:
    model, n = unet(), torch.tensor([4, 40, 400])
    x = torch.randn(3, 5, 8)
    padded = torch.cat([x, torch.zeros(3, 4, 8)], dim=1)
    torch.testing.assert_close(model(x, n), model(padded, n)[:, :5])


def test_unet_has_the_size_of_the_authors_at_their_settings() -> None:
    """Their 90.3 M parameters hold a U-Net of 88.3 M (observed by running their code)."""
    with torch.device("meta"):
        model = UNet(replace(SPEC, max_visits=50), 256, 128, multipliers=(1, 2, 4, 8), blocks_per_level=2, groups=32)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 88.3


def test_unet_refuses_an_embedding_it_cannot_halve() -> None:
    with pytest.raises(InputError, match="expected embed_dim to be divisible by 2"):
        unet(embed_dim=7)


def test_unet_refuses_channels_that_do_not_divide_into_groups() -> None:
    with pytest.raises(InputError, match="divisible by groups=3; found 4"):
        unet(groups=3)
