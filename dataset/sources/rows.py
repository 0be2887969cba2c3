"""Rows of tables: CSV, TSV, JSON lines, one JSON list, Parquet, and Arrow batches."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from dataset.record_validation import DropReason, InvalidRecordError, encoding_hint
from dataset.remote_files import FilePath, RemotePath
from dataset.sources.json_reader import decode_json, read_array
from dataset.sources.record import RecordLocation, Records, enumerate_records
from errors import TesseraError

ROWS_PER_BATCH = 64
"""Rows of a Parquet file decoded at a time; few, because rows may contain images."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_rows(path: FilePath, columns: Iterable[str] | None = None) -> Records:
    """The rows of a table in file order; its suffix says what it is: .csv, .tsv, .parquet, .json (one list), else JSON lines.

    Args:
        path: The file.
        columns: Of a Parquet file, the columns that are read where it has them; all by default.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        return delimited_rows(path, DELIMITERS[suffix])
    if suffix == ".json":
        return enumerate_records(read_array(path))
    return _parquet_rows(path, columns) if suffix == ".parquet" else _jsonl_rows(path)


def _jsonl_rows(path: FilePath) -> Records:
    with open_text(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = decode_json(line)
            except json.JSONDecodeError as error:
                hint = encoding_hint(line[:1000])
                raise TesseraError(f"{path}: not valid JSON at line {number} column {error.colno}: {error.msg}{hint}") from error
            yield RecordLocation("line", number), row


def delimited_rows(path: FilePath, delimiter: str) -> Records:
    """Rows by the names of the header; an empty field is null. A location is the line that a row begins on."""
    csv.field_size_limit(sys.maxsize)
    with open_text(path, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header, begins = next(rows, []), rows.line_num + 1
            for row in rows:
                if row:
                    yield RecordLocation("line", begins), _delimited_row(header, row)
                begins = rows.line_num + 1
        except csv.Error as error:
            raise TesseraError(f"{path}: line {rows.line_num}: {error}") from error


def _delimited_row(header: list[str], row: list[str]) -> dict[str, Any] | InvalidRecordError:
    if len(row) != len(header):
        return InvalidRecordError(DropReason.MISSING_FIELD, f"{len(row)} fields; the header names {len(header)}")
    return {name: value or None for name, value in zip(header, row, strict=True)}


def open_text(path: FilePath, newline: str | None) -> TextIO:
    """The file as UTF-8 without a byte order mark; bytes that are no UTF-8 become lone surrogates, so that only their record is dropped."""
    try:
        if isinstance(path, RemotePath):
            return io.TextIOWrapper(path.open(), encoding="utf-8-sig", errors="surrogateescape", newline=newline)
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline)
    except OSError as error:
        raise TesseraError(f"{path}: cannot be read ({error.strerror})") from error


def _parquet_rows(path: FilePath, columns: Iterable[str] | None) -> Records:
    try:
        # Mapped, if it is local: read otherwise, the pages of all row groups would be copied into memory.
        with for_arrow(path) as source, pq.ParquetFile(source, memory_map=True) as file:
            names = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            yield from arrow_rows(file.iter_batches(batch_size=ROWS_PER_BATCH, columns=names))
    except (pa.ArrowException, OSError) as error:
        raise TesseraError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from error


def for_arrow(path: FilePath) -> Any:
    """Context with what Arrow reads a file from."""
    return path.open() if isinstance(path, RemotePath) else nullcontext(path)


def parquet_columns(path: FilePath) -> list[str]:
    """The names of the columns of a Parquet file. Raises TesseraError when it is none."""
    try:
        with for_arrow(path) as source:
            return list(pq.read_schema(source).names)
    except (pa.ArrowException, OSError) as error:
        raise TesseraError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from error


def arrow_rows(batches: Iterable[pa.RecordBatch], first: int = 0) -> Records:
    """The rows of Arrow batches, numbered from `first`."""
    number = first
    for batch in batches:
        for row in range(batch.num_rows):
            yield RecordLocation("row", number), _arrow_row(batch.slice(row, 1))
            number += 1


def _arrow_row(batch: pa.RecordBatch) -> dict[str, Any] | InvalidRecordError:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except UnicodeDecodeError as error:
            return InvalidRecordError(DropReason.BAD_ENCODING, f"a text is not valid UTF-8: {error.reason}")
        except (pa.ArrowException, ValueError, ArithmeticError, LookupError, TypeError, ImportError) as error:
            # Such as a time beyond Python's years, or one of a time zone that is not installed.
            detail = f'"{name}" is of type {column.type} and has no value in Python ({" ".join(str(error).split())})'
            return InvalidRecordError(DropReason.MISSING_FIELD, detail)
    return row
