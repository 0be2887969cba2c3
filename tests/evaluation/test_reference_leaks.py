"""No reference answer reaches an answerer, a candidate or a choice."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from answering.config import RerankConfig
from answering.protocol import Request
from tests.evaluation.fakes import COLORS, experiment, lines, mostly_right, questions, run, sample, write_store
from tests.fakes import FakeAnswerer, FakeScorer, always


def test_shuffled_and_planted_references_change_neither_candidates_nor_choices(tmp_path: Path) -> None:
    rows = questions(8) + questions(4, "validation")
    texts = []
    for name, change in (("as they are", None), ("shuffled", "shuffle"), ("planted", "plant")):
        answers = [row["answers"] for row in rows]
        if change == "shuffle":
            random.Random(1).shuffle(answers)
        changed = [
            {**row, "answers": ["mauve"] * 10 if change == "plant" else answer, "targets": ["mauve"] if change == "plant" else answer[:1]}
            for row, answer in zip(rows, answers, strict=True)
        ]
        out = tmp_path / name
        run(experiment(write_store(tmp_path / "data", changed), out), FakeAnswerer(mostly_right), scorer=FakeScorer(*COLORS))
        texts.append((out / "predictions" / "ours.jsonl").read_bytes())
    assert texts[0] == texts[1] == texts[2]


def test_no_request_contains_a_reference(tmp_path: Path) -> None:
    secret = "xyzzy"
    store = write_store(tmp_path / "data", [sample(f"s{i}", i, "What is this?", [secret] * 10) for i in range(3)])
    seen: list[Request] = []

    def record(request: Request) -> Sequence[tuple[str, float]]:
        seen.append(request)
        return [("nothing", -1.0)]

    run(experiment(store, tmp_path / "out"), FakeAnswerer(record), scorer=FakeScorer())
    assert len(seen) == 3
    assert secret not in repr([dataclasses.asdict(request) for request in seen])
    assert secret not in (tmp_path / "out" / "predictions" / "ours.jsonl").read_text(encoding="utf-8")


def test_an_answerer_without_right_candidates_scores_zero(tmp_path: Path) -> None:
    rows = [sample(f"s{i}", i, "What color is the disc?", [color] * 10) for i, color in enumerate(COLORS)]
    rows += [sample("v", 9, "What color is the disc?", ["red"] * 10, split="validation")]
    store = write_store(tmp_path / "data", rows)
    always_wrong = FakeAnswerer(always(("pink", -0.5), ("", -0.7), ("mauve", -1.0)))
    planned = experiment(store, tmp_path / "out", rerank=RerankConfig(tune=True))
    summary = run(planned, always_wrong, scorer=FakeScorer(*COLORS)).record()
    for name, measures in summary["systems"]["ours"]["choices"].items():
        assert measures["vqa_accuracy"] == measures["vqa_accuracy_m4c"] == measures["exact"] == 0.0, name
    for row in lines(tmp_path / "out" / "predictions" / "ours.jsonl"):
        candidates = {candidate["text"] or "unknown" for candidate in row["candidates"]}
        assert set(row["choices"].values()) <= candidates
