"""Every command that a README shows is run, in its order, long ones at a reduced size."""

import re
from pathlib import Path

import pytest

from tests.pipeline import ROOT, run, workspace

SMALL = "train.stages.0.max_steps=1 train.stages.1.max_steps=2 train.per_device_train_batch_size=4 train.eval_samples=4 train.num_logged_predictions=2 train.dataloader_num_workers=0"
REDUCED = {
    "tools/make_synthetic_data.py": "--train 24 --validation 8 --test 8 --unseen 4",
    "train.py": SMALL,
    "tools/eval_rerank.py": "eval.thresholds.first=null eval.thresholds.min_lead=null eval.thresholds.shuffled_images=1 eval.thresholds.untuned=1 --limit 6",
    "tools/benchmark.py preprocess": "--pictures 20 --records 60",
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
