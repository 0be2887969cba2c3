"""Every command that a README shows is run, in its order, long ones at a reduced size."""

import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw

from tests.pipeline import ROOT, run, workspace

SMALL = (
    "train.stages.0.max_steps=1 train.stages.1.max_steps=2 train.per_device_train_batch_size=4 train.eval_samples=4 "
    "train.num_logged_predictions=2 train.dataloader_num_workers=0"
)
NO_THRESHOLDS = "eval.thresholds.first=null eval.thresholds.min_lead=null eval.thresholds.shuffled_images=1 eval.thresholds.untuned=1"
REDUCED = {
    "tools/make_synthetic_data.py": "--train 24 --validation 8 --test 8 --unseen 4",
    "train.py": SMALL,
    "tools/eval_rerank.py": f"{NO_THRESHOLDS} --limit 6",
    "tools/benchmark.py preprocess": "--images 20 --records 60",
    "tools/benchmark.py train": "--samples 8 --rounds 1 train.per_device_train_batch_size=4",
    "tools/benchmark.py generate": "--samples 4 --rounds 1 decoding.max_new_tokens=4",
}
"""What a command gets in addition, so that it takes seconds."""
TYPED = {"python tools/answer.py": "data/scenes/coco/test/000400000001.jpg\nHow many shapes are there?\nexit\nexit\n"}
"""What is typed into commands that ask."""
MAKE = {"make demo", "make test", "make install"}
"""Run by whoever runs this test."""


def commands(readme: str) -> list[str]:
    """Lines of the shell blocks, without comments; continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


def reduced(command: str) -> str:
    extra = next((extra for name, extra in REDUCED.items() if name in command), "")
    # key=value arguments must stand before options that take a list.
    return f"{command} {extra}".strip()


def test_both_readmes_show_the_same_commands() -> None:
    assert commands("README.zh.md") == commands("README.md")


def test_the_windows_commands_are_those_that_make_demo_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", makefile, flags=re.M)
    assert demo is not None
    lines = [line.strip() for line in demo[1].splitlines()]
    # Lines that begin with @ only print.
    ran = [line.replace("$(BIN)/", "").replace("$(PY)", "python") for line in lines if not line.startswith("@")]
    # Where there is no launcher of several processes, one process trains.
    ran = [line.replace("ACCELERATE_USE_CPU=true ", "").replace("cpus.yaml", "cpu.yaml") for line in ran]
    for readme in ("README.md", "README.zh.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        assert "\n".join(ran) in text


@pytest.mark.slow  # .ci/run makes the short demo with the same commands
@pytest.mark.xdist_group("long")
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    folder = workspace(tmp_path)
    for preparing in ("python tools/train_tiny_models.py --steps 0", "python tools/make_synthetic_data.py"):
        run(folder, reduced(preparing))
    shown = commands("README.md")
    assert len(shown) > 10
    for command in shown:
        if command not in MAKE:
            run(folder, reduced(command), stdin=TYPED.get(command, ""))
    for made in ("results/tiny/report.html", "results/tiny/loss_curves.png", "exported/tiny/model.safetensors"):
        assert (folder / made).is_file()


def own_images_section(readme: str) -> dict[str, str]:
    """Its JSON, YAML and commands."""
    section = (ROOT / readme).read_text(encoding="utf-8").split("\n## ")[2]
    return dict(re.findall(r"^```(json|yaml|text)\n(.*?)^```", section, flags=re.M | re.S))


def test_both_readmes_show_the_same_way_from_ones_own_images() -> None:
    english, chinese = own_images_section("README.md"), own_images_section("README.zh.md")
    assert english["json"] == chinese["json"] and english["text"] == chinese["text"]
    assert yaml.safe_load(english["yaml"]) == yaml.safe_load(chinese["yaml"])


@pytest.mark.slow
@pytest.mark.xdist_group("long")
def test_fifty_images_of_ones_own_lead_to_an_answer(tmp_path: Path) -> None:
    folder = workspace(tmp_path)
    run(folder, "python tools/train_tiny_models.py --steps 0")
    blocks = own_images_section("README.md")
    (folder / "mine" / "images").mkdir(parents=True)
    records = json.loads(blocks["json"])
    for number in range(1, 51):
        color = ("red", "blue", "green")[number % 3]
        name = f"{number:03}.jpg"
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).ellipse((20 + number % 7, 20, 60, 60 + number % 5), fill=color)
        image.save(folder / "mine" / "images" / name)
        if number > len(records):
            records.append(records[0] | {"id": number, "answers": [color], "image_file": name})
    (folder / "mine" / "questions.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "mine.yaml").write_text(blocks["yaml"], encoding="utf-8")
    outputs = [run(folder, command) for command in blocks["text"].splitlines()]
    assert "50" in outputs[0]
    summary = json.loads((folder / "results" / "mine" / "summary.json").read_text(encoding="utf-8"))
    assert summary["dataset"]["questions"] == 10
    assert outputs[-1].strip()
