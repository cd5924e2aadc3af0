"""The catalogue itself; a running server is sent it elsewhere."""

import pytest
from serve.hostile import hostile_keys, hostile_requests, request_bytes


@pytest.mark.parametrize("urls_enabled", [False, True])
def test_there_are_many_cases_each_of_its_own_name(urls_enabled):
    cases = [*hostile_requests(urls_enabled), *hostile_keys()]
    assert len(cases) >= 200
    assert len({case.name for case in cases}) == len(cases)


def test_every_case_expects_only_answers_that_blame_the_client():
    for case in [*hostile_requests(), *hostile_keys()]:
        assert case.statuses, case.name
        assert case.statuses <= {400, 401, 404, 405, 413, 415, 422, 431}, case.name
        assert request_bytes(case, "host").startswith(case.method.encode())


def test_urls_are_refused_for_another_reason_where_they_are_fetched():
    kinds = [{kind for case in hostile_requests(enabled) for kind in case.kinds} for enabled in (False, True)]
    assert kinds[0] ^ kinds[1] == {"url_disabled", "url_refused"}
