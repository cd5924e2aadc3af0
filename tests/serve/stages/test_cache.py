from raycap.serve.stages.cache import ByteCache


def test_the_value_not_used_for_longest_makes_room():
    cache = ByteCache(10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    assert cache.get("a") == 1
    cache.put("c", 3, 4)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert (len(cache), cache.num_bytes, cache.num_hits, cache.num_misses) == (2, 8, 3, 1)


def test_a_value_put_again_counts_once():
    cache = ByteCache(10)
    cache.put("a", 1, 6)
    cache.put("a", 2, 3)
    assert (cache.get("a"), cache.num_bytes) == (2, 3)


def test_a_value_larger_than_the_cache_is_not_kept_and_drops_no_other():
    cache = ByteCache(10)
    cache.put("a", 1, 6)
    cache.put("b", 2, 11)
    assert (cache.get("a"), cache.get("b"), cache.num_bytes) == (1, None, 6)


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = ByteCache(0)
    cache.put("a", 1, 1)
    assert cache.get("a") is None
