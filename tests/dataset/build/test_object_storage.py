"""Sources in object storage: samples, counts and reasons as of local files, and one sentence for what is wrong with the storage."""

import hashlib
import io
import json
import tarfile
import unicodedata
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset.build.merge import merge
from dataset.loading.sample_store import SampleStore
from dataset.source_config import (
    Columns,
    FlickrCaptionsSource,
    FolderSource,
    LlavaSource,
    MessagesSource,
    Source,
    TableSource,
    WebDatasetSource,
)
from tests.dataset.raw_files import RawFiles, conversation, vqa_answers
from tests.dataset.remote_sources import ten_images
from tests.object_storage import Bucket, s3_environment

NAMES = ("a.png", "图 b#1.png", "sub/c.png", "broken.jpg", "missing.jpg")
"""Image names of the records below: three images, a file that is none, and a name that no file has."""


def write_images(raw: RawFiles) -> None:
    (raw.images / "sub").mkdir(exist_ok=True)
    for shade, name in enumerate(NAMES[:3]):
        raw.image(name, shade=shade * 40)
    (raw.images / "broken.jpg").write_bytes(b"no image")


def ai_challenger(raw: RawFiles) -> Source:
    return raw.ai_challenger([{"image_id": name, "caption": [f"图 {name}"]} for name in NAMES])


def coco_captions(raw: RawFiles) -> Source:
    images = [{"id": i, "file_name": name} for i, name in enumerate(NAMES)]
    return raw.coco_captions(images, [{"image_id": i, "caption": f"text {i}"} for i in range(6)])


def vqav2(raw: RawFiles) -> Source:
    raw.image("COCO_train2014_000000000001.jpg")
    raw.image("000000000002.jpg", shade=40)
    questions = [{"question_id": i, "image_id": i, "question": "What?"} for i in (1, 2, 3)]
    return raw.vqav2(questions, [{**entry, "answers": vqa_answers("cat")} for entry in questions[:3]])


def vqa_metadata(raw: RawFiles) -> Source:
    return raw.vqa_metadata([{"id": i, "question": "What?", "answers": ["x"], "image_file": name} for i, name in enumerate(NAMES)])


def llava(raw: RawFiles) -> Source:
    return raw.llava([conversation(name, "?", f"answer {name}") for name in NAMES])


def messages_jsonl(raw: RawFiles) -> Source:
    turns = [{"role": "user", "content": "<image>\n?"}, {"role": "assistant", "content": "x"}]
    return raw.messages([*({"messages": turns, "images": [name.replace("/", "\\")]} for name in NAMES), {"messages": "你"}])


def messages_parquet(raw: RawFiles) -> Source:
    turns = [{"role": "user", "content": "<image>\n?"}, {"role": "assistant", "content": "x"}]
    rows = [{"messages": turns, "images": [{"bytes": None, "path": name}]} for name in NAMES]
    rows.append({"messages": turns, "images": [{"bytes": (raw.images / "a.png").read_bytes(), "path": "inside.png"}]})
    pq.write_table(pa.Table.from_pylist(rows), raw.folder / "rows.parquet")
    return MessagesSource(format="messages", path=raw.folder / "rows.parquet", images=raw.images)


def table(raw: RawFiles) -> Source:
    (raw.folder / "rows.csv").write_text("file,ask,say\n" + "".join(f"{name},What?,cat\n" for name in NAMES) + "a.png,one,two,three\n")
    columns = Columns(image="file", question="ask", answer="say")
    return TableSource(format="table", path=raw.folder / "rows.csv", images=raw.images, columns=columns)


def webdataset(raw: RawFiles) -> Source:
    for shard in range(2):
        with tarfile.open(raw.folder / f"{shard:05}.tar", "w") as archive:
            for number, name in enumerate(NAMES[:2]):
                for suffix, data in (("png", (raw.images / name).read_bytes()), ("txt", b"a caption")):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    damaged = raw.folder / "00000.tar"
    damaged.write_bytes(damaged.read_bytes()[: 4 * 512 + 600])
    return WebDatasetSource(format="webdataset", shards=raw.folder / "{00000..00001}.tar")


def flickr_captions(raw: RawFiles) -> Source:
    lines = [f"{name.replace('#', '')}#{i}\ta caption" for i, name in enumerate(NAMES)]
    (raw.folder / "captions.txt").write_text("\n".join([*lines, "no image here"]), encoding="utf-8")
    return FlickrCaptionsSource(format="flickr_captions", annotations=raw.folder / "captions.txt", images=raw.images)


def folder(raw: RawFiles) -> Source:
    for name in NAMES[:2]:
        (raw.images / name).with_suffix(".txt").write_text("one\ntwo\n")
    return FolderSource(format="folder", path=raw.images)


FORMATS: list[Callable[[RawFiles], Source]] = [
    *(ai_challenger, coco_captions, vqav2, vqa_metadata, llava, messages_jsonl, messages_parquet),
    *(table, webdataset, flickr_captions, folder),
]


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_source_in_a_bucket_has_the_samples_counts_and_reasons_of_local_files(
    raw: RawFiles, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory, make: Callable[[RawFiles], Source]
) -> None:
    write_images(raw)
    local = make(raw)
    bucket.upload(raw.folder)
    remote = merge(raw.config(bucket.source(local, raw.folder)), merged := tmp_path_factory.mktemp("remote"))
    expected = raw.merge(local)

    def localized(text: str) -> Any:
        return json.loads(text.replace(str(bucket.path), str(raw.folder)).replace(str(merged), str(raw.merged)))

    assert localized(json.dumps(remote.to_json())) == json.loads(json.dumps(expected.to_json()))
    assert expected.sources[0].kept and expected.sources[0].dropped
    assert list(SampleStore(merged).samples()) == raw.samples()
    lines, expected_lines = ((path / "dropped.jsonl").read_text(encoding="utf-8").splitlines() for path in (merged, raw.merged))
    assert [localized(line) for line in lines] == [json.loads(line) for line in expected_lines]


def test_a_repeated_merge_reads_what_has_changed_in_the_bucket(raw: RawFiles, bucket: Bucket, opened: list[str]) -> None:
    source = ten_images(raw, bucket)
    report = raw.merge(source)
    assert len(opened) == 10 and not report.reused
    opened.clear()
    assert raw.merge(source).reused and opened == []
    other = (raw.images / raw.image("x.bmp", shade=99)).read_bytes()
    bucket.put("pictures/3.bmp", other)
    bucket.put("pictures/late.bmp", (raw.images / raw.image("y.bmp", shade=120, size=(20, 10))).read_bytes())
    changed = raw.merge(source)
    assert opened == ["3.bmp", "late.bmp"]
    assert (changed.sources[0].kept, changed.reused) == (11, False)
    rows = list(SampleStore(raw.merged).images())
    assert (rows[3].sha256, rows[10].width) == (hashlib.sha256(other).hexdigest(), 20)


def test_an_image_that_a_bucket_gets_under_its_other_coco_name_is_noticed(raw: RawFiles, bucket: Bucket) -> None:
    write_images(raw)
    source = vqav2(raw)
    bucket.upload(raw.folder)
    remote = bucket.source(source, raw.folder)
    assert raw.merge(remote).sources[0].kept == 2
    bucket.put("pictures/000000000003.jpg", (raw.images / "a.png").read_bytes())
    assert raw.merge(remote).sources[0].kept == 3


def test_images_of_a_folder_are_listed_not_asked_for_one_by_one(raw: RawFiles, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    requests: list[str] = []
    original = s3fs.S3FileSystem._call_s3

    async def counting(self: Any, method: str, *arguments: Any, **others: Any) -> Any:
        requests.append(f"{method} {others.get('Key', '')}".strip())
        return await original(self, method, *arguments, **others)

    source = ten_images(raw, bucket)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counting)
    raw.merge(source)
    assert [request for request in requests if "head_object pictures/" in request] == []
    assert sum(request.startswith("get_object pictures/") for request in requests) == 10
    requests.clear()
    assert raw.merge(source).reused
    assert not [request for request in requests if request.startswith("get_object")] and len(requests) < 8


def test_images_in_a_bucket_are_checked_in_several_processes(raw: RawFiles, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ten_images(raw, bucket)
    monkeypatch.setattr("dataset.build.image_validation.MIN_IMAGES_FOR_POOL", 2)
    report = raw.merge(source, workers=2)
    assert (report.images, report.sources[0].dropped) == (10, {"missing file": 1})


def test_images_of_a_bucket_are_packed_and_then_read_without_it(raw: RawFiles, bucket: Bucket) -> None:
    source = ten_images(raw, bucket)
    assert raw.merge(source, pack=True).images == 10
    with s3_environment("http://127.0.0.1:1"):
        store = SampleStore(raw.merged)
        assert {str(row.path).partition("#")[0] for row in store.images()} == {str(raw.merged / "packed" / "images-00000.tar")}
        assert store.load_image(0).size == (12, 8)


@pytest.mark.parametrize("named", ["part-*.json", "part-{0..1}.json", "part-?.js*", ["part-{0,1}.json"]], ids=str)
def test_lists_wildcards_and_braces_name_files_of_a_bucket(raw: RawFiles, bucket: Bucket, named: Any) -> None:
    for i in range(2):
        raw.write(f"part-{i}.json", [conversation(raw.image(f"{i}.png", shade=i * 40), "?", f"answer {i}"), {"image": "none"}])
    bucket.upload(raw.folder)
    files = tuple(bucket.path / name for name in named) if isinstance(named, list) else bucket.path / named
    report = raw.merge(LlavaSource(format="llava", annotations=files, images=bucket.path / "pictures"))
    assert (report.sources[0].kept, report.sources[0].dropped) == (2, {"missing field": 2})
    assert [json.loads(line)["file"] for line in (raw.merged / "dropped.jsonl").read_text().splitlines()] == [
        f"{bucket.path}/part-{i}.json" for i in range(2)
    ]


def test_a_missing_image_whose_name_is_in_the_bucket_in_the_other_unicode_form_is_named_so(raw: RawFiles, bucket: Bucket) -> None:
    image = (raw.images / raw.image("a.png")).read_bytes()
    bucket.put(f"pictures/{unicodedata.normalize('NFD', 'é.png')}", image)
    names = [unicodedata.normalize("NFC", name) for name in ("é.png", "ü.png")]
    local = raw.llava([conversation(name, "?", "x") for name in ("a.png", *names)])
    bucket.upload(raw.folder)
    report = raw.merge(bucket.source(local, raw.folder))
    first, second = report.sources[0].examples["missing file"]
    assert first.endswith("there is one with this name in the other Unicode form, NFD") and second.endswith("ü.png: there is no such file")
