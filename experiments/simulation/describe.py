"""Writes the tables and the figure of docs/simulation.md that come from runs of the simulator:

    python experiments/simulation/describe.py            all of them: about an hour on two cores
    python experiments/simulation/describe.py table1     or one: table1, information, calibration

No model is trained. Cohorts are built by the same code as in `python run.py`, in the same cache.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure

from ehrlab.data.meds import SPLITS
from ehrlab.data.prepare import ClinicalData, prepare
from ehrlab.evaluation.metrics import auroc, average_precision, pr_auc
from ehrlab.report.cohorts import STATISTICS, read_published_cohorts
from ehrlab.run.compose import plain
from ehrlab.run.main import open_source
from ehrlab.run.oracle import exact_risks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "simulation.md"
FIGURE = ROOT / "docs" / "figures" / "simulation_calibration.png"

# As many patients as give Table 1's number of cases.
FULL_SIZE = {
    "in_hospital_mortality": ("mimic", 12_950),
    "kidney": ("trinetx", 29_300),
    "copd": ("trinetx", 85_000),
    "amnesia": ("trinetx", 32_400),
}
PRESETS = {
    "heart_failure": "mimic",
    "in_hospital_mortality": "mimic",
    "readmission_30d": "mimic",
    "kidney": "trinetx",
    "copd": "trinetx",
    "amnesia": "trinetx",
}
NUM_PATIENTS = 20_000
MODALITIES = {"mimic": "[codes,labs,notes]", "trinetx": "[codes,labs]"}


def cohort(task: str, layout: str, num_patients: int, *overrides: str) -> tuple[ClinicalData, pl.DataFrame | None]:
    """The cohort, and its labels beside the exact risks where `overrides` ask for modalities to know them from."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        arguments = [f"data={layout}", f"task={task}", f"data.simulation.num_patients={num_patients}", *overrides]
        cfg = compose("config", arguments)
    source, rule = open_source(cfg), instantiate(cfg.task)
    cache = Path(cfg.paths.cache)
    data = prepare(source, rule, cache, split=plain(cfg.split), visits=plain(cfg.visits), simulated=True)
    if not overrides:
        return data, None
    exact = exact_risks(source, rule, data, cache)
    assert exact.table is not None, exact.reason
    samples = pl.concat([data.samples(split) for split in SPLITS])
    risks = exact.table.rows_of(samples.select("subject_id", "prediction_time"))
    return data, samples.select("boolean_value").hstack(risks.select(exact.table.sets))


def known(task: str) -> tuple[pl.DataFrame, list[str]]:
    layout = PRESETS[task]
    _, risks = cohort(task, layout, NUM_PATIENTS, f"data.simulation.modalities={MODALITIES[layout]}")
    assert risks is not None
    return risks, risks.columns[1:]


def table1() -> str:
    published = read_published_cohorts(ROOT / "experiments" / "meddiffusion" / "table1.csv")
    rows = []
    for task, (layout, num_patients) in FULL_SIZE.items():
        data, _ = cohort(task, layout, num_patients)
        paper = published.values[published.stands_beside[f"{layout}/{task}"]]
        cells = [f"{task} / {layout}", f"{num_patients:,}"]
        for name in STATISTICS:
            ours, theirs = float(getattr(data.cohort, name)), float(paper[name])
            digits = 2 if theirs < 1000 else 0
            cells.append(f"{ours:,.{digits}f} ({theirs:,.{digits}f}; {ours / theirs - 1:+.1%})")
        rows.append(cells)
    return markdown(["simulated cohort", "patients", *STATISTICS.values()], rows)


def information() -> str:
    rows = []
    for task in PRESETS:
        risks, sets = known(task)
        labels = risks["boolean_value"].to_numpy()
        for name in sets:
            found = [metric(labels, risks[name].to_numpy()) for metric in (pr_auc, average_precision, auroc)]
            rows.append([task, name, *(f"{100 * value:.1f}" for value in found)])
        rows.append([task, "prior", f"{100 * labels.mean():.1f}", f"{100 * labels.mean():.1f}", "50.0"])
    return markdown(["simulated cohort", "known", "PR-AUC", "average precision", "AUROC"], rows)


def calibration() -> str:
    """Reliability by deciles: mean exact risk, observed share and its binomial error under the exact risks."""
    rows = []
    canvas = Figure(figsize=(9, 6), layout="constrained")
    axes = canvas.subplots(2, 3)
    for ax, task in zip(axes.flat, PRESETS, strict=True):
        risks, sets = known(task)
        labels = risks["boolean_value"].to_numpy()
        for name in sets:
            risk = risks[name].to_numpy()
            bins = np.array_split(np.argsort(risk, kind="stable"), 10)
            mean = np.array([risk[b].mean() for b in bins])
            seen = np.array([labels[b].mean() for b in bins])
            error = np.array([np.sqrt((risk[b] * (1 - risk[b])).sum()) / len(b) for b in bins])
            z = (seen - mean) / error
            rows.append([task, name, f"{len(labels):,}", f"{mean @ [len(b) for b in bins] / len(labels):.4f}",
                         f"{labels.mean():.4f}", f"{np.abs(z).max():.1f}", f"{(z**2).mean():.2f}"])  # fmt: skip
            if name in ("codes+time", "latent", sets[-2]):
                ax.errorbar(mean, seen, 1.96 * error, fmt="o", markersize=3, linewidth=1, label=name)
        ax.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
        ax.set(title=task, xlabel="exact risk", ylabel="observed share")
        ax.legend(fontsize=7, frameon=False)
    canvas.suptitle("SIMULATED patients: deciles of the exact risk, 95 % binomial error")
    FIGURE.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"font.size": 8}):
        canvas.savefig(FIGURE, dpi=110)
    head = ["simulated cohort", "known", "samples", "mean exact risk", "observed", "largest \\|z\\| of 10", "mean z²"]
    return f"![Calibration](figures/{FIGURE.name})\n\n" + markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PARTS: dict[str, Callable[[], str]] = {"table1": table1, "information": information, "calibration": calibration}


def main(names: Sequence[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := set(names) - set(PARTS):
        sys.exit(f"describe.py: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))}")
    for name in names or PARTS:
        put(name, PARTS[name]())


def put(name: str, text: str) -> None:
    """In the place of the page that is marked for it."""
    begin, end = f"<!-- describe.py {name} -->", f"<!-- end {name} -->"
    before, opened, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        sys.exit(f"{PAGE}: expected a place marked {begin} ... {end}")
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
