"""Data sets in the layouts of the Hugging Face Hub, written to disk and read through `datasets.load_dataset`."""

import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason
from dataset.source_config import Columns, HubSource
from dataset.sources import hub
from dataset.sources.record import RawSample, RejectedRecord
from errors import TesseraError
from tests.dataset.raw_files import RawFiles

RED = Image.new("RGB", (8, 6), "red")


def png(color: str) -> bytes:
    """An encoded image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, rows: dict[str, list[Any]], split: str = "train", subset: str = "data", **features: Any) -> Path:
    """A data set in the form in which they are published: Parquet files named after their split."""
    types = None if not features else datasets.Features({**datasets.Dataset.from_dict(rows).features, **features})
    path = folder / subset / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=types).to_parquet(str(path))
    return folder


def source(path: Path, **settings: Any) -> HubSource:
    return HubSource(format="hub", path=str(path), **settings)


def read(path: Path, **settings: Any) -> list[RawSample]:
    items = list(sources.read(source(path, **settings), DataConfig()))
    assert all(isinstance(item, RawSample) for item in items), items
    return [item for item in items if isinstance(item, RawSample)]


QUESTION = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
MESSAGES = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]

LAYOUTS: dict[str, tuple[dict[str, list[Any]], tuple[str, str, str]]] = {
    "messages": ({"messages": [MESSAGES], "images": [[RED]]}, ("conversation", "<image>\nWhat?", "A cat.")),
    "LLaVA": ({"id": ["7"], "image": [RED], "conversations": [TURNS]}, ("conversation", "<image>\nWhat?", "A cat.")),
    "the_cauldron": (
        {"images": [[RED]], "texts": [[{"user": "What?", "assistant": "A cat.", "source": "x"}]]},
        ("conversation", "<image>\nWhat?", "A cat."),
    ),
    "VQAv2": (
        {
            "question_type": ["what"],
            "multiple_choice_answer": ["cat"],
            "answers": [[{"answer": "cat", "answer_confidence": "yes", "answer_id": 1}]],
            "image_id": [3],
            "question_id": [7],
            "question": ["What?"],
            "image": [RED],
        },
        ("vqa", "<image>\nWhat?", "cat"),
    ),
    "VQAv2 without annotators": (
        {"question_id": [7], "question": ["What?"], "multiple_choice_answer": ["cat"], "image": [RED]},
        ("vqa", "<image>\nWhat?", "cat"),
    ),
    "TextVQA": (
        {"image_id": ["x"], "question_id": [7], "question": ["What?"], "image": [RED], "answers": [["cat", "cat", "dog"]]},
        ("vqa", "<image>\nWhat?", "cat"),
    ),
    "VizWiz": (
        {"question_id": ["7"], "image": [RED], "question": ["What?"], "answers": [["cat"]], "category": ["other"]},
        ("vqa", "<image>\nWhat?", "cat"),
    ),
    "ScienceQA": (
        {"image": [RED], "question": ["What?"], "choices": [["dog", "cat"]], "answer": [1], "hint": [""], "subject": ["x"]},
        ("vqa", "<image>\nWhat?\nA. dog\nB. cat", "cat"),
    ),
    "DocVQA": (
        {"questionId": ["7"], "question": ["What?"], "image": [RED], "docId": [1], "answers": [["cat"]]},
        ("vqa", "<image>\nWhat?", "cat"),
    ),
    "GQA": ({"id": ["7"], "image": [RED], "question": ["What?"], "answer": ["cat"]}, ("vqa", "<image>\nWhat?", "cat")),
    "caption": ({"image": [RED], "caption": ["A cat."]}, ("caption", "<image>\nQ?", "A cat.")),
    "captions": ({"image": [RED], "captions": [["A cat.", "A pet."]]}, ("caption", "<image>\nQ?", "A cat.")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_published_layout_is_read_without_configuration(tmp_path: Path, name: str) -> None:
    rows, expected = LAYOUTS[name]
    key, feature = ("images", datasets.List(datasets.Image())) if "images" in rows else ("image", datasets.Image())
    [sample] = read(write(tmp_path, rows, **{key: feature}), questions=("Q?",))
    assert (sample.task, sample.messages[0].content, sample.targets[0]) == expected
    [image] = sample.images
    assert isinstance(image, bytes) and Image.open(io.BytesIO(image)).getpixel((0, 0)) == (255, 0, 0)


def test_images_may_be_pixels_encoded_bytes_or_files(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder, {"image": [RED, {"bytes": png("blue"), "path": None}], "caption": ["a", "b"]}, image=datasets.Image())
    colors = [
        Image.open(io.BytesIO(image)).getpixel((0, 0)) for sample in read(folder) for image in sample.images if isinstance(image, bytes)
    ]
    assert colors == [(255, 0, 0), (0, 0, 255)]
    images = tmp_path / "files"
    images.mkdir()
    (images / "x.png").write_bytes(png("blue"))
    (images / "metadata.jsonl").write_text('{"file_name": "x.png", "caption": "blue"}\n')
    [sample] = read(images)
    assert sample.images == (images / "x.png",)


def test_a_file_outside_of_the_data_set_is_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("red"))
    folder = tmp_path / "set"
    folder.mkdir()
    rows = pa.table({"image": [{"bytes": None, "path": str(secret)}], "caption": ["a"]})
    pq.write_table(rows, folder / "train.parquet")
    [item] = sources.read(source(folder), DataConfig())
    assert isinstance(item, RejectedRecord) and item.reason == DropReason.OUTSIDE


def test_several_splits_are_kept_and_one_alone_is_divided_by_content(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split in ("train", "validation", "test"):
        write(folder, {"image": [RED], "caption": [split]}, split, image=datasets.Image())
    assert {sample.targets[0]: sample.split for sample in read(folder)} == {"train": "train", "validation": "validation", "test": "test"}
    assert [sample.split for sample in read(folder, split="validation")] == ["validation"]
    one = write(tmp_path / "named", {"image": [RED], "caption": ["a"]}, image=datasets.Image())
    assert [sample.split for sample in read(one, split="train")] == ["train"]
    assert [sample.split for sample in read(write(tmp_path / "one", {"image": [RED], "caption": ["a"]}, image=datasets.Image()))] == [None]


def test_images_may_be_a_subset_of_their_own(tmp_path: Path) -> None:
    """As GQA is published: questions and images apart."""
    rows = {"id": ["1", "2"], "imageId": ["n1", "n9"], "question": ["What?", "What?"], "answer": ["cat", "dog"]}
    write(tmp_path, rows, "testdev", "instructions")
    write(tmp_path, {"id": ["n0", "n1"], "image": [RED, Image.new("RGB", (4, 4), "blue")]}, "testdev", "images", image=datasets.Image())
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: testdev\n    path: {name}/*\n" for name in ("instructions", "images")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    kept, dropped = sources.read(source(tmp_path, subset="instructions", image_subset="images"), DataConfig())
    assert isinstance(kept, RawSample) and isinstance(kept.images[0], bytes)
    assert Image.open(io.BytesIO(kept.images[0])).getpixel((0, 0)) == (0, 0, 255)
    assert isinstance(dropped, RejectedRecord) and (dropped.reason, dropped.detail) == (DropReason.UNPAIRED, "no image has the id 'n9'")


def test_other_layouts_are_described_by_columns(tmp_path: Path) -> None:
    write(tmp_path, {"photo": [RED], "part": ["wing"], "label": ["blue"], "kind": ["bird"]}, photo=datasets.Image())
    columns = Columns(image="photo", question="Which color has the {part}?", answer="label", category="kind")
    [sample] = read(tmp_path, columns=columns)
    assert (sample.messages[0].content, sample.targets, sample.category) == ("<image>\nWhich color has the wing?", ("blue",), "bird")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(), "no known layout has the columns photo, part; the nearest is caption (caption, image), which lacks caption and image"),
        (Columns(image="photo", caption="txt"), 'columns.caption names "txt"; the columns are photo, part'),
        (Columns(image="photo", caption="A {size} {part}"), 'columns.caption names "size"; the columns are photo, part'),
    ],
    ids=["unknown", "no such column", "no such column in a template"],
)
def test_a_layout_that_is_not_known_is_an_error_with_the_columns(tmp_path: Path, columns: Columns, message: str) -> None:
    write(tmp_path, {"photo": [RED], "part": ["wing"]}, photo=datasets.Image())
    with pytest.raises(TesseraError) as error:
        read(tmp_path, columns=columns)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"split": "dev"}, "Available splits: ['train']"), ({"subset": "vqa"}, "Available: ['default']")],
    ids=["split", "subset"],
)
def test_a_split_or_subset_that_does_not_exist_is_an_error_with_those_that_do(tmp_path: Path, settings: Any, message: str) -> None:
    write(tmp_path, {"image": [RED], "caption": ["a"]}, image=datasets.Image())
    with pytest.raises(TesseraError) as error:
        read(tmp_path, **settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_part_of_a_split_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set", {"image": [RED] * 4, "caption": list("abcd")}, image=datasets.Image())
    assert [sample.targets[0] for sample in read(tmp_path / "set", split="train[1:3]")] == ["b", "c"]


def test_a_column_of_another_type_than_promised_is_counted(tmp_path: Path) -> None:
    write(tmp_path, {"image": [RED], "question": ["What?"], "answers": [["cat"]]}, image=datasets.Image())
    image = [{"bytes": png("red"), "path": None}]
    pq.write_table(
        pa.table({"image": image, "question": ["What?"], "answers": ["dog"]}), tmp_path / "data" / "train-00001-of-00001.parquet"
    )
    kept, dropped = sources.read(source(tmp_path), DataConfig())
    assert isinstance(kept, RawSample) and isinstance(dropped, RejectedRecord)
    assert dropped.reason == DropReason.MISSING_FIELD and "file 2 of 2 cannot be read from here on" in dropped.detail
    write(tmp_path / "set", {"image": [RED, RED], "question": ["What?", "What?"], "answer": [1.5, 2.0]}, image=datasets.Image())
    first, second = sources.read(source(tmp_path / "set"), DataConfig())
    assert isinstance(first, RejectedRecord) and first.reason == DropReason.ANSWER_TYPE
    assert isinstance(second, RawSample) and second.targets == ("2",)


def test_code_of_a_data_set_is_not_run(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"image": [RED], "caption": ["a"]}, image=datasets.Image())
    (folder / "set.py").write_text("raise SystemExit('ran')")
    with pytest.raises(TesseraError, match=r"it is a script, and code of a data set is not run: convert it to Parquet"):
        read(folder)
    (folder / "set.py").rename(folder / "other.py")
    assert len(read(folder)) == 1


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"image": [RED], "caption": ["a"]}, features=datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    )
    rows.save_to_disk(str(tmp_path / "saved"))
    assert len(read(tmp_path / "saved")) == 1


def test_a_name_that_cannot_be_fetched_is_one_sentence() -> None:
    with pytest.raises(TesseraError) as error:
        read(Path("nobody/nothing-of-this-name"))
    assert str(error.value).startswith("nobody/nothing-of-this-name: the Hugging Face Hub cannot be reached, and the data set was not")


@pytest.mark.parametrize(
    "message",
    [
        "Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.",
        "Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it.",
    ],
)
def test_a_data_set_that_may_not_be_read_says_what_that_needs(message: str) -> None:
    reason = hub._reason(datasets.exceptions.DatasetNotFoundError(message), is_offline=False)
    assert reason == f"{message}: a private or gated data set needs an account that may read it; run hf auth login, or set HF_TOKEN"


def test_embedded_images_are_merged_into_shards(raw: RawFiles) -> None:
    write(raw.folder / "set", {"image": [RED, RED, Image.new("RGB", (4, 4), "blue")], "caption": list("abc")}, image=datasets.Image())
    report = raw.merge(source(raw.folder / "set"))
    assert (report.images, report.samples) == (2, 3)
    assert sorted(path.name for path in (raw.merged / "packed").iterdir()) == ["images-00000.parquet", "images-00000.tar"]


def test_what_was_fetched_before_is_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache as `datasets` writes it when it downloads a data set by its name."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    folder = tmp_path / "someone___birds" / "default" / "0.0.0" / "abc"
    features = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    rows = datasets.Dataset.from_dict({"image": [RED], "caption": ["a"]}, features=features)
    rows.save_to_disk(str(tmp_path / "saved"))
    folder.mkdir(parents=True)
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(folder / "birds-train.arrow")
    splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=1, dataset_name="birds")})
    datasets.DatasetInfo(features=features, splits=splits, dataset_name="birds", config_name="default", version="0.0.0").write_to_directory(
        str(folder)
    )
    assert [sample.targets for sample in read(Path("someone/birds"))] == [("a",)]
    with pytest.raises(TesseraError, match="the cache does not have what is asked for"):
        read(Path("someone/birds"), subset="other")


@pytest.mark.parametrize(("stream", "split", "expected"), [(False, None, False), (True, None, True), (True, "train[:3]", False)])
def test_a_name_is_streamed_from_the_hub_with_data_streaming(
    stream: bool, split: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def load(*_arguments: Any, **settings: Any) -> Any:
        asked.append(settings["streaming"])
        return datasets.Dataset.from_list([{"question": "What?", "answer": "yes", "image": "0.png"}])

    monkeypatch.setattr("dataset.sources.hub.work_offline_if_unreachable", lambda: False)
    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HubSource(format="hub", path="someone/something", split=split)
    assert len(list(sources.read(source, DataConfig(streaming=stream)))) == 1
    assert asked == [expected]


def test_a_parquet_file_is_read_one_row_group_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pa.table({"question": [f"What is {i}?" for i in range(20)], "answer": ["yes"] * 20, "image": ["0.png"] * 20})
    pq.write_table(rows, tmp_path / "train.parquet", row_group_size=5)
    parts: list[int] = []
    shard = datasets.IterableDataset.shard

    def counted(self: Any, num_shards: int, index: int) -> Any:
        parts.append(num_shards)
        return shard(self, num_shards, index)

    monkeypatch.setattr(datasets.IterableDataset, "shard", counted)
    items = list(sources.read(HubSource(format="hub", path=str(tmp_path)), DataConfig()))
    assert [item.location.number for item in items] == list(range(20))
    assert parts == [4] * 4
