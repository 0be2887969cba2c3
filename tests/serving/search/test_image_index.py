"""Images are added, removed and found; results agree with cosine similarities computed by the model."""

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from dataset.loading.image_io import ImageError
from errors import TesseraError, UsageError
from serving.search.image_index import ImageIndex
from tests.serving.search.conftest import Opener, noise_image, png

TEXT = "two red circles"


def test_an_added_image_finds_itself_until_it_is_removed(index: ImageIndex) -> None:
    ids = [index.add(png(seed)) for seed in range(3)]
    assert ids[1] == hashlib.sha256(png(1)).hexdigest()
    assert len(index) == 3
    best = index.search_by_image(png(1), 2)
    assert (best[0].id, best[0].path, best[0].size) == (ids[1], None, len(png(1)))
    assert best[0].score == pytest.approx(1.0, abs=1e-5)
    assert best[1].score < 0.9999
    assert index.image_bytes(best[0]) == png(1)
    assert index.thumbnail(best[0], 20).size == (20, 16)
    assert index.remove(ids[1])
    assert not index.remove(ids[1])
    assert len(index) == 2
    assert ids[1] not in {hit.id for hit in index.search_by_image(png(1), 5)}
    with pytest.raises(TesseraError, match="no longer in the index"):
        index.image_bytes(best[0])


def test_the_same_bytes_are_one_image(index: ImageIndex) -> None:
    assert index.add(png(1)) == index.add(png(1))
    threads = [threading.Thread(target=index.add, args=(png(2),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == 2


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
@pytest.mark.parametrize("text", [TEXT, "两个绿色的三角形"])
def test_a_search_by_text_agrees_with_the_cosine_similarities_of_the_model(
    family: str, text: str, opener: Opener, parts: Path, request: pytest.FixtureRequest
) -> None:
    index = opener(request.getfixturevalue(family) if family == "chinese_clip" else parts / family)
    ids = [index.add(png(seed)) for seed in range(12)]
    scorer = index.encoder.scorer
    cosines = (scorer.image_features([noise_image(seed) for seed in range(12)]) @ scorer.text_features([text])[0]).numpy()
    hits = index.search_by_text(text, 5)
    assert [hit.score for hit in hits] == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-5)
    assert [hit.id for hit in hits] == [ids[i] for i in np.argsort(-cosines)[:5]]


def test_chinese_texts_have_different_scores(opener: Opener, chinese_clip: Path) -> None:
    index = opener(chinese_clip)
    index.add(png(1))
    (first,), (second,) = index.search_by_text("一个红色的", 1), index.search_by_text("两个绿色的三角形", 1)
    assert first.score != pytest.approx(second.score, abs=1e-4)


def test_a_reader_sees_the_commits_of_a_writer(opener: Opener) -> None:
    writer, reader = opener(), opener(create=False)
    image_id = writer.add(png(1))
    assert [hit.id for hit in reader.search_by_text(TEXT)] == [image_id]
    writer.remove(image_id)
    assert reader.search_by_text(TEXT) == []


def test_k_may_exceed_the_number_of_images(index: ImageIndex) -> None:
    assert index.search_by_text(TEXT) == []
    index.add(png(1))
    assert len(index.search_by_text(TEXT, 50)) == len(index.search_by_text(TEXT, 10**20)) == 1
    assert index.state() == "exact search over 1 images"


def test_bytes_that_are_not_an_image_are_refused(opener: Opener) -> None:
    index = opener(max_pixels=1000)
    with pytest.raises(ImageError, match="cannot be decoded"):
        index.add(b"not an image")
    with pytest.raises(ImageError, match="cannot be decoded"):
        index.search_by_image(b"")
    with pytest.raises(ImageError, match="50 x 40 pixels, at most 1,000"):
        index.add(png(1))
    assert len(index) == 0


def test_a_malicious_id_removes_nothing(index: ImageIndex) -> None:
    index.add(png(1))
    for malicious_id in ("x') OR ('1'='1", "", "' OR true --", "g" * 64):
        assert not index.remove(malicious_id)
    assert len(index) == 1


def test_a_search_requires_a_text_and_a_positive_k(index: ImageIndex) -> None:
    with pytest.raises(TesseraError, match="is empty"):
        index.search_by_text(" ")
    with pytest.raises(TesseraError, match="k is 0"):
        index.search_by_text(TEXT, 0)


def test_a_missing_index_is_an_error(opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"search\.index: .*does not exist"):
        opener(create=False)
    (tmp_path / "index").mkdir()
    with pytest.raises(UsageError, match="has no index"):
        opener(create=False)
