"""What generated records give away of the records that the generator was trained on.

A record is the set of its codes; the distance of two records is Jaccard's, 1 - |A & B| / |A | B|. Training and held-out
records are compared in equal numbers, because the nearest of many is nearer than the nearest of few. Copies are looked
for among all training records: one that is missed was given away all the same.

* Distance to the closest record (DCR; Platzer & Reutterer 2021, Frontiers in Big Data 4:679939): a generator that has
  learned the population and nobody in it is as near to held-out records as to training records, and half of what it
  generates is nearer to a training record.
* Nearest-neighbour distance ratio (NNDR; Zhao et al. 2021, CTAB-GAN): distance to the nearest record over that to the
  second nearest. Near 0: one record stands out, as where it was copied.
* Membership inference (GAN-Leaks: Chen et al. 2020; HALO: Theodorou et al. 2023): one who has somebody's record, and
  the generated ones, takes it for a training record where a generated record is near. AUROC 0.5: no better than chance.

These attacks are simple ones: no leak found by them is not a proof of privacy.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from ehrlab.evaluation.metrics import FloatArray
from ehrlab.evaluation.resampling import Predictions, Resampled
from ehrlab.evaluation.risk import written
from ehrlab.evaluation.sequences import Sequences, hashed, presence_table

MEASURES = (
    "closer_to_train",
    "distance_train",
    "distance_held_out",
    "distance_gap",
    "ratio_train",
    "ratio_held_out",
    "ratio_gap",
    "copies_train",
    "copies_held_out",
    "copies_gap",
    "membership_auroc",
)
MAX_RECORDS = 5000
_BLOCK_ROWS = 256


def judge(
    synthetic: Sequences | None,
    train: Sequences | None,
    held_out: Sequences,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
    max_records: int = MAX_RECORDS,
) -> dict[str, Any]:
    """The entry "privacy" of metrics.json: each of MEASURES, and the numbers of records that they rest on.

    closer_to_train           share of generated records nearer to a training than to a held-out record, a tie one half
    distance_*, distance_gap  mean distance to the nearest record; held-out minus training
    ratio_*, ratio_gap        mean ratio of the distances to the nearest and the second nearest; the same difference
    copies_train              share of generated records with the very codes of a training record, of any in `train`
    copies_held_out           the same of held-out records, in equal numbers
    copies_gap                training minus held-out, in equal numbers
    membership_auroc          of 1 - distance to the nearest generated record, training against held-out records

    The gaps are 0 without memorisation. Intervals are over generated records for all but the last, which is over real
    subjects, the others as they are. At most `max_records` generated records enter, and of training and of held-out
    records as many as the smaller of both has, at most `max_records`, chosen by a hash of the subject; but for
    copies_train. "counts" has these numbers, and those of the training records among which copies were looked for.

    synthetic   records generated from nothing; continuations would be near to their own prompts. None: none were
    train       all records that the generator was trained on. None: none are known
    """
    missing = None
    if synthetic is None:
        missing = "no records were generated from nothing"
    elif train is None:
        missing = "no training records are known"
    elif min(len(train), len(held_out)) < 2:
        missing = "fewer than two training or held-out records"
    if missing is not None or synthetic is None or train is None:
        nothing = Resampled(np.nan, np.empty(0))
        return written(dict.fromkeys(MEASURES, nothing), dict.fromkeys(MEASURES, str(missing)))
    synthetic = _some(synthetic, max_records, seed)
    copied, num_searched = _copied(synthetic, train), len(train)
    num_real = min(len(train), len(held_out), max_records)
    train, held_out = _some(train, num_real, seed), _some(held_out, num_real, seed)

    to_train, to_held_out = (nearest(synthetic.presence, real.presence, 2) for real in (train, held_out))
    near, far = to_train[:, 0], to_held_out[:, 0]
    ratios = _ratio(to_train), _ratio(to_held_out)
    columns = {
        "closer_to_train": (near < far) + (near == far) / 2,
        "distance_train": near,
        "distance_held_out": far,
        "distance_gap": far - near,
        "ratio_train": ratios[0],
        "ratio_held_out": ratios[1],
        "ratio_gap": ratios[1] - ratios[0],
        "copies_train": copied,
        "copies_held_out": (far == 0).astype(np.float64),
        "copies_gap": (near == 0).astype(np.float64) - (far == 0),
    }
    everyone = np.ones(len(synthetic), dtype=bool)
    units = Predictions(presence_table(synthetic.subjects, everyone, everyone, np.ones(len(synthetic))), "synthetic")
    numbers = {name: units.resample_means([column], num_bootstrap, seed)[0] for name, column in columns.items()}

    tables = []
    for part, is_member in ((train, True), (held_out, False)):
        member = np.full(len(part), is_member)
        similarity = 1 - nearest(part.presence, synthetic.presence, 1)[:, 0]
        tables.append(presence_table(part.subjects, member, member, similarity))
    attack = Predictions(pl.concat(tables), "records")
    numbers["membership_auroc"] = attack.resample(["auroc"], num_bootstrap, seed)[0]["auroc"]
    counts = {"generated": len(synthetic), "train": num_real, "held_out": num_real, "searched": num_searched}
    return {**written(numbers, {}), "counts": counts}


def nearest(records: sparse.csr_array, others: sparse.csr_array, num: int) -> FloatArray:
    """Jaccard distances of each record `[n, V]` to the `num` nearest of `others` `[m, V]`, rising: `[n, num]`.

    Both hold 0 and 1. Two empty sets have distance 0. Where there are fewer others, the last distance is repeated.
    """
    sizes = np.asarray(records.sum(axis=1)).ravel(), np.asarray(others.sum(axis=1)).ravel()
    across = sparse.csc_array(others.T)
    taken = min(num, others.shape[0])
    found = np.empty((records.shape[0], num))
    for start in range(0, records.shape[0], _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        shared = (records[rows] @ across).toarray().astype(np.float64)
        union = sizes[0][rows, None] + sizes[1][None, :] - shared
        distance = 1 - np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
        found[rows, :taken] = np.sort(np.partition(distance, taken - 1, axis=1)[:, :taken], axis=1)
    found[:, taken:] = found[:, taken - 1 : taken]
    return found


def _copied(records: Sequences, others: Sequences) -> FloatArray:
    """1 where a record has the very codes of one of `others`, however many: `[n]`."""
    known = {*_code_sets(others)}
    return np.array([codes in known for codes in _code_sets(records)], dtype=np.float64)


def _code_sets(records: Sequences) -> list[bytes]:
    """The codes of each record; the same bytes for the same set."""
    presence = records.presence  # its columns ascend within a row
    codes = presence.indices.astype(np.int32)
    return [codes[begin:end].tobytes() for begin, end in pairwise(presence.indptr.tolist())]


def _ratio(distances: FloatArray) -> FloatArray:
    """Nearest over second nearest, 1 where both are 0: nothing stands out."""
    first, second = distances.T
    return np.divide(first, second, out=np.ones(len(first)), where=second > 0)


def _some(records: Sequences, most: int, seed: int) -> Sequences:
    """At most so many records, the same ones whatever the order of the file."""
    if len(records) <= most:
        return records
    chosen = np.zeros(len(records), dtype=bool)
    chosen[np.argsort(hashed(records.subjects, seed), kind="stable")[:most]] = True
    return records.take(chosen)
