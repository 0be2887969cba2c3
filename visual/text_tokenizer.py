"""Load the tokenizer of a dual encoder so that it prepares text as the model was trained.

SigLIP 1 reads a SentencePiece model, lower-cases and removes punctuation. SigLIP 2 has Gemma's tokenizer and was trained on lower-cased
text with an end token (big_vision: `lower|tok(length=64, model="gemma", bos="no", eos="sticky")`), but folders of fixed resolution name
GemmaTokenizer, which keeps the case.
"""

from typing import Any

from transformers import AutoTokenizer, Siglip2Tokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from errors import UsageError, loading
from visual.hub_name import pretrained

SENTENCEPIECE_FILE = "spiece.model"
"""The only file that SiglipTokenizer reads a vocabulary from."""


def load_text_tokenizer(name: str, model_type: str, key: str) -> Any:
    """The tokenizer of a folder or hub name, whose configuration has this `model_type`. key: configuration key that error messages name.

    Raises UsageError when it cannot be loaded, or a package or file that it needs is missing.
    """
    with loading(key, name):
        declared = str(get_tokenizer_config(**pretrained(name)).get("tokenizer_class") or "").removesuffix("Fast")
        if model_type == "siglip" and declared in ("GemmaTokenizer", "Siglip2Tokenizer"):
            # Stated here, because the end token would otherwise depend on tokenizer.json.
            return Siglip2Tokenizer.from_pretrained(**pretrained(name), add_bos_token=False, add_eos_token=True)
        if model_type == "siglip" and declared in ("SiglipTokenizer", ""):
            _check_sentencepiece(name, key)
        return AutoTokenizer.from_pretrained(**pretrained(name))


def _check_sentencepiece(name: str, key: str) -> None:
    """Raise UsageError unless SiglipTokenizer has the packages and the file that it needs."""
    packages = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    if missing := [package for package, available in packages.items() if not available]:
        raise UsageError(f"{key}: the tokenizer of {name} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    source = pretrained(name)
    where, revision = source["pretrained_model_name_or_path"], source.get("revision")
    file = cached_file(where, SENTENCEPIECE_FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        raise UsageError(f"{key}: {name} has no {SENTENCEPIECE_FILE}, the file that a SiglipTokenizer reads its vocabulary from")
