"""What generated sequences look like beside real ones: prevalence, co-occurrence, lengths.

A distance between two samples is never 0, not even between two samples of one population, and it grows when the samples
are resampled. Each entry therefore has

* `low`, `high`: the percentiles of the bootstrap moved to its centre, the value: how far it varies with the subjects;
* `floor`: the mean of the same number between two samples of the same sizes that are both drawn from the real one: what
  a perfect generator would show.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ehrlab.core.errors import InputError
from ehrlab.evaluation.metrics import BoolArray, FloatArray
from ehrlab.evaluation.resampling import Resampled, percentile_interval
from ehrlab.evaluation.sequences import IntArray, Sequences, drawn

NUM_COMMONEST = 100
"""Codes among which co-occurrence is looked at: the commonest real ones."""
NUM_FLOOR = 100
"""Resamples for the floor, a mean, which needs fewer than the ends of an interval."""

# measure -> the range of its values
MEASURES: dict[str, tuple[float, float]] = {
    "prevalence_pearson": (-1, 1),
    "prevalence_log_pearson": (-1, 1),
    "prevalence_r2": (-np.inf, 1),
    "prevalence_difference": (0, 1),
    "target_prevalence_ratio": (0, np.inf),
    "cooccurrence_pearson": (-1, 1),
    "correlation_difference": (0, 2),
    "visits_per_record": (0, np.inf),
    "codes_per_visit": (0, np.inf),
    "sequence_length": (0, np.inf),
}
_UNDEFINED = {
    "prevalence_pearson": "all codes are equally common, or there is only one",
    "prevalence_log_pearson": "all codes are equally common, or there is only one",
    "prevalence_r2": "all codes are equally common in the real sequences, or there is only one",
    "prevalence_difference": "no sequence holds a code",
    "target_prevalence_ratio": "no real sequence holds the target",
    "cooccurrence_pearson": "all pairs of codes are equally common, or there is only one",
    "correlation_difference": "the real sequences hold fewer than two codes",
    "codes_per_visit": "no visit begins in the real sequences, or none in the generated ones",
}
_NOT_GENERATED = "no sequences were generated"


def compare(
    real: Sequences, synthetic: Sequences | None, *, num_bootstrap: int = 1000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Each of MEASURES as {"value", "low", "high", "floor"}, with "reason" where one is None.

    Prevalence: the share of sequences that hold a code.
    prevalence_pearson, prevalence_r2   of the codes' prevalences, over the codes of either sample; r2 (as in HALO:
                                        Theodorou et al. 2023) = 1 - sum (real - generated)^2 / sum (real - mean)^2
    prevalence_log_pearson              of log10 (count + 1/2) / (n + 1): the rare codes count as much as the common
    prevalence_difference               mean absolute difference
    target_prevalence_ratio             how much commoner a target code is in generated sequences than in real ones
    cooccurrence_pearson                of the prevalences of pairs of the 100 commonest real codes
    correlation_difference              mean absolute difference of the phi coefficients of the same pairs (pairwise
                                        correlation difference: Goncalves et al. 2020)
    visits_per_record, codes_per_visit, sequence_length
                                        Wasserstein distance of the two distributions, in visits, codes, tokens

    With the same subjects in both, as for completions, subjects are resampled in both together.
    """
    if synthetic is None:
        empty = {"value": None, "low": None, "high": None, "floor": None, "reason": _NOT_GENERATED}
        return {name: dict(empty) for name in MEASURES}
    if real.spec != synthetic.spec:
        raise InputError("fidelity: real and generated sequences have different vocabularies; use one tokenizer")
    both = _Pair.of(real, synthetic)
    n, m = len(real), len(synthetic)
    value = {name: float(column[0]) for name, column in both.measure(np.ones((1, n)), np.ones((1, m))).items()}
    widest = max(n, m, len(both.codes), both.real.pairs.shape[1])  # one size of blocks for both samples
    streams = [np.random.default_rng([seed, stream]) for stream in range(4)]
    ours = drawn(n, n, num_bootstrap, streams[0], widest)
    if np.array_equal(real.subjects, synthetic.subjects):
        blocks = [both.measure(weights, weights) for weights in ours]
    else:
        blocks = [both.measure(w, v) for w, v in zip(ours, drawn(m, m, num_bootstrap, streams[1], widest))]
    itself = _Pair.of(real, real, like=both)
    draws = (drawn(n, size, min(NUM_FLOOR, num_bootstrap), rng, widest) for size, rng in zip((n, m), streams[2:]))
    floors = [itself.measure(w, v) for w, v in zip(*draws)]
    return {name: _entry(name, value[name], [b[name] for b in blocks], [f[name] for f in floors]) for name in MEASURES}


def prevalences(real: Sequences, synthetic: Sequences, least: int = 5) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Of each code: its prevalence (count + 1/2) / (n + 1) in both samples, and whether it is a target.

    Only codes in at least `least` sequences of one of them: no number may stand for a single patient.
    """
    spec = real.spec
    counts = [np.asarray(part.presence.sum(axis=0), dtype=np.float64).ravel() for part in (real, synthetic)]
    shown = np.flatnonzero(np.maximum(*counts) >= least)
    ours, theirs = ((count[shown] + 0.5) / (len(part) + 1) for count, part in zip(counts, (real, synthetic)))
    return ours, theirs, np.isin(shown + spec.first_code, spec.targets)


@dataclass(frozen=True)
class _Sample:
    """What the measures need of one sample, for weightings `[R, n]` of its sequences."""

    presence: sparse.csr_array  # [n, codes of either sample]
    commonest: sparse.csr_array  # [n, K]
    pairs: sparse.csr_array  # [n, K (K - 1) / 2]
    target: FloatArray  # [n]
    histograms: tuple[sparse.csr_array, ...]  # visits, codes per visit, length: [n, largest + 1]


@dataclass(frozen=True)
class _Pair:
    real: _Sample
    synthetic: _Sample
    codes: IntArray
    top: IntArray
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, real: Sequences, synthetic: Sequences, like: "_Pair | None" = None) -> "_Pair":
        """`like`: the codes and bins of another pair, so that the numbers of both mean the same."""
        if like is None:
            common = np.asarray(real.presence.sum(axis=0)).ravel()
            either = common + np.asarray(synthetic.presence.sum(axis=0)).ravel()
            codes = np.flatnonzero(either > 0)
            order = np.argsort(-common, kind="stable")[:NUM_COMMONEST]
            top = np.sort(order[common[order] > 0])
            shapes = [_distributions(part) for part in (real, synthetic)]
            sizes = tuple(1 + max(int(v.max(initial=0)) for _, v in pair) for pair in zip(*shapes))
        else:
            codes, top, sizes = like.codes, like.top, like.sizes
        ours, theirs = (_sample(part, codes, top, sizes) for part in (real, synthetic))
        return cls(ours, theirs, codes, top, sizes)

    def measure(self, real: FloatArray, synthetic: FloatArray) -> dict[str, FloatArray]:
        """Every measure under `R` weightings of the real sequences `[R, n]` and of the generated ones `[R, m]`."""
        n, m = real.sum(axis=1, keepdims=True), synthetic.sum(axis=1, keepdims=True)
        a, b = real @ self.real.presence, synthetic @ self.synthetic.presence  # counts [R, codes]
        p, q = a / n, b / m
        missing = np.full(len(real), np.nan)
        found = {
            "prevalence_pearson": _pearson(p, q),
            "prevalence_log_pearson": _pearson(np.log10((a + 0.5) / (n + 1)), np.log10((b + 0.5) / (m + 1))),
            "prevalence_r2": _r2(p, q),
            "prevalence_difference": np.abs(p - q).mean(axis=1) if p.shape[1] else missing,
        }
        share, generated = real @ self.real.target / n[:, 0], synthetic @ self.synthetic.target / m[:, 0]
        found["target_prevalence_ratio"] = np.divide(generated, share, out=missing.copy(), where=share > 0)
        together = real @ self.real.pairs / n, synthetic @ self.synthetic.pairs / m
        found["cooccurrence_pearson"] = _pearson(*together)
        phi = [
            _phi(pairs, weights @ sample.commonest / total)
            for pairs, weights, sample, total in zip(together, (real, synthetic), (self.real, self.synthetic), (n, m))
        ]
        found["correlation_difference"] = np.abs(phi[0] - phi[1]).mean(axis=1) if phi[0].shape[1] else missing
        for name, ours, theirs in zip(
            ("visits_per_record", "codes_per_visit", "sequence_length"), self.real.histograms, self.synthetic.histograms
        ):
            found[name] = _wasserstein(real @ ours, synthetic @ theirs)
        return found


def _distributions(sequences: Sequences) -> list[tuple[IntArray, IntArray]]:
    """(sequence, value) of what the three lengths are distributions of."""
    everyone = np.arange(len(sequences))
    return [(everyone, sequences.num_visits), sequences.visit_sizes, (everyone, sequences.num_tokens)]


def _sample(sequences: Sequences, codes: IntArray, top: IntArray, sizes: tuple[int, ...]) -> _Sample:
    n = len(sequences)
    held = sequences.presence[:, top]
    dense = held.toarray() > 0
    firsts, pairs, offset = [], [], 0
    for i in range(len(top) - 1):
        row, other = np.nonzero(dense[:, i : i + 1] & dense[:, i + 1 :])
        firsts.append(row)
        pairs.append(other + offset)
        offset += len(top) - 1 - i
    rows = np.concatenate([np.empty(0, dtype=np.int64), *firsts])
    columns = np.concatenate([np.empty(0, dtype=np.int64), *pairs])
    histograms = tuple(
        sparse.csr_array((np.ones(len(row)), (row, value)), shape=(n, size))
        for (row, value), size in zip(_distributions(sequences), sizes)
    )
    return _Sample(
        presence=sequences.presence[:, codes].astype(np.float64),
        commonest=held.astype(np.float64),
        pairs=sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(n, offset)),
        target=sequences.holds_target().astype(np.float64),
        histograms=histograms,
    )


def _pearson(x: FloatArray, y: FloatArray) -> FloatArray:
    """Row by row, `[R]`; NaN where a side does not vary."""
    if x.shape[1] < 2:
        return np.full(len(x), np.nan)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.full(len(x), np.nan), where=scale > 0)


def _r2(real: FloatArray, synthetic: FloatArray) -> FloatArray:
    if real.shape[1] < 2:
        return np.full(len(real), np.nan)
    spread = ((real - real.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    error = ((real - synthetic) ** 2).sum(axis=1)
    return 1 - np.divide(error, spread, out=np.full(len(real), np.nan), where=spread > 0)


def _phi(pairs: FloatArray, single: FloatArray) -> FloatArray:
    """Correlation of the presences of each pair of codes `[R, pairs]`; 0 where a code is in no sequence or in all."""
    first, second = np.triu_indices(single.shape[1], 1)
    variance = single * (1 - single)
    scale = np.sqrt(variance[:, first] * variance[:, second])
    return np.divide(pairs - single[:, first] * single[:, second], scale, out=np.zeros_like(pairs), where=scale > 1e-12)


def _wasserstein(ours: FloatArray, theirs: FloatArray) -> FloatArray:
    """Between the distributions of two histograms over 0, 1, 2, ...: `[R]`; NaN where one is empty."""
    n, m = ours.sum(axis=1, keepdims=True), theirs.sum(axis=1, keepdims=True)
    defined = (n[:, 0] > 0) & (m[:, 0] > 0)
    found = np.full(len(ours), np.nan)
    shares = [np.cumsum(h[defined], axis=1) / total[defined] for h, total in ((ours, n), (theirs, m))]
    found[defined] = np.abs(shares[0] - shares[1]).sum(axis=1)
    return found


def _entry(name: str, value: float, blocks: list[FloatArray], floors: list[FloatArray]) -> dict[str, Any]:
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None, "floor": None, "reason": _UNDEFINED[name]}
    resamples = np.concatenate([np.empty(0), *blocks])
    finite = resamples[np.isfinite(resamples)]
    moved = Resampled(value, resamples - finite.mean() + value if len(finite) else resamples)
    interval = percentile_interval(moved.value, moved.resamples)
    smallest, largest = MEASURES[name]
    floor = np.concatenate([np.empty(0), *floors])
    floor = floor[np.isfinite(floor)]
    entry: dict[str, Any] = {
        "value": value,
        "low": float(max(interval.low, smallest)) if np.isfinite(interval.low) else None,
        "high": float(min(interval.high, largest)) if np.isfinite(interval.high) else None,
        "floor": float(floor.mean()) if len(floor) else None,
    }
    if interval.reason is not None:
        entry["reason"] = interval.reason
    return entry
