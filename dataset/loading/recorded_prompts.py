"""The prompts that a trained model is asked with again: of each kind and language of question, the one that it was trained on most."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from dataset.loading.sample_store import SampleStore
from dataset.sample import Language, Prompts, Task


def recorded_prompts(store: SampleStore) -> Prompts:
    """The prompt of most training samples of each kind and language; kinds and languages that mostly have none are left out."""
    recorded: dict[Task, dict[Language, str]] = {}
    for (task, language), counts in _by_kind(store):
        if counts[0]["prompt"]:
            recorded.setdefault(task, {})[language] = counts[0]["prompt"]
    return recorded


def conflicting_prompts(store: SampleStore) -> list[str]:
    """A sentence for each kind and language whose training samples do not all have the same prompt."""
    return [
        f"data.sources: {task} samples ({language}) have {len(counts)} different prompts; "
        f"the trained model will be asked with that of most of them: {_quoted(counts[0])}"
        for (task, language), counts in _by_kind(store)
        if len(counts) > 1
    ]


def _by_kind(store: SampleStore) -> Iterator[tuple[tuple[Task, Language], list[dict[str, Any]]]]:
    for kind, counts in groupby(store.prompt_counts("train"), lambda row: (row["task"], row["language"])):
        yield kind, list(counts)


def _quoted(row: dict[str, Any]) -> str:
    prompt = f'"{row["prompt"]}"' if row["prompt"] else "none"
    return f"{prompt} ({row['count']:,} samples)"
