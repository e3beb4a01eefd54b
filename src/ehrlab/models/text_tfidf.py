"""TF-IDF on the tokens of a text, and a logistic regression (scikit-learn): the floor under every reader of text.

    x_t = (1 + log n_t) idf_t, at length 1;   idf_t = 1 + log (1 + N) / (1 + N_t)

n_t: how often token t stands in the text; N_t: training texts that hold it, of N.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss
from torch import Tensor

from ehrlab.core.batch import Batch, Text
from ehrlab.core.model import AnyPhase, EstimatorPhase, RiskModel
from ehrlab.core.spec import DataSpec


class TextTfidf(RiskModel):
    """One regression per label; their common C is the one with the best mean F1 on the tuning split, then log-loss.

    A label with one class only among the training samples has no weights; its risk is (positives + .5) / (n + 1).
    """

    requires = frozenset({"text"})
    reads_order = False

    idf: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, spec: DataSpec, c_grid: Sequence[float], max_iterations: int) -> None:
        super().__init__()
        assert spec.text is not None
        self.num_tokens = spec.text.num_tokens
        self.c_grid, self.max_iterations = tuple(c_grid), max_iterations
        # Buffers, not parameters: no phase has a gradient for them.
        self.register_buffer("idf", torch.ones(self.num_tokens))
        self.register_buffer("weight", torch.zeros(spec.num_labels, self.num_tokens))
        self.register_buffer("bias", torch.zeros(spec.num_labels))

    def counts(self, text: Text) -> Float[Tensor, "B M"]:
        """How often each token stands in each text."""
        zeros = torch.zeros(len(text.ids), self.num_tokens, device=text.ids.device)
        return zeros.scatter_add_(1, text.ids, text.mask.float())

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.text is not None
        counts = self.counts(batch.text)
        weighted = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * self.idf
        return F.linear(F.normalize(weighted), self.weight, self.bias)

    def phases(self) -> Sequence[AnyPhase]:
        return [EstimatorPhase("fit", self.fit)]

    def fit(self, training: Iterable[Batch], tuning: Iterable[Batch]) -> dict[str, float]:
        counts, y = self._table(training)
        tuning_counts, y_tuning = self._table(tuning)
        num_texts = np.bincount(counts.indices, minlength=self.num_tokens)
        idf = 1 + np.log((1 + counts.shape[0]) / (1 + num_texts))
        x, x_tuning = _weighted(counts, idf), _weighted(tuning_counts, idf)
        fits = [self._fit_one(c, x, y, x_tuning, y_tuning) for c in self.c_grid]
        c, f1, loss, weight, bias = max(fits, key=lambda fit: (fit[1], -fit[2]))
        for buffer, value in ((self.idf, idf), (self.weight, weight), (self.bias, bias)):
            buffer.copy_(torch.from_numpy(value))
        return {"c": c, "tuning_f1": f1, "tuning_log_loss": loss}

    def _fit_one(
        self, c: float, x: sparse.csr_matrix, y: np.ndarray, x_tuning: sparse.csr_matrix, y_tuning: np.ndarray
    ) -> tuple[float, float, float, np.ndarray, np.ndarray]:
        """(C, mean tuning F1, mean tuning log-loss, weight "K M", bias "K")"""
        weight, bias = np.zeros((y.shape[1], self.num_tokens)), np.zeros(y.shape[1])
        for label, column in enumerate(y.T):
            if column.min() == column.max():
                bias[label] = np.log((column.sum() + 0.5) / (len(column) - column.sum() + 0.5))
                continue
            estimator = LogisticRegression(C=c, max_iter=self.max_iterations).fit(x, column)
            weight[label], bias[label] = estimator.coef_[0], estimator.intercept_[0]
        risks = 1 / (1 + np.exp(-(x_tuning @ weight.T + bias)))
        pairs = list(zip(y_tuning.T, risks.T))
        f1 = np.mean([f1_score(column, risk >= 0.5, zero_division=0.0) for column, risk in pairs])
        loss = np.mean([log_loss(column, risk, labels=[0, 1]) for column, risk in pairs])
        return c, float(f1), float(loss), weight, bias

    def _table(self, batches: Iterable[Batch]) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts "N M", kept sparse: only one batch is ever dense; labels "N K"."""
        rows, labels = [], []
        for batch in batches:
            assert batch.text is not None
            assert batch.labels is not None
            rows.append(sparse.csr_matrix(self.counts(batch.text).cpu().numpy()))
            labels.append(batch.labels.cpu().numpy().astype(int))
        return sparse.vstack(rows, format="csr"), np.concatenate(labels)


def _weighted(counts: sparse.csr_matrix, idf: np.ndarray) -> sparse.csr_matrix:
    """The features of `forward`, sparse."""
    found = counts.astype(np.float64)
    found.data = (1 + np.log(found.data)) * idf[found.indices]
    length = np.sqrt(np.asarray(found.multiply(found).sum(1))).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(length, 1e-12)) @ found)
