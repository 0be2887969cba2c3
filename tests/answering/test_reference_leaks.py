"""No leaks: changing the reference answers changes neither the answers of any answerer nor the choices among them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import cli
from model.checkpoint_manifest import write_manifest
from model.hub import llava_export
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import configure_trainable
from model.siglip_qwen.assembly import build
from model.siglip_qwen.config import LoraConfig, SiglipQwenConfig
from model.siglip_qwen.processor import Processor
from tests.answering.endpoints import Server
from tests.answering.systems.test_qwen_vl import build_qwen2_5_vl
from tests.evaluation.fakes import questions, write_store
from tests.small_models import build_blip2
from tools import eval_rerank

SECRET = "mauve canary"


@pytest.fixture(scope="module")
def systems(parts: Path, processor: Processor, server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kind of answerer: our checkpoint in its three forms, both families of Qwen, both of BLIP-2, and an endpoint."""
    folder = tmp_path_factory.mktemp("systems")
    settings = SiglipQwenConfig(vision=str(parts / "siglip"), language=str(parts / "qwen3"), lora=LoraConfig(r=4, lora_alpha=8))
    torch.manual_seed(0)
    weights = configure_trainable(build(settings, image_token_id=processor.image_token_id), settings, ("connector", "lora"))
    checkpoint.save(weights, folder / "adapter")
    processor.save(folder / "adapter")
    write_manifest(folder / "adapter")
    for form in ("merged", "llava"):
        llava_export.export(folder / "adapter", folder / form, form, processor)
    qwen = {"qwen3_vl": parts / "qwen3_vl", "qwen2_5_vl": build_qwen2_5_vl(folder / "qwen2_5_vl", parts)}
    blip = {family: build_blip2(folder / family, family, parts) for family in ("opt", "t5")}
    return [
        *({"name": form, "kind": "checkpoint", "path": str(folder / form)} for form in ("adapter", "merged", "llava")),
        *({"name": kind, "kind": kind, "path": str(path), "quantization": "none"} for kind, path in qwen.items()),
        *({"name": f"blip2-{family}", "kind": "blip2", "path": str(path)} for family, path in blip.items()),
        {"name": "endpoint", "kind": "openai", "model": "canary", "base_url": server.url, "api_key_env": None},
    ]


def test_references_change_no_answer_and_no_choice_of_any_answerer(
    systems: list[dict[str, Any]], parts: Path, server: Server, tmp_path: Path
) -> None:
    """Runs the whole command twice; the second time with shuffled reference answers, half of them replaced by a planted one."""

    def run(name: str, change: bool) -> dict[str, bytes]:
        rows = questions(2)
        if change:
            answers = [row["answers"][:5] + [SECRET] * 5 for row in rows]
            random.Random(1).shuffle(answers)
            rows = [{**row, "answers": own, "targets": [SECRET]} for row, own in zip(rows, answers, strict=True)]
        # The validation split, on which the reranker is fitted, does not change.
        write_store(tmp_path / "data", rows + questions(2, "validation"))
        config = {
            "name": "canary",
            "data": {"folder": str(tmp_path / "data")},
            "decoding": {"num_candidates": 3, "max_new_tokens": 4, "batch_size": 4},
            "rerank": {"clip": str(parts / "clip"), "tune": True, "self_evaluation": True, "background_images": 2},
            "eval": {
                # A new cache, so that the endpoint is asked again.
                "systems": [s | ({"cache": str(tmp_path / name / "cache")} if s["kind"] == "openai" else {}) for s in systems],
                "resamples": 50,
                "description_tokens": 4,
            },
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        with pytest.raises(SystemExit) as ended:
            cli.run(eval_rerank.main, eval_rerank.parser, ["--debug", "--config", str(path), "--out", str(tmp_path / name)])
        assert ended.value.code == 0
        return {file.stem: file.read_bytes() for file in (tmp_path / name / "predictions").glob("*.jsonl")}

    plain, mixed = run("plain", False), run("mixed", True)
    assert plain.keys() == {system["name"] for system in systems}
    for name, lines in plain.items():
        rows = [json.loads(line) for line in lines.decode().splitlines()]
        assert len(rows) == 8
        assert not any(row["error"] for row in rows), name
        assert {"first", "majority", "random", "clip", "reranked"} <= rows[0]["choices"].keys()
        assert mixed[name] == lines, f"{name}: references changed its predictions"
        assert SECRET.encode() not in mixed[name]
    # The reference answers did change the accuracy.
    accuracy = [json.loads((tmp_path / name / "summary.json").read_text(encoding="utf-8"))["systems"] for name in ("plain", "mixed")]
    assert accuracy[0] != accuracy[1]
    assert server.sent("canary")
    assert SECRET not in json.dumps(server.log())
