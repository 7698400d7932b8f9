"""Where prompts come from: a CSV, JSON, parquet or text file, or a data set of the Hugging Face hub."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechrefusal.errors import MechrefusalError, unless_secret
from mechrefusal.prompts.values import ASSISTANT, USER, as_text

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".parquet")
_COMPRESSED = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
_LINES = (".jsonl", ".ndjson")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]*))?(?::(?P<split>[\w.-]+))?")
_SAID_BY_THE_MODEL = ("target", "completion")
_LONGEST_FIELD = min(sys.maxsize, 2**31 - 1)
"""Characters of a CSV field; Python's own limit is 131,072."""


@dataclass(frozen=True)
class Row(Mapping[str, str]):
    """One row of a source, by lower-case column: its values as text, "" where they are missing.

    To look at a value that is no text, such as a list, is a MechrefusalError that names file, row and column, but for
    a conversation of one turn (`prompts.values.as_text`). `raw` has the values as the source holds them.
    """

    where: str
    number: int
    raw: Mapping[str, Any]

    def __getitem__(self, column: str) -> str:
        try:
            return as_text(self.raw[column], role=ASSISTANT if column in _SAID_BY_THE_MODEL else USER)
        except ValueError as error:
            raise MechrefusalError(f"{self.where}, row {self.number}: column '{column}' holds {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def text_or_json(self, column: str) -> str:
        """A value that nobody is asked: where it is no text, the JSON of it; "" without the column."""
        try:
            return self.get(column, "")
        except MechrefusalError:
            return json.dumps(self.raw[column], ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Rows:
    """Rows as they were read. `rows` pairs a row's number in its source, from 1, with the row; all have all columns."""

    where: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Row], ...]
    blank: int

    @classmethod
    def of(
        cls, where: str, columns: Iterable[str], records: Iterable[tuple[int, Mapping[str, Any]]], blank: int = 0
    ) -> "Rows":
        """Rows of these records; a column that a record does not have is missing there."""
        names = tuple(columns)
        lower = dict.fromkeys(name.lower() for name in names)
        return cls(
            where,
            names,
            tuple(
                (number, Row(where, number, {**lower, **{name.lower(): value for name, value in record.items()}}))
                for number, record in records
            ),
            blank,
        )

    def __post_init__(self) -> None:
        named = [name.lower() for name in self.columns if name]
        if len(set(named)) < len(named):
            twice = next(name for name in named if named.count(name) > 1)
            raise MechrefusalError(f"{self.where} has the column '{twice}' twice: rename one of the two")

    @property
    def lower_columns(self) -> list[str]:
        """The names of the columns in lower case."""
        return [name.lower() for name in self.columns]

    def require(self, *columns: str) -> None:
        """Raise unless every one of `columns` is there (capitals do not count)."""
        if missing := [column for column in columns if column.lower() not in self.lower_columns]:
            present = ", ".join(map(repr, self.columns))
            raise MechrefusalError(f"{self.where} has no column '{missing[0]}': found {present}")


def load(source: str | Path, *, one_a_line: bool = False, split: str | None = None) -> Rows:
    """The rows of `source`.

    An existing path is read as a file by its suffix: `.json` (a list of objects, or one a line), `.jsonl`, `.parquet`,
    `.tsv`, everything else as CSV, or, with `one_a_line`, as text whose lines are the column `prompt`; with `.gz`,
    `.bz2` or `.xz` behind the suffix it is decompressed. Anything that does not look like a path is a data set of the
    hub: `owner/name`, `owner/name:config`, `owner/name:config:split` or `owner/name::split`.

    Args:
        split: of a data set of the hub whose name has none.

    Raises:
        MechrefusalError: the file is missing, empty, not UTF-8 or malformed, or the hub has no such data set or
        cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise MechrefusalError(f"{path} is a folder: give the path of a file")
    if path.exists():
        return _from_file(path, one_a_line=one_a_line)
    looks_like_path = (
        isinstance(source, Path)
        or kind_of(path) in _SUFFIXES
        or path.suffix.lower() in _COMPRESSED
        or str(source).startswith((".", "/", "~", "\\"))
    )
    hub = _HUB_NAME.fullmatch(str(source))
    if looks_like_path or hub is None:
        raise MechrefusalError(
            f"{path} does not exist: give the path of a file, or a data set of the hub as owner/name"
        )
    return _from_hub(str(source), hub["name"], hub["config"] or None, hub["split"] or split)


def kind_of(path: str | Path) -> str:
    """The suffix that says what a file holds, in lower case: that before `.gz` of a compressed one."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() in _COMPRESSED else path.name).suffix.lower()


def text_of(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark and with `\\n` for every kind of line end."""
    try:
        text = _bytes_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MechrefusalError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if not text.strip():
        raise MechrefusalError(f"{path} is empty: give a file that holds prompts")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_of(path: Path) -> Any:
    """The value in a JSON file; the list of the values on its lines, where there is one a line."""
    text, kind = text_of(path), kind_of(path)
    try:
        if kind in _LINES:
            return _by_line(text)
        return json.loads(text)
    except json.JSONDecodeError as error:
        if kind not in _LINES and error.msg == "Extra data":  # lines under the suffix .json, as many tools write them
            try:
                return _by_line(text)
            except json.JSONDecodeError:
                pass
        raise MechrefusalError(f"{path} is not JSON ({error}): mend or replace the file") from error


def _by_line(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise MechrefusalError(f"{path} does not exist: give the path of a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MechrefusalError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    decompress = _COMPRESSED.get(path.suffix.lower())
    if decompress is None:
        return content
    try:
        return decompress(content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise MechrefusalError(
            f"{path} is no whole {path.suffix} file ({error}): get it again, or give it uncompressed"
        ) from error


def csv_rows(text: str, where: str, delimiter: str = ",") -> Rows:
    """The rows of a CSV text; a row that is longer than the header or an unclosed quote is an error."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    number = blank = 0
    try:
        for fields in _of_any_length(reader):
            if not header:
                header = [name.strip() for name in fields]
                continue
            number += 1
            if len(fields) > len(header):
                raise MechrefusalError(
                    f"{where} has {len(fields)} fields in the row that ends on line {reader.line_num}, for "
                    f"{len(header)} columns: quote the fields that hold commas"
                )
            if not any(value.strip() for value in fields):
                blank += 1
                continue
            values = fields + [""] * (len(header) - len(fields))
            rows.append((number, dict(zip(header, values, strict=True))))
    except csv.Error as error:
        raise MechrefusalError(
            f"{where} is not well-formed CSV at line {reader.line_num} ({error}): mend the file"
        ) from error
    return Rows.of(where, header, rows, blank)


def _of_any_length(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows of a CSV reader without the limit of a field's length, which is one of the whole process."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield from reader
    finally:
        csv.field_size_limit(before)


def _from_file(path: Path, *, one_a_line: bool) -> Rows:
    suffix = kind_of(path)
    if suffix in (".json", *_LINES):
        return _from_records(json_of(path), str(path))
    if suffix == ".parquet":
        return _from_records(_parquet(path), str(path))
    if one_a_line and suffix not in (".csv", ".tsv"):
        lines = [line.strip() for line in text_of(path).strip().split("\n")]
        rows = [(number, {"prompt": line}) for number, line in enumerate(lines, start=1) if line]
        return Rows.of(str(path), ("prompt",), rows, len(lines) - len(rows))
    return csv_rows(text_of(path), str(path), "\t" if suffix == ".tsv" else ",")


def _parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of a parquet file, without the index that pandas may have kept in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(_bytes_of(path)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise MechrefusalError(f"{path} cannot be read as parquet ({_line(error)}): mend or replace it") from error
    columns = [name for name in table.column_names if not name.startswith("__index_level_")]
    return table.select(columns).to_pylist()


def _from_records(records: Any, where: str) -> Rows:
    if not isinstance(records, list) or not all(isinstance(record, Mapping) for record in records):
        raise MechrefusalError(f"{where} does not hold a list of objects: give a JSON list with one object a prompt")
    named = [{str(name): value for name, value in record.items()} for record in records]
    return Rows.of(where, dict.fromkeys(name for record in named for name in record), enumerate(named, start=1))


def _from_hub(source: str, name: str, config: str | None, split: str | None) -> Rows:
    import datasets

    # The hub's client raises many unrelated classes: offline, not found, gated, no such configuration.
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        reason = _line(error) or type(error).__name__
        raise MechrefusalError(
            f"'{source}' is neither a file here nor a data set that the hub gave ({type(error).__name__}: {reason}): "
            "check the name and the network, or download the file and give its path"
        ) from unless_secret(error)
    if isinstance(loaded, Mapping):
        if len(loaded) != 1:
            prefix = f"{name}:{config or ''}"
            raise MechrefusalError(
                f"'{source}' has the splits {', '.join(loaded)}: choose one, as in '{prefix}:{next(iter(loaded))}'"
            )
        loaded = next(iter(loaded.values()))
    records: Iterable[Any] = loaded
    return _from_records([dict(record) for record in records], f"hub data set '{source}'")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
