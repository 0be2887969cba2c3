"""References in either file, ids of other data, and what counts as wrong without an answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataset.loading.sample_store import SampleStore
from errors import TesseraError, UsageError
from evaluation.comparison.compare import FileComparison, compare_files
from evaluation.comparison.external_predictions import FieldNames, Side
from tests.evaluation.fakes import questions, sample, write_store


def side(path: Path, *fields: str) -> Side:
    return Side([path], fields=FieldNames.parse(fields), only_fields=True)


def compared(a: Side, b: Side, store: SampleStore | None = None) -> FileComparison:
    def opened() -> SampleStore:
        assert store is not None, "the merged data was opened"
        return store

    return compare_files(a, b, opened, 200, 0)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Answers of two models to ten questions, in one file without references."""
    return write(tmp_path / "answers.jsonl", [{"id": i, "one": "red", "two": "blue"} for i in range(10)])


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    """Another model's answers to the same questions, with references as Python writes lists."""
    return write(tmp_path / "gold.jsonl", [{"qid": f"set/{i}", "said": "red", "refs": "['red', 'dark red']"} for i in range(10)])


def test_images_of_the_file_without_references_group_the_questions(gold: Path, tmp_path: Path) -> None:
    rows = [{"id": i, "said": "red", "photo": f"{i // 5}.jpg"} for i in range(10)]
    pictured = side(write(tmp_path / "b.jsonl", rows), "id=id", "answer=said", "image=photo")
    assert compared(side(gold, "id=qid", "answer=said", "references=refs"), pictured).images == 2


@pytest.mark.parametrize("turned", [False, True])
def test_references_may_stand_in_either_file(answers: Path, gold: Path, turned: bool) -> None:
    sides = side(answers, "id=id", "answer=two"), side(gold, "id=qid", "answer=said", "references=refs")
    exact = compared(*(sides[::-1] if turned else sides)).metrics[2]
    assert (exact.a, exact.b) == ((1.0, 0.0) if turned else (0.0, 1.0))


def test_two_answers_of_one_file_are_compared_with_references_of_it(tmp_path: Path) -> None:
    file = write(tmp_path / "both.jsonl", [{"id": i, "one": "red", "two": "blue", "gold": "red"} for i in range(10)])
    result = compared(side(file, "id=id", "answer=one", "references=gold"), side(file, "id=id", "answer=two"))
    assert (result.a, result.b) == ((f"{file} (one)",), (f"{file} (two)",))
    assert (result.metrics[2].a, result.metrics[2].b) == (1.0, 0.0)


def test_a_reference_column_of_shared_fields_may_be_missing_in_one_file_but_not_in_some_records(answers: Path, tmp_path: Path) -> None:
    fields = "id=id", "answer=one", "references=gold"
    rows = [{"id": i, "one": "red", "gold": "red"} for i in range(10)]
    assert compared(side(answers, *fields), side(write(tmp_path / "b.jsonl", rows), *fields)).metrics[2].a == 1.0
    del rows[3]["gold"]
    with pytest.raises(TesseraError, match="record 4: there is no field 'gold'"):
        compared(side(answers, *fields), side(write(tmp_path / "b.jsonl", rows), *fields))


def test_the_order_of_references_does_not_matter_but_their_content_does(gold: Path, tmp_path: Path) -> None:
    fields = "id=qid", "answer=said", "references=refs"
    rows = [{"qid": f"set/{i}", "said": "blue", "refs": ["dark red", "red"]} for i in range(10)]
    assert compared(side(gold, *fields), side(write(tmp_path / "b.jsonl", rows), *fields)).questions == 10
    rows[2]["refs"] = ["blue"]
    with pytest.raises(UsageError, match="its references to set/2 differ"):
        compared(side(gold, *fields), side(write(tmp_path / "b.jsonl", rows), *fields))


def test_ids_of_another_data_set_ask_for_the_configuration(answers: Path, tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [sample(f"vqa/{i + 8}", 0, "What?", ["red"] * 10) for i in range(10)])
    with pytest.raises(UsageError, match=r"8 of its 10 questions are not in .*data, such as 0; is --config \(or --data\) the right one"):
        compared(side(answers, "id=id", "answer=one"), side(answers, "id=id", "answer=two"), store)


def test_the_same_ids_with_other_questions_give_no_verdict(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", [sample(f"vqa/{i}", 0, f"What is thing {i}?", ["red"] * 10) for i in range(10)])

    def asked(text: str) -> Side:
        rows = [{"id": i, "said": "red", "question": text.format(i)} for i in range(10)]
        return side(write(tmp_path / "a.jsonl", rows), "id=id", "answer=said")

    with pytest.raises(
        UsageError, match=r"10 of its 10 questions are others than those of .*'Who is 0\?', there 'What is thing 0\?'; is --config"
    ):
        compared(asked("Who is {}?"), asked("Who is {}?"), store)
    bare = side(write(tmp_path / "b.jsonl", [{"id": i, "said": "red"} for i in range(10)]), "id=id", "answer=said")
    assert any("by the last part of the ids alone" in note for note in compared(bare, bare, store).notes)
    prompt = asked("<image>\nwhat is thing {}?  Answer in one word.")
    result = compared(prompt, prompt, store)
    assert result.questions == 10
    assert not any("by the last part of the ids alone" in note for note in result.notes)


def test_predictions_of_this_project_are_held_to_the_questions_of_the_data(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"vqa/{i}",
            "question": "Who?",
            "candidates": [],
            "choices": {"first": "red"},
            "error": None,
            "prompt": "",
            "decoding": {},
            "model": {},
        }
        for i in range(3)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    store = write_store(tmp_path / "data", [sample(f"vqa/{i}", 0, "What color?", ["red"] * 10) for i in range(3)])
    with pytest.raises(UsageError, match="3 of its 3 questions are others"):
        compared(Side([path]), Side([path]), store)


def test_two_files_with_other_questions_under_the_same_ids_are_an_error(tmp_path: Path) -> None:
    fields = "id=id", "answer=said", "references=gold", "question=asked"
    files = [
        write(tmp_path / f"{word}.jsonl", [{"id": i, "said": "red", "gold": "red", "asked": f"{word} {i}"} for i in range(10)])
        for word in ("What", "Who")
    ]
    with pytest.raises(UsageError, match="are others than those of"):
        compared(side(files[0], *fields), side(files[1], *fields))


def test_questions_without_an_answer_and_without_ten_references_are_named(answers: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": i, "said": "red", "gold": "red"} for i in range(10)]
    rows[1]["said"], rows[2]["said"] = None, " "
    notes = compared(
        side(write(tmp_path / "b.jsonl", rows), "id=id", "answer=said", "references=gold"), side(answers, "id=id", "answer=one")
    ).notes
    assert any("b.jsonl (said): 2 of 10 questions have no answer and count as wrong" in note for note in notes)
    assert any("10 of 10 questions have fewer than 10 references" in note for note in notes)


def test_questions_for_captions_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    store = write_store(tmp_path / "data", questions(2))
    path = write(tmp_path / "a.jsonl", [{"id": name, "said": "red"} for name in store.column("sample_id")])
    result = compared(side(path, "id=id", "answer=said"), side(path, "id=id", "answer=said"), store)
    assert "2 of 8 questions ask for captions or descriptions and are left out" in result.notes


def test_a_difference_of_form_is_said_to_be_one(tmp_path: Path) -> None:
    rows = [{"id": i, "plain": "red", "capital": "Red", "gold": ["red"] * 10} for i in range(40)]
    file = write(tmp_path / "a.jsonl", rows)
    result = compared(side(file, "id=id", "answer=plain", "references=gold"), side(file, "id=id", "answer=capital"))
    assert result.metrics[0].verdict == "a"
    assert any("partly one of form" in note for note in result.notes)
    assert "partly one of form" in result.table()


def test_an_object_of_answers_needs_no_field_names(gold: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({str(i): "red" for i in range(10)}), encoding="utf-8")
    result = compared(Side([path]), side(gold, "id=qid", "answer=said", "references=refs"))
    assert result.metrics[2].a == 1.0


def test_right_answers_with_references_as_python_lists_in_a_table_are_right(tmp_path: Path) -> None:
    rows = [("nokia", ["nokia"] * 8 + ["noka", "nokia 3310"]), ("stop", ["stop"] * 10), ("12", ["12"] * 9 + ["12:00"])]
    for name, wrong in (("right", None), ("wrong", "xyz")):
        lines = ["index\tquestion\tanswer\tprediction", *(f"{i}\tq?\t{refs}\t{wrong or said}" for i, (said, refs) in enumerate(rows))]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    fields = "id=index", "answer=prediction", "references=answer"
    result = compared(side(tmp_path / "right.tsv", *fields), side(tmp_path / "wrong.tsv", *fields))
    assert [(metric.a, metric.b) for metric in result.metrics] == [(1.0, 0.0)] * 3
