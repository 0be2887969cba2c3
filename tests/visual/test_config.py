from answering.config import QwenVlSystem
from config import Config
from evaluation.config import EvalConfig
from model.siglip_qwen.config import SiglipQwenConfig
from visual.config import iter_model_names


def test_the_models_named_in_a_configuration_are_found_with_their_keys() -> None:
    systems = (QwenVlSystem(name="qwen", kind="qwen3_vl", path="Qwen/Qwen3-VL-4B-Instruct"),)
    config = Config(name="x", model=SiglipQwenConfig(vision="a/siglip", language="b/qwen"), eval=EvalConfig(systems=systems))
    assert dict(iter_model_names(config)) == {
        "model.vision": "a/siglip",
        "model.language": "b/qwen",
        "eval.systems.0.path": "Qwen/Qwen3-VL-4B-Instruct",
    }
