"""The demo page with small untrained models."""

import shutil
from pathlib import Path

import pytest

from answering.answerer_factory import ScorerCache, build_answerer, build_reranker
from answering.config import CheckpointSystem, DecodingConfig, QwenVlSystem, RerankConfig
from model.siglip_qwen.processor import Processor
from serving.demo.page_actions import DemoBackends, PageActions
from serving.demo.session import Session
from serving.demo.upload_folder import UploadFolder
from serving.search.config import SearchConfig
from serving.search.folder_indexer import index_folder
from serving.search.image_index import open_index
from tests.serving.search.conftest import fill
from tests.untrained import write_checkpoint


@pytest.fixture(scope="session")
def demo_backends(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> DemoBackends:
    """The models of the page: a checkpoint, a 4-bit Qwen3-VL, CLIP and an index of four images."""
    folder = tmp_path_factory.mktemp("demo")
    path = folder / "checkpoint-1"
    write_checkpoint(path, parts, processor)
    library = fill(folder / "library", range(4))
    clip = str(parts / "clip")
    decoding = DecodingConfig(num_candidates=3, strategy="sample", max_new_tokens=4)
    answerer = build_answerer(CheckpointSystem(name="ours", kind="checkpoint", path=str(path)), checkpoint_folder=folder)
    scorer_cache = ScorerCache()
    reranker = build_reranker(RerankConfig(clip=clip), answerer.description, decoding, folder / "plans", scorer_cache=scorer_cache)
    quantized_system = QwenVlSystem(name="qwen3-vl-4bit", kind="qwen3_vl", path=str(parts / "qwen3_vl"), quantization="nf4")
    other = Session("qwen3-vl-4bit", build_answerer(quantized_system, checkpoint_folder=folder), reranker, decoding, 6)
    index = open_index(SearchConfig(), str(folder / "index"), clip, create=True, scorer_cache=scorer_cache)
    index_folder(index, library)
    return DemoBackends(Session("ours", answerer, reranker, decoding, 6), other, scorer_cache.load(clip), index, sorted(library.iterdir()))


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    """The upload folder of the page."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return UploadFolder(folder)


@pytest.fixture
def page(demo_backends: DemoBackends, uploads: UploadFolder) -> PageActions:
    """The actions of the page with these models."""
    return PageActions(demo_backends, uploads)


@pytest.fixture
def image(demo_backends: DemoBackends, uploads: UploadFolder) -> str:
    """The first example image, uploaded."""
    return str(shutil.copy2(demo_backends.examples[0], uploads.path / "mine.png"))
