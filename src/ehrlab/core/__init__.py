"""The nouns of the project."""

from ehrlab.core.batch import MODALITIES, Batch, Labs, Series, TensorGroup, Text, Tokens, Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import (
    Augmenter,
    EstimatorPhase,
    LossDict,
    Model,
    Phase,
    RiskModel,
    SequenceGenerator,
    SequenceRiskModel,
    Turn,
)
from ehrlab.core.spec import DataSpec

__all__ = [
    "MODALITIES",
    "Augmenter",
    "Batch",
    "DataSpec",
    "EstimatorPhase",
    "InputError",
    "Labs",
    "LossDict",
    "Model",
    "Phase",
    "RiskModel",
    "SequenceGenerator",
    "SequenceRiskModel",
    "Series",
    "TensorGroup",
    "Text",
    "Tokens",
    "Turn",
    "Visits",
]
