"""Fitting on the validation split: cross-validated weights, skipped question types, learned fusion, calibrated confidence."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from answering.config import RerankConfig, RerankWeights
from answering.protocol import Candidate, Request
from answering.rerank.calibration_range import MIN_IMAGES
from answering.rerank.candidate_scores import Signal
from answering.rerank.choose_answer import RerankPlan
from dataset.sample import Message
from evaluation.answer_selection import RerankPlans, add_choices
from evaluation.calibration import rerank_fitting
from evaluation.calibration.probability_fits import group_k_fold
from evaluation.calibration.rerank_fitting import tune
from evaluation.prediction_files import Prediction
from evaluation.questions import Question
from evaluation.schema.summary_file import to_json
from evaluation.scoring.answer_scores import score
from evaluation.scoring.confidence_metrics import confidence_metrics, risk_coverage
from evaluation.scoring.rerank_metrics import improvable_fractions
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
    """n questions: the likelier candidate is right half of the time, the candidate that CLIP scores highest with rate `clip_right`."""
    rng = np.random.default_rng(seed)
    predictions = []
    for i in range(n):
        texts = [RIGHT, WRONG] if rng.random() < 0.5 else [WRONG, RIGHT]
        best = texts.index(RIGHT) if rng.random() < clip_right else texts.index(WRONG)
        predictions.append(prediction(i, texts, [-0.5, -0.6], [5.0 * (index == best) for index in range(2)]))
    return [question(i, text) for i in range(n)], predictions


def references(n: int) -> dict[str, list[str]]:
    return {f"q{i}": [RIGHT] * 10 for i in range(n)}


def validation(plans: RerankPlans) -> dict[str, Any]:
    """What summary.json says of the validation split."""
    content: dict[str, Any] = to_json(plans.found)
    return content


def tune_planted(n: int, clip_right: float, rerank: RerankConfig | None = None, text: str = "What color is it?") -> RerankPlans:
    return tune({"ours": planted(n, clip_right, text)}, references(n), rerank or RerankConfig(), 400, 0)


def test_weights_that_gain_on_held_out_questions_are_chosen() -> None:
    found = tune_planted(200, 0.95)
    assert found.chosen_on == "validation"
    assert found.shared_plan.weights.clip > found.shared_plan.weights.likelihood
    assert validation(found)["tuned_held_out"] > 0.9 > validation(found)["configured"]
    gain = validation(found)["tuned_gain"]
    assert gain["difference"] == pytest.approx(validation(found)["tuned_held_out"] - validation(found)["configured"])
    assert gain["verdict"] == "a"


def test_weights_that_only_fit_noise_are_not_chosen() -> None:
    """With random CLIP scores, some weights look best on any sample, but not on held-out questions."""
    num_default = sum(tune_on_noise(seed).chosen_on == "default" for seed in range(12))
    assert num_default >= 6


def tune_on_noise(seed: int) -> RerankPlans:
    return tune({"ours": planted(60, 0.5, seed=seed)}, references(60), RerankConfig(), 100, seed)


@pytest.mark.parametrize(("clip_right", "skipped"), [(0.95, False), (0.5, True), (0.1, True)])
def test_a_question_type_is_reranked_only_if_its_gain_is_significant(clip_right: float, skipped: bool) -> None:
    found = tune_planted(160, clip_right, RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8)), "Is it red?")
    assert ("yes/no" in found.shared_plan.skipped_question_types) is skipped
    assert "counting" in found.shared_plan.skipped_question_types
    assert validation(found)["skipped_question_types"]["yes/no"]["skipped"] is skipped
    assert "counting" not in validation(found)["skipped_question_types"]


def one_type(text: str, start: int, gained: int, lost: int, equal: int) -> tuple[list[Question], list[Prediction]]:
    """Questions with one image each, where CLIP's choice is better than, worse than or equal to the first candidate."""
    predictions = []
    for i in range(start, start + gained + lost + equal):
        index = i - start
        first, other = (WRONG, RIGHT) if index < gained else (RIGHT, WRONG)
        predictions.append(prediction(2 * i, [first, other], [-0.5, -0.6], [0.0, 5.0] if index < gained + lost else [5.0, 0.0]))
    return [question(2 * i, text) for i in range(start, start + len(predictions))], predictions


def test_the_gains_of_several_question_types_are_corrected_by_holm() -> None:
    """8 better and 1 worse give p = .039: significant for one type, but not for the smaller of two."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8))
    yes_no, counting = one_type("Is it red?", 0, 8, 1, 20), one_type("How many are red?", 40, 8, 1, 20)
    both = (yes_no[0] + counting[0], yes_no[1] + counting[1])
    known = references(200)
    single = tune({"ours": yes_no}, known, rerank, 4000, 0)
    assert single.shared_plan.skipped_question_types == ("counting",)
    assert (
        validation(single)["skipped_question_types"]["yes/no"]["p_holm"]
        == validation(single)["skipped_question_types"]["yes/no"]["p_value"]
        == pytest.approx(0.039, abs=0.01)
    )
    combined = tune({"ours": both}, known, rerank, 4000, 0)
    kinds = validation(combined)["skipped_question_types"]
    assert combined.shared_plan.skipped_question_types == ("yes/no", "counting")
    assert {values["p_holm"] for values in kinds.values()} == {2 * validation(single)["skipped_question_types"]["yes/no"]["p_value"]}


def test_a_gain_on_many_questions_about_four_images_is_not_significant() -> None:
    """Four images that agree give p = .125, however many questions there are about each."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.2, clip=0.8))
    questions, predictions = one_type("Is it red?", 0, 40, 0, 0)
    few_images = [dataclasses.replace(item, image_ids=(i % 4,)) for i, item in enumerate(questions)]
    assert tune({"ours": (few_images, predictions)}, references(80), rerank, 400, 0).shared_plan.skipped_question_types == (
        "yes/no",
        "counting",
    )
    assert tune({"ours": (questions, predictions)}, references(80), rerank, 400, 0).shared_plan.skipped_question_types == ("counting",)


def test_no_cross_validation_splits_the_questions_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def spy(groups: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        seen.append(groups)
        return group_k_fold(groups, seed)

    monkeypatch.setattr(rerank_fitting, "group_k_fold", spy)
    tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(), 50, 0)
    before = len(seen)
    tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(calibration="isotonic"), 50, 0)
    # The isotonic steps are fitted to out-of-fold predictions: once per fold, and once for all questions.
    assert len(seen) == 2 * before + 6
    # Questions 2 i and 2 i + 1 are about one image; every fold contains both or neither.
    assert len(seen) > 10
    assert all((groups[0::2] == groups[1::2]).all() for groups in seen)


def test_the_confidence_knows_the_images_of_the_whole_split() -> None:
    images = [Image.effect_noise((8, 8), 10 + sigma).convert("RGB") for sigma in range(MIN_IMAGES)]
    with_images = tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(), 50, 0, images).for_system("ours").confidence
    assert with_images is not None and with_images.calibration_range is not None and with_images.calibration_range.images is not None
    without = tune({"ours": planted(40, 0.9)}, references(40), RerankConfig(), 50, 0).for_system("ours").confidence
    assert without is not None and without.calibration_range is not None and without.calibration_range.images is None


def test_questions_of_skipped_types_do_not_influence_the_weights() -> None:
    """CLIP is right about colors and wrong about yes/no questions, of which there are more, but those are skipped."""
    colors, yes_no = one_type("What color is it?", 0, 30, 1, 10), one_type("Is it red?", 50, 0, 60, 0)
    found = tune({"ours": (colors[0] + yes_no[0], colors[1] + yes_no[1])}, references(400), RerankConfig(), 400, 0)
    assert found.chosen_on == "validation"
    assert found.shared_plan.weights.clip > found.shared_plan.weights.likelihood
    assert found.shared_plan.skipped_question_types == ("yes/no", "counting")
    # Cross-validated accuracies include the skipped questions, whose 60 first candidates are all right.
    assert validation(found)["configured"] == pytest.approx((60 + 11) / 101)
    assert validation(found)["tuned_held_out"] == pytest.approx((60 + 40) / 101)


def test_the_learned_fusion_is_measured_with_skipped_question_types() -> None:
    colors, yes_no = one_type("What color is it?", 0, 80, 0, 10), one_type("Is it red?", 100, 0, 60, 0)
    found = tune({"ours": (colors[0] + yes_no[0], colors[1] + yes_no[1])}, references(400), RerankConfig(), 400, 0)
    assert validation(found)["systems"]["ours"]["learned_held_out"] == pytest.approx(1.0)


def test_the_learned_fusion_is_measured_on_questions_held_out_from_fit_and_penalty() -> None:
    questions, predictions = planted(30, 0.5, seed=5)
    accuracies: list[float] = []
    for train_mask, held_out_mask in group_k_fold(clusters([question.image_ids for question in questions]), 5):
        rows, held_out = np.flatnonzero(train_mask), np.flatnonzero(held_out_mask)
        fold = tune({"ours": ([questions[i] for i in rows], [predictions[i] for i in rows])}, references(30), RerankConfig(), 50, 5)
        answered = add_choices([questions[i] for i in held_out], [predictions[i] for i in held_out], fold.for_system("ours"), 0)
        accuracies += score(answered, references(30)).scores["learned"]["vqa_accuracy"].tolist()
    found = tune({"ours": (questions, predictions)}, references(30), RerankConfig(), 50, 5)
    assert validation(found)["systems"]["ours"]["learned_held_out"] == pytest.approx(np.mean(accuracies))


def test_the_learned_fusion_relies_on_the_informative_signal() -> None:
    found = tune_planted(200, 0.95)
    plan = found.for_system("ours")
    assert validation(found)["systems"]["ours"]["learned_held_out"] > 0.9
    questions, predictions = planted(100, 0.95, seed=1)
    scored = score(add_choices(questions, predictions, plan, 0), references(100))
    assert scored.scores["learned"]["vqa_accuracy"].mean() > 0.9
    assert scored.scores["first"]["vqa_accuracy"].mean() < 0.65


@pytest.mark.parametrize("calibration", ["logistic", "isotonic"])
def test_the_confidence_is_calibrated(calibration: str) -> None:
    """An answer with a wide margin is right in nine of ten cases, an answer with a narrow margin in four of ten."""
    rng = np.random.default_rng(5)

    def system(n: int) -> list[Prediction]:
        predictions = []
        for i in range(n):
            wide = rng.random() < 0.5
            first = RIGHT if rng.random() < (0.9 if wide else 0.4) else WRONG
            other = WRONG if first == RIGHT else RIGHT
            predictions.append(prediction(i, [first, other], [-0.1, -4.0 if wide else -0.2], [0.0, 0.0]))
        return predictions

    questions = [question(i) for i in range(400)]
    found = tune({"ours": (questions, system(400))}, references(400), RerankConfig(calibration=calibration), 100, 0)  # type: ignore[arg-type]
    scored = score(add_choices(questions, system(400), found.for_system("ours"), 0, 0.6), references(400))
    figures = to_json(confidence_metrics(questions, scored, 0.6))
    assert figures["ece"] < 0.06
    assert validation(found)["systems"]["ours"]["ece_held_out"] < 0.08
    assert figures["abstaining"]["answered"] == pytest.approx(0.5, abs=0.07)
    assert figures["abstaining"]["vqa_accuracy"] == pytest.approx(0.9, abs=0.05)
    assert set(scored.texts["abstaining"]) == {RIGHT, WRONG, "not sure"}
    curve = [point["vqa_accuracy"] for point in figures["risk_coverage"]]
    assert curve[0] > 0.8
    assert curve[-1] == pytest.approx(scored.scores["reranked"]["vqa_accuracy"].mean())


def test_the_confidence_is_broken_down_by_kind_of_question_and_says_which_are_unlike_the_calibration() -> None:
    """Questions of a source that the calibration has never seen are all answered wrong, with the same scores."""
    questions, predictions = planted(200, 0.95)
    plan = tune({"ours": (questions, predictions)}, references(200), RerankConfig(weights=RerankWeights(clip=1.0)), 50, 0).for_system(
        "ours"
    )
    asked = questions[:100] + [dataclasses.replace(question(i, "Who founded this company?"), source="companies") for i in range(100, 150)]
    known = {f"q{i}": [RIGHT if i < 100 else "somebody"] * 10 for i in range(150)}
    scored = score(add_choices(asked, predictions[:150], plan, 0), known)
    figures = to_json(confidence_metrics(asked, scored, None))
    seen, unseen = figures["by_source"]["planted"], figures["by_source"]["companies"]
    assert (seen["questions"], unseen["questions"]) == (100, 50)
    assert seen["ece"] < 0.1
    assert seen["confident"]["vqa_accuracy"] > 0.85
    assert set(figures["by_language"]) == {"en"}
    assert sum(part["questions"] for part in figures["by_category"].values()) == 150
    # They are unlike the calibration by their words, so none of them is claimed to be nearly certain.
    assert unseen["confidence"] <= 0.5
    assert "confident" not in unseen
    assert figures["unlike"]["questions"] == 50
    assert {prediction.unlike for prediction in scored.predictions[100:]} == {("words",)}


def test_the_confidence_is_that_of_the_displayed_answer() -> None:
    """The first answer is right half of the time, the reranked one nearly always."""
    rerank = RerankConfig(weights=RerankWeights(likelihood=0.1, clip=0.9))
    questions, predictions = planted(200, 0.95)
    plan = tune({"ours": (questions, predictions)}, references(200), rerank, 50, 0).for_system("ours")
    confidences = [item.confidence for item in add_choices(questions, predictions, plan, 0)]
    assert np.mean([value for value in confidences if value is not None]) == pytest.approx(0.95, abs=0.03)


def test_with_too_few_images_nothing_is_fitted() -> None:
    found = tune({"ours": planted(2, 1.0)}, references(2), RerankConfig(clip_score_form="raw"), 100, 0)
    assert (found.chosen_on, found.shared_plan.clip_score_form, found.plans) == ("default", "raw", {})


def test_failed_questions_of_the_validation_split_are_ignored() -> None:
    questions, predictions = planted(40, 0.95)
    predictions[3] = dataclasses.replace(predictions[3], candidates=(), signals={}, error="no image")
    found = tune({"ours": (questions, predictions)}, references(40), RerankConfig(), 100, 0)
    assert validation(found)["questions"] == 39


def test_risk_and_coverage_match_values_computed_by_hand() -> None:
    coverage, accuracy = risk_coverage(np.array([0.9, 0.2, 0.5, 0.5]), np.array([1.0, 0.0, 1.0, 0.0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    # The two answers at .5 count with their mean accuracy of .5, in either order.
    assert accuracy == pytest.approx([1.0, 0.75, 2 / 3, 0.5])


def test_the_fractions_of_improvable_questions_follow_from_the_candidates() -> None:
    predictions = [
        prediction(0, [WRONG, RIGHT], [-1, -2], [0, 0]),
        prediction(1, [RIGHT, WRONG], [-1, -2], [0, 0]),
        prediction(2, [WRONG, "gray"], [-1, -2], [0, 0]),
        prediction(3, [RIGHT], [-1], [0]),
    ]
    questions = [question(i) for i in range(4)]
    scored = score(add_choices(questions, predictions, RerankPlan(), 0), references(4))
    assert to_json(improvable_fractions(scored, references(4), np.array([False, True, False, False]))) == {
        "several_candidates": 0.75,
        "score_can_change": 0.5,
        "score_can_rise": 0.25,
        "skipped": 0.25,
        "rerank_can_change": 0.25,
        "rerank_can_rise": 0.25,
    }
