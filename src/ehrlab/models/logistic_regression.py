"""Logistic regression on code counts (scikit-learn): the honest floor of every table, blind to order and time.

A patient is the vector log(1 + number of visits with the code). Counts say more than presence (a code in thirty visits
is not a code in one); their logarithm keeps the heaviest user of the hospital from being thirty times as far from the
origin, where one L2 penalty for all codes would fit him first.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import sparse
from sklearn.linear_model import LogisticRegression as Estimator
from sklearn.metrics import f1_score, log_loss
from torch import Tensor

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, EstimatorPhase, RiskModel
from ehrlab.core.spec import DataSpec


class LogisticRegression(RiskModel):
    """One regression per label; their common C is the one with the best F1 on the tuning split, as for every model.

    Equal F1 (often 0, where classes are rare and C small) is decided by the lower log-loss.
    """

    reads_order = False

    weight: Tensor
    bias: Tensor

    def __init__(self, spec: DataSpec, c_grid: Sequence[float], max_iterations: int) -> None:
        super().__init__()
        self.num_codes = spec.num_codes
        self.c_grid = tuple(c_grid)
        self.max_iterations = max_iterations
        # Buffers, not parameters: no phase has a gradient for them.
        self.register_buffer("weight", torch.zeros(spec.num_labels, spec.num_codes))
        self.register_buffer("bias", torch.zeros(spec.num_labels))

    def features(self, visits: Visits) -> Float[Tensor, "B M"]:
        """log(1 + count) of every code of the vocabulary; 0 for the padding id."""
        codes = visits.codes.flatten(1)
        counts = torch.zeros(len(codes), self.num_codes, device=codes.device)
        return counts.scatter_add_(1, codes, (codes > 0).float()).log1p()

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.visits is not None
        return F.linear(self.features(batch.visits), self.weight, self.bias)

    def phases(self) -> Sequence[AnyPhase]:
        return [EstimatorPhase("fit", self.fit)]

    def fit(self, training: Iterable[Batch], tuning: Iterable[Batch]) -> dict[str, float]:
        x, y = self._table(training)
        x_tuning, y_tuning = self._table(tuning)
        for label, column in enumerate(y.T):
            if column.min() == column.max():
                raise InputError(
                    f"logistic_regression: expected both classes of label {label} among the training samples, "
                    f"found only {'positives' if column.all() else 'negatives'}. Choose another task or a larger cohort"
                )
        fits = [self._fit_one(c, x, y, x_tuning, y_tuning) for c in self.c_grid]
        c, f1, loss, weight, bias = max(fits, key=lambda fit: (fit[1], -fit[2]))
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))
        return {"c": c, "tuning_f1": f1, "tuning_log_loss": loss}

    def _fit_one(
        self, c: float, x: sparse.csr_matrix, y: np.ndarray, x_tuning: sparse.csr_matrix, y_tuning: np.ndarray
    ) -> tuple[float, float, float, np.ndarray, np.ndarray]:
        """(C, mean tuning F1, mean tuning log-loss, weight "K M", bias "K")"""
        estimators = [Estimator(C=c, max_iter=self.max_iterations).fit(x, column) for column in y.T]
        risks = [estimator.predict_proba(x_tuning)[:, 1] for estimator in estimators]
        f1 = np.mean([f1_score(column, risk >= 0.5, zero_division=0.0) for column, risk in zip(y_tuning.T, risks)])
        loss = np.mean([log_loss(column, risk, labels=[0, 1]) for column, risk in zip(y_tuning.T, risks)])
        weight = np.concatenate([estimator.coef_ for estimator in estimators])
        bias = np.concatenate([estimator.intercept_ for estimator in estimators])
        return c, float(f1), float(loss), weight, bias

    def _table(self, batches: Iterable[Batch]) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Features "N M", kept sparse: only one batch is ever dense; labels "N K"."""
        rows, labels = [], []
        for batch in batches:
            assert batch.visits is not None
            assert batch.labels is not None
            rows.append(sparse.csr_matrix(self.features(batch.visits).cpu().numpy()))
            labels.append(batch.labels.cpu().numpy().astype(int))
        return sparse.vstack(rows, format="csr"), np.concatenate(labels)
