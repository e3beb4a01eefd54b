"""The one thing that flows from data to model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TokenSpec:
    """Sizes of the sequences of tokens (Batch.tokens).

    num_tokens  size of the vocabulary: the five ids below, then demographics, then codes from `first_code` on
    num_places  places of service, 0 = unknown included
    max_tokens  no sequence is longer (T <= max_tokens)
    max_visits  no sequence has more visits: Tokens.visit is in 0 .. max_visits
    first_code  the first id that is a code: what may be generated within a visit
    targets     ids of the task's target codes, the commonest first; empty where the task has none
    """

    PAD, BOS, EOS, VISIT, UNK = range(5)
    NUM_AGES = 121
    """Tokens.age is in 0 .. 120 years."""

    num_tokens: int
    num_places: int
    max_tokens: int
    max_visits: int
    first_code: int
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class StaySpec:
    """Sizes of Batch.stays: S <= max_stays, H = num_hours, F = num_features.

    content  names what each feature means: weights for other features of the same number must not be taken
    """

    num_features: int
    num_hours: int
    max_stays: int
    content: str = field(default="", compare=False)


@dataclass(frozen=True)
class CodeSetSpec:
    """Sizes of the vocabularies of Batch.codes, padding id 0 included.

    of_visit_codes  the diagnosis id of each id of Batch.visits.codes, 0 where the vocabulary of diagnoses lacks it
    content         names what each id means, as StaySpec's
    """

    num_diagnoses: int
    num_drugs: int
    of_visit_codes: tuple[int, ...] = ()
    content: str = field(default="", compare=False)


@dataclass(frozen=True)
class LabSpec:
    """Batch.labs: F = num_tests."""

    num_tests: int


@dataclass(frozen=True)
class NoteSpec:
    """Batch.notes: N <= max_notes, E = dim; encoder: whose vectors they are."""

    dim: int
    max_notes: int
    encoder: str = field(default="", compare=False)


@dataclass(frozen=True)
class TextSpec:
    """Batch.text, and the language model whose tokenizer made it.

    model       what `nn.language.load_language_model` takes: the name of a known model, a hub name or a folder
    num_tokens  size of the tokenizer's vocabulary
    """

    model: str
    num_tokens: int
    max_tokens: int
    pad_id: int


@dataclass(frozen=True)
class DataSpec:
    """Sizes only; no model ever holds a dataset.

    num_codes         size of the visit-code vocabulary, padding id 0 included
    num_labels        K
    max_visits        no sample has more visits (V <= max_visits)
    max_codes         no visit has more codes (C <= max_codes)
    num_demographics  F of Batch.demographics
    positive_rate     share of positives per label in the training split
    unit              what a sample is: "patient", "admission" or "stay"
    tokens, ...       sizes of the modalities that models asked for; the rest are None
    """

    num_codes: int
    num_labels: int
    max_visits: int
    max_codes: int
    num_demographics: int
    positive_rate: tuple[float, ...]
    unit: str = "patient"
    tokens: TokenSpec | None = None
    stays: StaySpec | None = None
    codes: CodeSetSpec | None = None
    labs: LabSpec | None = None
    notes: NoteSpec | None = None
    text: TextSpec | None = None
