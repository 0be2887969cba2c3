"""The command that writes the synthetic dataset: files that the data sources read, disjoint splits, no work when up to date."""

import argparse
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import config
from dataset.config import DataConfig
from dataset.loading.image_io import open_image
from dataset.source_config import AiChallengerSource, LlavaSource, RefCocoSource, Source, VqaV2Source
from dataset.sources import read
from dataset.sources.record import RawSample
from dataset.synthetic.dataset_writer import SCENE_SPLITS, SceneCounts, write_scenes
from dataset.synthetic.scene import generate_scene
from dataset.synthetic.scene_renderer import render, render_with_boxes
from errors import UsageError
from tools import make_synthetic_data

COUNTS = SceneCounts(train=24, validation=10, test=12, unseen=9)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset."""
    folder = tmp_path_factory.mktemp("written") / "scenes"
    assert write_scenes(folder, COUNTS, processes=1)
    return folder


def vqa(folder: Path, name: str, split: str) -> VqaV2Source:
    annotations = folder / "annotations"
    return VqaV2Source(
        format="vqav2",
        questions=annotations / f"{name}_questions.json",
        annotations=annotations / f"{name}_annotations.json",
        images=folder / "coco" / split,
    )


def samples(source: Source) -> list[RawSample]:
    """Every record of a source; none may be rejected."""
    items = list(read(source, DataConfig()))
    assert items
    assert all(isinstance(item, RawSample) for item in items)
    return [item for item in items if isinstance(item, RawSample)]


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize(("name", "split"), [("vqa_train", "train"), ("vqa_zh_validation", "validation"), ("vqa_unseen", "unseen")])
def test_questions_have_ten_answers_and_an_image(written: Path, name: str, split: str) -> None:
    for sample in samples(vqa(written, name, split)):
        assert len(sample.answers) == 10
        assert Counter(sample.answers).most_common(1)[0][0] == sample.targets[0]
        assert isinstance(sample.images[0], Path)
        assert open_image(sample.images[0]).size == (96, 96)


def test_vqa_files_have_the_fields_of_vqa_v2(written: Path) -> None:
    """And the category, by which data can be balanced."""
    questions = json.loads((written / "annotations/vqa_train_questions.json").read_text(encoding="utf-8"))
    annotations = json.loads((written / "annotations/vqa_train_annotations.json").read_text(encoding="utf-8"))
    assert {"info", "task_type", "data_type", "data_subtype", "license", "questions"} <= questions.keys()
    assert questions["questions"][0].keys() == {"image_id", "question", "question_id", "category"}
    assert annotations["annotations"][0].keys() == {
        "question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id"
    }  # fmt: skip
    answers = [answer for row in annotations["annotations"] for answer in row["answers"]]
    assert all(answer.keys() == {"answer", "answer_confidence", "answer_id"} for answer in answers)
    assert {row["answer_type"] for row in annotations["annotations"]} == {"yes/no", "number", "other"}
    assert len({row["question_id"] for row in annotations["annotations"]}) == len(annotations["annotations"])


def test_unseen_questions_come_in_both_languages(written: Path) -> None:
    texts = [sample.messages[0].content for sample in samples(vqa(written, "vqa_unseen", "unseen"))]
    chinese = [text for text in texts if re.search(r"[\u4e00-\u9fff]", text)]
    assert 0 < len(chinese) < len(texts)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_captions_are_five_chinese_sentences_of_an_image_named_by_a_sha1(written: Path, split: str) -> None:
    source = AiChallengerSource(
        format="ai_challenger", annotations=written / f"annotations/captions_zh_{split}.json", images=written / "ai_challenger" / split
    )
    for sample in samples(source):
        assert len(sample.targets) == 5
        assert all(re.search(r"[\u4e00-\u9fff]", caption) for caption in sample.targets)
        assert isinstance(sample.images[0], Path)
        assert re.fullmatch(r"[0-9a-f]{40}\.jpg", sample.images[0].name)
        open_image(sample.images[0])


def test_conversations_have_one_image_and_reasoning_has_more_than_one_turn(written: Path) -> None:
    for name in ("reasoning", "detail"):
        source = LlavaSource(format="llava", annotations=written / f"annotations/{name}_train.json", images=written / "coco/train")
        records = samples(source)
        assert all(sum(message.content.count("<image>") for message in sample.messages) == 1 for sample in records)
        if name == "reasoning":
            assert any(len(sample.messages) > 1 for sample in records)


def test_no_image_is_in_two_splits(written: Path) -> None:
    split_of: dict[str, str] = {}
    for path in [*written.glob("coco/*/*.jpg"), *written.glob("ai_challenger/*/*.jpg")]:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert digest not in split_of
        split_of[digest] = path.parent.name
    assert Counter(split_of.values()) == {"train": 24 + 3, "validation": 10 + 1, "test": 12 + 2, "unseen": 9}


def test_the_same_counts_write_the_same_bytes_with_any_number_of_processes(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", COUNTS, processes=2)
    assert contents(tmp_path / "again") == contents(written)


def test_regions_are_written_only_where_asked_for_and_change_no_other_file(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "again", replace(COUNTS, regions=True), processes=1)
    with_regions, without = contents(tmp_path / "again"), contents(written)
    added = {name for name in with_regions if "regions_" in name}
    assert added == {f"annotations/regions_{split}_{file}.json" for split in SCENE_SPLITS for file in ("refs", "instances")}
    manifest = {"scenes.json"}
    assert {name: with_regions[name] for name in with_regions.keys() - added - manifest} == {
        name: without[name] for name in without.keys() - manifest
    }


def test_expressions_are_read_in_both_languages_with_a_box_inside_the_image(tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    write_scenes(folder, SceneCounts(train=6, validation=1, test=1, unseen=4, regions=True), processes=1)
    for split, own in (("train", "train"), ("unseen", "test")):
        refs, instances = (folder / f"annotations/regions_{split}_{name}.json" for name in ("refs", "instances"))
        found = samples(RefCocoSource(format="refcoco", refs=refs, instances=instances, images=folder / "coco" / split))
        assert {sample.language for sample in found} == {"en", "zh"}
        assert {(sample.task, sample.split) for sample in found} == {("grounding", own)}
        assert all(sample.boxes[0].upright((96, 96)).area for sample in found)


def test_boxes_surround_the_pixels_of_their_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.synthetic.scene_renderer._background", lambda _rng, side: Image.new("RGB", (side, side), (128, 128, 128)))
    scenes = [generate_scene(0, "train", index) for index in range(120)]
    alone = [scene for scene in scenes if len(scene.things) == 1]
    assert len(alone) > 5
    for scene in alone:
        image, [box] = render_with_boxes(scene)
        assert np.array_equal(np.asarray(image), np.asarray(render(scene)))
        distance = np.abs(np.asarray(image, dtype=np.int16) - 128).sum(axis=2)
        rows, columns = np.nonzero(distance > 100)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        assert box == pytest.approx(found, abs=1.6), scene.layout


def test_another_seed_writes_other_images(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "other", SceneCounts(seed=1, train=2, validation=1, test=1, unseen=1), processes=1)
    first = Path("coco/train/000000000001.jpg")
    assert (tmp_path / "other" / first).read_bytes() != (written / first).read_bytes()


def test_an_up_to_date_dataset_is_skipped_and_other_counts_write_it_again(tmp_path: Path) -> None:
    folder, counts = tmp_path / "scenes", SceneCounts(train=2, validation=1, test=1, unseen=1)
    assert write_scenes(folder, counts, processes=1)
    assert not write_scenes(folder, counts, processes=1)
    assert write_scenes(folder, SceneCounts(train=3, validation=1, test=1, unseen=1), processes=1)
    assert len(list((folder / "coco/train").iterdir())) == 3


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        write_scenes(tmp_path, COUNTS, processes=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dataset.synthetic.dataset_writer._render_all", fail)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes", COUNTS, processes=1)
    assert not list(tmp_path.iterdir())


def parse(*arguments: str) -> argparse.Namespace:
    return make_synthetic_data.arguments().parse_args(list(arguments))


def test_the_command_writes_the_dataset_and_a_second_run_reports_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--out", str(tmp_path / "s"), "--train", "2", "--validation", "1", "--test", "1", "--unseen", "1")
    assert make_synthetic_data.main(parse(*options)) == 0
    assert "2 training" in capsys.readouterr().out
    make_synthetic_data.main(parse(*options))
    assert "unchanged" in capsys.readouterr().out


def test_the_command_rejects_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--test 0"):
        make_synthetic_data.main(parse("--out", str(tmp_path / "s"), "--test", "0"))


def test_the_default_configuration_names_exactly_the_files_that_are_written(written: Path) -> None:
    experiment = config.load(config.DEFAULT)
    configured = set()
    for source in experiment.data.sources:
        for key in ("questions", "annotations", "images"):
            path = getattr(source, key, None)
            if isinstance(path, Path):
                relative = path.relative_to(make_synthetic_data.FOLDER)
                assert (written / relative).exists(), f"{source.name}: {path}"
                configured.add(str(relative))
        assert source.split == (source.images.name if source.images and source.images.name != "unseen" else "test")
    annotation_files = {str(path.relative_to(written)) for path in written.glob("annotations/*.json")}
    assert annotation_files <= configured


def test_the_default_counts_give_at_least_a_thousand_test_questions_on_seen_combinations() -> None:
    assert SceneCounts().test * 3 >= 1000
