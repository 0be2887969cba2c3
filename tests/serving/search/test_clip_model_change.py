"""Vectors of two CLIP models are never compared: an index is refused or rebuilt if the model changes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from answering.answerer_factory import load_scorer
from errors import TesseraError, UsageError
from serving.search import folder_indexer
from serving.search.clip_encoder import fingerprint
from serving.search.folder_indexer import index_folder
from tests.serving.search.conftest import Opener, fill, png


@pytest.fixture(scope="module")
def changed_clip(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small CLIP with one weight changed."""
    folder = tmp_path_factory.mktemp("changed") / "clip"
    shutil.copytree(parts / "clip", folder)
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][0, 0] += 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_fingerprint_depends_on_weights_and_preprocessing_only(parts: Path, changed_clip: Path, tmp_path: Path) -> None:
    original = fingerprint(load_scorer(str(parts / "clip")), str(parts / "clip"))
    moved = shutil.copytree(parts / "clip", tmp_path / "moved")
    assert fingerprint(load_scorer(str(moved)), str(moved)) == original
    assert fingerprint(load_scorer(str(moved), dtype=torch.bfloat16), str(moved)) == original
    assert fingerprint(load_scorer(str(changed_clip)), str(changed_clip)) != original
    weights = load_file(moved / "model.safetensors")
    precise = {key: value.float() * 1.0001 if value.is_floating_point() else value for key, value in weights.items()}
    save_file(precise, moved / "model.safetensors", metadata={"format": "pt"})
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    assert len({fingerprint(load_scorer(str(moved), dtype=dtype), str(moved)) for dtype in dtypes}) == 1
    scorer = load_scorer(str(moved))
    scorer.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert fingerprint(scorer, str(moved)) != original


def test_an_index_of_another_model_is_refused(opener: Opener, parts: Path, changed_clip: Path, chinese_clip: Path) -> None:
    opener().add(png(1))
    for clip in (changed_clip, chinese_clip):
        for create in (True, False):
            with pytest.raises(UsageError, match=r"built with another CLIP model \(.*clip, \w{16}\) than .*--reindex"):
                opener(clip, create=create)
    assert len(opener(parts / "clip", create=False)) == 1


def test_reindexing_replaces_every_vector_and_keeps_uploads(opener: Opener, chinese_clip: Path, tmp_path: Path, parts: Path) -> None:
    library = fill(tmp_path / "library", range(3))
    old = opener()
    uploaded = old.add(png(9))
    index_folder(old, library)
    new = opener(chinese_clip, reindex=True)
    result = index_folder(new, library)
    assert (result.added, len(new)) == (3, 4)
    (best,) = new.search_by_image(png(9), 1)
    assert (best.id, new.image_bytes(best)) == (uploaded, png(9))
    assert best.score == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(TesseraError, match="rebuilt with another CLIP model"):
        old.search_by_text("a")
    with pytest.raises(UsageError, match="built with another CLIP model"):
        opener(parts / "clip")
    assert len(opener(chinese_clip, create=False)) == 4


def test_the_old_index_is_searchable_until_reindexing_is_complete(
    opener: Opener, chinese_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fill(tmp_path / "library", range(3))
    old = opener()
    index_folder(old, library)
    new = opener(chinese_clip, reindex=True)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder_indexer._IndexUpdate, "remove_vanished", stop)
        with pytest.raises(KeyboardInterrupt):
            index_folder(new, library)
    assert len(old.search_by_text("a")) == 3
    # The second run needs no --reindex: the new table exists.
    result = index_folder(opener(chinese_clip), library)
    assert (result.added, result.unchanged) == (0, 3)
    with pytest.raises(TesseraError, match="rebuilt"):
        old.search_by_text("a")
