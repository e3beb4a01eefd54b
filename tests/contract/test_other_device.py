"""The emulated device itself; what models do on it is among their laws."""

import pytest
import torch

from other_device import There, other_device


def test_the_other_device_refuses_what_a_gpu_refuses_and_nothing_else() -> None:
    with other_device() as device:
        there, here = torch.arange(4.0).to(device), torch.arange(4.0)
        assert isinstance(there + 1, There)
        assert (there * torch.tensor(2.0)).sum().item() == 12
        assert isinstance(there[torch.tensor([0, 2])], There)
        assert torch.equal((there + torch.tensor([1.0] * 4, device=device)).cpu(), here + 1)
        assert torch.equal(there.new_tensor([3.0]).to("cpu"), torch.tensor([3.0]))
        with pytest.raises(RuntimeError, match=r"add.*\(4,\).*are not"):
            there + here
        with pytest.raises(RuntimeError, match="index"):
            here[there.long()]
