"""The demo's raw files: formats that the sources read whole, disjoint splits, and no work when they stand already."""

import argparse
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

import config
from dataset.config import AiChallengerSource, LlavaSource, Source, VqaV2Source
from dataset.loading.image_io import open_image
from dataset.sources import read
from dataset.sources.record import RawSample, ReadOptions
from dataset.synthetic.dataset_writer import SceneCounts, write_scenes
from errors import UsageError
from tools import make_synthetic_data

PLAN = SceneCounts(train=24, validation=10, test=12, unseen=9)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    assert write_scenes(folder, PLAN, processes=1)
    return folder


def vqa(folder: Path, name: str, part: str) -> VqaV2Source:
    annotations = folder / "annotations"
    return VqaV2Source(
        format="vqav2",
        questions=annotations / f"{name}_questions.json",
        annotations=annotations / f"{name}_annotations.json",
        images=folder / "coco" / part,
    )


def samples(source: Source) -> list[RawSample]:
    """Every record of a source; none may be rejected."""
    items = list(read(source, ReadOptions()))
    assert items
    assert all(isinstance(item, RawSample) for item in items)
    return [item for item in items if isinstance(item, RawSample)]


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize(("name", "part"), [("vqa_train", "train"), ("vqa_zh_validation", "validation"), ("vqa_unseen", "unseen")])
def test_questions_have_ten_answers_and_a_image(drawn: Path, name: str, part: str) -> None:
    for sample in samples(vqa(drawn, name, part)):
        assert len(sample.answers) == 10
        assert Counter(sample.answers).most_common(1)[0][0] == sample.targets[0]
        assert isinstance(sample.images[0], Path)
        assert open_image(sample.images[0]).size == (96, 96)


def test_vqa_files_have_the_official_fields(drawn: Path) -> None:
    questions = json.loads((drawn / "annotations/vqa_train_questions.json").read_text(encoding="utf-8"))
    annotations = json.loads((drawn / "annotations/vqa_train_annotations.json").read_text(encoding="utf-8"))
    assert {"info", "task_type", "data_type", "data_subtype", "license", "questions"} <= questions.keys()
    assert questions["questions"][0].keys() == {"image_id", "question", "question_id"}
    assert annotations["annotations"][0].keys() == {
        "question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"
    }  # fmt: skip
    answers = [answer for row in annotations["annotations"] for answer in row["answers"]]
    assert all(answer.keys() == {"answer", "answer_confidence", "answer_id"} for answer in answers)
    assert {row["answer_type"] for row in annotations["annotations"]} == {"yes/no", "number", "other"}
    assert len({row["question_id"] for row in annotations["annotations"]}) == len(annotations["annotations"])


def test_unseen_questions_come_in_both_languages(drawn: Path) -> None:
    texts = [sample.messages[0].content for sample in samples(vqa(drawn, "vqa_unseen", "unseen"))]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert 0 < len(chinese) < len(texts)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_captions_are_five_chinese_sentences_of_a_image_named_by_a_sha1(drawn: Path, part: str) -> None:
    source = AiChallengerSource(
        format="ai_challenger", annotations=drawn / f"annotations/captions_zh_{part}.json", images=drawn / "ai_challenger" / part
    )
    for sample in samples(source):
        assert len(sample.targets) == 5
        assert all(re.search(r"[\u4e00-\u9fff]", caption) for caption in sample.targets)
        assert isinstance(sample.images[0], Path)
        assert re.fullmatch(r"[0-9a-f]{40}\.jpg", sample.images[0].name)
        open_image(sample.images[0])


def test_conversations_have_one_image_and_reasoning_has_more_than_one_turn(drawn: Path) -> None:
    for name in ("reasoning", "detail"):
        source = LlavaSource(format="llava", annotations=drawn / f"annotations/{name}_train.json", images=drawn / "coco/train")
        found = samples(source)
        assert all(sum(message.content.count("<image>") for message in sample.messages) == 1 for sample in found)
        if name == "reasoning":
            assert any(len(sample.messages) > 1 for sample in found)


def test_no_image_stands_in_two_splits(drawn: Path) -> None:
    split_of: dict[str, str] = {}
    for path in [*drawn.glob("coco/*/*.jpg"), *drawn.glob("ai_challenger/*/*.jpg")]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest not in split_of
        split_of[digest] = path.parent.name
    assert Counter(split_of.values()) == {"train": 24 + 3, "validation": 10 + 1, "test": 12 + 2, "unseen": 9}


def test_the_same_plan_writes_the_same_bytes_with_any_number_of_processes(drawn: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", PLAN, processes=2)
    assert contents(tmp_path / "again") == contents(drawn)


def test_another_seed_writes_other_images(drawn: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "other", SceneCounts(seed=1, train=2, validation=1, test=1, unseen=1), processes=1)
    first = Path("coco/train/000000000001.jpg")
    assert (tmp_path / "other" / first).read_bytes() != (drawn / first).read_bytes()


def test_an_unchanged_set_is_left_alone_and_a_changed_plan_is_drawn_anew(tmp_path: Path) -> None:
    folder, plan = tmp_path / "scenes", SceneCounts(train=2, validation=1, test=1, unseen=1)
    assert write_scenes(folder, plan, processes=1)
    assert not write_scenes(folder, plan, processes=1)
    assert write_scenes(folder, SceneCounts(train=3, validation=1, test=1, unseen=1), processes=1)
    assert len(list((folder / "coco/train").iterdir())) == 3


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        write_scenes(tmp_path, PLAN, processes=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataset.synthetic.dataset_writer._render_all", fail)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", PLAN, processes=1)
    assert not list(tmp_path.iterdir())


def parse(*arguments: str) -> argparse.Namespace:
    return make_synthetic_data.arguments().parse_args(list(arguments))


def test_the_command_writes_and_then_says_that_nothing_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--out", str(tmp_path / "s"), "--train", "2", "--validation", "1", "--test", "1", "--unseen", "1")
    assert make_synthetic_data.main(parse(*few)) == 0
    assert "2 training" in capsys.readouterr().out
    make_synthetic_data.main(parse(*few))
    assert "unchanged" in capsys.readouterr().out


def test_the_command_refuses_an_empty_part(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--test 0"):
        make_synthetic_data.main(parse("--out", str(tmp_path / "s"), "--test", "0"))


def test_the_default_configuration_names_just_the_files_that_are_written(drawn: Path) -> None:
    experiment = config.load(config.DEFAULT)
    named = set()
    for source in experiment.data.sources:
        for key in ("questions", "annotations", "images"):
            path = getattr(source, key, None)
            if isinstance(path, Path):
                relative = path.relative_to(make_synthetic_data.FOLDER)
                assert (drawn / relative).exists(), f"{source.name}: {path}"
                named.add(str(relative))
        assert source.split == (source.images.name if source.images and source.images.name != "unseen" else "test")
    written = {str(path.relative_to(drawn)) for path in drawn.glob("annotations/*.json")}
    assert written <= named


def test_the_default_plan_asks_at_least_a_thousand_test_questions_of_seen_combinations() -> None:
    assert SceneCounts().test * 3 >= 1000
