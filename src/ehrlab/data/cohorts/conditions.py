"""Which of several conditions are coded in an admission: the multi-label task of MEDFuse (arXiv 2407.12309).

The codes of an admission are known when it is over, and they are the labels; so the input is what was measured and
written by then, and never a code. docs/tasks.md says where the ten conditions come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.cache import content_key
from ehrlab.data.codes import bare, icd_bare, icd_version
from ehrlab.data.cohorts.task import ALL_INPUTS, VALUES, Cohort, Task, as_strings, finish
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import admissions, with_admissions

ADMISSIONS = ("all", "last")
VERSIONS = {"icd9": 9, "icd10": 10}


@dataclass(frozen=True)
class Conditions(Task):
    """One sample per admission, predicted at its discharge, with a label per condition.

    conditions  name -> {icd9, icd10}: beginnings of the codes that mean it; dots and case do not matter
    evidence    kinds of event of which an admission must show one by its discharge; [] asks for none
    admissions  "all", or each patient's "last" of those that qualify
    """

    unit: ClassVar[str] = "admission"
    inputs: ClassVar[frozenset[str]] = ALL_INPUTS - {"visits", "tokens", "codes"}
    # Labs and notes even where a model reads neither: which admissions are samples must not hang on the model.
    tables: ClassVar[frozenset[str]] = frozenset({"diagnoses", "labs", "notes"})

    conditions: Mapping[str, Mapping[str, Sequence[str]]]
    evidence: Sequence[str] = ("lab", "note")
    admissions: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "evidence", as_strings(self.evidence, "task.evidence"))
        if self.admissions not in ADMISSIONS:
            raise InputError(f"task.admissions: expected one of {', '.join(ADMISSIONS)}, found '{self.admissions}'")
        if len(self.conditions) < 2:
            raise InputError(f"task.conditions: expected at least two, found {len(self.conditions)}")
        found = {}
        for name, groups in self.conditions.items():
            # Names are also names of files.
            if not re.fullmatch(r"\w[\w-]*", str(name)):
                raise InputError(f"task.conditions: expected names of letters, digits, _ and -, found '{name}'")
            where = f"task.conditions.{name}"
            if not isinstance(groups, Mapping) or (unknown := sorted(set(groups) - set(VERSIONS))):
                odd = f"'{unknown[0]}'" if isinstance(groups, Mapping) else f"'{groups}'"
                raise InputError(f"{where}: expected lists icd9 and icd10, found {odd}")
            prefixes = {version: _bare(groups.get(version, ()), f"{where}.{version}") for version in VERSIONS}
            if not any(prefixes.values()):
                raise InputError(f"{where}: expected the beginning of a code in icd9 or icd10, found none")
            found[str(name)] = prefixes
        object.__setattr__(self, "conditions", found)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.conditions)

    def fingerprint(self) -> str:
        return content_key(super().fingerprint(), self.labels)  # a mapping's own key forgets the order

    def codes(self, meds: MedsDataset) -> pl.DataFrame:
        """code, label (its number): the data set's diagnosis codes that mean a condition, whatever their spelling."""
        code = pl.col("code")
        diagnoses = meds.codes().filter(meds.is_kind("diagnosis")).select("code")
        parts = [pl.DataFrame(schema={"code": pl.String, "label": pl.Int64})]
        for i, groups in enumerate(self.conditions.values()):
            # By version: the ICD-9 code E860 and the ICD-10 code E86.0 are one text without dots.
            means = pl.any_horizontal(
                (icd_version(code) == VERSIONS[version]) & icd_bare(code).str.starts_with(prefix)
                for version, prefixes in groups.items()
                for prefix in prefixes
            )
            parts.append(diagnoses.filter(means).with_columns(label=pl.lit(i, pl.Int64)))
        return pl.concat(parts)

    def cohort(self, meds: MedsDataset) -> Cohort:
        if unknown := sorted(set(self.evidence) - set(meds.kinds)):
            raise InputError(
                f"task.evidence: unknown kind '{unknown[0]}'; expected some of {', '.join(sorted(meds.kinds))}"
            )
        known = admissions(meds)
        candidates = known.with_row_index("sample").with_columns(prediction_time="discharged")
        # Inputs are those of the admission that began last: at a discharge, another may have begun.
        again = with_admissions(candidates.select("sample", "subject_id", "prediction_time"), known)
        alone = candidates.filter((again["visit_id"] == candidates["visit_id"]).fill_null(False))
        shown = alone.join(self._with_evidence(meds, alone), on="sample", how="semi", maintain_order="left")
        kept = shown
        if self.admissions == "last":
            kept = shown.group_by("subject_id", maintain_order=True).last()
        labels = self._labels(meds, kept)
        value = [pl.col("label").list.contains(i).fill_null(False) for i in range(len(self.labels))]
        samples = kept.join(labels, on="sample", how="left", maintain_order="left").with_columns(
            pl.concat_list(value).alias(VALUES)
        )
        wanted = " or ".join(self.evidence)
        return finish(
            samples,
            {
                "admissions at whose end another had begun": candidates.height - alone.height,
                f"admissions without a {wanted}": alone.height - shown.height,
                "admissions before the last": shown.height - kept.height,
            },
        )

    def _with_evidence(self, meds: MedsDataset, candidates: pl.DataFrame) -> pl.DataFrame:
        """sample: those of `candidates` that show something."""
        if not self.evidence:
            return candidates.select("sample")
        has_content = pl.col("numeric_value").is_finite() | (pl.col("text_value").str.strip_chars() != "")
        is_note = meds.is_kind("note")
        # A note that is dated without a time closes its day, and belongs to a discharge on that day.
        events = meds.scan().filter(meds.is_kind(*self.evidence) & has_content)
        found = _of_admissions(
            events.select(
                "subject_id",
                "visit_id",
                "time",
                since=pl.when(is_note).then(pl.col("time").dt.truncate("1d")).otherwise("time"),
            ),
            candidates,
        )
        shown = (
            found.filter(pl.col("since") <= pl.col("discharged")).select("sample").unique().collect(engine="streaming")
        )
        if shown.is_empty():
            kinds = ", ".join(self.evidence)
            raise InputError(
                f"task '{self.name}': no admission shows any event of the kinds {kinds}. Read their tables "
                "(data.source.tables=[..., labs, notes]), or set task.evidence."
            )
        return shown

    def _labels(self, meds: MedsDataset, samples: pl.DataFrame) -> pl.DataFrame:
        """sample, label: the numbers of the conditions that are coded in it; samples with one."""
        codes = self.codes(meds)
        if codes.is_empty():
            raise InputError(
                f"task '{self.name}': the data hold no diagnosis code of task.conditions. Read the table of diagnoses "
                "(data.source.tables=[diagnoses, ...]; kinds.diagnosis for other codes), or correct the conditions."
            )
        events = meds.scan().join(codes.lazy(), on="code").select("subject_id", "visit_id", "time", "label")
        return (
            _of_admissions(events, samples).group_by("sample").agg(pl.col("label").unique()).collect(engine="streaming")
        )


def _of_admissions(events: pl.LazyFrame, candidates: pl.DataFrame) -> pl.LazyFrame:
    """`events` with the columns sample and discharged of their admission: the one whose visit_id they have; without a
    visit_id, each that lasts at their time."""
    of = candidates.lazy().select("sample", "subject_id", "visit_id", "admitted", "discharged")
    named = events.join(of, on=["subject_id", "visit_id"])
    lasts = pl.col("time").is_between(pl.col("admitted"), pl.col("discharged"))
    nameless = events.filter(pl.col("visit_id").is_null()).join(of.drop("visit_id"), on="subject_id").filter(lasts)
    return pl.concat([named, nameless], how="diagonal")


def _bare(codes: Sequence[str], setting: str) -> tuple[str, ...]:
    texts = pl.DataFrame({"code": as_strings(codes, setting)}, schema={"code": pl.String})
    found = tuple(texts.select(bare(pl.col("code"))).to_series())
    if "" in found:
        raise InputError(f"{setting}: expected the beginning of a code, found an empty text; all codes begin with it")
    return found
