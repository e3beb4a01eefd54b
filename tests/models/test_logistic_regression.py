from dataclasses import replace

import pytest
import torch

from batches import SPEC, random_batch, with_flipped_labels
from ehrlab.core.errors import InputError
from ehrlab.models.logistic_regression import LogisticRegression


def test_regularisation_is_the_one_with_the_best_tuning_f1() -> None:
    """Labels that agree with the training ones reward a weak penalty; flipped labels reward a strong one."""
    batch = random_batch(num_samples=8)
    chosen = [
        LogisticRegression(SPEC, c_grid=[1e-4, 10.0], max_iterations=1000).fit([batch], [tuning])
        for tuning in (batch, with_flipped_labels(batch))
    ]
    assert [scores["c"] for scores in chosen] == [10.0, 1e-4]
    assert chosen[0]["tuning_f1"] == 1.0


def test_each_label_has_its_own_regression() -> None:
    spec = replace(SPEC, num_labels=2, positive_rate=(0.5, 0.5))
    batch = random_batch(spec, num_samples=8)
    model = LogisticRegression(spec, c_grid=[10.0], max_iterations=1000)
    model.fit([batch], [batch])
    assert batch.labels is not None
    assert torch.equal(model(batch) > 0, batch.labels.bool())


def test_label_without_both_classes_is_refused() -> None:
    batch = random_batch()
    assert batch.labels is not None
    one_class = replace(batch, labels=torch.ones_like(batch.labels))
    with pytest.raises(InputError, match=r"expected both classes of label 0 .* found only positives"):
        LogisticRegression(SPEC, c_grid=[1.0], max_iterations=10).fit([one_class], [batch])
