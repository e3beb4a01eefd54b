"""Tokens per second of a language model that reads texts: our passes of similar length beside one text after another.

    python benchmarks/bench_language.py [--model smollm2] [--texts 16] [--repeats 3]      -> benchmarks/language.json

Texts of 20 to 128 tokens, half of them long. "A plain loop" reads one text after another; "padded batches" read 8 at a
time in the order they come, each padded to its longest, with an attention mask. All three give the same vectors. They
take turns, so that a busy moment of the machine meets them all. Training is a forward and backward pass through the
adapters on 8 texts.
Target: twice the tokens of a plain loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import measuring
from ehrlab.core.batch import Text
from ehrlab.core.spec import TextSpec
from ehrlab.nn.language import LanguageModel

NUM_TOKENS = {"smollm2": 49_152, "tiny": 1_000}
LONGEST, BATCH = 128, 8


def texts(model: str, num: int) -> Text:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, LONGEST + 1, (num,), generator=generator)
    lengths[::2] = LONGEST
    mask = torch.arange(LONGEST) < lengths[:, None]
    return Text(torch.randint(1, NUM_TOKENS[model], mask.shape, generator=generator) * mask, mask)


def part(text: Text, rows: slice) -> Text:
    """Some texts, as wide as their longest."""
    width = int(text.mask[rows].sum(1).max())
    return Text(text.ids[rows, :width], text.mask[rows, :width])


def ours(llm: LanguageModel, text: Text) -> Tensor:
    with torch.no_grad():
        return llm(text)


def plain_loop(llm: LanguageModel, text: Text) -> Tensor:
    with torch.no_grad():
        return torch.cat([llm(part(text, slice(i, i + 1))) for i in range(len(text.ids))])


def padded_batches(llm: LanguageModel, text: Text) -> Tensor:
    found = []
    with torch.no_grad():
        for i in range(0, len(text.ids), BATCH):
            some = part(text, slice(i, i + BATCH))
            states = llm.base(input_ids=some.ids, attention_mask=some.mask.long(), use_cache=False).last_hidden_state
            found.append(states[torch.arange(len(states)), some.mask.sum(1) - 1].float())
    return torch.cat(found)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = measuring.parser(__doc__, repeats=3)
    parser.add_argument("--model", default="smollm2", choices=sorted(NUM_TOKENS))
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    spec = TextSpec(arguments.model, NUM_TOKENS[arguments.model], LONGEST, pad_id=0)
    llm = LanguageModel(spec, dtype=arguments.dtype).eval()
    text = texts(arguments.model, arguments.texts)
    few = part(text, slice(0, BATCH))

    def training() -> None:
        llm(few).square().mean().backward()

    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(llm, text),
        "a plain loop": lambda: plain_loop(llm, text),
        "padded batches": lambda: padded_batches(llm, text),
    }
    vectors = {name: way() for name, way in ways.items()}  # warms up, too
    training()
    for name, found in vectors.items():
        if (alike := F.cosine_similarity(found, vectors["ours"]).min().item()) < 0.99:
            raise SystemExit(f"error: {name} gives other vectors (cosine {alike:.3f}).")
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(arguments.repeats)]
    trained = [seconds(training) for _ in range(arguments.repeats)]

    real, real_few = int(text.mask.sum()), int(few.mask.sum())
    numbers = []
    for name in ways:
        rates = [real / one[name] for one in rounds]
        numbers.append(measuring.number(f"reading text with {arguments.model}: {name}", "tokens/s", rates))
    rates = [real_few / taken for taken in trained]
    numbers.append(measuring.number(f"tuning adapters of {arguments.model}", "tokens/s", rates))
    for name, least in (("a plain loop", 2.0), ("padded batches", None)):
        ratios = [one[name] / one["ours"] for one in rounds]
        what = f"reading text with {arguments.model}: ours, times the tokens of {name}"
        numbers.append(measuring.number(what, measuring.RATIO, ratios, at_least=least))
    setting = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "texts": arguments.texts,
        "tokens": real,
        "longest": LONGEST,
        "threads": arguments.threads,
    }
    measuring.record("language", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
