"""The page with the trained model of a finished demo run shows its right answers. TESSERA_DEMO names the folder of that run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from playwright.sync_api import expect

from serving.demo.localization import translations
from tests.serving.demo.browser import CHROMIUM, PHONE_SIZE, open_page, save_screenshot, upload_image

FOLDER = Path(os.environ.get("TESSERA_DEMO", "none"))
NUM_QUESTIONS = 3

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (the package chromium)"),
    pytest.mark.skipif(not (FOLDER / "results/tiny/predictions/ours.jsonl").is_file(), reason="TESSERA_DEMO names no finished demo run"),
]


def right_answers() -> list[tuple[Path, str, str]]:
    """Image, question and answer of the right answers with the highest log-probability, in both languages; yes/no answers last."""
    samples = {row["sample_id"]: row for row in parquet.read_table(FOLDER / "data/tiny/samples.parquet").to_pylist()}
    paths = {row["image_id"]: row["path"] for row in parquet.read_table(FOLDER / "data/tiny/images.parquet").to_pylist()}
    rows = []
    for line in (FOLDER / "results/tiny/predictions/ours.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        sample, chosen = samples[record["sample_id"]], record["choices"].get("reranked", "")
        if sample["task"] == "vqa" and chosen in (sample["answers"] or []):
            log_prob = max(candidate["log_prob"] for candidate in record["candidates"] if candidate["text"] == chosen)
            not_binary = chosen not in ("yes", "no", "是", "否", "有", "没有")
            rows.append((not_binary, log_prob, sample["language"], FOLDER / paths[sample["image_ids"][0]], record["question"], chosen))
    rows.sort(reverse=True)
    by_language = {language: [row[3:] for row in rows if row[2] == language] for language in ("zh", "en")}
    return [by_language["zh"][0], *by_language["en"]][:NUM_QUESTIONS]


def shown_answer(answer: str) -> re.Pattern[str]:
    """The answer, and how likely it is right, in either language."""
    return re.compile(rf"^\s*{re.escape(answer)}\s*(Probability that the answer is right|答案正确的可能性)")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """URL of `python tools/demo.py`, started in the folder of the run."""
    command = [sys.executable, "tools/demo.py", "--port", "0", "--against", "ours"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=FOLDER, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            while "the demo is at" not in line:
                assert line, "the demo did not start"
                line = process.stdout.readline()
            yield re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
        finally:
            process.kill()


def test_the_right_answers_of_the_demo_model_are_shown(address: str) -> None:
    examples = right_answers()
    assert len(examples) == NUM_QUESTIONS
    with open_page(address) as page:
        for image, question, answer in examples:
            upload_image(page, image)
            page.locator("#question textarea").fill(question)
            page.locator("#ask").click()
            expect(page.locator("#candidates")).to_contain_text("✓")
            expect(page.locator("#chat [data-testid=bot]")).to_have_text(shown_answer(answer))
        save_screenshot(page, "demo_page")
        page.get_by_role("tab", name=translations("en")["search_tab"]).click()
        page.locator("#search_text textarea").fill("a red circle")
        page.locator("#search").click()
        expect(page.locator("#results img")).to_have_count(12)
        save_screenshot(page, "demo_search")
        page.get_by_role("tab", name=translations("en")["labels_tab"]).click()
        page.locator("#labels textarea").fill("a circle, a square, a star, a triangle, a cross")
        page.locator("#classify").click()
        expect(page.locator("#label_probabilities h2")).to_be_visible()
        save_screenshot(page, "demo_labels")


def test_the_page_of_the_demo_model_on_a_phone(address: str) -> None:
    image, question, answer = right_answers()[0]
    with open_page(address, PHONE_SIZE) as page:
        page.locator("#language").get_by_text("中文").click()
        upload_image(page, image)
        page.locator("#question textarea").fill(question)
        page.locator("#ask").tap()
        expect(page.locator("#candidates")).to_contain_text("✓")
        expect(page.locator("#chat [data-testid=bot]")).to_have_text(shown_answer(answer))
        save_screenshot(page, "demo_phone")
