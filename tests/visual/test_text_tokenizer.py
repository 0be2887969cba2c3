"""SigLIP tokenizers prepare text as the models were trained: canonicalised or lower-cased, ended, padded to the full length."""

import json
import os
import shutil
import string
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers
from transformers import SiglipTokenizer

from dataset.loading.image_io import open_image
from errors import UsageError
from tests.conftest import CORPUS
from tests.visual.test_clip_scorer import noise_image
from visual import text_tokenizer
from visual.clip_scorer import ClipScorer, load

LENGTH = 64
PUBLISHED = os.environ.get("TESSERA_SIGLIP", "")
"""Folder or cached hub name of google/siglip-base-patch16-224."""
SPECIAL_TOKENS = {"eos_token": "<eos>", "pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
WriteTokenizer = Callable[[Path], None]


def write_siglip_1_tokenizer(folder: Path) -> None:
    """A SentencePiece model with the special tokens of the published one: padding and end token 1, unknown token 2, no begin token."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.lower() for text in CORPUS),
        model_prefix=str(folder / "spiece"),
        vocab_size=120,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    SiglipTokenizer(str(folder / "spiece.model")).save_pretrained(folder)


def write_siglip_2_tokenizer(folder: Path) -> None:
    """A tokenizer.json in Gemma's layout; the class in tokenizer_config.json is that of the published folders of fixed resolution."""
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_letters, ".", "re"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("r", "e")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GemmaTokenizer", "do_lower_case": True, "add_bos_token": False, "add_eos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **SPECIAL_TOKENS, "model_max_length": LENGTH}))


def siglip_folder(folder: Path, parts: Path, write_tokenizer: WriteTokenizer) -> Path:
    """The small SigLIP model with another tokenizer."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(parts / "siglip" / name, folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_1(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_folder(tmp_path_factory.mktemp("siglip_1") / "model", parts, write_siglip_1_tokenizer)


@pytest.fixture(scope="module")
def siglip_2(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return siglip_folder(tmp_path_factory.mktemp("siglip_2") / "model", parts, write_siglip_2_tokenizer)


def load_scorer(folder: Path) -> ClipScorer:
    return load(str(folder), open_image, device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("What Color, is: the circle? RED!", "what color is the circle red"),
        ("  two   Squares\n", "two squares"),
        ("两个绿色的三角形。", "两个绿色的三角形。"),
        ("</s> red", "s red"),
    ],
)
def test_siglip_1_reads_lower_case_text_without_punctuation_padded_with_the_end_token(siglip_1: Path, text: str, canonical: str) -> None:
    expected = [*sentencepiece.SentencePieceProcessor(str(siglip_1 / "spiece.model")).encode(canonical), 1]
    inputs = load_scorer(siglip_1).tokenize([text])
    assert inputs["input_ids"].tolist() == [expected + [1] * (LENGTH - len(expected))]
    assert "attention_mask" not in inputs


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A Red.", ["a", "▁", "re", "d", "."]),
        ("ARE", ["a", "re"]),
        ("Red<eos>", ["re", "d", "<unk>", "e", "o", "s", "<unk>"]),
    ],
)
def test_siglip_2_reads_lower_case_text_with_an_end_token(siglip_2: Path, text: str, tokens: list[str]) -> None:
    scorer = load_scorer(siglip_2)
    (row,) = scorer.tokenize([text])["input_ids"].tolist()
    assert len(row) == LENGTH
    assert scorer.tokenizer.convert_ids_to_tokens(row[: len(tokens) + 2]) == [*tokens, "<eos>", "<pad>"]
    assert set(row[len(tokens) + 1 :]) == {0}


@pytest.mark.parametrize("version", ["siglip_1", "siglip_2"])
def test_a_long_text_keeps_its_end_and_the_end_token(version: str, request: pytest.FixtureRequest) -> None:
    scorer = load_scorer(request.getfixturevalue(version))
    long, short = scorer.tokenize(["circle " * 200 + "red", "red"])["input_ids"].tolist()
    assert len(long) == LENGTH
    assert long[-1] == scorer.tokenizer.eos_token_id == 1
    word = short[: short.index(1)]
    assert long[-1 - len(word) : -1] == word


@pytest.mark.parametrize("version", ["siglip_1", "siglip_2"])
def test_the_case_of_a_text_does_not_change_its_score(version: str, request: pytest.FixtureRequest) -> None:
    upper, lower, other = load_scorer(request.getfixturevalue(version)).score(
        noise_image(1), ["A RED circle", "a red circle", "a blue star"]
    )
    assert upper == lower != other


@pytest.mark.parametrize("declared", ["GemmaTokenizerFast", "Siglip2Tokenizer"])
def test_other_names_of_the_same_tokenizer_give_the_same_ids(siglip_2: Path, tmp_path: Path, declared: str) -> None:
    folder = shutil.copytree(siglip_2, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": declared, "add_eos_token": False}))
    expected = load_scorer(siglip_2).tokenize(["A Red."])["input_ids"]
    assert load_scorer(folder).tokenize(["A Red."])["input_ids"].equal(expected)


def test_a_siglip_with_a_tokenizer_of_its_own_keeps_it(parts: Path) -> None:
    scorer = load_scorer(parts / "siglip")
    assert type(scorer.tokenizer).__name__ == "Qwen2Tokenizer"
    upper, lower = scorer.tokenize(["Red", "red"])["input_ids"].tolist()
    assert upper != lower


@pytest.mark.parametrize(("package", "check"), [("sentencepiece", "is_sentencepiece_available"), ("protobuf", "is_protobuf_available")])
def test_a_missing_package_is_one_sentence(siglip_1: Path, monkeypatch: pytest.MonkeyPatch, package: str, check: str) -> None:
    monkeypatch.setattr(text_tokenizer, check, lambda: False)
    with pytest.raises(UsageError) as raised:
        load_scorer(siglip_1)
    assert str(raised.value) == f"rerank.clip: the tokenizer of {siglip_1} needs {package}: pip install {package}"


@pytest.mark.parametrize("settings", [{"tokenizer_class": "SiglipTokenizer"}, {}])
def test_a_missing_vocabulary_is_one_sentence(siglip_2: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    folder = shutil.copytree(siglip_2, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError) as raised:
        load_scorer(folder)
    assert str(raised.value) == f"rerank.clip: {folder} has no spiece.model, the file that a SiglipTokenizer reads its vocabulary from"


@pytest.mark.skipif(not PUBLISHED, reason="TESSERA_SIGLIP does not name google/siglip-base-patch16-224")
@pytest.mark.parametrize(("text", "ids"), [("the real mountain view", [260, 638, 3293, 870]), ("Zürich", [262, 761, 5879, 5345])])
def test_the_published_siglip_1_gives_the_published_ids(text: str, ids: list[int]) -> None:
    """Ids from huggingface/transformers, tests/models/siglip/test_tokenization_siglip.py, test_tokenizer_integration."""
    assert load_scorer(Path(PUBLISHED)).tokenize([text])["input_ids"].tolist() == [ids + [1] * (LENGTH - len(ids))]
