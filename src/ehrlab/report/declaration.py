"""What an experiment's page is to show, as declared in the `experiment:` block of experiments/<name>.yaml.

docs/evaluation.md lists the keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ehrlab.core.errors import InputError
from ehrlab.report.collect import MEASURES
from ehrlab.report.runs import Run

Kind = Literal["table", "landscape", "dose", "pairs", "cohorts", "synthetic_codes", "hidden_states"]
WITHOUT_METRICS = ("cohorts", "synthetic_codes", "hidden_states")
PRIOR = "prior"
"""In a claim of a dose-response study: the share of positives."""


@dataclass(frozen=True)
class RowSpec:
    """A row: its name in the index, its label on the page, its name in the published CSV.

    With `match` a run belongs to the row when its model, variant and row, or its settings (dotted keys), have these
    values; without it, when the index says so.
    """

    row: str
    label: str
    published: str | None
    match: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnSpec:
    """A column: our `data/task`, its label, its name in the published CSV and cohort table."""

    column: str
    label: str
    published: str | None


@dataclass(frozen=True)
class Claim:
    """What is said of `row` against each row of `over`, in its own direction: better in `metric`.

    Of a dose-response study also: `metric` of `row` (None: of every row) equals a number or the prior. It is judged at
    the doses `at` (empty: at each).
    """

    text: str
    row: str | None
    over: tuple[str, ...]
    metric: str
    equals: float | Literal["prior"] | None = None
    at: tuple[float, ...] = ()


@dataclass(frozen=True)
class Axis:
    """A dotted setting of the runs, and how it is drawn."""

    key: str
    label: str
    is_log: bool = False


@dataclass(frozen=True)
class Declaration:
    """An exhibit. Rows and columns that ran but are not declared are shown after the declared ones.

    axes    x and y of a landscape, x of a dose-response study
    oracle  information sets that a dose-response study draws beside the models (empty: what the models are given)
    """

    name: str
    title: str
    paper: str
    kind: Kind
    metrics: tuple[str, ...]
    rows: tuple[RowSpec, ...]
    columns: tuple[ColumnSpec, ...]
    claims: tuple[Claim, ...]
    axes: tuple[Axis, ...]
    oracle: tuple[str, ...]
    published: Path | None
    cohorts: Path | None
    note: str

    def label_of(self, run: Run, index: Mapping[Path, str]) -> str:
        """Label of the declared row that a run belongs to, or the index's name of an undeclared one."""
        for spec in self.rows:
            matches = all(setting(run, key) == value for key, value in spec.match.items())
            if matches if spec.match else index[run.folder] == spec.row:
                return spec.label
        return index[run.folder]


_KEYS = frozenset(
    {"name", "title", "paper", "kind", "metrics", "rows", "columns", "claims", "axes", "oracle", "published", "cohorts"}
    | {"note"}
)


def parse_declaration(content: Mapping[str, Any], name: str) -> Declaration:
    """Check an `experiment:` block. Raises InputError naming the key."""
    where = f"experiment {name}"
    if unknown := sorted(set(content) - _KEYS):
        raise InputError(f"{where}: unknown keys {unknown}; expected {sorted(_KEYS)}")
    kind = content.get("kind", "table")
    if kind not in get_args(Kind):
        raise InputError(f"{where}: kind should be one of {', '.join(get_args(Kind))}, found {kind!r}")
    for key in ("title",) if kind in WITHOUT_METRICS else ("title", "metrics"):
        if not content.get(key):
            raise InputError(f"{where}: expected an entry {key}, found none")
    if kind in WITHOUT_METRICS and (unused := sorted({"metrics", "claims"} & {k for k, v in content.items() if v})):
        raise InputError(f"{where}: kind {kind} shows no metrics, found {' and '.join(unused)}")
    metrics = tuple(content.get("metrics") or ())
    rows = tuple(
        RowSpec(str(_need(r, "row", where)), str(r.get("label") or r["row"]), r.get("published"), r.get("match") or {})
        for r in content.get("rows") or ()
    )
    columns = tuple(
        ColumnSpec(str(_need(c, "column", where)), str(c.get("label") or c["column"]), c.get("published"))
        for c in content.get("columns") or ()
    )
    named = {spec.row for spec in rows}
    if len(named) < len(rows) or len({spec.label for spec in rows}) < len(rows):
        raise InputError(f"{where}: two rows have the same row or label; found {[(r.row, r.label) for r in rows]}")
    claims = tuple(_claim(c, kind, metrics[0], named, where) for c in content.get("claims") or ())
    if kind == "pairs" and not (claims and all(len(claim.over) == 1 for claim in claims)):
        raise InputError(
            f"{where}: in kind pairs each claim is a pair, with one row in over; found {len(claims)} claims"
        )
    if strangers := sorted({*metrics, *(claim.metric for claim in claims)} - set(MEASURES)):
        raise InputError(f"{where}: unknown metrics {strangers}; expected some of {list(MEASURES)}")
    if any(claim.equals is None and MEASURES[claim.metric].better == 0 for claim in claims):
        raise InputError(f"{where}: a claim needs a metric with a better direction")
    if content.get("oracle") and kind != "dose":
        raise InputError(f"{where}: oracle belongs to kind dose, found kind {kind}")
    return Declaration(
        name=str(content.get("name") or name),
        title=str(content["title"]),
        paper=str(content.get("paper") or ""),
        kind=kind,
        metrics=metrics,
        rows=rows,
        columns=columns,
        claims=claims,
        axes=_axes(content.get("axes") or {}, kind, where),
        oracle=tuple(map(str, content.get("oracle") or ())),
        published=Path(content["published"]) if content.get("published") else None,
        cohorts=Path(content["cohorts"]) if content.get("cohorts") else None,
        note=str(content.get("note") or ""),
    )


def setting(run: Run, key: str) -> Any:
    """model, variant or row of a run, or the setting at a dotted key (None where there is none)."""
    if key in ("model", "variant", "row"):
        return getattr(run, key)
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def number_at(run: Run, axis: Axis) -> float:
    """A run's place on an axis; a switch is at 0 or 1. Raises InputError for anything else."""
    value = setting(run, axis.key)
    if not isinstance(value, bool | int | float):
        raise InputError(f"{run.folder / 'config.yaml'}: axis {axis.key} should be a number, found {value!r}")
    return float(value)


def _claim(entry: Mapping[str, Any], kind: Kind, metric: str, named: set[str], where: str) -> Claim:
    text, equals = str(_need(entry, "text", where)), entry.get("equals")
    at = entry.get("at", ())
    if kind != "dose" and (equals is not None or at != ()):
        raise InputError(f"{where}: equals and at belong to the claims of kind dose, found kind {kind}")
    row = None if entry.get("row") is None else str(entry["row"])
    over: tuple[str, ...] = ()
    if equals is None:
        row, over = str(_need(entry, "row", where)), tuple(map(str, _need(entry, "over", where)))
    else:
        if equals != PRIOR and (isinstance(equals, bool) or not isinstance(equals, int | float)):
            raise InputError(f"{where}: equals should be a number or {PRIOR}, found {equals!r}")
        if entry.get("over"):
            raise InputError(f"{where}: a claim has either over or equals, found both")
    if strangers := sorted({*over, *([row] if row else [])} - named):
        raise InputError(f"{where}: a claim names the rows {strangers}, which are not among the rows {sorted(named)}")
    doses = at if isinstance(at, list | tuple) else [at]
    return Claim(text, row, over, str(entry.get("metric") or metric), equals, tuple(map(float, doses)))


def _axes(entry: Mapping[str, Any], kind: Kind, where: str) -> tuple[Axis, ...]:
    wanted = {"landscape": ("x", "y"), "dose": ("x",)}.get(kind, ())
    known = {name for axis in wanted for name in (axis, f"{axis}_label")} | ({"x_scale"} if kind == "dose" else set())
    if unknown := sorted(set(entry) - known):
        raise InputError(f"{where}: unknown axes {unknown}; kind {kind} has {sorted(known)}")
    scale = entry.get("x_scale", "linear")
    if scale not in ("linear", "log"):
        raise InputError(f"{where}: x_scale should be linear or log, found {scale!r}")
    return tuple(
        Axis(str(_need(entry, axis, where)), str(entry.get(f"{axis}_label") or entry[axis]), scale == "log")
        for axis in wanted
    )


def _need(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if entry.get(key) in (None, "", []):
        raise InputError(f"{where}: expected {key} in each entry, found only {sorted(entry)}")
    return entry[key]
