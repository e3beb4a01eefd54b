"""What a trained MedDiffusion generates: Table 5 and Figure 2 of its paper, written beside the run they are of.

`<run>/analyses/<what>.json` holds aggregates only: numbers, and codes with their ranks. hidden_states.png marks
patients, without anything that names them; docs/papers/meddiffusion.md says where it may be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openTSNE
import polars as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.files import write_whole
from ehrlab.core.model import Augmenter, Model, SequenceRiskModel
from ehrlab.data.clinical import ClinicalData
from ehrlab.evaluation.metrics import FloatArray
from ehrlab.models.lstm import LSTM
from ehrlab.models.meddiffusion import MedDiffusion
from ehrlab.nn.masking import last_valid, shift_right
from ehrlab.report.figures import states_figure
from ehrlab.run.store import write_json

FOLDER = "analyses"
NUM_DRAWS = 20  # synthetic embeddings of each code
NUM_CODES_KEPT = 100
NUM_DRAWN = 50  # sec. 6.3
FEWEST_STATES = 10
MOST_STATES = 2_000  # all pairs of them are compared
BATCH = 64


def write_analysis(what: str, run: Path, model: Model, data: ClinicalData) -> None:
    """Write one of ANALYSES of a finished run, unless it is there. The same weights and data give the same files.

    Errors: InputError where the model has nothing of the kind to look at.
    """
    folder = run / FOLDER
    if (folder / f"{what}.json").exists():
        return
    if not isinstance(model, MedDiffusion) or model.augmenter is None:
        raise InputError(
            f"{what} of run {run}: expected a model that generates visits (model=meddiffusion), found "
            f"{type(model).__name__}{' without an augmenter' if isinstance(model, MedDiffusion) else ''}"
        )
    model.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        content, png = ANALYSES[what](model.backbone, model.augmenter, data)
    if png is not None:
        write_whole(folder / f"{what}.png", png)
    write_json(folder / f"{what}.json", content)


def synthetic_codes(
    backbone: SequenceRiskModel, augmenter: Augmenter, data: ClinicalData
) -> tuple[dict[str, Any], bytes | None]:
    """Table 5: which codes the synthetic data consist of (sec. 4.6).

    Each code is fed alone, as a patient's only visit; its synthetic embedding e' is taken for the code whose row of
    W_v (Eq. 3.2) has the largest cosine. The synthetic data are the training data with every code replaced so.
    Beside each share and rank stands that of the same replacement by e itself, without the augmenter.
    """
    if not isinstance(backbone, LSTM):
        raise InputError(
            "synthetic_codes: expected a backbone whose visits are W_v x (model@model.backbone=lstm_time or lstm), "
            f"found {type(backbone).__name__}"
        )
    vocabulary = data.vocabulary()[1:]
    records = vocabulary["num_samples"].to_numpy() / vocabulary["num_samples"].sum()
    codes = torch.arange(1, len(vocabulary) + 1).view(-1, 1, 1)
    table = F.normalize(backbone.visit.codes.table.weight[1:], dim=-1)
    mapped = np.zeros((2, len(vocabulary)))  # share of the records, share of the vocabulary
    without = np.zeros(len(vocabulary))
    unchanged = unchanged_without = 0.0
    for at in torch.arange(len(codes)).split(BATCH):
        visits = Visits(codes[at], torch.zeros(len(at), 1), torch.ones(len(at), 1, dtype=torch.bool))
        e = backbone.embed(visits)
        history, labels = torch.zeros(len(at), 1, backbone.hidden_dim), torch.zeros(len(at), data.spec.num_labels)
        weight = records[at]
        nearest = _nearest(e, table)
        np.add.at(without, nearest, weight)
        unchanged_without += weight @ (nearest == at.numpy())
        for _ in range(NUM_DRAWS):
            nearest = _nearest(augmenter.sample(e, history, visits.mask, labels), table)
            np.add.at(mapped[0], nearest, weight / NUM_DRAWS)
            np.add.at(mapped[1], nearest, 1 / NUM_DRAWS / len(codes))
            unchanged += weight @ (nearest == at.numpy()) / NUM_DRAWS
    found = vocabulary.select("code", "description", rank_original="id").with_columns(
        share=pl.Series(mapped[0]),
        share_of_vocabulary=pl.Series(mapped[1]),
        rank_synthetic=pl.Series(_ranks(mapped[0])),
        rank_without_augmenter=pl.Series(_ranks(without)),
    )
    measures = {
        "num_codes": len(vocabulary),
        "num_reached": int((mapped[0] > 0).sum()),
        "unchanged": unchanged,
        "unchanged_without_augmenter": unchanged_without,
        "rank_correlation": float(spearmanr(records, mapped[0]).statistic),
    }
    # Ranks, no counts: a code that one patient has is a word of the vocabulary, its count would be that patient.
    kept = found.filter(pl.col("share") > 0).sort("rank_synthetic").head(NUM_CODES_KEPT)
    return {"measures": measures, "codes": kept.to_dicts()}, None


def hidden_states(
    backbone: SequenceRiskModel, augmenter: Augmenter, data: ClinicalData
) -> tuple[dict[str, Any], bytes | None]:
    """Figure 2: h_K and h'_K of test patients (sec. 6.3), drawn by t-SNE, and how near they are to each other.

    Distances are those of the hidden states themselves: t-SNE does not keep any.
    """
    original, synthetic, labels = _last_states(backbone, augmenter, data)
    if len(labels) < FEWEST_STATES:
        raise InputError(f"hidden_states: expected at least {FEWEST_STATES} test samples, found {len(labels)}")
    chosen = np.random.default_rng(0).permutation(len(labels))
    original, synthetic, labels = (values[chosen[:MOST_STATES]] for values in (original, synthetic, labels))
    between = _distances(original, original)
    across = _distances(synthetic, original)
    own = across.diagonal().copy()
    own_closer = (own[:, None] < across).sum() / (len(labels) * (len(labels) - 1))
    for distances in (between, across):
        np.fill_diagonal(distances, np.inf)
    share = labels.mean()
    measures = {
        "num_patients": len(labels),
        "own_closer": float(own_closer),
        "nearest_is_own": float((own < across.min(axis=1)).mean()),
        "same_label_original": float((labels[between.argmin(axis=1)] == labels).mean()),
        "same_label_synthetic": float((labels[across.argmin(axis=1)] == labels).mean()),
        "same_label_by_chance": float(share**2 + (1 - share) ** 2),
    }
    num = min(NUM_DRAWN, len(labels))
    places = _tsne(np.concatenate([original[:num], synthetic[:num]]))
    positive = np.tile(labels[:num] > 0, 2)
    made = np.arange(2 * num) >= num
    groups = {
        f"{name}{sign}": places[(made == is_made) & (positive == is_positive)]
        for name, is_made in (("Original", False), ("Generated", True))
        for sign, is_positive in (("+", True), ("-", False))
    }
    return {"measures": measures, "num_drawn": num}, states_figure("hidden_states", groups).png


Analysis = Callable[[SequenceRiskModel, Augmenter, ClinicalData], tuple[dict[str, Any], bytes | None]]
ANALYSES: Mapping[str, Analysis] = {"synthetic_codes": synthetic_codes, "hidden_states": hidden_states}


def _nearest(e: Float[Tensor, "B 1 E"], table: Float[Tensor, "M E"]) -> NDArray[np.int64]:
    """The row of `table` (of unit length) with the largest cosine to each e; "B"."""
    return (e[:, 0] @ table.T).argmax(-1).numpy()


def _ranks(shares: FloatArray) -> NDArray[np.int64]:
    """1 = the largest share; ties in the order given, which is that of the original data."""
    ranks = np.empty(len(shares), dtype=np.int64)
    ranks[np.argsort(-shares, kind="stable")] = np.arange(1, len(shares) + 1)
    return ranks


def _last_states(
    backbone: SequenceRiskModel, augmenter: Augmenter, data: ClinicalData
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """h_K and h'_K "N D" and the first label "N" of the held-out samples."""
    parts: Sequence[list[Tensor]] = ([], [], [])
    for batch in data.loader("held_out", batch_size=BATCH):
        visits, labels = batch.visits, batch.labels
        assert visits is not None
        assert labels is not None
        e = backbone.embed(visits)
        h = backbone.encode(e, visits)
        synthetic = backbone.encode(augmenter.sample(e, shift_right(h), visits.mask, labels), visits)
        states = (last_valid(h, visits.mask), last_valid(synthetic, visits.mask), labels[:, 0])
        for part, values in zip(parts, states):
            part.append(values)
    original, made, labels = (torch.cat(part).double().numpy() for part in parts)
    return original, made, labels


def _distances(a: FloatArray, b: FloatArray) -> FloatArray:
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _tsne(states: FloatArray) -> FloatArray:
    """Two coordinates of each state; the perplexity is openTSNE's 30 where there are points enough for it."""
    perplexity = min(30.0, (len(states) - 1) / 3)
    embedding = openTSNE.TSNE(perplexity=perplexity, initialization="pca", random_state=0, n_jobs=1).fit(states)
    return np.asarray(embedding)
