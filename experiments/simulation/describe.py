"""Writes the tables and the figure of docs/simulation.md that come from runs of the simulator:

    python experiments/simulation/describe.py            all of them: a quarter of an hour on a free core, 5 GiB
    python experiments/simulation/describe.py table1     or one: table1, information, calibration

No model is trained. Cohorts of whole records are built by the same code as in `python run.py`, in the same cache. Of
tasks about one stay or admission every eligible one of the patients is a sample, as in the project's cohorts; they are
taken from memory, because hourly charts of 20,000 patients fill gigabytes of tables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehrlab.data.clinical import ClinicalData
from ehrlab.data.meds import SPLITS
from ehrlab.data.prepare import VISITS
from ehrlab.evaluation.metrics import auroc, average_precision, pr_auc
from ehrlab.report.cohorts import STATISTICS, read_published_cohorts
from ehrlab.run.main import open_data, open_source, tables_of
from ehrlab.run.oracle import exact_risks
from ehrlab.simulation import icu, icu_risk, labs, notes, simulate
from ehrlab.simulation.label_risk import Admissions, is_coded, latent_risk, sign_of
from ehrlab.simulation.population import Shard

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
WHOLE_RECORDS = {
    "heart_failure": "mimic",
    "in_hospital_mortality": "mimic",
    "readmission_30d": "mimic",
    "kidney": "trinetx",
    "copd": "trinetx",
    "amnesia": "trinetx",
}
STAYS = {"arf_48h": "arf", "shock_48h": "shock", "mortality_48h": "mortality"}
TASKS = (*WHOLE_RECORDS, *STAYS, "ten_conditions")
NUM_PATIENTS = 20_000
MODALITIES = {"mimic": "[codes,labs,notes]", "trinetx": "[codes,labs]"}


def cohort(task: str, layout: str, num_patients: int, *overrides: str) -> tuple[ClinicalData, Known | None]:
    """The cohort, and its exact risks where `overrides` ask for modalities to know them from."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        arguments = [f"data={layout}", f"task={task}", f"data.simulation.num_patients={num_patients}", *overrides]
        cfg = compose("config", arguments)
    rule = instantiate(cfg.task)
    source = open_source(cfg, tables_of(VISITS, rule))
    data = open_data(cfg, source, rule, VISITS)
    if not overrides:
        return data, None
    exact = exact_risks(source, rule, data, Path(cfg.paths.cache))
    assert exact.table is not None, exact.reason
    samples = pl.concat([data.samples(split) for split in SPLITS])
    risks = exact.table.rows_of(samples.select("subject_id", "prediction_time"))
    sets = {name: risks[name].to_numpy()[:, None] for name in exact.table.sets}
    return data, Known(samples["boolean_value"].to_numpy()[:, None], sets)


@dataclass(frozen=True)
class Known:
    """Labels and exact risks by information set, each [sample, label]."""

    labels: NDArray[np.bool_]
    risks: dict[str, NDArray[np.float64]]

    @classmethod
    def joined(cls, parts: Sequence[Known]) -> Known:
        risks = {name: np.concatenate([part.risks[name] for part in parts]) for name in parts[0].risks}
        return cls(np.concatenate([part.labels for part in parts]), risks)


@cache
def known(task: str) -> Known:
    if task in WHOLE_RECORDS:
        layout = WHOLE_RECORDS[task]
        _, found = cohort(task, layout, NUM_PATIENTS, f"data.simulation.modalities={MODALITIES[layout]}")
        assert found is not None
        return found
    of_shard = partial(of_stays, outcome=STAYS[task]) if task in STAYS else of_admissions
    return Known.joined([of_shard(shard) for shard in simulate(task, "mimic", NUM_PATIENTS, seed=0)])


def of_stays(shard: Shard, outcome: str) -> Known:
    stays = icu.draw_stays(shard)
    found = icu_risk.outcome_risk(shard, stays, icu.draw_course(shard, stays))[outcome]
    return Known(found.happened[:, None], {"charts": found.charts[:, None], "latent": found.latent[:, None]})


def of_admissions(shard: Shard) -> Known:
    """The ten conditions, by the codes of conf/task/ten_conditions.yaml in ICD-9."""
    conditions = yaml.safe_load((ROOT / "conf" / "task" / "ten_conditions.yaml").read_text("utf-8"))["conditions"]
    codes = [
        {code for code in shard.vocabulary.codes if code.startswith(tuple(groups["icd9"]))}
        for groups in conditions.values()
    ]
    signs = [sign for group in codes if (sign := sign_of(shard.vocabulary, group))]
    assert len(signs) == len(codes)
    every = np.arange(len(shard.visits.patient))
    admissions = Admissions(shard, every)
    of_labs = labs.evidence(shard, labs.draw(shard))
    of_notes = notes.evidence(shard, notes.facts(shard), each_alone=True)
    told = {"labs": of_labs, "notes": of_notes, "labs+notes": of_labs * of_notes}
    risks = {name: admissions.risk(signs, evidence) for name, evidence in told.items()}
    return Known(is_coded(shard, every, codes), risks | {"latent": latent_risk(shard, every, signs)})


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
    """Means over labels where there are several."""
    rows = []
    for task in TASKS:
        found = known(task)
        every = range(found.labels.shape[1])
        for name, risks in found.risks.items():
            of_set = [
                np.mean([metric(found.labels[:, k], risks[:, k]) for k in every])
                for metric in (pr_auc, average_precision, auroc)
            ]
            rows.append([task, name, *(f"{100 * value:.1f}" for value in of_set)])
        prior = f"{100 * found.labels.mean():.1f}"
        rows.append([task, "prior", prior, prior, "50.0"])
    return markdown(["simulated cohort", "known", "PR-AUC", "average precision", "AUROC"], rows)


def calibration() -> str:
    """Reliability by deciles: mean exact risk, observed share and its binomial error under the exact risks."""
    rows = []
    canvas = Figure(figsize=(12, 5.4), layout="constrained")
    axes = canvas.subplots(2, 5)
    for ax, task in zip(axes.flat, TASKS, strict=True):
        found = known(task)
        samples, num_labels = found.labels.shape
        sets = list(found.risks)
        for name, risks in found.risks.items():
            z = np.concatenate([deciles(risks[:, k], found.labels[:, k])[3] for k in range(num_labels)])
            rows.append([task, name, f"{samples:,}", f"{risks.mean():.4f}", f"{found.labels.mean():.4f}",
                         f"{np.abs(z).max():.1f} of {len(z)}", f"{(z**2).mean():.2f}"])  # fmt: skip
            if name in ("codes+time", "latent", sets[-2]):
                said, seen, error, _ = deciles(risks.ravel(), found.labels.ravel())
                ax.errorbar(said, seen, 1.96 * error, fmt="o", markersize=3, linewidth=1, label=name)
        ax.plot([0, 1], [0, 1], ":", color="grey", linewidth=1)
        ax.set(title=task, xlabel="exact risk", ylabel="observed share")
        ax.legend(fontsize=7, frameon=False)
    canvas.suptitle("SIMULATED patients: deciles of the exact risk, 95 % binomial error")
    FIGURE.parent.mkdir(exist_ok=True)
    with matplotlib.rc_context({"font.size": 8}):
        canvas.savefig(FIGURE, dpi=110)
    head = ["simulated cohort", "known", "samples", "mean exact risk", "observed", "largest \\|z\\|", "mean z²"]
    return f"![Calibration](figures/{FIGURE.name})\n\n" + markdown(head, rows)


def deciles(risk: NDArray[np.float64], label: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Mean risk, observed share, its binomial error and the distance in errors, of ten bins of equal size."""
    bins = np.array_split(np.argsort(risk, kind="stable"), 10)
    said = np.array([risk[b].mean() for b in bins])
    seen = np.array([label[b].mean() for b in bins])
    error = np.array([np.sqrt((risk[b] * (1 - risk[b])).sum()) / len(b) for b in bins])
    # Where the truth leaves nothing open, there is no error, and must be none.
    distance = np.divide(seen - said, error, out=np.where(np.abs(seen - said) < 1e-9, 0.0, np.inf), where=error > 0)
    return [said, seen, error, distance]


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
