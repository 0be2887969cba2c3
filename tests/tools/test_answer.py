"""tools/answer.py: a question, a folder, an interactive session; every failure is one line."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import cli
from answering.reply import CUT
from model.siglip_qwen.processor import Processor
from tests.evaluation.fakes import questions, write_store
from tests.untrained import write_checkpoint
from tools import answer, eval_rerank


def write_noise(path: Path, seed: int) -> Path:
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def experiment(parts: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a configuration, a checkpoint and images."""
    folder = tmp_path_factory.mktemp("experiment")
    path = folder / "checkpoints/trial/checkpoint-1"
    write_checkpoint(path, parts, processor)
    config = {
        "name": "trial",
        "decoding": {"num_candidates": 3, "strategy": "sample", "max_new_tokens": 4, "batch_size": 2},
        "rerank": {"clip": str(parts / "clip")},
        "eval": {
            "systems": [{"name": "qwen", "kind": "qwen3_vl", "path": str(parts / "qwen3_vl"), "quantization": "none"}],
            "description_tokens": 6,
        },
    }
    (folder / "trial.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for seed, name in enumerate(["a.png", "b.JPG", "more/c.webp"]):
        write_noise(folder / "pictures" / name, seed)
    (folder / "pictures/notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def run(experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Run":
    monkeypatch.chdir(experiment)
    return Run(monkeypatch, capsys)


class Run:
    """Runs the command in the folder of the experiment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str, typed: list[str] | None = None) -> tuple[int, list[str], str]:
        """Exit status, lines of standard output, and the last line of standard error."""
        lines = iter(typed or [])

        def line(prompt: str) -> str:
            print(prompt)
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        self.monkeypatch.setattr("builtins.input", line)
        with pytest.raises(SystemExit) as ended:
            cli.run(answer.main, answer.parser, ["--config", "trial.yaml", *arguments])
        output = self.capsys.readouterr()
        return int(ended.value.code or 0), output.out.splitlines(), (output.err.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize("system", [[], ["--system", "qwen"]], ids=["checkpoint", "qwen"])
def test_a_question_prints_the_answer_and_the_candidates_with_their_scores(run: Run, system: list[str]) -> None:
    status, lines, _ = run(*system, "--image", "pictures/a.png", "--question", "What color is it?")
    assert status == 0
    lines = [line for line in lines if line.strip() != CUT]
    assert lines[1].split() == ["mean", "log", "p", "CLIP", "fused", "candidate"]
    rows = [line.split(maxsplit=3) for line in lines[2:]]
    assert 1 <= len(rows) <= 3
    fused = [float(row[2]) for row in rows]
    best = rows[fused.index(max(fused))]
    assert lines[0] == (best[3] if len(best) > 3 and best[3] != "(empty)" else "unknown")


def test_without_an_image_or_a_scorer_there_are_no_clip_scores(run: Run) -> None:
    for arguments in (("--question", "Who are you?"), ("--image", "pictures/a.png", "--question", "What?", "rerank.clip=null")):
        _, (_, *lines), _ = run(*arguments)
        assert next(line for line in lines if line.strip() != CUT).split() == ["mean", "log", "p", "candidate"]


def test_an_answer_that_was_cut_says_so(run: Run) -> None:
    for options in ((), ("--stream",)):
        # The untrained model goes on for ever.
        assert run("--question", "Who are you?", "decoding.max_new_tokens=2", *options)[1][1].strip() == CUT


def test_an_answer_below_the_confidence_threshold_is_withheld(run: Run, experiment: Path, caplog: pytest.LogCaptureFixture) -> None:
    question = ("--system", "qwen", "--image", "pictures/a.png", "--question", "What color is it?")
    before = run(*question, "--abstain-below", "0.5")
    assert (before[0], "holds no fitted confidence for this system" in before[2]) == (2, True)
    write_store(experiment / "data/trial", questions(2) + questions(6, "validation"))
    with pytest.raises(SystemExit) as ended:
        cli.run(
            eval_rerank.main,
            eval_rerank.parser,
            ["--config", "trial.yaml", "rerank.tune=true", "eval.resamples=100", "--abstain-below", "0.4"],
        )
    assert ended.value.code == 0
    summary = json.loads((experiment / "results/trial/summary.json").read_text(encoding="utf-8"))
    assert {own["confidence"]["abstaining"]["below"] for own in summary["systems"].values()} == {0.4}
    run.capsys.readouterr()
    try:
        answered, withheld = run(*question, "--abstain-below", "0"), run(*question, "--abstain-below", "1")
        assert (answered[0], withheld[0]) == (0, 0)
        assert answered[1][0] != "not sure"
        assert withheld[1][0] == "not sure"
        # Both print the confidence and the answer below.
        assert answered[1][1] == withheld[1][1]
        assert re.fullmatch(rf'\s*how likely "{re.escape(answered[1][0])}" is right: \d+%', answered[1][1])
        # Weights that differ from those of the evaluation are used as given, without a fitted confidence.
        other = run(*question, "--abstain-below", "0", "rerank.weights.clip=0.9")
        assert "with the present decoding and rerank settings (results/trial/plans/qwen.json was fitted for another" in other[2]
        assert "rerank setting (weights)" in other[2]
        assert not any("fitted for another" in message for message in caplog.messages)
        assert run(*question, "rerank.weights.clip=0.9")[0] == 0
        assert any("(weights): its weights and its confidence are not used" in message for message in caplog.messages)
        assert run("--system", "qwen", "--image", "pictures/a.png", "--question", "这是什么？", "--abstain-below", "1")[1][0] == "不确定"
    finally:
        shutil.rmtree(experiment / "results/trial/plans")


def test_a_stream_prints_the_raw_answer(run: Run) -> None:
    arguments = (
        "--image",
        "pictures/a.png",
        "--question",
        "What?",
        "decoding.num_candidates=1",
        "decoding.strategy=greedy",
        "decoding.max_new_tokens=9",
    )
    _, streamed, _ = run(*arguments, "--stream")
    _, complete, _ = run(*arguments)
    assert streamed[0] == complete[0]


def test_a_saved_answer_is_json_and_an_image(run: Run, tmp_path: Path) -> None:
    arguments = ("--image", "pictures/a.png", "--image", "pictures/b.JPG", "--question", "这是什么？", "--save", str(tmp_path))
    assert run(*arguments)[0] == 0
    assert run(*arguments, "--system", "qwen")[0] == 0
    first, second = sorted(tmp_path.glob("*.json"))
    saved = json.loads(first.read_text(encoding="utf-8"))
    assert saved["question"] == "这是什么？"
    assert saved["images"] == ["pictures/a.png", "pictures/b.JPG"]
    assert saved["answer"] == saved["choices"]["reranked"]
    assert {"text", "log_prob", "mean_log_prob", "clip", "fused"} <= saved["candidates"][0].keys()
    assert {json.loads(path.read_text(encoding="utf-8"))["model"]["kind"] for path in (first, second)} == {"checkpoint", "qwen3_vl"}
    with Image.open(first.with_suffix(".png")) as image:
        assert image.width > image.height / 2
        assert len(image.convert("RGB").getcolors(2**24) or []) > 1000


def test_every_image_of_a_folder_gets_a_caption_and_an_answer(run: Run, experiment: Path) -> None:
    arguments = ("--images", "pictures", "--question", "What color is it?")
    (experiment / "pictures/broken.png").write_bytes(b"no picture")
    in_gbk = experiment / "pictures" / "照片.jpg".encode("gbk").decode("utf-8", "surrogateescape")
    in_gbk.write_bytes((experiment / "pictures/b.JPG").read_bytes())
    try:
        status, printed, _ = run(*arguments)
        path = experiment / "results/trial/answers/pictures.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert status == 0
        listed = path.with_suffix(".failed.jsonl")
        assert printed[-3] == f"5 images (0 already answered, 1 failed): {path.relative_to(experiment)}"
        assert printed[-2].startswith("  pictures/broken.png: ")
        assert printed[-1] == f"all 1 failed images: {listed.relative_to(experiment)}"
        assert [json.loads(line)["image"] for line in listed.read_text(encoding="utf-8").splitlines()] == ["pictures/broken.png"]
        assert [line["image"] for line in lines] == ["a.png", "b.JPG", "broken.png", "more/c.webp", "\\xd5\\xd5Ƭ.jpg"]
        assert "cannot be decoded" in lines[2]["errors"][0]
        assert lines[2]["caption"] is None
        assert lines[2]["answer"] is None
        assert all(isinstance(lines[i]["caption"], str) and lines[i]["answer"] and lines[i]["candidates"] for i in (0, 1, 3, 4))
    finally:
        in_gbk.unlink()
        (experiment / "pictures/broken.png").unlink()


def answers(lines: str) -> list[list[str]]:
    """Key, image, caption and candidate texts of each line."""
    rows = map(json.loads, lines.splitlines())
    return [[row["key"], row["image"], row["caption"], *(candidate["text"] for candidate in row["candidates"])] for row in rows]


def test_a_killed_run_over_a_folder_resumes(run: Run, tmp_path: Path) -> None:
    arguments = ("--images", "pictures", "--question", "What color is it?", "--save", str(tmp_path))
    run(*arguments)
    path = tmp_path / "answers.jsonl"
    complete = path.read_text(encoding="utf-8")
    first, second, _ = complete.splitlines(keepends=True)
    path.write_text(first + second[:40], encoding="utf-8")
    assert "3 images (1 already answered, 0 failed)" in run(*arguments)[1][-1]
    # With another batch composition, scores may differ in the last bits.
    assert answers(path.read_text(encoding="utf-8")) == answers(complete)
    os.utime("pictures/a.png", ns=(1, 1))
    assert "(3 already answered" in run(*arguments)[1][-1]
    original = Path("pictures/a.png").read_bytes()
    try:
        Path("pictures/a.png").write_bytes(original + b"changed")
        assert "(2 already answered" in run(*arguments)[1][-1]
    finally:
        Path("pictures/a.png").write_bytes(original)
    run(*arguments)
    assert "(0 already answered" in run(*arguments, "decoding.num_candidates=2")[1][-1]


def test_an_interactive_session_continues_until_exit(run: Run) -> None:
    typed = ["no.png", "pictures/a.png", "What?", "Which?", "", "", "Who are you?", "exit", "never asked"]
    status, lines, _ = run(typed=typed)
    assert status == 0
    assert "error: no.png: there is no such file" in lines
    assert sum(line.split() == ["mean", "log", "p", "CLIP", "fused", "candidate"] for line in lines) == 2
    assert sum(line.split() == ["mean", "log", "p", "candidate"] for line in lines) == 1
    assert sum(line.startswith("question (") for line in lines) == 5


def test_an_interactive_session_about_a_given_image_ends_with_the_input(run: Run) -> None:
    status, lines, _ = run("--image", "pictures/a.png", "--long", typed=["What?"])
    assert status == 0
    assert [line.startswith("question (") for line in lines].count(True) == 2
    assert not any(line.startswith("image (") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--system", "none"], 2, "--system: eval.systems has no none (it has: qwen)"),
        (["--checkpoint", "no/such"], 2, "no/such does not exist"),
        (["--image", "no.png", "--question", "What?"], 1, "no.png: there is no such file"),
        (["--images", "no"], 2, "--images no: there is no such folder"),
        (["--images", "checkpoints"], 2, "no images in it"),
        (["--stream", "--save", "x", "--question", "What?"], 2, "cannot be combined with --save or --images"),
        (["--question", "What?", "--abstain-below", "1.5"], 2, "--abstain-below 1.5: expected a probability, 0 to 1"),
        (
            ["--question", "What?", "rerank.clip_score_form=prior_corrected"],
            2,
            "rerank.clip_score_form: prior_corrected needs the background images of an evaluation",
        ),
        (["--question", "What?", "rerank.scorers=[{name: self, path: x}]"], 2, "rerank.scorers.0: the name self is taken"),
        (["--question", "What?", "rerank.clip=./no"], 2, "rerank.clip: ./no does not exist"),
        (["--question", "What? " * 400], 1, "at most 512"),
    ],
)
def test_an_error_is_one_line(run: Run, arguments: list[str], status: int, message: str) -> None:
    exit_status, _, error = run(*arguments)
    assert (exit_status, error.startswith("error: ")) == (status, True)
    assert message in error


def test_the_package_and_the_tool_are_in_the_same_repository() -> None:
    assert Path(sys.modules["answering"].__file__ or "").parent.parent == Path(answer.__file__).parent.parent
