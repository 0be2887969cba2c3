"""Caption metrics on cases computed by hand."""

import math

import pytest

from evaluation.metrics.captions import bleu, cider_d, clip_score, rouge_l, score, tokenise


def words(*texts: str) -> list[list[str]]:
    return [text.split() for text in texts]


def test_english_tokens_follow_the_penn_treebank_without_punctuation() -> None:
    assert tokenise("A dog's T-shirt, isn't it? It cannot be 3.5 or 1,000!", "ptb") == (
        ["a", "dog", "'s", "t-shirt", "is", "n't", "it", "it", "can", "not", "be", "3.5", "or", "1,000"]
    )


def test_chinese_tokens_are_characters_but_latin_words_and_numbers_stay_unsplit() -> None:
    assert tokenise("图中有２只Cat，红色。", "characters") == ["图", "中", "有", "2", "只", "cat", "红", "色"]


def test_bleu_clips_repeated_words() -> None:
    references = [words("the cat is on the mat", "there is a cat on the mat")]
    assert bleu(words("the the the the the the the"), references, 1) == pytest.approx(2 / 7)
    assert bleu(words("the the the the the the the"), references, 2) == 0.0


def test_bleu_has_a_brevity_penalty_against_the_closest_reference() -> None:
    assert bleu(words("the cat sat"), [words("the cat sat down", "the cat sat down on the mat now")], 2) == pytest.approx(
        math.exp(1 - 4 / 3)
    )


def test_bleu_is_the_geometric_mean_over_the_whole_corpus() -> None:
    # Unigrams 2 + 1 of 3 + 2, bigrams 1 + 0 of 2 + 1; lengths 5 and 5.
    value = bleu(words("a b x", "c y"), [words("a b c"), words("c d")], 2)
    assert value == pytest.approx(math.sqrt(3 / 5 * 1 / 3))


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    assert rouge_l(words("police kill the gunman"), [words("police killed the gunman")])[0] == pytest.approx(3 / 4)
    precision, recall = 2 / 3, 2 / 4
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(words("a b c"), [words("a c d e")])[0] == pytest.approx(expected)
    assert rouge_l([[]], [words("a")])[0] == 0.0


def test_cider_d_weights_clips_and_penalises_length() -> None:
    # Each n-gram occurs for one of two images, so all weights are equal. A perfect two-word caption has no 3- and
    # 4-grams: 10 * (1 + 1 + 0 + 0) / 4.
    references = [words("a b"), words("c d")]
    short = 10 * math.exp(-1 / 72) * (1 / math.sqrt(2)) / 4
    assert cider_d(words("a b", "c"), references) == pytest.approx([5, short])
    repeated = 10 * (1 / (2 * math.sqrt(2))) / 4
    assert cider_d(words("a b", "c c"), references) == pytest.approx([5, repeated])


def test_cider_d_is_zero_for_words_that_occur_for_every_image() -> None:
    assert cider_d(words("a", "a"), [words("a x"), words("a y")]).tolist() == [0.0, 0.0]


def test_an_empty_caption_scores_zero() -> None:
    assert set(score(["", "。"], [["红色"], ["蓝色"]], "characters").corpus.values()) == {0.0}


def test_a_perfect_caption_scores_one() -> None:
    texts = ["a red circle on a sign", "two blue squares near a cross"]
    scores = score(texts, [[text.upper() + "."] for text in texts], "ptb").corpus
    assert [scores[name] for name in ("bleu_1", "bleu_4", "rouge_l")] == pytest.approx([1.0] * 3)
    assert scores["cider_d"] == pytest.approx(10.0)


def test_jieba_segments_chinese_into_words_without_punctuation() -> None:
    assert tokenise("一只红色的小狗，在草地上奔跑。", "jieba") == ["一只", "红色", "的", "小狗", "在", "草地", "上", "奔跑"]


def test_chinese_scores_depend_on_the_tokenisation() -> None:
    characters = score(["红色小狗"], [["黑色小狗"]], "characters")
    words_ = score(["红色小狗"], [["黑色小狗"]], "jieba")
    assert characters.corpus["bleu_1"] == pytest.approx(3 / 4)
    assert words_.corpus["bleu_1"] == pytest.approx(1 / 2)


def test_scores_are_also_given_per_caption() -> None:
    scored = score(["a b", "x y"], [["a b"], ["c d"]], "ptb")
    assert scored.per_sample["bleu_1"].tolist() == [1.0, 0.0]
    assert scored.per_sample["rouge_l"].tolist() == [1.0, 0.0]
    assert scored.corpus["rouge_l"] == pytest.approx(0.5)
    assert scored.corpus["cider_d"] == pytest.approx(scored.per_sample["cider_d"].mean())


def test_clip_score_is_the_scaled_cosine_and_never_negative() -> None:
    assert clip_score([0.3, -0.2]).tolist() == pytest.approx([0.75, 0.0])
