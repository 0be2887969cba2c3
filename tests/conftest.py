"""Shared fixtures. They generate their data: small untrained models from configurations; no network."""

import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from filelock import FileLock
from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPImageProcessorPil, ChineseCLIPModel

from model.siglip_qwen.processor import Processor
from tests.object_storage import Bucket, s3_environment
from training.tiny_models.architectures import TINY_MODELS, build_tiny_model, build_tokenizer, save_tiny_model

torch.set_num_threads(1)

CORPUS = [
    "What color is the circle? red",
    "How many squares are there? 2",
    "Is there a blue star left of the green ring? yes no",
    "Describe the picture. A red circle at the top left and a white cross at the bottom.",
    "这幅图像描述了什么？图中有一个红色的圆形，左上角有一个蓝色的正方形。",
    "这幅图像中有什么？两个绿色的三角形和一个数字牌。请用一个词或短语回答。",
    "Answer the question using a single word or phrase.",
] * 20


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with small untrained models siglip/, clip/, qwen3/ and qwen3_vl/, built once per test run."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    folder = shared / "parts"
    with FileLock(shared / "parts.lock"):
        if not folder.exists():
            tokenizer = build_tokenizer(CORPUS)
            for name in TINY_MODELS:
                save_tiny_model(folder / name, name, build_tiny_model(name, tokenizer, seed=0), tokenizer)
    return folder


@pytest.fixture(scope="session")
def chinese_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a small untrained Chinese-CLIP."""
    folder = tmp_path_factory.mktemp("chinese_clip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"两个绿色的三角形一", "red", "a"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 24}
    torch.manual_seed(0)
    config = ChineseCLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=64)
    ChineseCLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    ChineseCLIPImageProcessorPil(size=side, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(parts: Path) -> Processor:
    """Processor of the small models: 36 image tokens per image."""
    return Processor.from_pretrained(
        language=str(parts / "qwen3"), vision=str(parts / "siglip"), tokens_per_image=36, vocab_size=1536, max_length=512
    )


_bucket_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a local S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str) -> Iterator[Bucket]:
    """An empty bucket of that server, which the environment names."""
    import boto3

    with s3_environment(s3_endpoint):
        client: Any = boto3.client("s3", endpoint_url=s3_endpoint)
        yield Bucket(client, f"bucket-{next(_bucket_numbers)}")
