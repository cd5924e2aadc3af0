"""Token buckets, by a clock that the tests turn."""

import pytest
from pydantic import ValidationError

from raycap.serve.errors import RequestError
from raycap.serve.guard.rate_limit import RateLimit, RateLimiter, anonymous_name


class Clock:
    seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def refused(limiter, name, tokens=1):
    with pytest.raises(RequestError) as error:
        limiter.take(name, tokens)
    return error.value


def test_a_burst_passes_and_then_one_request_each_interval(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=30, burst=3), clock)
    for _ in range(3):
        limiter.take("anna")
    error = refused(limiter, "anna")
    assert (error.status, error.kind, error.headers) == (429, "rate_limited", {"Retry-After": "2"})
    clock.seconds += 2
    limiter.take("anna")
    refused(limiter, "anna")


def test_retry_after_is_long_enough_and_rounded_up(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=7, burst=5), clock)
    limiter.take("anna", 5)
    wait_seconds = int(refused(limiter, "anna", 3).headers["Retry-After"])
    assert wait_seconds == 26  # 3 * 60 / 7 = 25.7
    clock.seconds += wait_seconds
    limiter.take("anna", 3)


def test_each_image_takes_a_token_and_a_refused_request_none(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=60, burst=4), clock)
    limiter.take("anna", 3)
    for _ in range(10):
        refused(limiter, "anna", 2)
    limiter.take("anna", 1)


def test_rest_never_gives_more_than_a_burst(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=60, burst=2), clock)
    limiter.take("anna")
    clock.seconds += 1e6
    limiter.take("anna", 2)
    refused(limiter, "anna")


def test_more_images_than_a_burst_is_no_matter_of_waiting(clock):
    error = refused(RateLimiter(RateLimit(requests_per_minute=60, burst=2), clock), "anna", 3)
    assert (error.status, error.kind, error.headers) == (400, "too_many_images", None)


def test_one_clients_haste_is_not_anothers(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=1, burst=1), clock)
    limiter.take("anna")
    limiter.take("bert")
    refused(limiter, "anna")


def test_memory_is_bounded_and_the_longest_silent_is_forgotten(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=1, burst=1, max_clients=3), clock)
    for name in ("anna", "bert", "carl"):
        limiter.take(name)
    refused(limiter, "anna")
    for index in range(2):
        limiter.take(f"new {index}")
    assert limiter.num_clients == 3
    refused(limiter, "anna")  # asked of late, though in vain
    limiter.take("bert")
    for index in range(1000):
        limiter.take(f"flood {index}")
    assert limiter.num_clients == 3


def test_a_clock_that_steps_back_takes_nothing_away(clock):
    limiter = RateLimiter(RateLimit(requests_per_minute=60, burst=2), clock)
    limiter.take("anna")
    clock.seconds -= 500
    limiter.take("anna")


@pytest.mark.parametrize(
    ("one", "another", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("testclient", "testclient", True),
    ],
)
def test_an_ipv6_client_is_its_network(one, another, same):
    assert (anonymous_name(one) == anonymous_name(another)) is same


@pytest.mark.parametrize("values", [{"requests_per_minute": 0}, {"burst": 0}, {"requests_per_minute": float("nan")}])
def test_a_limit_that_lets_nothing_through_is_refused(values):
    with pytest.raises(ValidationError):
        RateLimit(**{"requests_per_minute": 1, "burst": 1} | values)
