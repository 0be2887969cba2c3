"""Report of a benchmark: an aligned table for the terminal, Markdown and JSON files."""

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

from atomic_io import write_json, write_text
from cpu_cores import available_cores

EMPTY_CELL = "-"
"""Content of a table cell without a number."""


@dataclass(frozen=True)
class BenchmarkReport:
    """Result of a benchmark.

    Args:
        title: heading.
        facts: name and value of each line above the table: what was measured, on which machine.
        columns: column names.
        rows: cells of each row as text.
        measured: the same numbers as JSON values.
    """

    title: str
    facts: dict[str, str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    measured: dict[str, Any]

    def text(self) -> str:
        """Title, facts and an aligned table."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [self.title, *(f"{name}: {value}" for name, value in self.facts.items()), ""]
        for row in (self.columns, ["-" * width for width in widths], *self.rows):
            cells = [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """Title, facts and table as a Markdown page."""
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        separator = "|" + "|".join(["---", *["---:"] * (len(self.columns) - 1)]) + "|"
        table = [_markdown_row(self.columns), separator, *(_markdown_row(row) for row in self.rows)]
        return "\n".join([f"# {self.title}", "", *facts, "", *table, ""])

    def save(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `name`.json and `name`.md into `folder`; returns both paths."""
        table, page = folder / f"{name}.json", folder / f"{name}.md"
        write_json(table, {"title": self.title, "facts": self.facts, **self.measured})
        write_text(page, self.markdown())
        return table, page


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and software of a measurement."""

    device: str
    cores: int
    threads: int
    software: str
    commit: str
    date: str

    @classmethod
    def current(cls, device: torch.device) -> "Machine":
        """This machine and the commit that is checked out."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
        return cls(
            device=name,
            cores=min(filter(None, (available_cores(), psutil.cpu_count(logical=False)))),
            threads=torch.get_num_threads(),
            software=f"torch {torch.__version__}, transformers {transformers.__version__}",
            commit=_commit(),
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
        )

    def facts(self) -> dict[str, str]:
        """Lines of a report."""
        return {
            "machine": f"{self.device}, {self.cores} cores, {self.threads} used by torch",
            "software": self.software,
            "commit": f"{self.commit}, {self.date}",
        }


def format_number(value: float | None, digits: int = 1, percent: bool = False) -> str:
    """Text of a table cell; None becomes a dash."""
    if value is None:
        return EMPTY_CELL
    return f"{value:.{digits}%}" if percent else f"{value:,.{digits}f}"


def text_or_dash(value: object | None) -> str:
    """Text of a table cell; None becomes a dash."""
    return EMPTY_CELL if value is None else str(value)


def _commit() -> str:
    """Commit of the code, with the suffix -dirty if files were changed; "unknown" outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        completed = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return completed.stdout.strip()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
