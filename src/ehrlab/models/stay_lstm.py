"""LSTM over the hours of a stay, the simplest rival of MEDHMP's Table 6 and 10; demographics are not read.

The states' maximum over hours is classified, as in the MEDHMP group's baseline of that name.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.stays import last_stay


class StayLSTM(RiskModel):
    """logit = W max_j h_j + b"""

    requires = frozenset({"stays"})

    def __init__(self, spec: DataSpec, hidden_dim: int = 256) -> None:
        super().__init__()
        assert spec.stays is not None
        self.rnn = nn.LSTM(spec.stays.num_features, hidden_dim, batch_first=True)
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        return self.head(self.rnn(last_stay(batch.stays))[0].amax(1))
