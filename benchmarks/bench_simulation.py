"""Patients per second of the simulator on one core: drawing, writing raw tables, all modalities, and the exact filter.

    python benchmarks/bench_simulation.py [--patients 8192] [--repeats 5]      -> benchmarks/simulation.json

Every repeat runs in a fresh process and warms up on ten patients; CPU seconds leave that out, peak memory counts all.
Targets: 3,000 patients a second for kidney in the TriNetX layout (some 100 visits each), without writing; 300 with all
modalities; and the filter no slower than the simulation: it takes each patient's record up to 40 % of its weeks and
gives the law of the hidden state given codes and times, in a process that has drawn the patients uncounted.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

import measuring
from ehrlab.simulation import labs, notes, simulate, write_mimic3, write_trinetx
from ehrlab.simulation.chain import NUM_FAMILY, NUM_RISK
from ehrlab.simulation.filter import Filter, law
from ehrlab.simulation.icu import draw_course, draw_stays
from ehrlab.simulation.note_text import write_notes
from ehrlab.simulation.records import LAYOUTS, code_likelihood, read
from ehrlab.simulation.spec import population

WRITE = {"trinetx": write_trinetx, "mimic": write_mimic3}
LAYOUT = {"trinetx": "trinetx", "mimic": "mimic3"}
CASES = (("kidney", "trinetx"), ("heart_failure", "mimic"))
TARGET, TARGET_ALL = 3000, 300
SEEN = 0.4  # of the record's weeks, when the filter is asked: where the landmarks of the TriNetX cohorts lie


def draw(preset: str, layout: str, num_patients: int) -> tuple[int, int]:
    """Numbers of visits and codes drawn."""
    num_visits = num_codes = 0
    for shard in simulate(preset, layout, num_patients, 0):
        num_visits += len(shard.visits.patient)
        num_codes += len(shard.codes.code)
    return num_visits, num_codes


def draw_and_write(preset: str, layout: str, num_patients: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        WRITE[layout](Path(folder) / "raw", preset, num_patients, 0)


def draw_all(preset: str, layout: str, num_patients: int) -> None:
    """Codes, laboratory tests, hourly charts and the text of the notes, in memory."""
    for shard in simulate(preset, layout, num_patients, 0):
        labs.series(shard, labs.draw(shard))
        draw_course(shard, draw_stays(shard))
        write_notes(shard, notes.facts(shard))


def write_all(preset: str, layout: str, num_patients: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        modalities = ("codes", "labs", "charts", "notes")
        write_mimic3(Path(folder) / "raw", preset, num_patients, 0, modalities=modalities)


def filtered(preset: str, layout: str, num_patients: int) -> float:
    """CPU seconds of the filter alone, which takes all samples of a cohort at once, as `write_oracle` has it."""
    spec, source = population(preset, layout), LAYOUTS[LAYOUT[layout]]
    shards = list(simulate(preset, layout, num_patients, 0))
    clocks = [source.clock(shard) for shard in shards]
    entry = np.concatenate([days for _, days in clocks]).astype("datetime64[us]")
    landmark = entry + np.timedelta64(int(7 * SEEN * spec.shape.weeks), "D")
    samples = pl.DataFrame({"subject_id": np.concatenate([ids for ids, _ in clocks]), "prediction_time": landmark})
    records = read(shards, source, samples, [], lambda raw: raw)
    begun = time.process_time()
    for risk in range(NUM_RISK):
        histories, visits = records.histories(np.flatnonzero(records.risk == risk), spec.shape.weeks)
        flags = records.visit_flags[visits]
        shown, told = code_likelihood(spec.shape, flags), np.ones((len(visits), NUM_FAMILY))
        Filter(law(spec.shape, risk), histories).run(shown, told, same=flags @ (1 << np.arange(flags.shape[1])))
    return time.process_time() - begun


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--patients", type=int, default=8192)
    arguments = parser.parse_args()
    # Read by polars and by OpenMP when a measured process starts.
    os.environ.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1")
    numbers, sizes = [], {}
    for preset, layout in CASES:
        for task in (draw, draw_and_write):
            case = (preset, layout, arguments.patients)
            runs = [
                measuring.in_fresh_process(task, *case, warm_up=(preset, layout, 10)) for _ in range(arguments.repeats)
            ]
            target = TARGET if (task, layout) == (draw, "trinetx") else None
            what = f"simulating {preset} in the {layout} layout" + (", written" if task is draw_and_write else "")
            speeds = [arguments.patients / run.cpu_s for run in runs]
            numbers.append(measuring.number(what, "patients per CPU-s", speeds, at_least=target))
            numbers.append(measuring.number(what, "MiB", [run.peak_mib for run in runs]))
            if task is draw:
                num_visits, num_codes = runs[0].returned
                sizes[f"{preset}/{layout}"] = {
                    "visits_per_patient": round(num_visits / arguments.patients, 1),
                    "codes_per_visit": round(num_codes / num_visits, 2),
                }
        drawn = numbers[-4]["median"]
        case = (preset, layout, arguments.patients)
        runs = [
            measuring.in_fresh_process(filtered, *case, warm_up=(preset, layout, 10)) for _ in range(arguments.repeats)
        ]
        speeds = [arguments.patients / run.returned for run in runs]
        numbers.append(measuring.number(f"filtering {preset} in the {layout} layout", "patients per CPU-s", speeds))
        ratios = [speed / drawn for speed in speeds]
        what = f"filtering {preset} in the {layout} layout: speed over the simulation's"
        numbers.append(measuring.number(what, measuring.RATIO, ratios, at_least=1.0))
    case = ("heart_failure", "mimic", arguments.patients // 4)
    for what, task in (("drawn", draw_all), ("written", write_all)):
        runs = [measuring.in_fresh_process(task, *case, warm_up=(*case[:2], 10)) for _ in range(arguments.repeats)]
        speeds = [case[2] / run.cpu_s for run in runs]
        what = f"simulating heart_failure in the mimic layout, all modalities, {what}"
        numbers.append(measuring.number(what, "patients per CPU-s", speeds, at_least=TARGET_ALL))
        numbers.append(measuring.number(what, "MiB", [run.peak_mib for run in runs]))
    result = {"setting": {"patients": arguments.patients, "cores": 1}, "numbers": numbers, "sizes": sizes}
    measuring.record("simulation", result, arguments.folder)


if __name__ == "__main__":
    main()
