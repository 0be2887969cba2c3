"""The prompt policy of a system: the sentence added to questions that says how an answer is wanted, and whether answers are cleaned.

A request has the plain question; the policy adds its sentence when a system encodes it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from answering.answer_cleaning import clean_answer
from answering.config import AS_TRAINED, CheckpointSystem, SystemBase
from answering.protocol import Request
from dataset.sample import Language, Message, Prompts, Task, add_prompt, detect_language


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """The sentences added to questions, and whether short answers are cleaned.

    Args:
        short_answer_prompt: after an English short-answer question (task vqa), on a line of its own.
        short_answer_prompt_zh: the same after a Chinese one.
        clean_answers: extract a short answer from a sentence.
        other_prompts: the sentences after questions of other kinds, by kind and language.
    """

    short_answer_prompt: str | None = None
    short_answer_prompt_zh: str | None = None
    clean_answers: bool = False
    other_prompts: Prompts = field(default_factory=dict)

    @classmethod
    def from_config(cls, system: SystemBase) -> Self:
        """The policy in the configuration of a system that we did not train."""
        return cls(system.short_answer_prompt, system.short_answer_prompt_zh, system.clean_answers)

    @classmethod
    def of_checkpoint(cls, prompts: Prompts, system: CheckpointSystem | None = None) -> Self:
        """The policy of one of our checkpoints: it is asked as it was trained, unless the system's configuration says otherwise.

        prompts: those that the checkpoint records. system: its configuration; None for the defaults.
        """
        system = system or CheckpointSystem(name="checkpoint", kind="checkpoint")
        trained: Mapping[Language, str] = prompts.get("vqa", {})
        configured: dict[Language, str | None] = {"en": system.short_answer_prompt, "zh": system.short_answer_prompt_zh}
        en, zh = (trained.get(language) if text == AS_TRAINED else text for language, text in configured.items())
        others: dict[Task, Mapping[Language, str]] = {task: texts for task, texts in prompts.items() if task != "vqa"}
        return cls(en, zh, system.clean_answers, others)

    def messages(self, request: Request) -> tuple[Message, ...]:
        """The messages with the sentence of its kind and language after every question."""
        if not request.with_prompts:
            return request.messages
        kinds = request.kinds()
        prompted = []
        for i, turn in enumerate(request.messages):
            if turn.role == "user":
                last = i == len(request.messages) - 1
                prompt = self._prompt(next(kinds), request.language if last else detect_language(turn.content))
                turn = Message(turn.role, add_prompt(turn.content, prompt) if prompt else turn.content)
            prompted.append(turn)
        return tuple(prompted)

    def _prompt(self, task: Task, language: Language) -> str | None:
        if task == "vqa":
            return self.short_answer_prompt_zh if language == "zh" else self.short_answer_prompt
        return self.other_prompts.get(task, {}).get(language)

    def clean(self, raw: str, request: Request) -> str:
        """The answer in a generated text: cleaned for short-answer questions, else the text itself."""
        if request.task != "vqa" or not self.clean_answers or not request.messages:
            return raw
        return clean_answer(raw, request.messages[-1].content)

    def settings(self) -> dict[str, object]:
        """For Description.settings."""
        settings = dataclasses.asdict(self)
        # Left out where there are none: a system then has the identity under which earlier answers were saved.
        return settings if self.other_prompts else {name: value for name, value in settings.items() if name != "other_prompts"}
