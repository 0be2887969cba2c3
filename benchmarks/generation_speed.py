"""Speed of generating candidate answers: ours against `generate` of transformers' LLaVA, unbatched and batched.

Weights, questions and images are the same on both sides, and blocks are interleaved. Both sides preprocess the images with the same
code, and the time for it counts on both sides. Shapes: B batch, T tokens.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig

from answering.decoding.beam_search import GeneratedSequence
from answering.decoding.candidates import merge
from answering.decoding.kv_cache import PromptBatch
from answering.protocol import Answer, Decoding, Request
from answering.systems.family_answerer import FamilyAnswerer
from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number, text_or_dash
from benchmarks.full_size_models import Size, build_ours, build_processor, build_stock, check_comparable
from benchmarks.timing import OURS, PathResult, TimedPath, Workload, largest_fitting_batch, time_interleaved
from dataset.sample import IMAGE_PLACEHOLDER, Message
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import generate_scene
from errors import TesseraError, UsageError
from model.kernels.device_capability import default_dtype
from model.siglip_qwen.config import SiglipQwenConfig
from training.out_of_memory import explain_out_of_memory

STOCK_UNBATCHED, STOCK_BATCHED = "stock, one at a time", "stock, batched"
STOCK_BATCH = 16
"""Batch size of the stock model, halved until it fits into memory."""
IMAGE_SIZE = (640, 480)
"""Width and height of the images, in pixels."""
NUM_IMAGES = 8
"""Number of noise images; the questions cycle through them."""
TOLERANCE = 1e-4
"""Largest difference of log-probabilities, in nats, for candidates to count as equal in fp32."""
COLUMNS = ("path", "batch", "questions/s", "peak GiB", "same candidates", "log-prob difference", "ours is faster by")


@dataclass(frozen=True, slots=True)
class Result(PathResult):
    """Measurements of one path.

    Args:
        questions_per_second: at the median block.
        same_candidates: number of questions with the candidates of ours, in the same order.
        max_log_prob_diff: largest difference of the log-probabilities of these candidates, in nats.
    """

    questions_per_second: float | None = None
    same_candidates: int | None = None
    max_log_prob_diff: float | None = None

    def cells(self, questions: int) -> list[str]:
        """A row of the table."""
        speed = format_number(self.questions_per_second, 2) if self.seconds else "out of memory"
        same_candidates = None if self.same_candidates is None else f"{self.same_candidates} of {questions}"
        max_log_prob_diff = None if self.max_log_prob_diff is None else f"{self.max_log_prob_diff:.1e}"
        compared = map(text_or_dash, (same_candidates, max_log_prob_diff, self.ours_is_faster_by))
        return [self.path, str(self.batch), speed, format_number(self.peak_gib), *compared]


class StockModel:
    """transformers' LLaVA, asked the same questions. `answerer` builds its prompts, preprocesses the images and parses the answers.

    Args:
        model: the stock model.
        answerer: our answerer of the same weights.
        requests: the questions.
        decoding: number of candidates and of new tokens.
    """

    def __init__(self, model: Any, answerer: FamilyAnswerer, requests: Sequence[Request], decoding: Decoding):
        self._model, self._answerer, self._requests, self._decoding = model, answerer, requests, decoding

    def answered(self, name: str, batch: int) -> tuple[TimedPath, list[Answer]]:
        """Path with this batch size, and its answers. Generating them also warms up the device."""
        answers = self.answers(batch)
        return TimedPath(name, batch, lambda: self.texts(batch), self._answerer.device), answers

    def texts(self, batch: int) -> list[str]:
        """The timed work: all generated texts, decoded."""
        outputs = (self._generate(batch_requests, scores=False).sequences for batch_requests in self._batches(batch))
        return [text for sequences in outputs for text in self._answerer.tokenizer.batch_decode(sequences, skip_special_tokens=True)]

    def answers(self, batch: int) -> list[Answer]:
        """The compared answers: candidates, merged in the same way as ours."""
        answers: list[Answer] = []
        for batch_requests in self._batches(batch):
            output = self._generate(batch_requests, scores=True)
            sequences = iter(parse_generated(output.sequences, output.sequences_scores, self._answerer.end_ids))
            for request in batch_requests:
                own = itertools.islice(sequences, self._decoding.num_candidates)
                answers.append(Answer(request.request_id, merge([self._answerer.read(sequence, request) for sequence in own])))
        return answers

    def _batches(self, batch: int) -> list[Sequence[Request]]:
        return [self._requests[start : start + batch] for start in range(0, len(self._requests), batch)]

    def _generate(self, batch_requests: Sequence[Request], scores: bool) -> Any:
        inputs = self._answerer.collate([self._answerer.encode(request) for request in batch_requests])
        return stock_beam_search(
            self._model, inputs, self._decoding.num_candidates, self._decoding.max_new_tokens, self._answerer.end_ids, scores
        )


def measure(size: Size, model: SiglipQwenConfig, decoding: Decoding, workload: Workload, device: torch.device) -> BenchmarkReport:
    """Answer the questions with every path, in interleaved blocks.

    Args:
        size: size of the models.
        model: `model` section of the configuration.
        decoding: decoding settings; beam search with at least two candidates.
        workload: number of questions and rounds.
        device: device of the models.

    Raises:
        UsageError: settings that cannot be measured.
        TesseraError: ours runs out of memory, or the candidates differ in fp32.
    """
    if decoding.strategy != "beam" or decoding.num_candidates < 2:
        raise UsageError(
            "decoding.strategy: only beam search is measured; set decoding.strategy=beam and decoding.num_candidates to at least 2"
        )
    if workload.against_stock:
        check_comparable(model)
    dtype = default_dtype(device)
    processor = build_processor(size, model)
    with explain_out_of_memory("creating the weights"):
        ours = build_ours(size, model, processor, dtype=dtype, device=device)
        # As checkpoints are loaded for inference. The stock model requires features and connector to have the same dtype.
        ours.model.multi_modal_projector.to(dtype)
    stock_model = build_stock(ours) if workload.against_stock else None
    answerer, requests = FamilyAnswerer(ours, processor), synthetic_questions(workload.samples)
    paths = [TimedPath(OURS, decoding.batch_size, lambda: answerer.answer(requests, decoding), device)]
    answers = {OURS: answerer.answer(requests, decoding)}
    out_of_memory: list[Result] = []
    if stock_model is not None:
        stock = StockModel(stock_model, answerer, requests, decoding)
        for name, max_batch in ((STOCK_UNBATCHED, 1), (STOCK_BATCHED, min(workload.stock_batch or STOCK_BATCH, len(requests)))):
            answered, oom_sizes = largest_fitting_batch(partial(stock.answered, name), max_batch)
            out_of_memory += [Result(name, batch) for batch in oom_sizes]
            if answered is not None:
                paths.append(answered[0])
                answers[name] = answered[1]
    seconds = time_interleaved({path.name: path.block for path in paths}, workload.rounds)
    results = [*(_result(path, seconds, answers) for path in paths), *out_of_memory]
    if dtype == torch.float32:
        _check_same(results, len(requests))
    lengths = f"{decoding.num_candidates} beams, {decoding.max_new_tokens} new tokens"
    block = f"{len(requests)} questions, {lengths}, images of {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}"
    facts = {
        "model": f"{size}, random weights, {str(dtype).removeprefix('torch.')}",
        "ours": f"CUDA graphs: {cuda_graph_status(answerer, decoding)}",
        "a block": f"{block}; {workload.rounds} interleaved blocks of each path",
    }
    settings = {"model": asdict(model), "decoding": asdict(decoding)}
    return _report(size, facts, results, workload, Machine.current(device), settings)


def cuda_graph_status(answerer: FamilyAnswerer, decoding: Decoding) -> str:
    """Whether decode steps were replayed as CUDA graphs, as text."""
    if not decoding.cuda_graphs:
        return "off (decoding.cuda_graphs=false)"
    reason = answerer.cuda_graphs_unsupported or answerer.cuda_graphs_error
    return "on" if reason is None else f"off ({reason})"


def synthetic_questions(count: int) -> list[Request]:
    """Questions about noise images, English and Chinese alternately."""
    noise = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, IMAGE_SIZE[1], IMAGE_SIZE[0], 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in noise]
    requests = []
    for i in range(count):
        scene = generate_scene(0, "test", i)
        text = sample_questions(scene, "en" if i % 2 else "zh", scene.rng("benchmark"), 1)[0].text
        requests.append(Request(str(i), (images[i % NUM_IMAGES],), (Message("user", f"{IMAGE_PLACEHOLDER}\n{text}"),)))
    return requests


@torch.no_grad()
def stock_beam_search(
    model: Any, batch: PromptBatch, num_candidates: int, max_new_tokens: int, end_ids: Sequence[int], scores: bool = True
) -> Any:
    """Beam search of `generate`, with at most `max_new_tokens` tokens.

    Args:
        model: the stock model.
        batch: prompts and images.
        num_candidates: number of beams, all of which are returned.
        max_new_tokens: most new tokens.
        end_ids: token ids that end a sequence; the first one is the padding.
        scores: also return `sequences_scores`.

    Returns:
        The output of `generate`, with `sequences` [B * num_candidates, T] of new tokens without the prompt.
    """
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_candidates,
        num_return_sequences=num_candidates,
        do_sample=False,
        eos_token_id=list(end_ids),
        pad_token_id=end_ids[0],
        return_dict_in_generate=True,
        output_scores=scores,
    )
    output = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=config, **batch.images)
    output.sequences = output.sequences[:, batch.input_ids.shape[1] :]
    return output


def parse_generated(sequences: torch.Tensor, means: torch.Tensor, end_ids: Sequence[int]) -> list[GeneratedSequence]:
    """Cut sequences after the first end token and compute their log-probabilities.

    Args:
        sequences: new tokens [B, T].
        means: log-probability divided by the number of tokens [B], in nats.
        end_ids: token ids that end a sequence.
    """
    parsed = []
    for row, mean in zip(sequences.tolist(), means.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row))
        parsed.append(GeneratedSequence(tuple(row[:length]), mean * length))
    return parsed


def _result(path: TimedPath, seconds: Mapping[str, Sequence[float]], answers: Mapping[str, Sequence[Answer]]) -> Result:
    result, own = Result.of(path, seconds), answers[path.name]
    result = replace(result, questions_per_second=len(own) / statistics.median(result.seconds))
    if path.name == OURS:
        return result
    pairs = list(zip(answers[OURS], own, strict=True))
    equal = [(a, b) for a, b in pairs if [x.text for x in a.candidates] == [x.text for x in b.candidates]]
    return replace(
        result,
        same_candidates=len(equal),
        max_log_prob_diff=max((_max_log_prob_diff(a, b) for a, b in equal), default=None),
    )


def _max_log_prob_diff(ours: Answer, theirs: Answer) -> float:
    """Largest difference of the log-probabilities of equal candidates, in nats."""
    return max(abs((a.log_prob or 0.0) - (b.log_prob or 0.0)) for a, b in zip(ours.candidates, theirs.candidates, strict=True))


def _check_same(results: Sequence[Result], questions: int) -> None:
    """Raise TesseraError if the candidates of stock differ from ours."""
    for result in results:
        if result.same_candidates is not None and (result.same_candidates < questions or (result.max_log_prob_diff or 0.0) > TOLERANCE):
            raise TesseraError(
                f"{result.path}: {result.same_candidates} of {questions} questions have the same candidates as ours, "
                f"with log-probabilities up to {result.max_log_prob_diff} nats apart; in fp32 all must be equal within {TOLERANCE}"
            )


def _report(
    size: str, facts: dict[str, str], results: Sequence[Result], workload: Workload, machine: Machine, settings: dict[str, Any]
) -> BenchmarkReport:
    effort = asdict(workload)
    measured = {
        "size": size,
        "machine": asdict(machine),
        "effort": {"questions": effort.pop("samples"), **effort},
        "results": [asdict(result) for result in results],
        "settings": settings,
    }
    rows = [result.cells(workload.samples) for result in results]
    return BenchmarkReport(f"Candidates, {size}", {**machine.facts(), **facts}, COLUMNS, rows, measured)
