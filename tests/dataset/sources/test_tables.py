"""Tables and tar shards whose columns are named in the configuration or known."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset import sources
from dataset.config import DataConfig
from dataset.record_validation import DropReason
from dataset.source_config import Columns, Source, TableSource, WebDatasetSource
from dataset.sources.record import ParsedRecord, RawSample, RejectedRecord
from errors import TesseraError
from tests.dataset.raw_files import RawFiles

ROWS = [{"file": "a.png", "ask": "What?", "say": "cat"}, {"file": "b.png", "ask": "Who, me?", "say": "你"}]
COLUMNS = Columns(image="file", question="ask", answer="say")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) if path.suffix == ".jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def read(source: Source) -> list[ParsedRecord]:
    return list(sources.read(source, DataConfig()))


def rejected(items: list[ParsedRecord]) -> list[tuple[str, DropReason, str]]:
    return [(str(item.location), item.reason, item.detail) for item in items if isinstance(item, RejectedRecord)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.TSV", "rows.json", "rows.jsonl", "rows.parquet"])
def test_a_table_of_any_kind_is_read_by_the_named_columns(raw: RawFiles, name: str) -> None:
    path = write_table(raw.folder / name.lower(), ROWS).rename(raw.folder / name)
    samples = read(TableSource(format="table", path=path, images=raw.images, columns=COLUMNS))
    assert [(sample.images, sample.messages[0].content, sample.targets) for sample in samples if isinstance(sample, RawSample)] == [
        ((raw.images / "a.png",), "<image>\nWhat?", ("cat",)),
        ((raw.images / "b.png",), "<image>\nWho, me?", ("你",)),
    ]


def test_a_row_with_too_many_fields_or_without_an_image_is_rejected(raw: RawFiles) -> None:
    path = raw.folder / "rows.csv"
    path.write_bytes(b'file,ask,say\na.png,What?,cat,dog\n,What?,cat\n\nb.png,"a\nb",\xff\nc.png,What?,cat\n')
    items = read(TableSource(format="table", path=path, images=raw.images, columns=COLUMNS))
    assert [(place, reason) for place, reason, _ in rejected(items)] == [
        ("line 2", DropReason.MISSING_FIELD),
        ("line 3", DropReason.MISSING_FIELD),
        ("line 5", DropReason.BAD_ENCODING),
    ]
    assert rejected(items)[0][2] == "4 fields; the header names 3"
    assert len(items) == 4


def test_a_quotation_mark_that_is_not_closed_is_an_error(raw: RawFiles) -> None:
    path = raw.folder / "rows.csv"
    path.write_text('file,ask,say\na.png,"What?,cat\n')
    with pytest.raises(TesseraError, match=r"rows\.csv: line 2: unexpected end of data"):
        read(TableSource(format="table", path=path, images=raw.images, columns=COLUMNS))


def test_the_answer_of_a_choice_may_be_an_index_a_letter_or_a_text(raw: RawFiles) -> None:
    rows = [{"image": "a.png", "question": "Q?", "choices": ["dog", "cat"], "answer": answer} for answer in (1, "B", "cat", 2, "C")]
    items = read(TableSource(format="table", path=write_table(raw.folder / "rows.jsonl", rows), images=raw.images))
    assert [item.targets for item in items if isinstance(item, RawSample)] == [("cat",)] * 3
    assert [reason for _, reason, _ in rejected(items)] == [DropReason.ANSWER_TYPE] * 2


def test_prompts_of_short_answers_follow_questions_alone(raw: RawFiles) -> None:
    raw.image("a.png"), raw.image("b.png", 9)
    captions = write_table(raw.folder / "captions.csv", [{"image": "a.png", "caption": "A cat."}])
    raw.merge(
        TableSource(format="table", path=write_table(raw.folder / "rows.csv", ROWS), images=raw.images, columns=COLUMNS),
        TableSource(format="table", path=captions, images=raw.images, name="captions"),
    )
    prompts = [sample.prompt for sample in raw.samples()]
    assert prompts == ["Answer the question using a single word or phrase.", "Answer the question using a single word or phrase.", None]


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shard_members(raw: RawFiles, first: int, count: int = 2) -> dict[str, bytes]:
    image = (raw.images / raw.image(f"{first}.png", first)).read_bytes()
    return {f"{i:05d}.{kind}": data for i in range(first, first + count) for kind, data in (("png", image), ("txt", f"cat {i}".encode()))}


def test_captions_of_tar_shards_are_read_in_order(raw: RawFiles) -> None:
    for number in range(3):
        write_shard(raw.folder / f"cc-{number:05d}.tar", shard_members(raw, 2 * number))
    source = WebDatasetSource(format="webdataset", shards=raw.folder / "cc-{00000..00002}.tar")
    items = read(source)
    assert [item.targets[0] for item in items if isinstance(item, RawSample)] == [f"cat {i}" for i in range(6)]
    assert [item.key for item in items if isinstance(item, RawSample)] == [f"{i:05d}" for i in range(6)]
    assert read(WebDatasetSource(format="webdataset", shards=raw.folder / "cc-*.tar")) == items


def test_columns_of_json_members_are_known(raw: RawFiles) -> None:
    image = (raw.images / raw.image("a.png")).read_bytes()
    row = {"question": "What?", "answers": ["cat"], "category": "pets"}
    texts = [json.dumps(row).encode(), b"{", b"[]"]
    members = {f"a/{i}.{kind}": data for i, text in enumerate(texts, 1) for kind, data in (("json", text), ("png", image))}
    shard = write_shard(raw.folder / "vqa.tar", members)
    items = read(WebDatasetSource(format="webdataset", shards=shard))
    [sample] = [item for item in items if isinstance(item, RawSample)]
    assert (sample.images, sample.targets, sample.category, sample.key) == ((image,), ("cat",), "pets", "a/1")
    assert [reason for _, reason, _ in rejected(items)] == [DropReason.NOT_AN_OBJECT] * 2


def test_a_broken_member_is_counted_and_the_next_shard_is_read(raw: RawFiles) -> None:
    first, _ = (write_shard(raw.folder / f"{name}.tar", shard_members(raw, 2 * i, 2)) for i, name in enumerate("ab"))
    first.write_bytes(first.read_bytes()[: 512 * 5 + 3])
    report = raw.merge(WebDatasetSource(format="webdataset", shards=raw.folder / "{a,b}.tar"))
    [counts] = report.sources
    assert (counts.read, counts.kept, sum(counts.dropped.values())) == (4, 3, 1)
    [example] = counts.examples["undecodable or truncated picture"]
    assert example.startswith(f"{first}: record 1: a member cannot be read (unexpected end of data"), example


def test_a_damaged_first_record_is_counted_and_the_others_are_read(raw: RawFiles) -> None:
    image = (raw.images / raw.image("0.png")).read_bytes()
    shard = write_shard(raw.folder / "a.tar", {"0.png": image, "1.png": image, "1.txt": b"a circle"})
    items = list(sources.read(WebDatasetSource(format="webdataset", shards=shard), DataConfig()))
    assert [getattr(item, "reason", None) for item in items] == [DropReason.EMPTY, None]


def test_no_record_in_a_known_layout_is_an_error_that_names_the_first(raw: RawFiles) -> None:
    table = write_table(raw.folder / "rows.jsonl", [{"a": 1}, {"b": 2}])
    with pytest.raises(TesseraError, match="no known layout has the columns a; the nearest is"):
        list(sources.read(TableSource(format="table", path=table), DataConfig()))


def test_commands_in_the_place_of_shards_are_files_that_do_not_exist() -> None:
    """`webdataset` itself would run them."""
    with pytest.raises(TesseraError, match=r"pipe:touch ran\.tar: cannot be read"):
        read(WebDatasetSource(format="webdataset", shards=Path("pipe:touch ran.tar")))
    assert not Path("ran.tar").exists()


def test_a_shard_without_a_sample_is_no_error(raw: RawFiles) -> None:
    write_shard(raw.folder / "a.tar", {}), write_shard(raw.folder / "b.tar", shard_members(raw, 0, 1))
    (raw.folder / "c.tar").write_bytes(b"no archive")
    items = read(WebDatasetSource(format="webdataset", shards=raw.folder / "{a,b,c}.tar"))
    assert [type(item) for item in items] == [RawSample, RejectedRecord]
