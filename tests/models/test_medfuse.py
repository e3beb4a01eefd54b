import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from ehrlab.core.batch import Batch, Text
from ehrlab.core.errors import InputError
from ehrlab.core.model import EstimatorPhase, Needs, Phase, RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.models.medfuse import MedFuse
from ehrlab.nn.language import LanguageModel, _from_files, _Vectors
from ehrlab.run.compose import entries, plain
from ehrlab.run.store import shared_phase_folder
from modal_batches import LENGTH, MODAL_SPEC, modal_batch
from steps import set_gradients, train
from tiny import CONF, model_config
from tiny import build as build_any

NUM_LABELS = 3
SPEC = replace(MODAL_SPEC, num_labels=NUM_LABELS, positive_rate=(0.5,) * NUM_LABELS)
OF_LABS, OF_TEXT = ("labs_mltm", "labs_mlp", "labs_boosting"), ("text_lora", "text_frozen", "text_tfidf")
FUSIONS = ("late_fusion", "concat_fusion", "cross_attention")
RIVALS = (*OF_LABS, *OF_TEXT, *FUSIONS)
VARIANTS = {
    "medfuse": (),
    "scratch": ("model.labs=scratch",),
    "frozen": ("model.text=frozen",),
    "no text": ("model.text=none",),
    "no labs": ("model.labs=none",),
    "not disentangled": ("model.disentangle=false",),
}
PHASES = {
    "medfuse": ["labs", "notes", "fuse"],
    "scratch": ["notes", "fuse"],
    "frozen": ["labs", "fuse"],
    "no text": ["labs", "fuse"],
    "no labs": ["notes", "fuse"],
    "not disentangled": ["labs", "notes", "fuse"],
}


def medfuse(*overrides: str, spec: DataSpec = SPEC, seed: int = 0) -> MedFuse:
    model = build_any("model=medfuse", "llm.dtype=float32", *overrides, spec=spec, seed=seed)
    assert isinstance(model, MedFuse)
    return model


def phase_of(model: RiskModel, name: str) -> Phase:
    return next(phase for phase in model.phases() if isinstance(phase, Phase) and phase.name == name)


def language_model(**settings: object) -> LanguageModel:
    torch.manual_seed(0)
    assert SPEC.text is not None
    llm = LanguageModel(SPEC.text, **settings)  # type: ignore[arg-type]
    for adapter in llm.adapters.values():  # B begins at 0, and with it every gradient of A
        adapter.data.normal_(std=0.3)
    return llm.eval()


def text_of(batch: Batch) -> Text:
    assert batch.text is not None
    return batch.text


def pieces(llm: LanguageModel) -> Iterator[torch.Tensor]:
    """The language model's own weights."""
    return (weight for name, weight in llm.base.named_parameters() if "lora_" not in name)


@pytest.fixture
def batch() -> Batch:
    return modal_batch(6, num_labels=NUM_LABELS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_phases_are_those_of_what_is_there_to_train(variant: str) -> None:
    assert [phase.name for phase in medfuse(*VARIANTS[variant]).phases()] == PHASES[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_phase_moves_all_of_its_parameters_and_no_others(variant: str, batch: Batch) -> None:
    model = medfuse(*VARIANTS[variant])
    moved: set[str] = set()
    for phase in model.phases():
        assert isinstance(phase, Phase)
        reached: set[int] = set()
        for _ in range(3):  # B of an adapter is 0 until the first step
            for turn in phase.turns:
                params = list(turn.params())
                set_gradients(params, turn.loss(batch)["loss"])
                torch.optim.SGD(params, lr=0.1).step()
                reached |= {id(p) for p in params if p.grad is not None and p.grad.abs().max() > 0}
        wanted = {id(p) for turn in phase.turns for p in turn.params()}
        names = {name for name, p in model.named_parameters() if id(p) in wanted - reached}
        assert names == set()
        moved |= {name for name, p in model.named_parameters() if id(p) in reached}
    assert moved == {name for name, _ in model.named_parameters()}


def test_estimators_turn_moves_the_estimator_alone_and_the_fusion_never_does(batch: Batch) -> None:
    model = medfuse()
    estimator, fusion = phase_of(model, "fuse").turns
    of_estimator = {name for name, _ in model.named_parameters() if name.startswith("vclub.")}
    assert of_estimator
    for turn, moves_the_estimator in ((estimator, True), (fusion, False)):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        params = list(turn.params())
        set_gradients(params, turn.loss(batch)["loss"])
        torch.optim.SGD(params, lr=0.1).step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved
        assert moved <= of_estimator if moves_the_estimator else not moved & of_estimator


def test_lambda_weighs_the_bound(batch: Batch) -> None:
    for weight in (0.0, 0.1, 1.0):
        losses = medfuse(f"model.lambda_mi={weight}").eval().loss(batch)
        information = losses["mutual_information"].clamp(min=0)
        torch.testing.assert_close(losses["loss"], losses["risk"] + weight * information)


def test_the_mutual_information_that_is_estimated_falls_when_it_is_weighed() -> None:
    batch = modal_batch(16, num_labels=NUM_LABELS)
    found = []
    for weight in (0.0, 5.0):
        model = medfuse(f"model.lambda_mi={weight}", "model.labs=scratch", "model.text=frozen")
        train(model, [batch] * 30, learning_rate=5e-3)
        found.append(model.eval().loss(batch)["mutual_information"].item())
    assert found[1] < found[0] / 2


def test_adapters_leave_the_language_model_bit_identical(batch: Batch) -> None:
    model = medfuse()
    llm = model.paths.llm
    assert llm is not None
    before = [weight.clone() for weight in pieces(llm)]
    adapters = [weight.detach().clone() for weight in llm.adapters.values()]
    train(model, [batch] * 3, learning_rate=0.05)
    assert all(torch.equal(now, then) for now, then in zip(pieces(llm), before, strict=True))
    assert all(not torch.equal(now, then) for now, then in zip(llm.adapters.values(), adapters, strict=True))


def test_the_language_models_own_weights_are_in_no_state_dict() -> None:
    model = medfuse()
    assert {name.rsplit("/", 2)[-2] for name in model.state_dict() if "adapters" in name} == {"default"}
    of_text = [name for name in model.state_dict() if name.startswith("paths.llm.")]
    assert of_text
    assert all("lora_" in name for name in of_text)


def test_a_tiny_language_model_is_the_same_whatever_the_seed() -> None:
    first, other = (medfuse(seed=seed).paths.llm for seed in (0, 1))
    assert first is not None
    assert other is not None
    assert all(torch.equal(a, b) for a, b in zip(pieces(first), pieces(other), strict=True))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_that_are_kept_are_those_that_are_computed(batch: Batch, pooling: str) -> None:
    llm = language_model(pooling=pooling)
    text = text_of(batch)
    first, again, computed = llm.frozen(text), llm.frozen(text), llm(text)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, computed, rtol=1e-5, atol=1e-6)


def test_each_text_is_read_once_while_the_adapters_stand_still(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = language_model()
    monkeypatch.setattr("ehrlab.nn.language._vectors", _Vectors())
    read: list[int] = []
    forward = type(llm).forward
    monkeypatch.setattr(type(llm), "forward", lambda self, text: read.append(len(text.ids)) or forward(self, text))
    text = text_of(batch)
    llm.frozen(text)
    llm.frozen(text.map(lambda t: t.flip(0)))
    assert read == [len({tuple(row[mask].tolist()) for row, mask in zip(text.ids, text.mask)})]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_of_the_adapters_makes_their_vectors_anew(batch: Batch, fused: bool) -> None:
    llm = language_model()
    text = text_of(batch)
    before = llm.frozen(text)
    params = list(llm.parameters())
    set_gradients(params, llm(text).square().sum())
    torch.optim.Adam(params, lr=0.1, fused=fused).step()
    after = llm.frozen(text)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, llm(text), rtol=1e-5, atol=1e-6)


def test_weights_that_are_loaded_make_their_vectors_anew(batch: Batch) -> None:
    llm, other = language_model(), language_model()
    for adapter in other.adapters.values():
        adapter.data.mul_(2)
    text = text_of(batch)
    llm.frozen(text)
    llm.load_state_dict(other.state_dict())
    assert torch.equal(llm.frozen(text), other.frozen(text))


def test_a_frozen_reading_has_no_dropout_and_gives_the_mode_back(batch: Batch) -> None:
    llm = language_model(dropout=0.5).train()
    text = text_of(batch)
    first = llm.frozen(text)
    assert llm.training
    assert llm.base.training
    torch.testing.assert_close(first, llm.eval()(text), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_and_passes_do_not_change_a_vector(batch: Batch, pooling: str) -> None:
    text = text_of(batch)
    wide = Text(*(torch.nn.functional.pad(t, (0, 4)) for t in (text.ids, text.mask)))
    together = language_model(pooling=pooling)(text)
    for llm in (language_model(pooling=pooling), language_model(pooling=pooling, tokens_per_pass=LENGTH)):
        torch.testing.assert_close(llm(wide), together, rtol=1e-4, atol=1e-5)


def test_a_text_without_tokens_is_the_vector_0_and_others_are_not(batch: Batch) -> None:
    vectors = language_model()(text_of(batch))
    assert text_of(batch).mask.any(1).tolist() == vectors.abs().gt(0).any(1).tolist()
    assert not text_of(batch).mask[-1].any()


def test_adapters_have_a_gradient_of_0_where_no_text_has_tokens(batch: Batch) -> None:
    """Under DDP a rank without a text would have none, and stop all."""
    model = medfuse()
    llm = model.paths.llm
    assert llm is not None
    text = text_of(batch)
    empty = replace(batch, text=Text(text.ids, torch.zeros_like(text.mask)))
    [turn] = phase_of(model, "notes").turns
    turn.loss(empty)["loss"].backward()
    assert all(p.grad is not None for p in turn.params())
    assert all(p.grad is not None and not p.grad.any() for p in llm.adapters.values())
    with torch.no_grad():
        assert not llm(text_of(empty)).any()


def test_last_reads_the_last_real_token_and_mean_all_of_them(batch: Batch) -> None:
    text = text_of(batch)
    llm = language_model()
    states = llm.base(input_ids=text.ids[:1]).last_hidden_state[0]
    torch.testing.assert_close(llm(text)[0], states[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(language_model(pooling="mean")(text)[0], states.mean(0), rtol=1e-4, atol=1e-5)


def test_weights_in_bfloat16_have_adapters_in_float32(batch: Batch) -> None:
    llm = language_model(dtype="bfloat16")
    assert {weight.dtype for weight in pieces(llm)} == {torch.bfloat16}
    assert {weight.dtype for weight in llm.adapters.values()} == {torch.float32}
    vectors = llm(text_of(batch))
    assert vectors.dtype == torch.float32
    assert torch.allclose(vectors, language_model()(text_of(batch)), atol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_needs_are_what_is_read(variant: str, batch: Batch) -> None:
    settings = model_config("model=medfuse", *VARIANTS[variant])
    needs = MedFuse.needs("admission", settings)
    requires = needs.samples
    assert requires == {"labs", "text"} - ({variant.removeprefix("no ")} if variant.startswith("no ") else set())
    assert needs == Needs(requires)
    unread = {name: None for name in ("visits", "stays", "codes", "notes", "labs", "text") if name not in requires}
    model = medfuse(*VARIANTS[variant], spec=replace(SPEC, **{n: None for n in unread if n != "visits"}))
    assert model(replace(batch, **unread)).shape == (6, NUM_LABELS)


# ---- 4-bit weights, without a GPU
def test_a_batch_elsewhere_than_the_4_bit_weights_is_refused_with_the_trainer_to_choose(batch: Batch) -> None:
    llm = language_model()
    llm.is_fixed_in_place = True
    assert llm(text_of(batch)).shape == (6, llm.out_dim)
    with pytest.raises(InputError, match=r"batches on cpu, where .*found them on meta\. Set trainer=gpu"):
        llm(text_of(batch).map(lambda t: t.to("meta")))


@pytest.mark.parametrize(
    ("told", "gpu"),
    [({}, 0), ({"LOCAL_RANK": "2"}, 2), ({"SLURM_LOCALID": "3"}, 3), ({"LOCAL_RANK": "0", "SLURM_LOCALID": "3"}, 0)],
)
def test_a_rank_loads_its_4_bit_weights_on_its_own_gpu(
    told: dict[str, str], gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    base, load = language_model().base, Mock()
    load.return_value = base
    monkeypatch.setattr("ehrlab.nn.language.resolve", lambda name: (name, None))
    monkeypatch.setattr("ehrlab.nn.language.BitsAndBytesConfig", Mock())  # looks for the package
    monkeypatch.setattr("ehrlab.nn.language.AutoModel.from_pretrained", load)
    assert _from_files("some/model", torch.float32, four_bit=True) is base
    assert load.call_args.kwargs["device_map"] == {"": gpu}


def test_nothing_to_read_is_refused() -> None:
    with pytest.raises(InputError, match="something to read"):
        medfuse("model.text=none", "model.labs=none")


SHARING = (
    ("model=medfuse",),
    ("model=medfuse", "model.labs=scratch"),
    ("model=medfuse", "model.disentangle=false"),
    ("model=medfuse", "model.lambda_mi=0.5"),
    ("model=late_fusion",),
    ("model=concat_fusion",),
    ("model=cross_attention",),
    ("model=medfuse", "model.text=none"),
    ("model=medfuse", "model.text=frozen"),
    ("model=medfuse", "model.labs=none"),
    ("model=labs_mltm",),
)
HAVE_NOT = {
    "labs": ("model.labs=scratch", "model.labs=none"),
    "notes": ("model.text=none", "model.text=frozen", "model=labs_mltm"),
}


def folder_of(name: str, model: RiskModel, overrides: tuple[str, ...]) -> str:
    identity = {
        "model": plain(model_config(*overrides)),
        "training": {"phases": {"fuse": {"lr": len(overrides)}}},
        "data": "",
    }
    return shared_phase_folder(Path(), phase_of(model, name), identity).name


@pytest.mark.parametrize(
    ("name", "overrides"),
    [(name, overrides) for name in HAVE_NOT for overrides in SHARING if overrides[-1] not in HAVE_NOT[name]],
    ids=str,
)
def test_what_comes_before_the_fusion_is_trained_once_for_all_that_fuse(name: str, overrides: tuple[str, ...]) -> None:
    """The same folder, the same weights to begin with, and what one leaves fits into the other and changes no more."""
    first = medfuse()
    model = build_any(*overrides, "llm.dtype=float32", spec=SPEC)
    assert folder_of(name, model, overrides) == folder_of(name, first, ("model=medfuse",))
    for one in (first, model):
        phase_of(one, name).begin()
    left, begun = first.state_dict(), model.state_dict()
    assert left
    assert left.keys() == begun.keys()
    assert all(torch.equal(begun[key], tensor) for key, tensor in left.items())
    phase_of(model, last := model.phases()[-1].name).begin()
    whole = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict({key: tensor + 1 for key, tensor in left.items()})
    phase_of(model, last).begin()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[key] + (1 if key in left else 0))


@pytest.mark.parametrize("override", ["model.mltm.depth=3", "llm.rank=4", "model.llm.rank=4"])
def test_settings_of_a_path_make_another_phase_of_it_alone(override: str) -> None:
    names = {"model.mltm.depth=3": "labs", "llm.rank=4": "notes", "model.llm.rank=4": "notes"}
    model, other = medfuse(), medfuse(override)
    for name in ("labs", "notes"):
        same = folder_of(name, model, ("model=medfuse",)) == folder_of(name, other, ("model=medfuse", override))
        assert same == (name != names[override])


@pytest.mark.parametrize("name", ["medfuse", *FUSIONS, "text_lora", "text_frozen"])
def test_the_language_model_is_set_in_one_place_for_all_that_read_text_by_it(name: str) -> None:
    known = inspect.signature(LanguageModel).parameters.keys() - {"spec"}
    given = {"rank": 4, "pooling": "mean", "dtype": "float32", "four_bit": True}
    settings = plain(model_config(f"model={name}", *(f"llm.{key}={value}" for key, value in given.items())))["llm"]
    assert settings.keys() == known
    assert {key: settings[key] for key in given} == given | ({"rank": 0} if name == "text_frozen" else {})


def test_what_is_said_of_the_language_model_is_said_of_the_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "model=medfuse",
        "baselines.models=[late_fusion,text_frozen,medfuse medfuse/no_disentangle]",
        "llm.alpha=9",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        monkeypatch.setattr(HydraConfig.instance(), "cfg", compose("config", given, return_hydra_config=True))
        rows = entries(compose("config", given))
    assert [plain(row.cfg.model)["llm"]["alpha"] for row in rows] == [9, 9, 9, 9]


def test_methods_that_agree_in_their_language_model_read_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehrlab.nn.language._vectors", _Vectors())
    batch = modal_batch(4, num_labels=NUM_LABELS)
    vectors = language_model().frozen(text_of(batch))
    same, other = language_model(), language_model(pooling="mean")
    for llm in (same, other):
        monkeypatch.setattr(llm, "forward", Mock(side_effect=AssertionError("read again")))
    assert torch.equal(same.frozen(text_of(batch)), vectors)
    with pytest.raises(AssertionError, match="read again"):
        other.frozen(text_of(batch))


def test_vectors_of_the_readers_that_were_not_asked_for_longest_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehrlab.nn.language.MOST_KEPT", 8)
    vectors = _Vectors()
    for reader in (b"a", b"b", b"a", b"c"):
        vectors.of(reader)[b"text"] = torch.zeros(2)
    assert [bool(vectors.of(reader)) for reader in (b"a", b"c", b"b")] == [True, True, False]


def test_a_language_model_that_knows_fewer_tokens_or_positions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SPEC.text is not None
    small = language_model().base
    monkeypatch.setattr("ehrlab.nn.language._tiny", lambda spec, dtype: small)
    with pytest.raises(InputError, match="same place"):
        LanguageModel(replace(SPEC.text, num_tokens=500))
    with pytest.raises(InputError, match=r"text\.max_tokens: expected at most the 64"):
        LanguageModel(replace(SPEC.text, max_tokens=65))


def test_adapters_of_layers_that_do_not_exist_are_refused_with_those_that_do() -> None:
    with pytest.raises(InputError, match=r"one of .*q_proj.*found c_attn"):
        language_model(targets=("c_attn",))


# ---- rivals
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_fit_five_admissions(name: str, batch: Batch) -> None:
    model = build_any(f"model={name}", spec=SPEC)
    known = batch.map(lambda t: t[:5])  # the last sample has neither tests nor text
    assert known.labels is not None
    phase = model.phases()[-1]
    if isinstance(phase, EstimatorPhase):
        phase.fit([known] * 20, [known])
    else:
        params = list(phase.turns[-1].params())
        optimiser = torch.optim.Adam(params, lr=0.01)
        for _ in range(60):
            set_gradients(params, phase.turns[-1].loss(known)["loss"])
            optimiser.step()
    assert torch.equal(model.eval()(known) > 0, known.labels.bool())


def test_boosting_stores_its_trees_as_tensors(batch: Batch) -> None:
    model, other = (build_any("model=labs_boosting", spec=SPEC) for _ in range(2))
    train(model, [batch] * 4)
    assert {value.dtype for value in chain(model.state_dict().values())} <= {torch.uint8, torch.long, torch.float32}
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch), model(batch))
    assert not torch.equal(model(batch)[0], model(batch)[-1])


@pytest.mark.parametrize("name", ["labs_boosting", "text_tfidf"])
def test_a_label_of_one_class_has_its_smoothed_share_as_risk(name: str, batch: Batch) -> None:
    assert batch.labels is not None
    labels = torch.cat([batch.labels[:, :2], torch.ones(6, 1)], dim=1)
    model = build_any(f"model={name}", spec=SPEC)
    one_class = replace(batch, labels=labels)
    train(model, [one_class])
    torch.testing.assert_close(model(batch)[:, 2].sigmoid(), torch.full((6,), 6.5 / 7))


def test_tfidf_equals_scikit_learns(batch: Batch) -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    model = build_any("model=text_tfidf", spec=SPEC)
    train(model, [batch])
    counts = model.counts(text_of(batch)).numpy()  # type: ignore[operator]
    x = torch.from_numpy(TfidfTransformer(sublinear_tf=True).fit_transform(counts).toarray()).float()
    expected = x @ model.weight.T + model.bias  # type: ignore[union-attr, operator]
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
