"""Raw CSV tables: found under any of their spellings, checked, and turned into event tables while they stream.

Nothing here reads a whole table. Every column is read as text, since codes have leading zeros and exports disagree
about types; a value that does not parse marks its row with a `Fault`, which travels with the row and is counted once
the table has been streamed (data.meds), so that checking costs no second pass over the file.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.codes import ICD_SHAPES, bare, dotted
from ehrlab.data.sources.source import EVENT_SCHEMA, MIB, EventTable, Fault

RARE = 0.01
"""Share of a table's rows that may hold a malformed code or number before the table is refused."""

HEAD_ROWS = 1000

TIME_FORMATS = {
    "YYYY-MM-DD HH:MM:SS": "%Y-%m-%d %H:%M:%S",
    "YYYY-MM-DD": "%Y-%m-%d",
    "YYYYMMDD": "%Y%m%d",
    "YYYY-MM-DDTHH:MM:SS": "%Y-%m-%dT%H:%M:%S",
    "YYYY-MM-DDTHH:MM:SSZ": "%Y-%m-%dT%H:%M:%SZ",
    "YYYY-MM-DD HH:MM:SS.ffffff": "%Y-%m-%d %H:%M:%S%.f",
    "YYYY-MM-DDTHH:MM:SS.ffffff": "%Y-%m-%dT%H:%M:%S%.f",
}
"""Accepted spellings of a time. A column has one, found from the first HEAD_ROWS rows."""


def expanded_size(path: Path) -> int:
    """Bytes of the file's content uncompressed, as a guess: 10 x for gzip (MIMIC's tables: 4 to 9), 8 x for Parquet."""
    factor = {".gz": 10, ".parquet": 8}.get(path.suffix.lower(), 1)
    return path.stat().st_size * factor


# ---------------------------------------------------------------------------------------------------- finding tables


class Folder:
    """The CSV files of a data folder and of its direct sub-folders, by table name."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise InputError(f"data.root {root}: expected a folder of raw tables, found none; correct the path")
        self.root = root
        self._found: dict[str, list[Path]] = {}
        for path in sorted([*root.glob("*"), *root.glob("*/*")]):
            match = re.fullmatch(r"(.+)\.csv(\.gz)?", path.name, flags=re.IGNORECASE)
            if match and path.is_file():
                self._found.setdefault(re.sub(r"[\s-]+", "_", match[1].lower()), []).append(path)

    def find(self, names: Sequence[str], subfolder: str | None = None) -> tuple[Path, ...]:
        """The file of a table, or the parts of a split one in numeric order; empty where there is none.

        `names` are tried in turn, in lower case. A table NAME is NAME.csv, NAME.csv.gz or NAME0001.csv, NAME0002.csv
        ... in any case. With `subfolder`, files elsewhere do not count.
        """
        for name in names:
            parts = [
                (int(number[1] or -1), path)
                for stem, paths in self._found.items()
                if (number := re.fullmatch(re.escape(name) + r"(?:_?(\d+))?", stem))
                for path in paths
                if subfolder is None or path.parent.name.lower() == subfolder
            ]
            if not parts:
                continue
            parts.sort(key=lambda part: (part[0], str(part[1])))
            numbers = [number for number, _ in parts]
            if len(set(numbers)) < len(numbers) or (-1 in numbers and len(numbers) > 1):
                listed = ", ".join(str(path.relative_to(self.root)) for _, path in parts[:4])
                raise InputError(
                    f"table {name} in {self.root}: expected one file, or one numbered series, found several spellings "
                    f"({listed}); remove the copies"
                )
            return tuple(path for _, path in parts)
        return ()

    def listing(self) -> str:
        """The table names present, for an error message."""
        names = sorted(self._found)
        return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "no CSV file"


class RawTable:
    """One table: its files, checked on opening, and its columns under the names that we call them.

    columns   the columns we read -> True where the table must have them. Names are matched whatever their case; one
              that is optional and absent reads as null.
    aliases   our name -> the name in the file, where an export differs
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        columns: Mapping[str, bool],
        aliases: Mapping[str, str] | None = None,
        may_be_empty: bool = False,
    ) -> None:
        self.name = name
        self.files = tuple(files)
        self.columns = tuple(columns)
        self._actual: list[dict[str, str]] = []
        heads: list[pl.DataFrame] = []
        for path in self.files:
            header = _head(path)
            by_lower: dict[str, str] = {}
            for column in header.columns:
                key = column.strip().lower()
                if key in by_lower:
                    raise InputError(f"table {name} ({path}): column {key!r} occurs twice; remove one")
                by_lower[key] = column
            wanted = {ours: (aliases or {}).get(ours, ours).lower() for ours in columns}
            missing = [wanted[ours] for ours, needed in columns.items() if needed and wanted[ours] not in by_lower]
            if missing:
                raise InputError(
                    f"table {name} ({path}): column {missing[0]!r} is missing; found {', '.join(by_lower)}. Name it in "
                    "the file, or map it in the config where the source allows that (data.source.columns)."
                )
            actual = {ours: by_lower[theirs] for ours, theirs in wanted.items() if theirs in by_lower}
            self._actual.append(actual)
            heads.append(_clean(header.lazy(), self.columns, actual).collect())
        self.head = pl.concat(heads)
        if self.head.is_empty() and not may_be_empty:
            raise InputError(
                f"table {name} ({_places(self.files)}): expected rows, found only the header; complete the file, or "
                "leave the table out of data.source.tables"
            )

    def scan(self) -> pl.LazyFrame:
        """All rows of all parts in order, every column as text without surrounding blanks.

        An empty field is null; "NA" is the text "NA", since a text column may mean it.
        """
        return pl.concat(
            _clean(pl.scan_csv(path, infer_schema=False), self.columns, actual)
            for path, actual in zip(self.files, self._actual)
        )

    def time_format(self, column: str) -> str | None:
        """The key of TIME_FORMATS that most of the column's first values have; None where they are all null.

        InputError where none of them has any.
        """
        values = self.head[column].drop_nulls()
        if values.is_empty():
            return None
        parsed: dict[str, int] = (
            pl.DataFrame({"value": values})
            .select(_parse(pl.col("value"), fmt).is_not_null().sum().alias(name) for name, fmt in TIME_FORMATS.items())
            .row(0, named=True)
        )
        best = max(parsed, key=lambda name: parsed[name])
        if parsed[best] == 0:
            raise InputError(
                f"table {self.name} ({_places(self.files)}): column {column!r} holds no dates: expected one of "
                f"{', '.join(TIME_FORMATS)}, found another form in each of the first {len(values)} values; convert it"
            )
        return best


def _clean(frame: pl.LazyFrame, columns: Iterable[str], actual: Mapping[str, str]) -> pl.LazyFrame:
    # In two steps: polars evaluates a repeated expression anew each time it stands in a query.
    stripped = frame.select(
        (pl.col(actual[name]).str.strip_chars() if name in actual else pl.lit(None, dtype=pl.String)).alias(name)
        for name in columns
    )
    return stripped.with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in actual)


def _head(path: Path) -> pl.DataFrame:
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror}); correct its permissions") from None
    if path.suffix.lower() == ".gz" and not is_gzip:
        raise InputError(f"{path}: expected gzip data, found something else; download the file again")
    try:
        return pl.scan_csv(path, infer_schema=False, n_rows=HEAD_ROWS).collect()
    except pl.exceptions.NoDataError:
        raise InputError(f"{path}: expected a header line, found an empty file; download the file again") from None
    except (pl.exceptions.PolarsError, OSError):
        _refuse_files(path.name, [path])


# ------------------------------------------------------------------------------------------------- failures in passing


@contextmanager
def reading(name: str, files: Sequence[Path]) -> Iterator[None]:
    """Turn what polars raises over a damaged file into one line that names it.

    Its own messages quote the data, so they are not passed on. A full disk is not the file's fault and goes through.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if "No space left on device" in str(error) or getattr(error, "errno", None):
            raise
        _refuse_files(name, files)


def _refuse_files(name: str, files: Sequence[Path]) -> NoReturn:
    damaged = [path for path in files if path.suffix.lower() == ".gz" and not _decompresses(path)]
    if damaged:
        raise InputError(
            f"table {name}: {damaged[0]} is truncated or damaged gzip data; download the file again"
        ) from None
    raise InputError(
        f"table {name} ({_places(files)}): expected comma-separated UTF-8 text with as many fields in every row as in "
        "the header and balanced quotes, found a row that is not; export the table again"
    ) from None


def _decompresses(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            while file.read(16 * MIB):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return True


def _places(files: Sequence[Path]) -> str:
    return ", ".join(str(p) for p in files[:3]) + (", ..." if len(files) > 3 else "")


# ---------------------------------------------------------------------------------------------------- rows to events


@dataclass(frozen=True)
class Event:
    """An event that a raw row gives. A null code means that the row does not give it."""

    code: pl.Expr
    time: pl.Expr | None = None
    numeric_value: pl.Expr | None = None
    text_value: pl.Expr | None = None


class Events:
    """A raw table on its way to events: typed columns, and the faults that its rows may have.

    The methods that name a column return an expression on the typed column and note what is wrong with a row where it
    does not parse. `missing` says what a null means: None = it may be null; a share = a fault with that tolerance.
    """

    def __init__(self, table: RawTable) -> None:
        self.table = table
        self.frame = table.scan()
        self.faults: list[Fault] = []
        self._wrong: list[pl.Expr] = []

    def refuse(self, wrong: pl.Expr, what: str, tolerance: float) -> None:
        """Note a fault: `wrong` is evaluated on the frame as it is when the events are made."""
        self._wrong.append(wrong)
        self.faults.append(Fault(what, tolerance))

    def label(self, column: str, unknown: str = "UNK") -> pl.Expr:
        """Upper case, for use within a code; `unknown` where null."""
        return pl.col(column).str.to_uppercase().fill_null(unknown)

    def integer(self, column: str, missing: float | None = 0.0) -> pl.Expr:
        """Int64. A value that is not an integer is never tolerated: it is an identifier or a rank."""
        return self._typed(column, pl.col(column).cast(pl.Int64, strict=False), "an integer", 0.0, missing)

    def number(self, column: str) -> pl.Expr:
        """Float32, null where absent."""
        return self._typed(column, pl.col(column).cast(pl.Float32, strict=False), "a number", RARE, None)

    def time(self, column: str, missing: float | None = 0.0) -> pl.Expr:
        """Datetime in microseconds. A malformed one is never tolerated."""
        name = self.table.time_format(column)
        formats = list(TIME_FORMATS) if name is None else [name]
        parsed = pl.coalesce(_parse(pl.col(column), TIME_FORMATS[n]) for n in formats)
        return self._typed(column, parsed, f"a date {name or ' or '.join(formats)}", 0.0, missing)

    def month_end(self, column: str) -> pl.Expr:
        """The last second of the month YYYYMM (also YYYY-MM), null where absent."""
        digits = pl.col(column).str.replace("-", "", literal=True)
        first = pl.when(digits.str.len_bytes() == 6).then(_parse(digits + "01", "%Y%m%d"))
        return self._typed(column, day_end(first.dt.month_end()), "a month YYYYMM", 0.0, None)

    def icd(self, column: str, kind: str, version: int | pl.Expr, where: pl.Expr | None = None) -> pl.Expr:
        """`kind`//ICD//<9 or 10>//<dotted code> for kind DIAGNOSIS or PROCEDURE; null where not `where`.

        Rows without a code are dropped and counted (MIMIC-III has some); malformed codes are tolerated while rare.
        """
        self.frame = self.frame.with_columns(bare(pl.col(column)).alias(f"{column} bare"))
        raw = pl.col(f"{column} bare")
        code = pl.lit(None, dtype=pl.String)
        for number in (9, 10) if isinstance(version, pl.Expr) else (version,):
            vocabulary = f"{kind}//ICD//{number}"
            fits = raw.str.contains(ICD_SHAPES[vocabulary])
            if isinstance(version, pl.Expr):
                fits &= version == number
            code = pl.when(fits).then(pl.lit(vocabulary + "//") + dotted(vocabulary, raw)).otherwise(code)
        what = f"an ICD-{version} {kind.lower()} code" if isinstance(version, int) else f"an ICD {kind.lower()} code"
        return self._typed(column, code, what, RARE, 1.0, where)

    def join(self, other: pl.DataFrame, left: pl.Expr, key: str) -> None:
        """Add the columns of `other`, whose `key` is unique, to the rows with `left` equal to it."""
        self.frame = self.frame.join(
            other.lazy(), left_on=left, right_on=key, how="left", maintain_order="left", coalesce=True
        )

    def collect(self) -> pl.DataFrame:
        """Read the table now; later calls work on the rows in memory. For tables with one row per patient or stay."""
        with reading(self.table.name, self.table.files):
            rows = self.frame.collect(engine="streaming")
        self.frame = rows.lazy()
        return rows

    def make(
        self,
        name: str,
        subject_id: pl.Expr,
        *events: Event,
        visit_id: pl.Expr | None = None,
        sequence: pl.Expr | None = None,
        keep: pl.Expr | None = None,
        is_roster: bool = False,
    ) -> EventTable:
        """The table of the rows' `events`, in the order given within a row; rows where not `keep` are passed over."""
        frame = self.frame if keep is None else self.frame.filter(keep)
        fault = pl.coalesce(
            [
                pl.when(wrong).then(pl.lit(number, dtype=pl.UInt8)).otherwise(None)
                for number, wrong in enumerate(self._wrong, start=1)
            ]
        )
        shared = {
            "subject_id": subject_id,
            "visit_id": _or_null(visit_id, pl.Int64()),
            "sequence": _or_null(sequence, pl.Int32()),
            "fault": fault,
        }
        own = [
            {
                "time": _or_null(event.time, EVENT_SCHEMA["time"]),
                "code": event.code,
                "numeric_value": _or_null(event.numeric_value, pl.Float32()),
                "text_value": _or_null(event.text_value, pl.String()),
            }
            for event in events
        ]
        if len(own) == 1:
            frame = frame.select(**shared, **own[0])
        else:
            # One pass over the file for all events of its rows: columns of lists, then one row per element.
            lists = {value: pl.concat_list(event[value] for event in own) for value in ("time", "code")}
            rank = pl.concat_list(pl.lit(number, dtype=pl.UInt8) for number in range(len(own)))
            frame = (
                frame.select(**shared, **lists, rank=rank)
                .explode("time", "code", "rank")
                .filter(pl.col("fault").is_null() | (pl.col("rank") == 0))  # a faulty row counts once
                .with_columns(numeric_value=_or_null(None, pl.Float32()), text_value=_or_null(None, pl.String()))
            )
        frame = frame.filter(pl.col("code").is_not_null() | pl.col("fault").is_not_null())
        return EventTable(
            name, frame.select(*EVENT_SCHEMA, "fault"), tuple(self.faults), self.table.files, is_roster=is_roster
        )

    def _typed(
        self,
        column: str,
        value: pl.Expr,
        expected: str,
        tolerance: float,
        missing: float | None,
        where: pl.Expr | None = None,
    ) -> pl.Expr:
        name = f"{column} typed"
        self.frame = self.frame.with_columns(value.alias(name))
        absent, typed = pl.col(column).is_null(), pl.col(name)
        malformed = ~absent & typed.is_null()
        self.refuse(
            malformed if where is None else malformed & where, f"a malformed {column} (expected {expected})", tolerance
        )
        if missing is not None:
            self.refuse(absent, f"no {column} (expected {expected})", missing)
        return typed


def day_end(time: pl.Expr) -> pl.Expr:
    """The last second of the day of `time`: where only the day is known, nothing of that day may come after."""
    return time.dt.truncate("1d") + pl.duration(days=1, seconds=-1)


def _parse(text: pl.Expr, fmt: str) -> pl.Expr:
    if "%H" in fmt:
        return text.str.to_datetime(fmt, time_unit="us", strict=False)
    day = text.str.to_date(fmt, strict=False).cast(pl.Datetime("us"))
    # The parser takes 2019044 for April 4th; without separators only the length tells.
    return pl.when(text.str.len_bytes() == 8).then(day) if fmt == "%Y%m%d" else day


def _or_null(value: pl.Expr | None, dtype: pl.DataType) -> pl.Expr:
    return pl.lit(None, dtype=dtype) if value is None else value.cast(dtype)
