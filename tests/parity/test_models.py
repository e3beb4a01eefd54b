"""Whole models against their equations, patient by patient, visit by visit."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression as Estimator
from torch import Tensor

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.models.logistic_regression import LogisticRegression
from ehrlab.models.lstm import LSTM
from ehrlab.models.retain import Retain
from parity.naive import affine, code_sum, gru_states, lstm_states, softmax


def double(batch: Batch) -> Batch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def patients(batch: Batch) -> list[tuple[list[list[int]], list[float]]]:
    """Each patient's visits as plain code lists with their days, padding gone."""
    v = visits_of(batch)
    return [
        (
            [[int(c) for c in visit if c > 0] for visit, real in zip(codes, mask) if real],
            [float(d) for d, real in zip(days, mask) if real],
        )
        for codes, days, mask in zip(v.codes, v.days_before_last, v.mask)
    ]


def naive_lstm(model: LSTM, visits: list[list[int]], days: list[float]) -> Tensor:
    assert model.time is not None
    inputs = []
    for codes, day in zip(visits, days):
        v = torch.relu(code_sum(model.visit.codes.table.weight, codes) + model.visit.bias)
        gap = torch.tensor([day / 180], dtype=torch.float64)
        t = affine(model.time.project, 1 - torch.tanh(affine(model.time.frequency, gap) ** 2))
        inputs.append(v + t)
    return affine(model.head, lstm_states(model.rnn, inputs)[-1])


def naive_retain(model: Retain, visits: list[list[int]]) -> Tensor:
    v = [code_sum(model.codes.table.weight, codes) for codes in visits]
    g = gru_states(model.alpha_rnn, v[::-1])[::-1]
    h = gru_states(model.beta_rnn, v[::-1])[::-1]
    alpha = softmax([affine(model.alpha_head, g_j)[0] for g_j in g])
    beta = [torch.tanh(affine(model.beta_head, h_j)) for h_j in h]
    context = sum((a * b * v_j for a, b, v_j in zip(alpha, beta, v)), torch.zeros_like(v[0]))
    return affine(model.head, context)


def test_lstm_with_time_equals_its_equations() -> None:
    torch.manual_seed(0)
    batch = double(random_batch())
    model = LSTM(SPEC, embed_dim=8, hidden_dim=6, time_dim=5, use_time=True).double()
    torch.nn.init.normal_(model.visit.bias)
    expected = torch.stack([naive_lstm(model, visits, days) for visits, days in patients(batch)])
    torch.testing.assert_close(model(batch), expected)


def test_retain_equals_its_equations() -> None:
    torch.manual_seed(0)
    batch = double(random_batch())
    model = Retain(SPEC, embed_dim=8, alpha_dim=7, beta_dim=5).double().eval()
    expected = torch.stack([naive_retain(model, visits) for visits, _ in patients(batch)])
    torch.testing.assert_close(model(batch), expected)


def test_retain_contributions_of_all_codes_sum_to_the_logit() -> None:
    torch.manual_seed(0)
    batch = random_batch()
    model = Retain(SPEC, embed_dim=8, alpha_dim=7, beta_dim=5).eval()
    contributions = model.contributions(visits_of(batch))
    assert (contributions[visits_of(batch).codes == 0] == 0).all()
    torch.testing.assert_close(contributions.sum((1, 2)) + model.head.bias, model(batch))


def test_logistic_regression_equals_scikit_learn_on_dense_counts() -> None:
    batches = [random_batch(num_samples=8, seed=seed) for seed in range(3)]
    model = LogisticRegression(SPEC, c_grid=[0.3], max_iterations=1000)
    scores = model.fit(batches[:2], batches[2:])

    def dense(batch: Batch) -> np.ndarray:
        counts = np.zeros((len(batch), SPEC.num_codes))
        for row, (visits, _) in enumerate(patients(batch)):
            for codes in visits:
                counts[row, codes] += 1
        return np.log1p(counts)

    labels = np.concatenate([batch.labels.numpy().ravel() for batch in batches[:2]])  # type: ignore[union-attr]
    estimator = Estimator(C=0.3, max_iter=1000).fit(np.concatenate([dense(b) for b in batches[:2]]), labels)
    expected = estimator.decision_function(dense(batches[2]))
    np.testing.assert_allclose(model(batches[2]).numpy().ravel(), expected, rtol=1e-3, atol=1e-4)
    assert scores["c"] == 0.3
