"""The parts that every report is made of: results, differences, curves, training curves, provenance."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ehrlab.evaluation.comparison import Difference, ResampledRow, row_interval
from ehrlab.evaluation.curves import SMALLEST_BIN, CalibrationBin, calibration_bins, precision_recall_curve, roc_curve
from ehrlab.evaluation.generation import RESAMPLED
from ehrlab.evaluation.metrics import FloatArray, Scores
from ehrlab.evaluation.oracle import SET_METRICS
from ehrlab.report.cohorts import PublishedCohorts, cohort_grid
from ehrlab.report.collect import (
    MAIN_METRIC,
    MEASURES,
    Group,
    Row,
    differences_to_first,
    holm_of,
    metric_header,
    show,
    show_difference,
    show_p,
    show_range,
    show_summary,
    stored_interval,
)
from ehrlab.report.document import Block, Code, Grid, Paragraph, Picture, Section
from ehrlab.report.figures import MOST_LINES, NO_SKILL, Bar, bars_figure, curves_figure, file_name, history_figure
from ehrlab.report.history import CURVES, read_choices, read_history
from ehrlab.report.runs import Run

BANNER = "SIMULATED DATA. No patient in it is real, and no number here is a finding or replicates a published one."
# Where, with what and under which number a run ran; not what it is.
_NOT_SETTINGS = frozenset({"seed", "paths", "hydra", "logger", "launcher", "experiment", "experiments", "baselines"})


def banner(groups: Iterable[Group]) -> str | None:
    return BANNER if any(group.simulated for group in groups) else None


def resampled_for_page(group: Group) -> dict[str, ResampledRow]:
    """What the sections of a group draw from; the resamples are most of the work of a page."""
    metrics = (*group.shown_metrics, *SET_METRICS, "kl") if group.has_oracle else group.shown_metrics
    if group.is_generators:
        metrics = (*metrics, *RESAMPLED)
    return group.resampled(list(dict.fromkeys(metrics)))


def results_section(group: Group, resampled: Mapping[str, ResampledRow]) -> Section:
    """Every row's mean, spread and interval, then the first row against each other one."""
    main = group.main_metric
    num_resamples = len(resampled[group.rows[0].name].resamples[main])
    rows = []
    for row in group.rows:
        cells = [row.name]
        for metric in group.shown_metrics:
            cells.append(with_interval(row, resampled[row.name], metric))
        rows.append(cells)
    counts = group.runs[0].metrics
    of_labels = (
        f" (sample, label)s of {len(group.labels)} labels, over which all but micro and subset numbers are averaged"
        if group.labels
        else ""
    )
    blocks: list[Block] = [
        Paragraph(
            f"{counts['num_samples']:,} test samples of {counts['num_subjects']:,} patients, "
            f"{counts['num_positive']:,} positive{of_labels}. Mean ± standard deviation over seeds (number of seeds), "
            f"and the 95 % interval of that mean under {num_resamples:,} bootstrap resamples of patients and seeds."
        ),
        Grid(["Model", *map(metric_header, group.shown_metrics)], rows),
    ]
    blocks += _undefined(group)
    if len(group.rows) > 1:
        found = differences_to_first(list(resampled.items()), main)
        adjusted, tested = holm_of([difference for _, difference in found])
        first = group.rows[0].name
        lines = [[name, *difference_cells(d, p, main, tested)] for (name, d), p in zip(found, adjusted)]
        blocks += [
            Paragraph(
                f"{first} minus each other row in {MEASURES[main].label}, on the same patients and seeds. {TEST} p is "
                f"two-sided, corrected by Holm's method for {tested} comparisons."
            ),
            Grid([f"{first} minus", "Difference", "95 % interval", "Holm p", "Seeds", "Detectable"], lines),
            Paragraph(DETECTABLE),
        ]
    return Section(f"Results: {group.title}", blocks)


ORACLE = (
    "The records are simulated by a known process, so the exact risk of each sample is known: its probability of being "
    "positive given an information set, by filtering over every hidden course that fits what was recorded. No model "
    "that is given no more can do better, but for chance."
)


def oracle_section(group: Group, resampled: Mapping[str, ResampledRow] | None = None) -> Section | None:
    """How far each row is from the exact risk given the same, beside what other information would be worth.

    None where no run has anything to say of an oracle: real data, and runs of versions without one.
    """
    title = f"Distance to the best possible: {group.title}"
    first = next((run for run in group.runs if run.reference is not None), None)
    if first is None:
        reasons = {str(run.metrics["oracle"]["reason"]) for run in group.runs if "oracle" in run.metrics}
        return (
            Section(title, [Paragraph(f"No exact risk: {reason}.") for reason in sorted(reasons)]) if reasons else None
        )
    metrics = (*SET_METRICS, "regret", "kl")
    if resampled is None:
        resampled = group.resampled(metrics)
    rows, bars = [], []
    for row in group.rows:
        cells = [with_interval(row, resampled[row.name], metric) for metric in metrics]
        rows.append([row.name, row.reference or "not known", *cells])
        interval = row_interval(resampled[row.name], MAIN_METRIC)
        bars.append(Bar(row.name, interval.value, interval.low, interval.high))
    sets = first.metrics["oracle"]["sets"]
    references = [name for name in sets if any(row.reference == name for row in group.rows)]
    for name, part in sets.items():
        cells = [_entry_with_interval(part[metric], metric) for metric in SET_METRICS]
        rows.append(["exact risk", name, *cells, show(0.0, "regret") if name in references else "–", "–"])
        main = stored_interval(part[MAIN_METRIC])
        bars.append(Bar(f"exact risk: {name}", main.value, main.low, main.high, is_reference=True))
    prior = first.prior
    lines = {f"exact risk: {name}": stored_interval(sets[name][MAIN_METRIC]).value for name in references}
    figure = bars_figure(
        file_name("distance", group.data, group.task, group.fingerprint[:8]),
        bars,
        {**lines, NO_SKILL: prior},
        metric_header(MAIN_METRIC),
        scale=100,
    )
    text = (
        f"Regret: {MEASURES[MAIN_METRIC].label} of the exact risk given the same as the model, minus the model's, on "
        f"the same resampled patients. KL: mean Kullback-Leibler divergence of the model's risk from that exact risk, "
        f"in nats; 0 is the exact risk itself. A constant risk has a PR-AUC of {show(prior, MAIN_METRIC)}. Rows of the "
        f"exact risk with more than a model is given say what that information would be worth; latent: the true hidden "
        f"state at the prediction time, beyond anything recorded."
    )
    caption = (
        "PR-AUC with 95 % intervals: models above, the exact risk given each information set below. Lines: the exact "
        "risk given what the models are given; dotted: no skill."
    )
    header = ["", "Given", *map(metric_header, metrics)]
    return Section(
        title, [Paragraph(ORACLE), Grid(header, rows), Paragraph(text), Picture(figure, caption, simulated=True)]
    )


TEST = (
    "Standard errors: patients by a paired bootstrap, seeds by their variance; Student's t. With one seed a difference "
    "is one of these two trained models, and says nothing of the methods' other seeds."
)
DETECTABLE = (
    "Detectable: the true difference that is found four times out of five, if it must pass the correction alone (p "
    "< .05 divided by the number of comparisons)."
)


def difference_cells(difference: Difference | str, adjusted_p: float, metric: str, tested: int) -> list[str]:
    """Difference, interval, p, seeds, detectable difference as one of `tested`; or why there is none."""
    if isinstance(difference, str):
        return [difference, "–", "–", "–", "–"]
    if difference.reason is not None:
        return [
            f"{show_difference(difference.value, metric)} ({difference.reason})",
            "–",
            "–",
            str(difference.num_seeds),
            "–",
        ]
    return [
        show_difference(difference.value, metric),
        f"[{show_difference(difference.low, metric)}, {show_difference(difference.high, metric)}]",
        show_p(adjusted_p),
        str(difference.num_seeds),
        show_difference(difference.detectable(tested), metric).removeprefix("+"),
    ]


def cohort_section(groups: Sequence[Group], published: PublishedCohorts | None) -> Section | None:
    table = cohort_grid(groups, published)
    if table is None:
        return None
    blocks: list[Block] = [table]
    if published:
        blocks.append(Paragraph(f"Published: {published.source}."))
    return Section("Cohorts", blocks)


def curves_section(group: Group) -> Section | None:
    """PR, ROC and calibration curves, the mean over seeds (and labels) of each row; None without risks."""
    if not all(run.has_probabilities for run in group.runs):
        return None
    precision_recall, roc, calibration = {}, {}, {}
    for row in group.rows[: MOST_LINES - 1]:
        sets = [scores for run in row.runs for scores in run.predictions.scores]
        precision_recall[row.name] = _mean_curve([precision_recall_curve(scores) for scores in sets])
        roc[row.name] = _mean_curve([roc_curve(scores) for scores in sets])
        calibration[row.name] = _pooled_calibration(sets)
    for run in {run.reference: run for run in reversed(group.runs) if run.reference is not None}.values():
        sets = run.oracle.predictions(run.predictions, run.reference or "").scores
        name = f"exact risk: {run.reference}"
        precision_recall[name] = _mean_curve([precision_recall_curve(scores) for scores in sets])
        roc[name] = _mean_curve([roc_curve(scores) for scores in sets])
        calibration[name] = _pooled_calibration(sets)
    sets = group.runs[0].predictions.scores
    prevalence = float(np.mean([scores.labels.mean() for scores in sets]))
    figure = curves_figure(
        file_name("probability" if group.is_generators else "curves", group.data, group.task, group.fingerprint[:8]),
        precision_recall,
        roc,
        calibration,
        prevalence,
    )
    caption = (
        f"Test set of {group.title}. Curves are means over seeds{' and labels' if group.labels else ''} on 101 grid "
        f"points; calibration bins hold at least {SMALLEST_BIN} samples per seed. Dotted: no skill (precision-recall, "
        "ROC), perfect calibration."
    )
    if len(group.rows) >= MOST_LINES:
        caption += f" The first {MOST_LINES - 1} of {len(group.rows)} rows are drawn."
    return Section(f"Curves: {group.title}", [Picture(figure, caption, group.simulated)])


def training_section(groups: Sequence[Group]) -> Section | None:
    """Losses and validation scores by epoch, one figure per row and phase, one line per seed."""
    blocks: list[Block] = []
    for group in groups:
        for row in group.rows:
            phases: dict[str, dict[str, dict[str, list[tuple[int, float]]]]] = {}
            chosen: dict[str, list[str]] = {}
            for run in row.runs:
                for phase, (settings, tried) in read_choices(run.folder).items():
                    chosen.setdefault(phase, []).append(f"{settings} of {tried} (seed {run.seed})")
                for phase, curves in read_history(run.folder).items():
                    for curve in CURVES:
                        if curve in curves:
                            lines = phases.setdefault(phase, {}).setdefault(curve, {})
                            lines[f"seed {run.seed}"] = curves[curve]
            for phase, curves_by_seed in phases.items():
                ordered = {curve: curves_by_seed[curve] for curve in CURVES if curve in curves_by_seed}
                place = (group.data, group.task, group.fingerprint[:8], row.name, row.runs[0].hash, phase)
                caption = f"{row.name} on {group.title}, phase {phase}: one line per seed."
                if phase in chosen:
                    caption += f" Chosen by validation: {', '.join(chosen[phase])}."
                figure = history_figure(file_name("training", *place), ordered)
                blocks.append(Picture(figure, caption, group.simulated))
    return Section("Training curves", blocks, folded=True) if blocks else None


def settings_section(group: Group) -> Section | None:
    """The settings in which the rows differ, so that a comparison of unequal protocols shows itself."""
    if len(group.rows) < 2:
        return None
    flat = {row.name: flatten(row.runs[0].config) for row in group.rows}
    keys = sorted({key for settings in flat.values() for key in settings})
    differing = [key for key in keys if len({repr(settings.get(key)) for settings in flat.values()}) > 1]
    if not differing:
        return Section(f"Settings: {group.title}", [Paragraph("All rows have the same settings.")], folded=True)
    rows = [[key, *(_setting(settings, key) for settings in flat.values())] for key in differing]
    return Section(f"Settings that differ between rows: {group.title}", [Grid(["Setting", *flat], rows)], folded=True)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, without what does not belong to the method (seed, paths, loggers).

    >>> flatten({"model": {"width": 8, "parts": [1, 2]}, "seed": 0})
    {'model.width': 8, 'model.parts': [1, 2]}
    """
    flat: dict[str, Any] = {}

    def visit(node: Any, key: str) -> None:
        if isinstance(node, Mapping) and node:
            for name, child in node.items():
                visit(child, f"{key}.{name}" if key else str(name))
        else:
            flat[key] = node

    visit({name: value for name, value in config.items() if name not in _NOT_SETTINGS}, "")
    return flat


def provenance_section(runs: Sequence[Run]) -> Section:
    """Where each number comes from: commit, data, device, time and memory per run; library versions once."""
    rows = []
    for run in runs:
        p = run.provenance
        commit = str(p["commit"])[:10] if p.get("commit") else "not recorded"
        if p.get("uncommitted_changes"):
            commit += " + uncommitted"
        rows.append(
            [
                run.row,
                f"{run.data} / {run.task}",
                str(run.seed),
                run.hash[:8],
                commit,
                run.fingerprint[:12] or "not recorded",
                str(p.get("device") or "not recorded"),
                _duration(p.get("wall_seconds")),
                _memory(p.get("peak_memory_mib")),
                _memory(p.get("peak_gpu_memory_mib")),
                str(p.get("finished") or "not recorded"),
            ]
        )
    where = ["Row", "Data", "Seed", "Config", "Commit", "Data hash"]
    how = ["Device", "Wall time", "Memory", "GPU memory", "Finished"]
    blocks: list[Block] = [Grid([*where, *how], rows)]
    versions = list(dict.fromkeys(_versions(run.provenance) for run in runs))
    blocks += [Paragraph(f"Versions: {text}.") for text in versions if text]
    return Section("Provenance", blocks, folded=True)


def reproduce_section(runs: Sequence[Run], first: str | None = None) -> Section:
    """Commands that make these runs again; finished ones are skipped and interrupted ones resumed."""
    commands = [first] if first else list(dict.fromkeys(_command(run) for run in runs))
    return Section("How to reproduce", [Code("\n".join(commands))])


def unfinished_section(number: int) -> Section | None:
    if not number:
        return None
    text = f"{number} runs were started and have not finished; they are not part of any number here."
    return Section("Unfinished runs", [Paragraph(text)])


def present(sections: Iterable[Section | None]) -> list[Section]:
    return [section for section in sections if section is not None]


def with_interval(row: Row, resampled: ResampledRow, metric: str) -> str:
    """Mean, spread and number of seeds; below, the interval."""
    interval = row_interval(resampled, metric)
    bounds = show_range(interval.low, interval.high, metric)
    return f"{show_summary(row.summary(metric), metric)}\n{bounds}".strip()


def _entry_with_interval(entry: Mapping[str, Any], metric: str) -> str:
    """The same of an entry of metrics.json."""
    stored = stored_interval(entry)
    return f"{show(stored.value, metric)}\n{show_range(stored.low, stored.high, metric)}".strip()


def _undefined(group: Group) -> list[Block]:
    """Why a metric has no value, once per reason."""
    reasons = {
        f"{MEASURES[metric].label} is undefined: {entry['reason']}."
        for run in group.runs
        for metric in group.shown_metrics
        if (entry := run.metrics["held_out"].get(metric, {})).get("value") is None and "reason" in entry
    }
    return [Paragraph(reason) for reason in sorted(reasons)]


def _mean_curve(curves: Sequence[FloatArray]) -> FloatArray:
    """Mean of the curves that exist; NaN everywhere where none does (a test set of one class)."""
    known = [curve for curve in curves if np.isfinite(curve).all()]
    return np.mean(known, axis=0) if known else np.full_like(curves[0], np.nan)


def _pooled_calibration(sets: Sequence[Scores]) -> list[CalibrationBin]:
    """Bins over all seeds and labels. A sample occurs once in each set, so the smallest bin grows with their number."""
    labels = np.concatenate([scores.labels for scores in sets])
    probabilities = np.concatenate([scores.probabilities for scores in sets])
    return calibration_bins(Scores(labels, probabilities), smallest=SMALLEST_BIN * len(sets))


def _setting(settings: Mapping[str, Any], key: str) -> str:
    """How a setting is shown.

    >>> _setting({"model.pretrained": "/home/me/results/phases/admission-8f83"}, "model.pretrained")
    'admission-8f83'
    """
    if key not in settings:
        return "–"
    value = settings[key]
    # Of a path its last part, as in the names of rows: a page may be passed on, the rest is where a machine keeps it.
    text = Path(value).name if isinstance(value, str) and Path(value).is_absolute() else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _memory(mebibytes: float | None) -> str:
    return "–" if mebibytes is None else f"{mebibytes:,.0f} MiB"


def _versions(provenance: Mapping[str, Any]) -> str:
    parts = {"python": provenance.get("python"), **provenance.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in parts.items() if version)


def _command(run: Run) -> str:
    if command := run.provenance.get("command"):
        return str(command)
    variant = f" variant={run.variant}" if run.variant != "none" else ""
    return f"python run.py model={run.model}{variant} data={run.data} task={run.task} seed={run.seed}"


def row_of(name: str, runs: Iterable[Run]) -> Row:
    return Row(name, tuple(sorted(runs, key=lambda run: run.seed)))
