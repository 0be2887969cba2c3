"""Images in tiles: pixels, tokens and logits of transformers' LLaVA-NeXT; training, packed rows, answers, checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil, LlavaNextProcessor

from dataset.loading.collators import Example, PackedCollator, PaddedCollator
from dataset.sample import Message
from errors import UsageError
from model.checkpoint_manifest import write_manifest
from model.hub import llava_export
from model.param_groups import set_trainable
from model.siglip_qwen import checkpoint
from model.siglip_qwen.adapters import base_model, configure_trainable
from model.siglip_qwen.assembly import tokens_per_image
from model.siglip_qwen.batch_layout import LayoutCollator, images_of_rows
from model.siglip_qwen.config import ConnectorConfig, SiglipQwenConfig, TilesConfig
from model.siglip_qwen.family import FAMILY
from model.siglip_qwen.modeling import VisionLanguageModel
from model.siglip_qwen.tiles import TileGrid
from model.siglip_qwen.tiles_processor import TilesProcessor

Make = Callable[..., VisionLanguageModel]
Settings = Callable[..., SiglipQwenConfig]
TILES = {"tiles": TilesConfig(max=4)}
SIZES = [(96, 96), (200, 90), (90, 200), (193, 197), (400, 300), (37, 41), (1000, 61), (61, 1000), (97, 96), (640, 427)]
"""Width and height."""


def image_of(size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def tiled(settings: Settings) -> TilesProcessor:
    made = FAMILY.processor(settings(**TILES))
    assert isinstance(made, TilesProcessor)
    return made


def stock_image_processor(tiled: TilesProcessor) -> LlavaNextImageProcessorPil:
    own = tiled.image_processor
    return LlavaNextImageProcessorPil(
        size=dict(own.size), do_center_crop=False, crop_size=None, resample=own.resample, image_mean=own.image_mean,
        image_std=own.image_std, image_grid_pinpoints=tiled.grid.resolutions,
    )  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_number_of_tokens_are_those_of_stock_llava_next(tiled: TilesProcessor, size: tuple[int, int]) -> None:
    image, stock = image_of(size), stock_image_processor(tiled)
    inputs = tiled.read([image])
    ours, theirs = tiled.normalize(inputs)["pixel_values"], stock(images=[image], return_tensors="pt")
    assert torch.equal(ours, theirs["pixel_values"][0])
    assert inputs["image_sizes"].tolist() == theirs["image_sizes"].tolist() == [[size[1], size[0]]]
    stock_processor = LlavaNextProcessor(
        stock, tiled.tokenizer, patch_size=16, vision_feature_select_strategy="full", image_token="<|image_pad|>"
    )
    expected = stock_processor._get_number_of_features(size[1], size[0], 96, 96)
    assert tiled.image_tokens(1, [size]) == [expected]
    assert expected <= tiled.grid.most_tokens


@pytest.mark.parametrize("maximum", [2, 4, 6])
def test_no_image_takes_more_tokens_than_the_grid_says(maximum: int) -> None:
    grid = TileGrid(maximum, 96, 6)
    found = [grid.num_tokens((height, width)) for height in range(1, 500, 7) for width in range(1, 500, 11)]
    assert max(found) <= grid.most_tokens
    assert grid.num_tokens((96 * maximum, 96)) <= grid.most_tokens


def prompt_inputs(tiled: TilesProcessor, sizes: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """A prompt with images of these sizes."""
    message = Message("user", "<image>?" * len(sizes))
    prompt = tiled.prompt_with_images([message], [image_of(size, i) for i, size in enumerate(sizes)])
    return {"input_ids": torch.tensor([prompt.ids]), **prompt.images}


def stock_model(model: VisionLanguageModel) -> LlavaNextForConditionalGeneration:
    """transformers' LLaVA-NeXT with the same weights."""
    config = model.config
    stock = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=config.vision_config, text_config=config.text_config, image_token_index=config.image_token_id,
            image_grid_pinpoints=config.tile_grid.resolutions, vision_feature_layer=-2, vision_feature_select_strategy="full",
        )
    )  # fmt: skip
    state = model.state_dict()
    prefix = "model.multi_modal_projector."
    state = {
        name.replace(f"{prefix}connector.", prefix).replace(f"{prefix}image_newline", "model.image_newline"): v for name, v in state.items()
    }
    assert not stock.load_state_dict(state, strict=False).unexpected_keys
    return stock.eval()


def test_logits_and_gradients_equal_those_of_stock_llava_next(make: Make, tiled: TilesProcessor) -> None:
    model = make(**TILES)
    set_trainable(model, ["connector"])
    stock = stock_model(model)
    inputs = prompt_inputs(tiled, [(200, 90), (61, 300), (193, 197)])
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    # The stock class takes the tiles of several images as one padded tensor.
    sizes = [(height, width) for height, width in inputs["image_sizes"].tolist()]
    tiles = inputs["pixel_values"].split([model.config.tile_grid.num_rows(size) for size in sizes])
    padded = torch.nn.utils.rnn.pad_sequence(list(tiles), batch_first=True)
    torch.testing.assert_close(model(**inputs).logits, stock(**{**inputs, "pixel_values": padded}).logits, atol=1e-5, rtol=0)
    model(**inputs, labels=labels).loss.backward()
    stock(**{**inputs, "pixel_values": padded}, labels=labels).loss.backward()
    connector = model.model.multi_modal_projector
    torch.testing.assert_close(connector.get_parameter("image_newline").grad, stock.model.image_newline.grad, atol=1e-5, rtol=1e-4)
    ours, theirs = connector.get_parameter("connector.linear_1.weight").grad, stock.model.multi_modal_projector.linear_1.weight.grad
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def examples(tiled: TilesProcessor) -> list[Example]:
    made = []
    for i, sizes in enumerate(([(200, 90)], [], [(61, 300), (150, 150)])):
        encoded = tiled.encode([Message("user", "<image>\n" * len(sizes) + "?")], "a red circle", len(sizes), sizes=sizes)
        assert encoded is not None
        made.append(Example(f"s{i}", encoded, tiled.read([image_of(size, i) for size in sizes])))
    return made


def test_packed_rows_and_padded_batches_give_the_loss_of_each_sample_alone(make: Make, tiled: TilesProcessor) -> None:
    model, samples = make(**TILES), examples(tiled)
    padded = LayoutCollator(PaddedCollator(pad_id=0), tiled.image_token_id)
    packed = LayoutCollator(PackedCollator(pad_id=0, capacity=1024, max_length=512), tiled.image_token_id)

    def loss(collate: LayoutCollator, chosen: list[Example]) -> torch.Tensor:
        value: torch.Tensor = model(**tiled.normalize(collate(chosen)), num_items_in_batch=1).loss
        return value

    alone = sum(loss(padded, [sample]) for sample in samples)
    torch.testing.assert_close(loss(padded, samples), alone, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(loss(packed, samples), alone, atol=1e-4, rtol=1e-5)


def test_a_batch_without_images_gives_the_connector_and_the_newline_a_gradient(make: Make, tiled: TilesProcessor) -> None:
    model = make(**TILES)
    set_trainable(model, ["connector"])
    batch = LayoutCollator(PaddedCollator(pad_id=0), tiled.image_token_id)(examples(tiled)[1:2])
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.model.multi_modal_projector.parameters())


def test_beams_keep_the_images_of_their_row(make: Make, tiled: TilesProcessor) -> None:
    model = make(**TILES)
    inputs = prompt_inputs(tiled, [(200, 90), (61, 300)])
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    greedy = model.generate(**inputs, **options)
    torch.testing.assert_close(model.generate(**inputs, **options, num_beams=3, num_return_sequences=3).shape[0], 3)
    torch.testing.assert_close(model.generate(**inputs, **options, use_cache=False), greedy)


def test_what_was_trained_is_saved_with_the_newline_and_its_processor(
    make: Make, settings: Settings, tiled: TilesProcessor, tmp_path: Path
) -> None:
    model = configure_trainable(make(**TILES), settings(**TILES), ["connector", "lora"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    checkpoint.save(model, tmp_path)
    tiled.save(tmp_path)
    write_manifest(tmp_path)
    loaded_processor = FAMILY.load_processor(tmp_path)
    assert isinstance(loaded_processor, TilesProcessor) and loaded_processor.max_tiles == 4
    inputs = prompt_inputs(loaded_processor, [(200, 90)])
    for loaded in (checkpoint.load(tmp_path), checkpoint.merge(tmp_path)):
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4)
    assert base_model(model).config.tiles == 4


@pytest.mark.parametrize("layer", [-2, "last_hidden_state"])
def test_the_export_opens_as_llava_next_in_stock_transformers(
    make: Make, settings: Settings, tiled: TilesProcessor, tmp_path: Path, layer: Any
) -> None:
    changes = {**TILES, "vision_feature_layer": layer}
    model = configure_trainable(make(**changes), settings(**changes), ["connector"])
    checkpoint.save(model, tmp_path / "c")
    tiled.save(tmp_path / "c")
    write_manifest(tmp_path / "c")
    llava_export.export(tmp_path / "c", tmp_path / "out", "llava", tiled)
    stock, report = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    # Image processor and chat template of the exported folder, as other programs use them.
    image_processor = LlavaNextImageProcessorPil.from_pretrained(tmp_path / "out")
    stock_processor = LlavaNextProcessor(
        image_processor, tiled.tokenizer, patch_size=16, vision_feature_select_strategy="full", image_token=tiled.image_token
    )
    template = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert template["patch_size"] == 16 and template["num_additional_image_tokens"] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    image = image_of((200, 90))
    theirs = stock_processor(images=[image], text=[text], return_tensors="pt")
    prompt = tiled.prompt_with_images([Message("user", "<image>\nWhat is this?")], [image])
    assert theirs["input_ids"].tolist() == [prompt.ids]
    ours = model(input_ids=torch.tensor([prompt.ids]), **prompt.images).logits
    torch.testing.assert_close(stock.eval()(**theirs).logits, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("connector", [ConnectorConfig(kind="mlp_pool", pool=2), ConnectorConfig(kind="linear")])
def test_other_connectors_with_a_grid_of_tokens(make: Make, settings: Settings, connector: ConnectorConfig) -> None:
    changes = {**TILES, "connector": connector}
    made = FAMILY.processor(settings(**changes))
    assert isinstance(made, TilesProcessor) and made.grid.tile_tokens == (3 if connector.pool == 2 else 6)
    assert make(**changes)(**prompt_inputs(made, [(200, 90)])).logits.isfinite().all()


@pytest.mark.parametrize("connector", [ConnectorConfig(kind="resampler"), ConnectorConfig(keep_ratio=0.5)])
def test_connectors_without_a_grid_are_refused(settings: Settings, connector: ConnectorConfig) -> None:
    with pytest.raises(UsageError, match=r"model\.tiles: needs a connector whose tokens are a grid"):
        tokens_per_image(settings(**TILES, connector=connector))


def test_more_tiles_than_a_sample_has_room_for_are_refused(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"model\.tiles\.max: an image of 16 tiles takes 708 tokens, model\.max_length is 512"):
        FAMILY.processor(settings(tiles=TilesConfig(max=16), max_length=512))


def test_images_of_rows() -> None:
    assert images_of_rows([5, 0, 3], [2, 3, 3]) == [[0, 1], [], [2]]
    assert images_of_rows([4, 4], [2, 3, 3]) is None
    assert images_of_rows([2], [2, 3]) is None


def test_a_prompt_names_an_image_once(tiled: TilesProcessor) -> None:
    ids = tiled.prompt([Message("user", "<image>What?")], 1, [(200, 90)])
    assert tiled.readable(ids).count("<image>") == 1 and "<|image_pad|>" not in tiled.readable(ids)
