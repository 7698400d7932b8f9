"""What an error shows, and what it does not."""

import pickle

import pytest

from mechrefusal import MechrefusalError
from mechrefusal.errors import unless_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'http://me:pass@host/v1' is gone", "'http://***@host/v1' is gone"),
        ("http://me:pa/ss?#@@host/v1", "http://***@host/v1"),
        ("'https://me:pa ss@host/v1'", "'https://***@host/v1'"),
        ("https:/me:pass@host/v1 does not exist", "https:/***@host/v1 does not exist"),
        ("give add:/tmp/one.safetensors@layer=3:1", "give add:/tmp/one.safetensors@layer=3:1"),
        ("https://host/v1?api_key=abc&n=3", "https://host/v1?api_key=***&n=3"),
        ("https://host/v1?n=3&access_token=abc; check it", "https://host/v1?n=3&access_token=***; check it"),
        ("Illegal header value b'Bearer abcdefgh'", "Illegal header value b'Bearer ***'"),
        ("{'Authorization': 'Basic bWU6cGFzcw=='}", "{'Authorization': 'Basic ***'}"),
        ("chat=llama3@http://localhost:8000/v1", "chat=llama3@http://localhost:8000/v1"),
        ("claude@2024@http://localhost:8000/v1 answers", "claude@2024@http://localhost:8000/v1 answers"),
        ("the bearer of news is a basic kind of token", "the bearer of news is a basic kind of token"),
        ("'ablate:FILE@position=-1,layer=14' at https://host", "'ablate:FILE@position=-1,layer=14' at https://host"),
    ],
)
def test_secrets_are_told_by_where_they_stand(text, shown):
    assert without_secrets(text) == shown
    assert str(MechrefusalError(text)) == shown
    assert str(pickle.loads(pickle.dumps(MechrefusalError(text)))) == shown


def test_secrets_are_told_by_the_variables_that_hold_them(monkeypatch):
    monkeypatch.setenv("OWN_API_KEY", "a'b\"c d")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("JUDGE_TOKEN", "EMPTY")
    monkeypatch.setenv("OWN_FOLDER", "somewhere")
    assert without_secrets("a'b\"c d, hf_abcdef, EMPTY, somewhere") == "***, ***, EMPTY, somewhere"


def test_a_cause_that_shows_a_secret_is_none():
    inner, outer = ValueError("http://me:pass@host"), OSError("cannot be asked")
    assert unless_secret(outer) is outer
    outer.__context__ = inner
    assert unless_secret(outer) is None
