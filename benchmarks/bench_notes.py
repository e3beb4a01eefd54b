"""Tokens per second of a frozen note encoder: batched by length beside a plain loop over the notes.

    python benchmarks/bench_notes.py [--notes 128] [--encoder minilm] [--precision fp32]      -> benchmarks/notes.json

Simulated discharge summaries and nursing notes, 256 tokens at most; a token is counted where it is real. Both ways make
the same vectors, which is checked, and take turns, so that a busy moment of the machine meets both. Reading the model
and writing the vectors are left out.
Target: with batches at least as fast as without; on a GPU many times.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import polars as pl
import torch
from torch import Tensor

import measuring
from ehrlab.nn.encode import PRECISIONS, TextEncoder, encode_ids, load_encoder
from ehrlab.simulation import simulate
from ehrlab.simulation.note_text import write_notes
from ehrlab.simulation.notes import facts

MAX_TOKENS, BATCH_SIZE = 256, 16
BATCHED, ONE_BY_ONE = "batched by length", "one by one"


def simulated_notes(number: int) -> pl.Series:
    """Their shares of summaries and nursing notes are the simulator's."""
    shard = next(simulate("heart_failure", "toy", number, seed=0))
    return write_notes(shard, facts(shard))["text"].head(number)


def one_by_one(encoder: TextEncoder, ids: list[list[int]]) -> Tensor:
    return torch.cat([encode_ids(encoder.model, [text], dim=encoder.dim, batch_tokens=1) for text in ids])


def batched(encoder: TextEncoder, ids: list[list[int]]) -> Tensor:
    return encode_ids(encoder.model, ids, dim=encoder.dim, batch_tokens=MAX_TOKENS * encoder.batch_size)


def timed(encode: Callable[[TextEncoder, list[list[int]]], Tensor], *arguments: object) -> tuple[float, Tensor]:
    start = time.perf_counter()
    vectors = encode(*arguments)  # type: ignore[arg-type]
    return time.perf_counter() - start, vectors


def main() -> None:
    parser = measuring.parser(__doc__, repeats=3)
    parser.add_argument("--notes", type=int, default=128)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    encoder = load_encoder(
        arguments.encoder, max_tokens=MAX_TOKENS, batch_size=BATCH_SIZE, precision=arguments.precision
    )
    notes = simulated_notes(arguments.notes).to_list()
    ids = encoder.tokenizer(notes, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    tokens = sum(map(len, ids))
    ways = {BATCHED: batched, ONE_BY_ONE: one_by_one}
    for encode in ways.values():
        encode(encoder, ids[: 2 * BATCH_SIZE])  # warm up
    rounds = []
    for _ in range(arguments.repeats):
        found = {way: timed(encode, encoder, ids) for way, encode in ways.items()}
        close = {"fp32": 1e-3, "bf16": 0.2}[arguments.precision]
        torch.testing.assert_close(found[BATCHED][1], found[ONE_BY_ONE][1], rtol=close, atol=close)
        rounds.append({way: seconds for way, (seconds, _) in found.items()})

    numbers = [
        measuring.number(f"encoding notes, {way}", "tokens/s", [tokens / taken[way] for taken in rounds])
        for way in ways
    ]
    ratios = [taken[ONE_BY_ONE] / taken[BATCHED] for taken in rounds]
    what = "encoding notes batched by length, times as fast as one by one"
    numbers.append(measuring.number(what, measuring.RATIO, ratios, at_least=1))
    setting = {
        "encoder": arguments.encoder,
        "precision": arguments.precision,
        "device": str(next(encoder.model.parameters()).device),
        "notes": len(notes),
        "tokens": tokens,
        "max_tokens": MAX_TOKENS,
        "batch_size": BATCH_SIZE,
        "threads": arguments.threads,
    }
    measuring.record("notes", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
