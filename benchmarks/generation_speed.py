"""Candidates of ours against `generate` of transformers' LLaVA, one picture at a time and batched: the same weights, questions
and pictures, by turns. Both read the pictures by the same code, and that time counts on both sides."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig

from answering.decoding.beam_search import GeneratedSequence, PromptBatch
from answering.decoding.candidates import merge
from answering.protocol import Answer, Decoding, Request
from answering.systems.siglip_qwen import CheckpointAnswerer
from benchmarks.benchmark_report import BenchmarkReport, Machine, format_number
from benchmarks.full_size_models import Size, build_ours, build_processor, build_stock, check_comparable
from benchmarks.timing import Ratio, free_memory, largest_fitting_batch, time_interleaved, timed
from dataset.sample import IMAGE_PLACEHOLDER, Message
from dataset.synthetic.question_phrasing import sample_questions
from dataset.synthetic.scene import generate_scene
from errors import TesseraError, UsageError
from model.siglip_qwen.assembly import default_dtype
from model.siglip_qwen.config import ModelConfig
from training.monitoring.throughput import peak_memory
from training.out_of_memory import explain_out_of_memory

OURS, STOCK_UNBATCHED, STOCK_BATCHED = "ours", "stock, one at a time", "stock, batched"
STOCK_BATCH = 16
"""Questions in a batch of the stock model, if they fit."""
IMAGE_SIZE = (640, 480)
"""Width and height of the pictures that are asked about."""
NUM_IMAGES = 8
"""Different pictures of noise; the questions take them in turn."""
TOLERANCE = 1e-4
"""Largest difference of log-probabilities, in nats, within which candidates are the same in fp32."""
COLUMNS = ("path", "batch", "questions/s", "peak GiB", "same candidates", "scores off by", "ours is faster by")


@dataclass(frozen=True, slots=True)
class Workload:
    """questions: how many every block answers; rounds: blocks of each path; stock_batch: most questions in a batch of the
    stock model; against_stock: whether that runs at all."""

    questions: int
    rounds: int
    stock_batch: int = STOCK_BATCH
    against_stock: bool = True


@dataclass(frozen=True, slots=True)
class Result:
    """The numbers of one path. seconds: of its blocks, none where it ran out of memory; same: questions with the candidates of
    ours in their order; off: largest difference of their log-probabilities, in nats."""

    path: str
    batch: int
    seconds: tuple[float, ...] = ()
    questions_per_second: float | None = None
    peak_gib: float | None = None
    same_candidates: int | None = None
    max_log_prob_diff: float | None = None
    ours_is_faster_by: Ratio | None = None

    def cells(self, questions: int) -> list[str]:
        """A row of the table."""
        speed = format_number(self.questions_per_second, 2) if self.seconds else "out of memory"
        same_candidates = format_number(None) if self.same_candidates is None else f"{self.same_candidates} of {questions}"
        max_log_prob_diff = format_number(None) if self.max_log_prob_diff is None else f"{self.max_log_prob_diff:.1e}"
        ratio = str(self.ours_is_faster_by) if self.ours_is_faster_by else format_number(None)
        return [self.path, str(self.batch), speed, format_number(self.peak_gib), same_candidates, max_log_prob_diff, ratio]


class Variant:
    """One way of answering all questions. answers: what it found once; peaks: most bytes of each block; none where the device
    does not tell."""

    def __init__(self, name: str, batch: int, ask: Callable[[], object], answers: list[Answer], device: torch.device):
        self.name, self.batch, self.answers = name, batch, answers
        self._ask, self._device = ask, device
        self.peaks: list[int] = []

    def block(self) -> float:
        """Answer all; the seconds it took."""
        free_memory()
        on_cuda = self._device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        seconds = timed(self._ask, self._device)
        if on_cuda:
            self.peaks.append(peak_memory(self._device))
        return seconds


class StockModel:
    """transformers' LLaVA asked the same questions. Prompts, pictures and the reading of answers are those of `answerer`."""

    def __init__(self, model: Any, answerer: CheckpointAnswerer, requests: Sequence[Request], decoding: Decoding):
        self._model, self._answerer, self._requests, self._decoding = model, answerer, requests, decoding

    def variant(self, name: str, batch: int) -> Variant:
        """`batch` questions at a time; asked once for the answers, which also warms the device up."""
        return Variant(name, batch, lambda: self.texts(batch), self.answers(batch), self._answerer.device)

    def texts(self, batch: int) -> list[str]:
        """What is timed: all texts, as a script would print them."""
        found = (self._generate(batch_requests, scores=False).sequences for batch_requests in self._batches(batch))
        return [text for sequences in found for text in self._answerer.tokenizer.batch_decode(sequences, skip_special_tokens=True)]

    def answers(self, batch: int) -> list[Answer]:
        """What is compared: the candidates, merged as ours are."""
        answers: list[Answer] = []
        for batch_requests in self._batches(batch):
            output = self._generate(batch_requests, scores=True)
            found = parse_generated(output.sequences, output.sequences_scores, self._answerer.end_ids)
            for index, request in enumerate(batch_requests):
                own = found[index * self._decoding.num_candidates : (index + 1) * self._decoding.num_candidates]
                answers.append(Answer(request.request_id, merge([self._answerer.read(one, request) for one in own])))
        return answers

    def _batches(self, batch: int) -> list[Sequence[Request]]:
        return [self._requests[start : start + batch] for start in range(0, len(self._requests), batch)]

    def _generate(self, batch_requests: Sequence[Request], scores: bool) -> Any:
        inputs = self._answerer.collate([self._answerer.encode(request) for request in batch_requests])
        return stock_beam_search(
            self._model, inputs, self._decoding.num_candidates, self._decoding.max_new_tokens, self._answerer.end_ids, scores
        )


def measure(size: Size, model: ModelConfig, decoding: Decoding, workload: Workload, device: torch.device) -> BenchmarkReport:
    """Answer by turns. Raises UsageError for settings that do not fit, TesseraError where ours runs out of memory, and where
    the candidates are not the same in fp32."""
    if decoding.strategy != "beam" or decoding.num_candidates < 2:
        raise UsageError("decoding.strategy: beam search is measured; set decoding.strategy=beam and decoding.num_candidates to at least 2")
    if workload.against_stock:
        check_comparable(model)
    dtype = default_dtype(device)
    processor = build_processor(size, model)
    with explain_out_of_memory("making the weights"):
        ours = build_ours(size, model, processor, dtype=dtype, device=device)
        # As checkpoints are loaded for answering; the stock model would not take features of another precision than its projector's.
        ours.model.multi_modal_projector.to(dtype)
    stock_model = build_stock(ours) if workload.against_stock else None
    answerer, requests = CheckpointAnswerer(ours, processor), synthetic_questions(workload.questions)
    variants = [
        Variant(OURS, decoding.batch_size, lambda: answerer.answer(requests, decoding), answerer.answer(requests, decoding), device)
    ]
    oom_results: list[Result] = []
    if stock_model is not None:
        stock = StockModel(stock_model, answerer, requests, decoding)
        for name, max_batch in ((STOCK_UNBATCHED, 1), (STOCK_BATCHED, min(workload.stock_batch, len(requests)))):
            variant, oom_sizes = largest_fitting_batch(partial(stock.variant, name), max_batch)
            oom_results += [Result(name, batch) for batch in oom_sizes]
            variants += [variant] if variant is not None else []
    seconds = time_interleaved({variant.name: variant.block for variant in variants}, workload.rounds)
    results = [*(_result(variant, variants[0], seconds) for variant in variants), *oom_results]
    if dtype == torch.float32:
        _check_same(results, len(requests))
    block = f"{len(requests)} questions, {decoding.num_candidates} beams, {decoding.max_new_tokens} new tokens, pictures of {IMAGE_SIZE[0]}x{IMAGE_SIZE[1]}"
    facts = {
        "model": f"{size}, random weights, {str(dtype).removeprefix('torch.')}",
        "ours": f"CUDA graphs: {cuda_graph_status(answerer, decoding)}",
        "a block": f"{block}; {workload.rounds} blocks of each path, by turns",
    }
    settings = {"model": asdict(model), "decoding": asdict(decoding)}
    return _report(size, facts, results, workload, Machine.current(device), settings)


def cuda_graph_status(answerer: CheckpointAnswerer, decoding: Decoding) -> str:
    """Whether steps were replayed, in words for people."""
    if not decoding.cuda_graphs:
        return "off (decoding.cuda_graphs=false)"
    reason = answerer.cuda_graphs_unsupported or answerer.cuda_graphs_error
    return "on" if reason is None else f"off ({reason})"


def synthetic_questions(count: int) -> list[Request]:
    """Questions about pictures of noise."""
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
    """What the library's own `generate` finds; `sequences` hold new tokens alone. scores: also `sequences_scores`."""
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
    """New tokens up to the first end token, and their log-probability. means: it, divided by the number of tokens."""
    found = []
    for row, mean in zip(sequences.tolist(), means.tolist(), strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in end_ids), len(row))
        found.append(GeneratedSequence(tuple(row[:length]), mean * length))
    return found


def _result(variant: Variant, ours: Variant, seconds: dict[str, list[float]]) -> Result:
    own = tuple(seconds[variant.name])
    peak = max(variant.peaks) / 2**30 if variant.peaks else None
    rate = len(variant.answers) / statistics.median(own)
    if variant is ours:
        return Result(variant.name, variant.batch, own, rate, peak)
    pairs = list(zip(ours.answers, variant.answers, strict=True))
    equal = [(a, b) for a, b in pairs if [one.text for one in a.candidates] == [one.text for one in b.candidates]]
    max_log_prob_diff = max((_max_log_prob_diff(a, b) for a, b in equal), default=None)
    return Result(variant.name, variant.batch, own, rate, peak, len(equal), max_log_prob_diff, Ratio.of(seconds[ours.name], own))


def _max_log_prob_diff(ours: Answer, theirs: Answer) -> float:
    """Largest difference of the log-probabilities of equal candidates, in nats."""
    return max(abs((a.log_prob or 0.0) - (b.log_prob or 0.0)) for a, b in zip(ours.candidates, theirs.candidates, strict=True))


def _check_same(results: Sequence[Result], questions: int) -> None:
    """Raise TesseraError where stock found other candidates than ours."""
    for result in results:
        if result.same_candidates is not None and (result.same_candidates < questions or (result.max_log_prob_diff or 0.0) > TOLERANCE):
            raise TesseraError(
                f"{result.path}: {result.same_candidates} of {questions} questions have the candidates of ours, their scores are off by up to "
                f"{result.max_log_prob_diff} nats; in fp32 all must be the same, to {TOLERANCE}"
            )


def _report(
    size: str, facts: dict[str, str], results: Sequence[Result], workload: Workload, machine: Machine, settings: dict[str, Any]
) -> BenchmarkReport:
    measured = {
        "size": size,
        "machine": machine.to_dict(),
        "effort": asdict(workload),
        "results": [asdict(result) for result in results],
        "settings": settings,
    }
    rows = [result.cells(workload.questions) for result in results]
    return BenchmarkReport(f"Candidates, {size}", {**machine.facts(), **facts}, COLUMNS, rows, measured)
