"""LSTM over visits (Hochreiter & Schmidhuber 1997), the simplest recurrent baseline.

With `use_time` it is the backbone of MedDiffusion (Eq. 3.1-3.4, 3.13): what is left of that model without its
diffusion. The MedDiffusion group's own LSTM baseline has no time embedding, two layers and a max-pool over visits.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import TimeEmbedding, VisitEmbedding
from ehrlab.nn.masking import last_valid


class LSTM(SequenceRiskModel):
    def __init__(
        self, spec: DataSpec, embed_dim: int = 256, hidden_dim: int = 256, time_dim: int = 64, use_time: bool = False
    ) -> None:
        super().__init__()
        self.embed_dim, self.hidden_dim = embed_dim, hidden_dim
        self.visit = VisitEmbedding(spec.num_codes, embed_dim)
        self.time = TimeEmbedding(embed_dim, time_dim) if use_time else None
        self.rnn = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        v = self.visit(visits.codes)
        return v if self.time is None else v + self.time(visits.days_before_last)  # Eq. 3.1

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        # Padding is on the right and the LSTM reads rightwards: no real state sees it, packing would buy nothing.
        return self.rnn(e)[0]  # Eq. 3.4

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(last_valid(h, visits.mask))  # Eq. 3.13
