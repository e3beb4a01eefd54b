"""Generation with CHIRon: our loop with a preallocated cache beside `generate` of transformers on the same model.

    python benchmarks/bench_generation.py [--repeats 5] [--size small]      -> benchmarks/generation.json

64 prompts of 64 tokens, 256 new tokens each, 8,000 tokens in the vocabulary; both sample at temperature 1, and both end
a row at <eos>. transformers runs with its default cache and only reads ids; ours also counts visits, keeps to the rules
of a record and draws ages and places. They take turns, so that a busy moment of the machine meets both.
Target: faster than transformers in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

import torch

import measuring
from ehrlab.core.batch import Tokens
from ehrlab.core.spec import DataSpec, TokenSpec
from ehrlab.models.chiron import Chiron
from ehrlab.training.runner import seed_model

NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 64, 64, 256
TOKENS = TokenSpec(num_tokens=8_000, num_places=12, max_tokens=512, max_visits=48, first_code=20)
SPEC = DataSpec(2, 1, 50, 40, 2, (0.5,), tokens=TOKENS)
CODES_PER_VISIT = 7
WARM_UP = 1


def prompts(unequal: bool) -> Tokens:
    """<bos>, then visits of seven codes; of 64 tokens each, or of 33 to 64."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(TOKENS.first_code, TOKENS.num_tokens, (NUM_PROMPTS, PROMPT_TOKENS), generator=generator)
    ids[:, 0] = TokenSpec.BOS
    ids[:, 1 :: CODES_PER_VISIT + 1] = TokenSpec.VISIT
    length = torch.full((NUM_PROMPTS,), PROMPT_TOKENS)
    if unequal:
        length = torch.arange(NUM_PROMPTS) % 32 + 33
    mask = torch.arange(PROMPT_TOKENS) < length[:, None]
    ids = ids * mask
    visit = (ids == TokenSpec.VISIT).cumsum(1) * mask
    return Tokens(ids=ids, visit=visit, age=40 * mask + visit, place=visit % 12, mask=mask)


def ours(model: Chiron, prompt: Tokens) -> int:
    found = model.generate(prompt, NEW_TOKENS, torch.Generator().manual_seed(0), temperature=1.0)
    return int(found.mask.sum() - prompt.mask.sum())


def transformers(model: Chiron, prompt: Tokens) -> int:
    """Its own count of new tokens: up to and with <eos>. Its prompts are padded on the left."""
    torch.manual_seed(0)
    padding = PROMPT_TOKENS - prompt.mask.sum(1)
    ids = torch.stack([row.roll(int(shift)) for row, shift in zip(prompt.ids, padding)])
    found = model.lm.generate(
        ids,
        attention_mask=(ids != TokenSpec.PAD).long(),
        do_sample=True,
        top_k=0,
        temperature=1.0,
        max_new_tokens=NEW_TOKENS,
    )
    return int((found[:, PROMPT_TOKENS:] != TokenSpec.PAD).sum())


def timed(function: Callable[[Chiron, Tokens], int], model: Chiron, prompt: Tokens) -> tuple[float, float]:
    """Seconds, and new tokens per second: rows that end early are less work."""
    start = time.perf_counter()
    num_tokens = function(model, prompt)
    seconds = time.perf_counter() - start
    return seconds, num_tokens / seconds


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--size", default="small")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seed_model(0)
    model = Chiron(SPEC, arguments.size).eval()

    rivals = {"ours": ours, "transformers": transformers}
    numbers = []
    for name, prompt in (("64 tokens", prompts(unequal=False)), ("33 to 64 tokens", prompts(unequal=True))):
        rounds = [
            {rival: timed(function, model, prompt) for rival, function in rivals.items()}
            for _ in range(WARM_UP + arguments.repeats)
        ][WARM_UP:]
        for rival in rivals:
            seconds, rates = ([taken[rival][i] for taken in rounds] for i in (0, 1))
            numbers.append(measuring.number(f"generation, prompts of {name}, {rival}", "s", seconds))
            numbers.append(measuring.number(f"generation, prompts of {name}, {rival}", "new tokens/s", rates))
        ratios = [taken["ours"][1] / taken["transformers"][1] for taken in rounds]
        what = f"new tokens per second of ours, prompts of {name}, times those of transformers"
        numbers.append(measuring.number(what, measuring.RATIO, ratios, at_least=1.0))
    setting = {
        "model": f"chiron {arguments.size}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": TOKENS.num_tokens,
        "prompts": NUM_PROMPTS,
        "new_tokens": NEW_TOKENS,
        "threads": arguments.threads,
        "transformers": version("transformers"),
    }
    measuring.record("generation", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
