"""Comparison of stored answers."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataset.loading.sample_store import SampleStore
from errors import TesseraError, UsageError
from evaluation.comparison.compare import FileComparison, MetricComparison, compare_files
from evaluation.comparison.external_predictions import FieldNames, Side, read_answer_file
from evaluation.statistics import holm
from tests.evaluation.conftest import Written
from tests.evaluation.fakes import questions, sample, write_store


def compared(
    a: Path | Sequence[Path],
    b: Path | Sequence[Path],
    store: SampleStore | None,
    choices: Sequence[str | None] = (None, None),
    fields: Sequence[str] = (),
) -> FileComparison:
    def opened() -> SampleStore:
        assert store is not None, "the merged data was opened"
        return store

    names = FieldNames.parse(fields)
    mine, theirs = (
        Side([paths] if isinstance(paths, Path) else paths, choice, names) for paths, choice in zip((a, b), choices, strict=True)
    )
    return compare_files(mine, theirs, opened, 200, 0)


@pytest.fixture
def files(written: Written) -> tuple[Path, Path]:
    folder = written.planned.out / "predictions"
    return folder / "careful.jsonl", folder / "dull.jsonl"


def test_two_files_give_the_figures_of_the_evaluation(written: Written, files: tuple[Path, Path]) -> None:
    result = compared(*files, written.planned.store)
    systems = written.evaluation_result.record()["systems"]
    official, m4c, _ = result.metrics
    assert result.questions == 25
    assert official.a == pytest.approx(systems["careful"]["choices"]["reranked"]["vqa_accuracy"])
    assert m4c.b == pytest.approx(systems["dull"]["choices"]["reranked"]["vqa_accuracy_m4c"])
    assert official.difference == pytest.approx(official.a - official.b)
    assert official.verdict == "a"
    assert "vqa_accuracy_m4c" in result.table()


def test_a_file_compared_with_itself_shows_no_difference(written: Written, files: tuple[Path, Path]) -> None:
    for metric in compared(files[0], files[0], written.planned.store).metrics:
        assert (metric.difference, metric.p_value, metric.verdict) == (0.0, 1.0, "not shown")


def test_two_choices_of_one_file_can_be_compared(written: Written, files: tuple[Path, Path]) -> None:
    result = compared(files[0], files[0], written.planned.store, ["reranked", "first"])
    assert result.metrics[0].difference > 0
    assert (result.a, result.b) == ((f"{files[0]} (reranked)",), (f"{files[0]} (first)",))


def without_line(path: Path, index: int, out: Path) -> Path:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    out.write_text("".join(lines[:index] + lines[index + 1 :]), encoding="utf-8")
    return out


def test_different_question_sets_are_an_error(written: Written, files: tuple[Path, Path], tmp_path: Path) -> None:
    shorter = without_line(files[1], 4, tmp_path / "shorter.jsonl")
    with pytest.raises(UsageError, match="the question sets differ: 1 of"):
        compared(files[0], shorter, written.planned.store)
    with pytest.raises(UsageError, match="the question sets differ: 1 of"):
        compared(shorter, files[0], written.planned.store)


def test_questions_that_are_not_in_the_data_are_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"of its 33 questions are not in .* is --config \(or --data\) the right one"):
        compared(*files, write_store(tmp_path, questions(2)))


def test_the_oracle_is_not_compared(written: Written, files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="--choice oracle: it uses the references"):
        compared(*files, written.planned.store, ["first", "oracle"])


def test_an_unfinished_file_and_an_invalid_line_are_reported(written: Written, files: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [json.loads(line) | {"choices": {}} for line in files[0].read_text(encoding="utf-8").splitlines()]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UsageError, match="has not finished"):
        compared(path, files[0], written.planned.store)
    path.write_text('{"sample_id": "x"}\n', encoding="utf-8")
    with pytest.raises(TesseraError, match="line 1: expected a prediction"):
        compared(path, files[0], written.planned.store)


def test_mcnemar_uses_exact_matches(written: Written, files: tuple[Path, Path]) -> None:
    official, _, exact = compared(*files, written.planned.store).metrics
    assert official.mcnemar is None
    assert exact.mcnemar is not None
    net = exact.mcnemar.only_a - exact.mcnemar.only_b
    assert net == round((exact.a - exact.b) * 25)


def test_holm_corrects_over_the_compared_metrics(written: Written, files: tuple[Path, Path]) -> None:
    metrics = compared(files[0], files[0], written.planned.store, ["reranked", "first"]).metrics
    p = [metric.p_value for metric in metrics]
    assert [metric.p_holm for metric in metrics] == holm(p) != p


def test_several_seeds_of_a_side_are_averaged_question_by_question(written: Written, files: tuple[Path, Path]) -> None:
    result = compared([files[0], files[1]], files[1], written.planned.store)
    single = compared(*files, written.planned.store)
    assert result.metrics[0].a == pytest.approx((single.metrics[0].a + single.metrics[0].b) / 2)
    assert result.metrics[0].difference == pytest.approx(single.metrics[0].difference / 2)
    assert result.metrics[2].mcnemar is None
    assert "a: 2 files, VQA accuracy" in result.table()


def records(path: Path) -> list[dict[str, Any]]:
    """Our predictions in the format of another tool: another id field, and the answer in a nested field."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"question_id": row["sample_id"], "meta": {"pred": [row["choices"]["reranked"]]}, "error": row["error"]} for row in rows]


def test_files_of_other_tools_are_read_by_their_field_names(written: Written, files: tuple[Path, Path], tmp_path: Path) -> None:
    ours = compared(files[1], files[1], written.planned.store)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"results": records(files[1])}, ensure_ascii=False), encoding="utf-8")
    result = compared(path, files[1], written.planned.store, fields=["id=question_id", "answer=meta.pred"])
    assert result.metrics[0].a == ours.metrics[0].a
    assert result.metrics[0].difference == 0.0
    table = tmp_path / "other.tsv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "prediction"])
        writer.writerows((record["question_id"], record["meta"]["pred"][0]) for record in records(files[1]))
    assert compared(table, files[1], written.planned.store, fields=["id=index", "answer=prediction"]).metrics == result.metrics


def test_a_line_separator_in_a_cell_does_not_end_the_record(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes('id,text\r\n1,a\u2028b\x0cc\r\n2,"d\ne"\r\n'.encode())
    assert read_answer_file(path, Side([path], fields=FieldNames("id", "text"))).answers == {"1": "a\u2028b\x0cc", "2": "d\ne"}


def with_references(path: Path, *answers: str, **fields: Any) -> Path:
    """A file of another tool with answers and references, two questions per image."""
    rows = [
        {"qid": i, "text": text, "gold": [{"answer": "red"}] * 3, "picture": f"{i // 2}.jpg", **fields} for i, text in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FIELDS = ["id=qid", "answer=text", "references=gold", "image=picture"]


def test_files_with_references_need_no_merged_data(tmp_path: Path) -> None:
    a, b = with_references(tmp_path / "a.jsonl", *["Red."] * 20), with_references(tmp_path / "b.jsonl", *["blue"] * 20)
    result = compared(a, b, None, fields=FIELDS)
    official, m4c, _ = result.metrics
    assert (official.a, m4c.a, m4c.b) == (0.0, 1.0, 0.0)
    assert (m4c.verdict, result.questions, result.images) == ("a", 20, 10)


def test_a_large_gain_is_shown_and_a_tiny_one_is_not(tmp_path: Path) -> None:
    rng = random.Random(5)
    base = ["red" if rng.random() < 0.6 else "blue" for _ in range(1000)]

    def improved(questions: int) -> list[str]:
        wrong = rng.sample([i for i, text in enumerate(base) if text == "blue"], questions)
        return ["red" if i in wrong else text for i, text in enumerate(base)]

    def comparison(answers: list[str]) -> MetricComparison:
        return compared(
            with_references(tmp_path / "new.jsonl", *answers), with_references(tmp_path / "old.jsonl", *base), None, fields=FIELDS
        ).metrics[0]

    large, tiny, none = comparison(improved(100)), comparison(improved(2)), comparison(base)
    assert large.difference == pytest.approx(0.1)
    assert large.verdict == "a"
    assert tiny.difference == pytest.approx(0.002)
    assert tiny.verdict == "not shown"
    assert (none.difference, none.p_value, none.verdict) == (0.0, 1.0, "not shown")
    assert tiny.minimum_detectable_effect is not None
    assert tiny.minimum_detectable_effect > 0.002


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "not a predictions file; name its fields"),
        (["id=qid"], "id=FIELD and answer=FIELD are required"),
        (["id=qid", "answer=text", "colour=x"], "--fields colour: expected KEY=FIELD"),
        (["id=qid", "answer=said"], "record 1: there is no field 'said'; it has qid, text"),
        (["id=picture", "answer=text"], "record 2: a second answer to 0.jpg; the first is record 1"),
        (["id=qid", "id=picture", "answer=text"], "--fields: id is given twice"),
    ],
)
def test_invalid_fields_are_reported(tmp_path: Path, fields: list[str], message: str) -> None:
    path = with_references(tmp_path / "a.jsonl", "red", "red")
    with pytest.raises(TesseraError, match=message):
        compared(path, path, None, fields=fields)


def test_an_ambiguous_id_is_an_error(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [sample(f"{source}/7", 0, "What?", ["red"] * 10) for source in ("vqa", "vqa_zh")])
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7, "answer": "red"}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="the question 7 may be any of vqa/7, vqa_zh/7"):
        compared(path, path, store, fields=["id=id", "answer=answer"])
    path.write_text('{"id": "vqa/7", "answer": "red"}\n', encoding="utf-8")
    assert compared(path, path, store, fields=["id=id", "answer=answer"]).questions == 1
