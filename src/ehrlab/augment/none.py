"""No augmenter: MedDiffusion's composition with nothing beside the backbone, for matrices over augmenters."""

from ehrlab.core.spec import DataSpec


def no_augmenter(spec: DataSpec, embed_dim: int, hidden_dim: int) -> None:
    """What conf/model/augmenter/none.yaml names: the composition then trains and predicts as its backbone alone."""
