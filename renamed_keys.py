"""Keys that once had another name: an old key in a YAML file is answered with the new one, old files are read under the new ones.

In: keys and values as files of schema version 1 hold them. Out: the same under today's names. Called by `config` and by
everything that reads what an earlier version wrote: checkpoints, run states, predictions, fitted rerankers.
"""

from typing import Any

RENAMED: dict[str, dict[str, str]] = {
    "train": {
        "accumulation": "gradient_accumulation_steps",
        "batch_size": "per_device_train_batch_size",
        "cache_features": "cache_vision_features",
        "compile": "torch_compile",
        "evaluate_samples": "eval_samples",
        "evaluate_steps": "eval_steps",
        "keep_checkpoints": "save_total_limit",
        "log_steps": "logging_steps",
        "optimizer": "optim",
        "panels": "num_logged_predictions",
        "patience": "early_stopping_patience",
        "processes": "num_processes",
        "projector": "connector",
        "questions_together": "max_questions_per_conversation",
        "tokens_per_row": "packing_length",
        "warmup": "warmup_steps",
        "workers": "dataloader_num_workers",
    },
    "model": {
        "alpha": "lora_alpha",
        "dora": "use_dora",
        "dropout": "lora_dropout",
        "feature_layer": "vision_feature_layer",
        "max_tokens": "max_length",
        "placeholder": "image_token",
        "projector": "connector",
    },
    "decoding": {"k": "num_candidates", "mode": "strategy"},
    "rerank": {
        "bank": "background_images",
        "form": "clip_score_form",
        "guard": "skipped_question_types",
        "self_score": "self_evaluation",
        "wording": "statement_form",
    },
    "eval": {
        "api_key_variable": "api_key_env",
        "bars": "thresholds",
        "bootstrap": "resamples",
        "changed_pictures": "max_changed_images",
        "examples": "max_examples",
        "lead": "min_lead",
        "max_side": "max_image_side",
        "shuffled_pictures": "shuffled_images",
    },
    "serve": {"max_pictures": "max_images", "max_question": "max_question_chars", "new_tokens": "default_max_new_tokens"},
    "search": {"exact_up_to": "exact_search_limit"},
}
"""Old key -> new key, by section of the configuration; keys of nested mappings (model.lora.alpha) stand beside their section's own."""

RENAMED_GROUPS = {"projector": "connector"}
"""Parameter groups, as `train.stages[i].train` names them."""


EARLIER_FILE_NAMES = {"shuffled_images": "shuffled_pictures"}
"""Names of predictions files, without their folder and suffix."""


def new_key(section: str, old: str) -> str | None:
    """Today's name of a key in a section; None for a key that never had another name."""
    return RENAMED.get(section, {}).get(old)


def with_connector_kind(model: Any) -> Any:
    """Settings of a model with the kind of its connector, which was `mlp_pool` whenever `pool` was more than 1."""
    connector = model.get("connector") if isinstance(model, dict) else None
    if not isinstance(connector, dict) or "kind" in connector or connector.get("pool", 1) == 1:
        return model
    return {**model, "connector": {**connector, "kind": "mlp_pool"}}


def with_new_keys(section: str, value: Any) -> Any:
    """The same value with today's keys in all its mappings. Keys of today are left as they are."""
    if isinstance(value, dict):
        return {new_key(section, key) or key: with_new_keys(section, item) for key, item in value.items()}
    if isinstance(value, list):
        names = RENAMED_GROUPS if section == "train" else {}
        return [names.get(item, item) if isinstance(item, str) else with_new_keys(section, item) for item in value]
    return value


def with_old_keys(section: str, value: dict[str, Any], **further: str) -> dict[str, Any]:
    """A mapping with the keys of schema version 1, in the same order: digests in files of that version were made of them.

    further: new=old names of keys that are none of the configuration.
    """
    old = {new: key for key, new in RENAMED[section].items()} | further
    return {old.get(key, key): with_old_keys(section, item) if isinstance(item, dict) else item for key, item in value.items()}
