"""Batches of every modality beside visits; sizes are tiny and all different, so that a transposed axis fails."""

from __future__ import annotations

import torch
from torch import Tensor

from ehrlab.core.batch import Batch, CodeSets, Labs, Notes, Stays, Text, Visits
from ehrlab.core.spec import CodeSetSpec, DataSpec, LabSpec, NoteSpec, StaySpec, TextSpec

NUM_CODES, NUM_DIAGNOSES, NUM_DRUGS = 13, 17, 11
FEATURES, HOURS, STAYS = 19, 6, 3
TESTS, NOTE_DIM, NOTES = 7, 10, 4
WORDS, LENGTH = 23, 9
DEMOGRAPHICS = 5

MODAL_SPEC = DataSpec(
    num_codes=NUM_CODES,
    num_labels=1,
    max_visits=5,
    max_codes=4,
    num_demographics=DEMOGRAPHICS,
    positive_rate=(0.4,),
    stays=StaySpec(num_features=FEATURES, num_hours=HOURS, max_stays=STAYS),
    codes=CodeSetSpec(NUM_DIAGNOSES, NUM_DRUGS, tuple(min(i, NUM_DIAGNOSES - 1) for i in range(NUM_CODES))),
    labs=LabSpec(num_tests=TESTS),
    notes=NoteSpec(dim=NOTE_DIM, max_notes=NOTES),
    text=TextSpec(model="tiny", num_tokens=WORDS, max_tokens=LENGTH, pad_id=0),
)


def modal_batch(num_samples: int = 5, num_labels: int = 1, seed: int = 0) -> Batch:
    """Samples with every modality; sample 0 has all of it, the last has no stay, note, drug, lab or text."""
    g = torch.Generator().manual_seed(seed)
    last = num_samples - 1

    def prefix(width: int) -> Tensor:
        lengths = torch.randint(1, width + 1, (num_samples,), generator=g)
        lengths[0], lengths[last] = width, 0
        return torch.arange(width) < lengths[:, None]

    def ids(high: int, mask: Tensor) -> Tensor:
        distinct = torch.stack([torch.randperm(high - 1, generator=g)[: mask.shape[1]] + 1 for _ in range(len(mask))])
        return torch.where(mask, distinct, 0)

    stays, notes, text = prefix(STAYS), prefix(NOTES), prefix(LENGTH)
    features = torch.rand(num_samples, STAYS, HOURS, FEATURES, generator=g) < 0.4
    vectors = torch.randn(num_samples, NOTES, NOTE_DIM, generator=g)
    observed = torch.rand(num_samples, TESTS, generator=g) < 0.7
    observed[0], observed[last] = True, False
    visited = torch.arange(3) < torch.tensor([[3]] + [[1 + i % 3] for i in range(1, num_samples)])
    codes = torch.stack([ids(NUM_CODES, torch.ones(num_samples, 4, dtype=torch.bool)) for _ in range(3)], dim=1)
    days = torch.flip(torch.cumsum(torch.rand(num_samples, 3, generator=g) * 30, 1), (1,))
    labels = (torch.rand(num_samples, num_labels, generator=g) < 0.5).float()
    labels[0], labels[last] = 1.0, 0.0
    return Batch(
        subject_id=torch.arange(num_samples),
        prediction_time=torch.zeros(num_samples, dtype=torch.long),
        visits=Visits(torch.where(visited[:, :, None], codes, 0), torch.where(visited, days, 0.0), visited),
        stays=Stays((features & stays[:, :, None, None]).to(torch.uint8), stays),
        codes=CodeSets(
            ids(NUM_DIAGNOSES, torch.ones(num_samples, 6, dtype=torch.bool)),
            ids(NUM_DRUGS, prefix(5)),
        ),
        labs=Labs(torch.where(observed, torch.randn(num_samples, TESTS, generator=g), 0.0), observed),
        notes=Notes(torch.where(notes[:, :, None], vectors, 0.0), notes),
        text=Text(torch.where(text, torch.randint(1, WORDS, (num_samples, LENGTH), generator=g), 0), text),
        demographics=torch.rand(num_samples, DEMOGRAPHICS, generator=g),
        labels=labels,
    )
