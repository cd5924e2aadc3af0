"""Bearer keys: whose they are, and what a wrong file of them is told."""

import hmac

import pytest
from pydantic import ValidationError

from raycap.errors import UserError
from raycap.serve.errors import RequestError
from raycap.serve.guard.keys import KeyRing, Keys

ANNA, BERT = "anna-key-0123456789", "bert-key-0123456789"


@pytest.fixture
def ring(tmp_path):
    def ring(text):
        file = tmp_path / "keys.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return KeyRing(Keys(file=str(file)))

    return ring


def test_each_key_has_its_name(ring):
    keys = ring(f"# our clients\nanna: {ANNA}\nbert: '{BERT}'\n")
    assert keys.names == ("anna", "bert")
    assert keys.identify(f"Bearer {ANNA}") == "anna"
    assert keys.identify(f"bearer   {BERT} ") == "bert"


def test_an_environment_variable_holds_the_same_lines(monkeypatch):
    monkeypatch.setenv("TEST_KEYS", f"anna: {ANNA}")
    assert KeyRing(Keys(environment="TEST_KEYS")).identify(f"Bearer {ANNA}") == "anna"
    monkeypatch.delenv("TEST_KEYS")
    with pytest.raises(UserError, match="TEST_KEYS: not set"):
        KeyRing(Keys(environment="TEST_KEYS"))


def test_a_key_of_digits_is_kept_as_it_is_written(ring):
    assert ring("anna: 0012345678901234").identify("Bearer 0012345678901234") == "anna"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", f"Basic {ANNA}", ANNA, f"Bearer:{ANNA}"])
def test_no_key_is_401_missing_key(ring, header):
    with pytest.raises(RequestError) as error:
        ring(f"anna: {ANNA}").identify(header)
    assert (error.value.status, error.value.kind) == (401, "missing_key")
    assert error.value.headers == {"WWW-Authenticate": "Bearer"}
    assert ANNA not in str(error.value)


@pytest.mark.parametrize(
    "key", [ANNA[:-1], ANNA + "0", ANNA.upper(), f"{ANNA} {BERT}", "é" * 20, "\udc80" * 20, "anna"]
)
def test_another_key_is_401_invalid_key_and_never_repeated(ring, key):
    with pytest.raises(RequestError) as error:
        ring(f"anna: {ANNA}").identify(f"Bearer {key}")
    assert (error.value.status, error.value.kind) == (401, "invalid_key")
    assert error.value.headers == {"WWW-Authenticate": "Bearer"}
    assert key not in str(error.value)


def test_every_key_is_compared_whichever_fits(ring, monkeypatch):
    compared = []
    real = hmac.compare_digest
    keys = ring("\n".join(f"name{index}: key-number-{index:08}" for index in range(5)))
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or real(*pair))
    assert keys.identify("Bearer key-number-00000000") == "name0"
    assert len(compared) == 5


def test_keys_themselves_do_not_stay_in_memory(ring):
    keys = ring(f"anna: {ANNA}")
    assert ANNA not in repr(vars(keys))


def test_reload_takes_new_keys_and_drops_old_ones(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"anna: {ANNA}")
    keys = KeyRing(Keys(file=str(file)))
    file.write_text(f"bert: {BERT}")
    keys.reload()
    assert keys.identify(f"Bearer {BERT}") == "bert"
    with pytest.raises(RequestError):
        keys.identify(f"Bearer {ANNA}")


def test_a_reload_that_fails_leaves_the_keys_as_they_were(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"anna: {ANNA}")
    keys = KeyRing(Keys(file=str(file)))
    file.write_text("")
    with pytest.raises(UserError):
        keys.reload()
    assert keys.identify(f"Bearer {ANNA}") == "anna"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; give at least one"),
        ("# nothing\n", "empty; give at least one"),
        ("{}", "empty; give at least one"),
        (f"- {ANNA}", "no mapping; write a line"),
        (ANNA, "no mapping; write a line"),
        (f"anna: {ANNA}\nanna: {BERT}", "line 2, anna: this name is there already"),
        (f"anna: {ANNA}\nbert: {ANNA}", "line 2, bert: this key has another name"),
        ("anna: short", "line 1, anna: key of 5 characters; give at least 16"),
        ("anna:", "line 1, anna: key of 0 characters"),
        (f"anna: [{ANNA}]", "line 1, anna: key of 0 characters"),
        (f"\nanna: {ANNA} {BERT}", "line 2, anna: key with other characters"),
        (f"anna: {ANNA}é", "line 1, anna: key with other characters"),
        (f"anna: *{ANNA}", "line 1: not YAML"),
        (f"anna: '{ANNA}", "not YAML"),
        (f"anna: {ANNA}\n  b: c: d", "not YAML"),
        (f"{ANNA}/+: anna", "line 1: not a name"),
        (f"? [{ANNA}]\n: anna", "line 1: not a name"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (f"anna: {ANNA}\x01", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_its_line_and_remedy_without_any_key(ring, text, message):
    with pytest.raises(UserError) as error:
        ring(text)
    assert message in str(error.value)
    assert ";" in str(error.value)
    assert "\n" not in str(error.value)
    assert ANNA not in str(error.value)


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such file; give"):
        KeyRing(Keys(file=str(tmp_path / "none.yaml")))


@pytest.mark.parametrize("places", [{}, {"file": "a", "environment": "B"}])
def test_keys_have_exactly_one_place(places):
    with pytest.raises(ValidationError, match="exactly one of file and environment"):
        Keys(**places)
