"""A phase that TRL trains: direct preference optimisation with a positive term, one checkpoint per target (RLTF).

Needs the extra `llm`. TRL's trainer is subclassed for the loss; what surrounds it is the bargain of every phase: a
folder that resumes, our loggers, our bar. Nothing of a patient is written to disk: pairs and reference
log-probabilities are made anew from the seed, and a checkpoint holds weights, optimiser and random states.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from lightning.pytorch.loggers import CSVLogger, Logger
from peft import LoraConfig, PeftModel, get_peft_model
from rich.progress import Progress
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerControl, TrainerState
from trl import DPOConfig, DPOTrainer

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.files import write_whole
from ehrlab.core.model import LossDict, Model, PreferencePhase
from ehrlab.core.spec import TokenSpec
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.sampler import BucketedBatches
from ehrlab.training.lit import derived_seed
from ehrlab.training.pairs import FIELDS, Pairs, Sequences, preference_pairs
from ehrlab.training.recipe import Recipe

log = logging.getLogger("ehrlab")
# Start-up lines, bars for every file that is written, and words about settings that TRL itself passes on.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()
warnings.filterwarnings("ignore", message=r"`(is_)?gradient_checkpointing` is deprecated", category=FutureWarning)

CHECKPOINTS = "checkpoints"
WHOLE = "WHOLE.json"
"""Written last into a checkpoint: SHA-256 of every other file. Without it a kill came while it was written."""

PRECISIONS = {"32-true": {}, "bf16-mixed": {"bf16": True}}
"""Lightning's names of what TRL can do, too."""


def preference_loss(
    chosen: Float[Tensor, " B"], rejected: Float[Tensor, " B"], beta: float, lambda_: float, mode: str
) -> Float[Tensor, ""]:
    """Mean over pairs; `chosen` and `rejected` are log policy(.|P) - log reference(.|P) of C and R.

    With D = chosen - rejected and p = max(0, -chosen):

    "outside"  -log sigmoid(beta D) + lambda p     RLTF's objective with its sign put right, docs/papers/rltf.md
    "inside"   -log sigmoid(beta (D - lambda p))   DPO-Positive (Pal et al. 2024, arXiv 2402.13228)
    """
    margin, positive = chosen - rejected, F.relu(-chosen)
    if mode == "inside":
        return -F.logsigmoid(beta * (margin - lambda_ * positive)).mean()
    assert mode == "outside", mode
    return -F.logsigmoid(beta * margin).mean() + lambda_ * positive.mean()


class PairCollator:
    """Numbers of pairs -> one batch: first all C behind their prompts, then all R behind the same, padded on the right.

    completion_mask is 1 at C and R. visit, age and place go to the model as they are; `fields` leaves some out for a
    model that does not know them.
    """

    def __init__(self, pairs: Pairs, fields: Sequence[str] = FIELDS) -> None:
        self.pairs, self.fields = pairs, fields
        self.reference: Tensor | None = None
        """ "N 2": log-probabilities of C and R under the reference model."""

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(numbers).numpy()
        width = int(self.pairs.lengths[rows].max())
        sides = [side.padded(rows, width) for side in (self.pairs.chosen, self.pairs.rejected)]
        mask = torch.cat([torch.from_numpy(mask) for mask, _ in sides])
        found = {name: torch.cat([torch.from_numpy(columns[name]) for _, columns in sides]) for name in self.fields}
        prompt = torch.from_numpy(self.pairs.prompt_length[rows]).repeat(2)
        batch = {
            "input_ids": found.pop("ids"),
            "attention_mask": mask.long(),
            "completion_mask": (mask & (torch.arange(width) >= prompt[:, None])).long(),
            **found,
        }
        if self.reference is not None:
            batch["ref_chosen_logps"], batch["ref_rejected_logps"] = self.reference[rows].unbind(1)
        return batch


class RecordCollator:
    """Numbers of pairs -> their records, as Batch(tokens=...) as a dict of tensors."""

    def __init__(self, pairs: Pairs) -> None:
        self.records = pairs.chosen

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(numbers).numpy()
        mask, columns = self.records.padded(rows, int(self.records.lengths[rows].max()))
        return {"mask": torch.from_numpy(mask)} | {name: torch.from_numpy(x) for name, x in columns.items()}


class _PairLoader(DataLoader[int]):
    """Transformers' Trainer tells an epoch to the loader itself; of a plain one it would never reach our batches."""

    batch_sampler: BucketedBatches

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class _HouseTrainer(Trainer):
    """A Trainer with our batches, our optimiser, and nothing sent or written that we did not ask for."""

    phase_name: str
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    batches: BucketedBatches

    def follow(self, phase_name: str, recipe: Recipe, lengths: Any, seed: int) -> None:
        """Optimiser and batches of the recipe: the order of an epoch depends on (seed, epoch) only."""
        self.phase_name, self.make_optimizer = phase_name, recipe.optimizer
        self.batches = BucketedBatches(lengths, recipe.batch_size, shuffle=True, seed=seed)
        self.remove_callback(PrinterCallback)

    @property
    def _policy(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def get_train_dataloader(self) -> DataLoader[int]:
        numbers: Any = range(len(self.batches.lengths))
        return _PairLoader(numbers, batch_sampler=self.batches, collate_fn=self.data_collator)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self.make_optimizer([p for p in self._policy.parameters() if p.requires_grad])
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        assert not return_outputs
        loss = self.loss_of(model, inputs)
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(
                f"phase '{self.phase_name}': the training loss is not finite in epoch {int(self.state.epoch or 0)}. "
                f"Lower training.phases.{self.phase_name}.optimizer.lr, or set its gradient_clip."
            )
        return loss

    def loss_of(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint is read by nobody but the run that resumes from it."""


class PairTrainer(_HouseTrainer, DPOTrainer):
    """TRL's trainer and loss, on pairs of tokens instead of texts."""

    def loss_of(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return self._compute_loss(model, inputs, return_outputs=False)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        """Nothing leaves a machine with patients' records."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Kept by the collator: TRL would write a file, and each number in it is about a patient."""
        collator = self.data_collator
        assert isinstance(collator, PairCollator)
        found = torch.empty(len(collator.pairs), 2)
        self._policy.eval()
        for rows in BucketedBatches(collator.pairs.lengths, batch_size, shuffle=False):
            inputs = self._prepare_inputs(collator(rows))
            found[rows] = torch.stack(self.compute_ref_log_probs(self._policy, inputs), dim=1).float().cpu()
        collator.reference = found
        return dataset


class CodeDPOTrainer(PairTrainer):
    """DPO with RLTF's positive term.

    The policy is asked as it generates, without dropout: with it, its log-ratio to a reference that was asked once
    would be noise, and at the start not 0.
    """

    def __init__(self, *args: Any, lambda_: float, dpop_mode: str, **kwargs: Any) -> None:
        self.lambda_, self.dpop_mode = lambda_, dpop_mode
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Tensor:
        seen: list[Tensor] = []

        def policy(**kwargs: Any) -> Any:
            was_training = model.training
            model.eval()
            found = model(**kwargs)
            model.train(was_training)
            seen.append(found.log_probs)  # 0 outside of C and R
            return found

        super()._compute_loss(policy, inputs, return_outputs)  # for its metrics; its loss is ours at lambda = 0
        chosen, rejected = seen[0].sum(1).chunk(2)
        chosen, rejected = chosen - inputs["ref_chosen_logps"], rejected - inputs["ref_rejected_logps"]
        self._metrics["train"]["positive_term"].append(F.relu(-chosen.detach()).mean().item())
        return preference_loss(chosen, rejected, self.beta, self.lambda_, self.dpop_mode)


class LikelihoodTrainer(_HouseTrainer):
    """Ordinary training on the same records, by the same loop: the SFT control."""

    def __init__(self, *args: Any, likelihood: Callable[[Batch], LossDict], **kwargs: Any) -> None:
        self.likelihood = likelihood
        super().__init__(*args, **kwargs)

    def loss_of(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        nobody = torch.zeros(len(inputs["ids"]), dtype=torch.long)
        batch = Batch(subject_id=nobody, prediction_time=nobody, tokens=Tokens(**inputs))
        with self.accelerator.autocast():
            return self.likelihood(batch)["loss"]


class _Keeper(TrainerCallback):
    """Scalars to our loggers once an epoch; checkpoints made whole, and the older ones removed."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = loggers

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        values = dict(kwargs["logs"])
        if "train_runtime" in values:  # the summary at the end
            return
        values.pop("epoch", None)
        named = {f"train/{name}": float(value) for name, value in values.items()}
        epoch = round(state.epoch or 0) - 1  # from 0, as Lightning counts
        for logger in self.loggers:
            logger.log_metrics({**named, "epoch": epoch}, step=state.global_step - 1)
            logger.save()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert args.output_dir is not None
        folder = Path(args.output_dir)
        last = folder / f"checkpoint-{state.global_step}"
        (last / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing here reads
        write_whole(last / WHOLE, json.dumps({path.name: _sha256(path) for path in last.iterdir()}))
        for other in folder.iterdir():
            if other != last:
                shutil.rmtree(other)


class _Bar(TrainerCallback):
    def __init__(self, name: str) -> None:
        self.name, self.progress = name, Progress(transient=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.task = self.progress.add_task(self.name, total=state.max_steps, completed=state.global_step)
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.progress.stop()


def run_preference(
    model: Model,
    phase: PreferencePhase,
    data: ClinicalData,
    recipe: Recipe,
    trainer: Callable[..., Any],
    folder: Path,
    seed: int,
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Train the phase's language model in place, from wherever its folder stands; returns the phase's record.

    trainer  the run's Lightning trainer, of which only the hardware settings are read

    Errors: InputError for a task without targets or records that hold one, a model of another vocabulary, several
    devices, a damaged checkpoint; FloatingPointError where the loss is no number.
    """
    settings = dict(getattr(trainer, "keywords", {}))
    spec = data.spec.tokens
    assert spec is not None, "a phase of view 'tokens' needs a model that requires them"
    lm = phase.language_model()
    assert isinstance(lm, PreTrainedModel)
    _check_fits(lm, spec, phase)
    pairs = preference_pairs(
        Sequences.of(data.sequences("train").frame()),
        spec,
        num_sequences=phase.num_sequences,
        positive_share=phase.positive_share,
        seed=derived_seed(seed, phase.name, "pairs"),
    )
    num_positive = int(pairs.positive.sum())
    log.info("phase '%s': %s", phase.name, _said(len(pairs), num_positive, phase))

    output = folder / CHECKPOINTS
    resume_from = last_checkpoint(output)
    hf = build_trainer(lm, phase, pairs, recipe, output, derived_seed(seed, phase.name), _hardware(settings))
    hf.add_callback(_Keeper([CSVLogger(folder, name="history"), *loggers]))
    if settings.get("enable_progress_bar") and sys.stdout.isatty():
        hf.add_callback(_Bar(phase.name))
    resumed_from = None
    if resume_from is not None:
        resumed_from = round(TrainerState.load_from_json(str(resume_from / "trainer_state.json")).epoch or 0) - 1
    hf.train(resume_from_checkpoint=str(resume_from) if resume_from is not None else None)

    device = str(hf.args.device)
    if isinstance(hf.model, PeftModel):
        hf.model.merge_and_unload()
    lm.__dict__.pop("forward", None)  # TRL's and accelerate's, around the class's own
    model.cpu().requires_grad_(True)
    return {
        "epochs": recipe.max_epochs,
        "pairs": len(pairs),
        "pairs_with_target": num_positive,
        "pairs_wanted": phase.num_sequences,
        "resumed_from_epoch": resumed_from,
        "device": device,
        "world_size": 1,
    }


def _check_fits(lm: PreTrainedModel, spec: TokenSpec, phase: PreferencePhase) -> None:
    vocabulary, context = lm.config.vocab_size, getattr(lm.config, "max_position_embeddings", spec.max_tokens)
    if vocabulary != spec.num_tokens or context < spec.max_tokens:
        raise InputError(
            f"phase '{phase.name}': expected a language model of {spec.num_tokens:,} tokens and a context of "
            f"{spec.max_tokens:,}, as the data have, found {vocabulary:,} and {context:,}. It was trained on other "
            "records or with other tokens.* settings; train it on these."
        )


def _said(num_pairs: int, num_positive: int, phase: PreferencePhase) -> str:
    text = f"{num_pairs:,} records, {num_positive:,} with the target"
    if num_pairs < phase.num_sequences:
        share = f"P={phase.positive_share:g}"
        text += f" ({phase.num_sequences:,} were asked for; at {share} the training split holds no more)"
    return text


def _hardware(settings: dict[str, Any]) -> dict[str, Any]:
    """Lightning's settings of the run as those of transformers; one device."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise InputError(
                f"preference tuning runs on one device, found {world}. What came before it is finished and kept: give "
                "the same command with trainer=gpu."
            )
    precision = str(settings.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise InputError(f"trainer.precision={precision}: preference tuning knows {', '.join(PRECISIONS)}")
    on_gpu = settings.get("accelerator", "cpu") in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    return {"use_cpu": not on_gpu, "bf16": False, **PRECISIONS[precision]}


def build_trainer(
    lm: PreTrainedModel,
    phase: PreferencePhase,
    pairs: Pairs,
    recipe: Recipe,
    output: Path,
    seed: int,
    hardware: Mapping[str, Any],
) -> CodeDPOTrainer | LikelihoodTrainer:
    """The trainer of a phase, reference log-probabilities computed; `output` is where its checkpoints go."""
    lm.requires_grad_(True).eval()
    seed_32 = seed % 2**31  # numpy takes no more
    common: dict[str, Any] = {
        "output_dir": str(output),
        "num_train_epochs": recipe.max_epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "max_grad_norm": recipe.gradient_clip,
        "lr_scheduler_type": "linear",
        "logging_strategy": "epoch",
        "save_strategy": "epoch",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed_32,
        **hardware,
    }
    lora = _adapters(lm, phase.lora_rank) if phase.lora_rank else None
    trainer: CodeDPOTrainer | LikelihoodTrainer
    if phase.likelihood is not None:
        args = _on_one_device(TrainingArguments(**common))
        transformers.set_seed(seed_32)  # adapters begin at random; TRL does this itself
        policy = lm if lora is None else get_peft_model(lm, lora)
        trainer = LikelihoodTrainer(policy, args, RecordCollator(pairs), likelihood=phase.likelihood)
    else:
        config = DPOConfig(
            **common,
            beta=phase.beta,
            precompute_ref_log_probs=True,
            disable_dropout=False,  # it would stay off; CodeDPOTrainer sees to it
            max_length=None,
            gradient_checkpointing=False,
        )
        trainer = CodeDPOTrainer(
            model=lm,
            args=_on_one_device(config),
            data_collator=PairCollator(pairs),
            train_dataset=datasets.Dataset.from_dict({"pair": range(len(pairs))}),
            processing_class=_special_tokens(),
            peft_config=lora,
            lambda_=phase.lambda_,
            dpop_mode=phase.dpop_mode,
        )
    trainer.follow(phase.name, recipe, pairs.lengths, seed)
    return trainer


def _adapters(lm: PreTrainedModel, rank: int) -> LoraConfig:
    """Beside every linear layer but the heads: of those, preferences reach the output's only, and it may be tied."""
    heads = [name for name, module in lm.named_children() if isinstance(module, nn.Linear)]
    # No task type: peft's causal wrapper passes on arguments that only text models know.
    return LoraConfig(r=rank, target_modules="all-linear", exclude_modules=heads)


def _on_one_device(args: TrainingArguments) -> TrainingArguments:
    """With several GPUs in sight, the Trainer would copy the model to all of them."""
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _special_tokens() -> PreTrainedTokenizerFast:
    """TRL asks it for the padding's id, and no more."""
    ids = {"<pad>": TokenSpec.PAD, "<bos>": TokenSpec.BOS, "<eos>": TokenSpec.EOS, "<unk>": TokenSpec.UNK}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(ids, unk_token="<unk>")),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )


def last_checkpoint(output: Path) -> Path | None:
    """The checkpoint to resume from; those that a kill left unfinished are removed. InputError for a damaged one."""
    whole = []
    for path in sorted(output.glob("checkpoint-*")):
        if (path / WHOLE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    if not whole:
        return None
    last = max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))
    expected: dict[str, str] = json.loads((last / WHOLE).read_text())
    for name, digest in expected.items():
        if not (last / name).is_file() or _sha256(last / name) != digest:
            raise InputError(
                f"checkpoint {last}: expected a checkpoint to resume from, found a damaged file ({name}). "
                f"Delete the folder {output} to train this phase again from its start."
            )
    return last


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
