import torch

from ehrlab.nn.fusion import AttentionPool

E = 8


def test_heads_do_not_mix_positions() -> None:
    """The authors' code cuts heads out of the sequence, so that the order of the modalities matters."""
    torch.manual_seed(0)
    pool, x = AttentionPool(E).eval(), torch.randn(3, 4, E)
    present, order = torch.ones(3, 4, dtype=torch.bool), [2, 0, 3, 1]
    torch.testing.assert_close(pool.attend(x[:, order], present), pool.attend(x, present)[:, order])
    changed = x.clone()
    changed[1, 3] += 1
    same = pool.attend(changed, present) == pool.attend(x, present)
    assert same[[0, 2]].all()


def test_missing_token_is_neither_looked_at_nor_pooled() -> None:
    torch.manual_seed(0)
    pool, x = AttentionPool(E, feedforward=True).eval(), torch.randn(2, 4, E)
    present = torch.tensor([[True, False, True, True], [False] * 4])
    changed = x.clone()
    changed[0, 1] = 1e3
    assert torch.equal(pool(changed, present), pool(x, present))
    torch.testing.assert_close(pool(x, present)[0], pool(x[:1, [0, 2, 3]], present[:1, [0, 2, 3]])[0])
    assert torch.equal(pool(x, present)[1], torch.zeros(E))
