"""How codes are written and what they are called."""

from __future__ import annotations

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.codes import DEFAULT_KINDS, dotted, icd_bare, icd_metadata, icd_version, merge_kinds


@pytest.mark.parametrize(
    ("vocabulary", "bare", "printed"),
    [
        ("DIAGNOSIS//ICD//9", "4280", "428.0"),
        ("DIAGNOSIS//ICD//9", "00845", "008.45"),
        ("DIAGNOSIS//ICD//9", "496", "496"),
        ("DIAGNOSIS//ICD//9", "V1251", "V12.51"),
        ("DIAGNOSIS//ICD//9", "E8120", "E812.0"),
        ("DIAGNOSIS//ICD//9", "E812", "E812"),
        ("DIAGNOSIS//ICD//10", "I509", "I50.9"),
        ("DIAGNOSIS//ICD//10", "S72001A", "S72.001A"),
        ("DIAGNOSIS//ICD//10", "I10", "I10"),
        ("PROCEDURE//ICD//9", "3995", "39.95"),
        ("PROCEDURE//ICD//9", "0066", "00.66"),
        ("PROCEDURE//ICD//10", "02HV33Z", "02HV33Z"),
    ],
)
def test_dots_stand_where_the_code_books_put_them(vocabulary: str, bare: str, printed: str) -> None:
    assert pl.select(dotted(vocabulary, pl.lit(bare))).item() == printed


def test_icd_codes_of_different_etls_compare_equal() -> None:
    codes = pl.DataFrame({"code": ["DIAGNOSIS//ICD//10//I50.9", "DIAGNOSIS//ICD//10//I509", "ICD10CM/i50.9"]})
    found = codes.select(icd_bare(pl.col("code")).alias("bare"), icd_version(pl.col("code")).alias("version"))
    assert found.unique().rows() == [("I509", 10)]


def test_codes_that_are_not_icd_have_no_version() -> None:
    codes = pl.DataFrame({"code": ["LAB//50868//mEq/L", "DRUG//ICD//9//1", "PROCEDURE//CPT//99213"]})
    assert codes.select(icd_version(pl.col("code"))).to_series().to_list() == [None] * 3
    assert codes.select(icd_bare(pl.col("code"))).to_series().to_list() == [None] * 3


def test_both_icd_versions_share_the_ccs_group() -> None:
    codes = ["DIAGNOSIS//ICD//9//428.0", "DIAGNOSIS//ICD//10//I50.9", "PROCEDURE//ICD//9//39.95", "DRUG//ASPIRIN"]
    found = {row["code"]: row for row in icd_metadata(pl.Series(codes)).to_dicts()}
    assert set(found) == set(codes[:3])
    assert found[codes[0]]["ccs"] == found[codes[1]]["ccs"] == "108"
    assert found[codes[2]]["ccs"] is None
    assert found[codes[0]]["description"] == "Congestive heart failure, unspecified"
    assert found[codes[1]]["description"] == "Heart failure, unspecified"
    assert found[codes[2]]["description"] == "Hemodialysis"
    assert found[codes[0]]["parent_codes"] == ["DIAGNOSIS//ICD//9//428"]


def test_no_code_is_described_twice() -> None:
    # Ten ICD-9 codes stand under two CCS groups in AHRQ's file.
    listed = pl.Series(["DIAGNOSIS//ICD//9//" + f"{number:03d}" for number in range(1000)])
    assert icd_metadata(listed)["code"].to_list() == listed.to_list()


def test_kinds_of_a_config_replace_only_what_they_name() -> None:
    merged = merge_kinds({"drug": ["^RX/"]})
    assert merged["drug"] == ("^RX/",)
    assert {kind: merged[kind] for kind in DEFAULT_KINDS if kind != "drug"} == {
        kind: patterns for kind, patterns in DEFAULT_KINDS.items() if kind != "drug"
    }


@pytest.mark.parametrize(("kinds", "message"), [({"drugs": ["x"]}, "unknown kind"), ({"drug": ["("]}, "not a regular")])
def test_bad_kinds_are_refused(kinds: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merge_kinds(kinds)
