"""The answer cache is bounded by its size and evicts the least recently used entries."""

from serving.answer_cache import ENTRY_OVERHEAD_BYTES, AnswerCache


def test_the_least_recently_used_entry_is_evicted_first() -> None:
    cache: AnswerCache[str] = AnswerCache(2 * (ENTRY_OVERHEAD_BYTES + 10))
    for key in "ab":
        cache.put(key, key.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("c", "C", 10)
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"]
    assert (cache.hits, cache.misses, len(cache._entries), cache.bytes) == (3, 1, 2, 2 * (ENTRY_OVERHEAD_BYTES + 10))


def test_a_replaced_value_counts_once() -> None:
    cache: AnswerCache[str] = AnswerCache(10 * ENTRY_OVERHEAD_BYTES)
    cache.put("a", "old", 100)
    cache.put("a", "new", 50)
    assert (cache.get("a"), len(cache._entries), cache.bytes) == ("new", 1, ENTRY_OVERHEAD_BYTES + 50)


def test_a_value_over_the_limit_evicts_nothing() -> None:
    cache: AnswerCache[str] = AnswerCache(2 * ENTRY_OVERHEAD_BYTES)
    cache.put("a", "A", 10)
    cache.put("large", "L", 2 * ENTRY_OVERHEAD_BYTES)
    assert (cache.get("a"), cache.get("large")) == ("A", None)


def test_a_cache_of_size_0_stores_nothing() -> None:
    cache: AnswerCache[str] = AnswerCache(0)
    cache.put("a", "A", 0)
    assert cache.get("a") is None
