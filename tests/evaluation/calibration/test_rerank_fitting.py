"""What the validation split teaches: weights that hold on left-out questions, a guard that is lifted for a gain, calibrated trust."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from answering.config import RerankConfig, RerankWeights
from answering.protocol import Candidate, Request
from answering.rerank.candidate_scores import Signal
from answering.rerank.choose_answer import RerankPlan
from dataset.sample import Message
from evaluation.answer_selection import RerankPlans, add_choices
from evaluation.calibration import rerank_fitting
from evaluation.calibration.probability_fits import group_k_fold
from evaluation.calibration.rerank_fitting import tune
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.scoring.answer_scores import score
from evaluation.scoring.rerank_metrics import confidence_metrics, improvable_fractions, risk_coverage
from evaluation.statistics import clusters

RIGHT, WRONG = "red", "blue"


def question(i: int, text: str = "What color is it?") -> Question:
    request = Request(f"q{i}", (), (Message("user", text),))
    return Question(request, (i // 2,), (str(i // 2),), "planted")


def prediction(i: int, texts: Sequence[str], means: Sequence[float], clip: Sequence[float], **fields: object) -> Prediction:
    candidates = tuple(Candidate(text, mean, mean, text) for text, mean in zip(texts, means, strict=True))
    signal = Signal(tuple(clip), tuple(0.0 for _ in clip))
    plain = Prediction(f"q{i}", "", "", candidates, None, "", {}, {}, scorers={"clip": "x"}, signals={"clip": signal})
    return dataclasses.replace(plain, **fields)  # type: ignore[arg-type]


def planted(n: int, clip_right: float, text: str = "What color is it?", seed: int = 0) -> tuple[list[Question], list[Prediction]]:
    """The likelier candidate is right half of the time, the one that CLIP likes best so often."""
    rng = np.random.default_rng(seed)
    said = []
    for i in range(n):
        texts = [RIGHT, WRONG] if rng.random() < 0.5 else [WRONG, RIGHT]
        best = texts.index(RIGHT) if rng.random() < clip_right else texts.index(WRONG)
        said.append(prediction(i, texts, [-0.5, -0.6], [5.0 * (place == best) for place in range(2)]))
    return [question(i, text) for i in range(n)], said


def references(n: int) -> dict[str, list[str]]:
    return {f"q{i}": [RIGHT] * 10 for i in range(n)}


def taught(n: int, clip_right: float, rerank: RerankConfig | None = None, text: str = "What color is it?") -> RerankPlans:
    return tune({"ours": planted(n, clip_right, text)}, references(n), rerank or RerankConfig(), 400, 0)


def test_weights_that_hold_on_left_out_questions_are_taken() -> None:
    found = taught(200, 0.95)
    assert found.chosen_on == "validation"
    assert found.shared_plan.weights.clip > found.shared_plan.weights.likelihood
    assert found.found["tuned_held_out"] > 0.9 > found.found["configured"]


def test_weights_that_only_fit_chance_are_not() -> None:
    """With CLIP as a coin, some weights look best on any sample; on left-out questions they are no better."""
    kept = sum(taught_on_noise(seed).chosen_on == "default" for seed in range(12))
    assert kept >= 6


def taught_on_noise(seed: int) -> RerankPlans:
    return tune({"ours": planted(60, 0.5, seed=seed)}, references(60), RerankConfig(), 100, seed)


@pytest.mark.parametrize(("clip_right", "guarded"), [(0.95, False), (0.5, True), (0.1, True)])
def test_the_guard_is_lifted_only_where_the_gain_is_shown(clip_right: float, guarded: bool) -> None:
    found = taught(160, clip_right, RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8)), "Is it red?")
    assert ("yes/no" in found.shared_plan.skipped_question_types) is guarded
    assert "counting" in found.shared_plan.skipped_question_types
    assert found.found["guard"]["yes/no"]["left_alone"] is guarded
    assert "counting" not in found.found["guard"]


def one_kind(text: str, start: int, gained: int, lost: int, equal: int) -> tuple[list[Question], list[Prediction]]:
    """Questions with a picture each, at which CLIP's choice is right instead of the first, wrong instead of it, or the same."""
    said = []
    for i in range(start, start + gained + lost + equal):
        place = i - start
        first, other = (WRONG, RIGHT) if place < gained else (RIGHT, WRONG)
        said.append(prediction(2 * i, [first, other], [-0.5, -0.6], [0.0, 5.0] if place < gained + lost else [5.0, 0.0]))
    return [question(2 * i, text) for i in range(start, start + len(said))], said


def test_the_guard_of_several_kinds_is_held_against_holm() -> None:
    """8 better and 1 worse have p = .039: enough for one kind alone, not for the smaller of two."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8))
    yes_no, counting = one_kind("Is it red?", 0, 8, 1, 20), one_kind("How many are red?", 40, 8, 1, 20)
    both = (yes_no[0] + counting[0], yes_no[1] + counting[1])
    known = references(200)
    alone = tune({"ours": yes_no}, known, rerank, 4000, 0)
    assert alone.shared_plan.skipped_question_types == ("counting",)
    assert alone.found["guard"]["yes/no"]["p_holm"] == alone.found["guard"]["yes/no"]["p_value"] == pytest.approx(0.039, abs=0.01)
    together = tune({"ours": both}, known, rerank, 4000, 0)
    assert together.shared_plan.skipped_question_types == ("yes/no", "counting")
    assert {found["p_holm"] for found in together.found["guard"].values()} == {2 * alone.found["guard"]["yes/no"]["p_value"]}


def test_a_gain_at_many_questions_about_four_images_lifts_no_guard() -> None:
    """Four pictures that agree have p = .125, however many questions there are about each."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8))
    asked, said = one_kind("Is it red?", 0, 40, 0, 0)
    crowded = [dataclasses.replace(one, image_ids=(i % 4,)) for i, one in enumerate(asked)]
    assert tune({"ours": (crowded, said)}, references(80), rerank, 400, 0).shared_plan.skipped_question_types == ("yes/no", "counting")
    assert tune({"ours": (asked, said)}, references(80), rerank, 400, 0).shared_plan.skipped_question_types == ("counting",)


def test_no_image_is_torn_by_any_cross_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def spied(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        seen.append(groups)
        return group_k_fold(groups, seed)

    monkeypatch.setattr(rerank_fitting, "group_k_fold", spied)
    tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(), 50, 0)
    before = len(seen)
    tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(calibration="isotonic"), 50, 0)
    # The steps are fitted to what was said of left-out questions: once for each fold, and once for all.
    assert len(seen) == 2 * before + 6
    # Questions 2 i and 2 i + 1 are about one picture; whatever part is looked at, both are in it.
    assert len(seen) > 10
    assert all((groups[0::2] == groups[1::2]).all() for groups in seen)


def test_guarded_questions_have_no_say_in_the_weights() -> None:
    """CLIP is right about colors and wrong about yes and no, of which there are more: left alone, they must not speak against it."""
    colors, yes_no = one_kind("What color is it?", 0, 30, 1, 10), one_kind("Is it red?", 50, 0, 60, 0)
    found = tune({"ours": (colors[0] + yes_no[0], colors[1] + yes_no[1])}, references(400), RerankConfig(), 400, 0)
    assert found.chosen_on == "validation"
    assert found.shared_plan.weights.clip > found.shared_plan.weights.likelihood
    assert found.shared_plan.skipped_question_types == ("yes/no", "counting")
    # What cross-validation says is of the answers that are given: all 60 of the guarded first ones are right.
    assert found.found["configured"] == pytest.approx((60 + 11) / 101)
    assert found.found["tuned_held_out"] == pytest.approx((60 + 40) / 101)


def test_the_learned_fusion_is_measured_with_the_guard() -> None:
    colors, yes_no = one_kind("What color is it?", 0, 80, 0, 10), one_kind("Is it red?", 100, 0, 60, 0)
    found = tune({"ours": (colors[0] + yes_no[0], colors[1] + yes_no[1])}, references(400), RerankConfig(), 400, 0)
    assert found.found["systems"]["ours"]["learned_held_out"] == pytest.approx(1.0)


def test_the_learned_fusion_is_measured_on_questions_that_had_no_part_in_fit_or_ridge() -> None:
    questions, said = planted(30, 0.5, seed=5)
    right: list[float] = []
    for fitted, left in group_k_fold(clusters([question.image_ids for question in questions]), 5):
        rows, others = np.flatnonzero(fitted), np.flatnonzero(left)
        part = tune({"ours": ([questions[i] for i in rows], [said[i] for i in rows])}, references(30), RerankConfig(), 50, 5)
        answered = add_choices([questions[i] for i in others], [said[i] for i in others], part.for_system("ours"), 0)
        right += score(answered, references(30)).scores["learned"]["vqa_accuracy"].tolist()
    found = tune({"ours": (questions, said)}, references(30), RerankConfig(), 50, 5)
    assert found.found["systems"]["ours"]["learned_held_out"] == pytest.approx(np.mean(right))


def test_the_learned_fusion_finds_the_signal_that_is_right() -> None:
    found = taught(200, 0.95)
    plan = found.for_system("ours")
    assert found.found["systems"]["ours"]["learned_held_out"] > 0.9
    questions, said = planted(100, 0.95, seed=1)
    scored = score(add_choices(questions, said, plan, 0), references(100))
    assert scored.scores["learned"]["vqa_accuracy"].mean() > 0.9
    assert scored.scores["first"]["vqa_accuracy"].mean() < 0.65


@pytest.mark.parametrize("calibration", ["logistic", "isotonic"])
def test_confidence_is_about_as_often_right_as_it_says(calibration: str) -> None:
    """An answer with a wide margin is right in nine of ten cases, one with a narrow margin in four of ten."""
    rng = np.random.default_rng(5)

    def system(n: int) -> list[Prediction]:
        said = []
        for i in range(n):
            wide = rng.random() < 0.5
            first = RIGHT if rng.random() < (0.9 if wide else 0.4) else WRONG
            other = WRONG if first == RIGHT else RIGHT
            said.append(prediction(i, [first, other], [-0.1, -4.0 if wide else -0.2], [0.0, 0.0]))
        return said

    questions = [question(i) for i in range(400)]
    found = tune({"ours": (questions, system(400))}, references(400), RerankConfig(calibration=calibration), 100, 0)  # type: ignore[arg-type]
    scored = score(add_choices(questions, system(400), found.for_system("ours"), 0, 0.6), references(400))
    figures = confidence_metrics(scored, 0.6)
    assert figures["ece"] < 0.06
    assert found.found["systems"]["ours"]["ece_held_out"] < 0.08
    assert figures["abstaining"]["answered"] == pytest.approx(0.5, abs=0.07)
    assert figures["abstaining"]["vqa_accuracy"] == pytest.approx(0.9, abs=0.05)
    assert set(scored.texts["abstaining"]) == {RIGHT, WRONG, "not sure"}
    curve = [point["vqa_accuracy"] for point in figures["risk_coverage"]]
    assert curve[0] > 0.8
    assert curve[-1] == pytest.approx(scored.scores["reranked"]["vqa_accuracy"].mean())


def test_confidence_is_that_of_the_answer_that_is_shown() -> None:
    """The first answer is right half of the time, the reranked one nearly always."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.1, clip=0.9))
    questions, said = planted(200, 0.95)
    plan = tune({"ours": (questions, said)}, references(200), rerank, 50, 0).for_system("ours")
    found = [one.confidence for one in add_choices(questions, said, plan, 0)]
    assert np.mean([value for value in found if value is not None]) == pytest.approx(0.95, abs=0.03)


def test_too_few_images_teach_nothing() -> None:
    found = tune({"ours": planted(2, 1.0)}, references(2), RerankConfig(clip_score_form="raw"), 100, 0)
    assert (found.chosen_on, found.shared_plan.clip_score_form, found.plans) == ("default", "raw", {})


def test_a_failed_question_of_the_validation_split_is_left_out() -> None:
    questions, said = planted(40, 0.95)
    said[3] = dataclasses.replace(said[3], candidates=(), signals={}, error="no picture")
    found = tune({"ours": (questions, said)}, references(40), RerankConfig(), 100, 0)
    assert found.found["questions"] == 39


def test_risk_and_coverage_by_hand() -> None:
    coverage, accuracy = risk_coverage(np.array([0.9, 0.2, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    # The two at .5 stand for .5 each, whichever comes first.
    assert accuracy == pytest.approx([1.0, 0.75, 2 / 3, 0.5])


def test_what_can_change_is_counted_by_the_candidates() -> None:
    said = [
        prediction(0, [WRONG, RIGHT], [-1, -2], [0, 0]),
        prediction(1, [RIGHT, WRONG], [-1, -2], [0, 0]),
        prediction(2, [WRONG, "gray"], [-1, -2], [0, 0]),
        prediction(3, [RIGHT], [-1], [0]),
    ]
    questions = [question(i) for i in range(4)]
    scored = score(add_choices(questions, said, RerankPlan(), 0), references(4))
    assert improvable_fractions(scored, references(4), np.array([False, True, False, False])) == {
        "several_candidates": 0.75,
        "score_can_change": 0.5,
        "score_can_rise": 0.25,
        "left_alone": 0.25,
        "rerank_can_change": 0.25,
        "rerank_can_rise": 0.25,
    }
