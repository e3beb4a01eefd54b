import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SPEC, random_batch, visits_of
from ehrlab.core.errors import InputError
from ehrlab.core.model import Augmenter, LossDict
from ehrlab.core.spec import DataSpec
from ehrlab.models.logistic_regression import LogisticRegression
from ehrlab.models.lstm import LSTM
from ehrlab.models.meddiffusion import MedDiffusion
from steps import gradient_phases, train
from tiny import build, model_config


class TinyGan(Augmenter):
    """The smallest adversarial augmenter: a linear generator, a linear critic."""

    def __init__(self, spec: DataSpec, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.generator = nn.Linear(embed_dim + hidden_dim, embed_dim)
        self.critic = nn.Linear(embed_dim, 1)
        self.saw_gradient = False

    def sample(self, e: Tensor, h_prev: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return self.generator(torch.cat([e, h_prev], -1))

    def loss(self, e: Tensor, h_prev: Tensor, mask: Tensor, labels: Tensor) -> LossDict:
        return {"loss": -self.critic(self.sample(e, h_prev, mask, labels))[mask].mean()}

    def critic_parameters(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def critic_loss(self, e: Tensor, h_prev: Tensor, mask: Tensor, labels: Tensor) -> LossDict:
        self.saw_gradient |= e.requires_grad or h_prev.requires_grad
        fake = self.sample(e, h_prev, mask, labels).detach()
        return {"loss": (self.critic(fake) - self.critic(e))[mask].mean()}


def backbone(spec: DataSpec) -> LSTM:
    return LSTM(spec, embed_dim=8, hidden_dim=6, time_dim=5, use_time=True)


def gan() -> MedDiffusion:
    torch.manual_seed(0)
    return MedDiffusion(SPEC, backbone, TinyGan)


def test_three_terms_add_up() -> None:
    model = build("model=meddiffusion")
    losses = model.loss(random_batch())
    assert set(losses) == {"loss", "risk", "risk_synthetic", "augmenter_loss"}
    total = losses["risk"] + 0.5 * losses["risk_synthetic"] + 0.1 * losses["augmenter_loss"]
    torch.testing.assert_close(losses["loss"], total)


def test_generator_is_given_the_state_before_each_visit_and_its_visits_are_read_by_the_same_weights() -> None:
    model, batch = gan(), random_batch()
    visits = visits_of(batch)
    assert model.augmenter is not None
    e = model.backbone.embed(visits)
    h = model.backbone.encode(e, visits)
    synthetic = model.augmenter.sample(
        e, torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1), visits.mask, batch.labels
    )
    logits = model.backbone.classify(model.backbone.encode(synthetic, visits), visits)
    expected = F.binary_cross_entropy_with_logits(logits, batch.labels)
    torch.testing.assert_close(model.loss(batch)["risk_synthetic"], expected)


def test_prediction_is_the_backbones_own() -> None:
    model, batch = build("model=meddiffusion").eval(), random_batch()
    assert isinstance(model, MedDiffusion)
    assert torch.equal(model(batch), model.backbone(batch))


def test_composition_without_augmenter_trains_as_its_backbone_alone() -> None:
    batches = [random_batch(seed=seed) for seed in range(3)]
    composed = train(build("model=meddiffusion", "model/augmenter=none"), batches)
    assert composed == train(build("model=lstm_time"), batches)


def test_without_its_loss_no_synthetic_visit_is_made() -> None:
    model = build("model=meddiffusion", "+variant=as3")
    assert isinstance(model, MedDiffusion)
    assert model.augmenter is not None
    model.augmenter.sample = None  # type: ignore[assignment, method-assign]
    assert "risk_synthetic" not in model.loss(random_batch())


@pytest.mark.parametrize(("variant", "condition"), [("as1", "visit_only"), ("as2", "equal"), ("none", "attention")])
def test_variant_sets_the_condition(variant: str, condition: str) -> None:
    assert model_config("model=meddiffusion", f"+variant={variant}").augmenter.condition == condition


def test_command_line_reaches_into_the_composition() -> None:
    config = model_config(
        "model=meddiffusion", "model@model.backbone=retain", "model.augmenter.condition=equal", tiny=False
    )
    assert config.backbone._target_.endswith("Retain")
    assert config.backbone._partial_
    assert (config.augmenter.condition, config.augmenter.synthesis) == ("equal", "one_step")


def test_config_holds_the_sizes_of_the_paper() -> None:
    config = model_config("model=meddiffusion", tiny=False)
    sizes = (config.backbone.embed_dim, config.backbone.hidden_dim, config.backbone.time_dim)
    assert sizes == (256, 256, 64)
    assert config.augmenter.attention_dim == 64
    assert (config.lambda_s, config.lambda_d) == (0.5, 0.1)


def test_critic_moves_first_and_players_partition_the_parameters() -> None:
    model = gan()
    (phase,) = gradient_phases(model)
    critic, others = ({id(p) for p in turn.params()} for turn in phase.turns)
    assert [turn.name for turn in phase.turns] == ["critic", "model"]
    assert critic == {id(p) for p in model.augmenter.critic.parameters()}  # type: ignore[union-attr]
    assert critic | others == {id(p) for p in model.parameters()}
    assert not critic & others


def test_critic_sees_visits_and_states_as_data() -> None:
    model = gan()
    train(model, [random_batch()] * 2)
    assert not model.augmenter.saw_gradient  # type: ignore[union-attr]


def test_backbone_without_visit_embeddings_is_refused() -> None:
    def estimator(spec: DataSpec) -> LogisticRegression:
        return LogisticRegression(spec, c_grid=[1.0], max_iterations=10)

    with pytest.raises(InputError, match=r"expected a model with visit embeddings .* found LogisticRegression"):
        MedDiffusion(SPEC, estimator, TinyGan)


def test_negative_weight_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected lambda_s, lambda_d >= 0, found -0\.5, 0\.1"):
        MedDiffusion(SPEC, backbone, TinyGan, lambda_s=-0.5)
