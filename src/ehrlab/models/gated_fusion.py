"""Yang & Wu 2021 (EMNLP): one modality leads, and a gate lets the others move it no further than it is long.

Eight rows of MEDHMP's Table 2: BertLstm is main: notes with encoder: lstm, LstmBert main: stay, and so on. Departs
from the release: the note encoder is frozen with a trained pooler on top, and the gate measures each sample's own
length and not the whole batch's, which would make a patient's risk depend on who else is asked. More, and what becomes
of an admission's several stays: docs/papers/gated_fusion.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.encode import masked_mean
from ehrlab.nn.hourly import CNNEncoder, LSTMEncoder, StarEncoder, TransformerEncoder
from ehrlab.nn.stays import mean_over_stays


class Gate(nn.Module):
    """The main vector x, shifted by two others y and z (multimodal adaptation gate, Rahman et al. 2020).

    w_y = sigmoid(W_y [x; y]), w_z = sigmoid(W_z [x; z])
    a = W_a [w_y y; w_z z], alpha = min(beta |x| / |a|, 1)
    LayerNorm(x + alpha a), dropout
    """

    def __init__(self, main_dim: int, first_dim: int, second_dim: int, dropout: float) -> None:
        super().__init__()
        self.weigh_first = nn.Linear(main_dim + first_dim, 1)
        self.weigh_second = nn.Linear(main_dim + second_dim, 1)
        self.shift = nn.Linear(first_dim + second_dim, main_dim)
        # Learned, as in the release. There it starts at N(0, 1): below 0, |alpha| has no bound; far above, no gradient.
        self.beta = nn.Parameter(torch.tensor(0.1))
        self.norm = nn.LayerNorm(main_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, main: Float[Tensor, "B M"], first: Float[Tensor, "B P"], second: Float[Tensor, "B Q"]
    ) -> Float[Tensor, "B M"]:
        weight_first = torch.sigmoid(self.weigh_first(torch.cat([main, first], dim=-1)))
        weight_second = torch.sigmoid(self.weigh_second(torch.cat([main, second], dim=-1)))
        a = self.shift(torch.cat([weight_first * first, weight_second * second], dim=-1))
        alpha = (self.beta * length(main) / length(a).clamp(min=1e-6)).clamp(max=1)
        return self.dropout(self.norm(main + alpha * a))


def length(x: Float[Tensor, "B D"]) -> Float[Tensor, "B 1"]:
    """Each sample's Euclidean norm."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


class GatedFusion(RiskModel):
    """logit = W Gate(main; demographics, the other one) + b.

    main              which modality leads: "notes" or "stay"
    encoder           of each stay's hours: "lstm", "cnn", "star" (Star-Transformer) or "encoder" (Transformer)
    width             of the encoder's states; "cnn" has num_filters instead
    head_dim          of one attention head; read by "star" and "encoder"
    num_layers        LSTM layers, convolutions, Star-Transformer cycles or Transformer layers
    feedforward_dim   read by "encoder"
    stay_dim          length of a stay's vector; that of "encoder" is `width` long
    note_dim          length of the notes' vector, tanh(W mean_n v_n + b): BERT's pooler over the mean of the notes
    """

    requires = frozenset({"stays", "notes", "demographics"})

    def __init__(
        self,
        spec: DataSpec,
        main: str = "notes",
        encoder: str = "lstm",
        width: int = 1024,
        head_dim: int = 64,
        num_filters: int = 128,
        num_layers: int = 1,
        feedforward_dim: int = 2048,
        stay_dim: int = 512,
        note_dim: int = 768,
        demographics_dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        assert spec.stays is not None
        assert spec.notes is not None
        features, hours = spec.stays.num_features, spec.stays.num_hours
        self.stay: LSTMEncoder | CNNEncoder | StarEncoder | TransformerEncoder
        if encoder == "lstm":
            self.stay = LSTMEncoder(features, width, stay_dim, num_layers, dropout=0.0)
        elif encoder == "cnn":
            self.stay = CNNEncoder(features, hours, num_filters, stay_dim, num_layers, dropout)
        elif encoder == "star":
            self.stay = StarEncoder(features, width, head_dim, stay_dim, num_layers, dropout)
        elif encoder == "encoder":
            self.stay = TransformerEncoder(features, width, head_dim, num_layers, dropout, feedforward_dim)
        else:
            raise InputError(f"GatedFusion's encoder: expected lstm, cnn, star or encoder, found {encoder!r}")
        if main not in ("notes", "stay"):
            raise InputError(f"GatedFusion's main: expected notes or stay, found {main!r}")
        self.main = main
        self.pooler = nn.Linear(spec.notes.dim, note_dim)
        self.demographics = nn.Linear(spec.num_demographics, demographics_dim)
        main_dim, other_dim = (note_dim, self.stay.out_dim) if main == "notes" else (self.stay.out_dim, note_dim)
        self.gate = Gate(main_dim, demographics_dim, other_dim, dropout)
        self.head = nn.Linear(main_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        assert batch.notes is not None
        assert batch.demographics is not None
        stay = mean_over_stays(self.stay, batch.stays)
        notes = torch.tanh(self.pooler(masked_mean(batch.notes.vectors, batch.notes.mask)))
        main, other = (notes, stay) if self.main == "notes" else (stay, notes)
        return self.head(self.gate(main, self.demographics(batch.demographics), other))
