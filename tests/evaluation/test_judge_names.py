"""Judges by their names on the command line; the classifiers are replaced, they are large."""

import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation import RefusalJudge, judge_of
from mechrefusal.evaluation.judges import classifier, llama_guard
from mechrefusal.evaluation.judges.chat import ChatJudge

URL = "http://localhost:1/v1"


@pytest.fixture
def opened(monkeypatch):
    """Which classifier was opened, and with what."""
    seen = []
    for module, name in (
        (classifier, "HarmBenchClassifier"), (classifier, "StrongREJECTClassifier"), (llama_guard, "LlamaGuard"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *given, name=name: seen.append((name, given)) or name)
    return seen


def test_the_rules():
    judge = judge_of("refusal")
    assert isinstance(judge, RefusalJudge)
    assert judge.judge(["Sing?"], ["Sorry, I can't do that."])["label"].tolist() == ["full_refusal"]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("harmbench", "HarmBenchClassifier"),
        ("strongreject", "StrongREJECTClassifier"),
        ("llamaguard", "LlamaGuard"),
    ],
)
def test_classifiers_are_the_published_ones_or_those_of_a_source(opened, name, made):
    assert judge_of(name) == made
    assert judge_of(f"{name}=owner/model=v2") == made
    assert opened == [(made, ()), (made, ("owner/model=v2",))]


def test_a_chat_judge_has_model_and_server(monkeypatch):
    monkeypatch.delenv("MECHREFUSAL_JUDGE_KEY", raising=False)
    judge = judge_of(f"chat=own-model@{URL}")
    assert isinstance(judge, ChatJudge)
    assert judge.kind == "harm"
    assert "own-model" in judge.name


@pytest.mark.parametrize(
    ("source", "model", "url"),
    [
        (f"claude-3-5-sonnet@20240620@{URL}", "claude-3-5-sonnet@20240620", URL),
        (f"owner/model:free@{URL}", "owner/model:free", URL),
        (f"a=b@http@x@{URL}", "a=b@http@x", URL),
        ("m@HTTPS://host:8000/v1", "m", "HTTPS://host:8000/v1"),
    ],
)
def test_the_address_of_a_chat_judge_begins_at_the_last_at_sign_before_http(monkeypatch, source, model, url):
    monkeypatch.setattr("mechrefusal.evaluation.judges.chat.ChatJudge", lambda client, model: (client.base_url, model))
    assert judge_of(f"chat={source}") == (url, model)


SECRET = "s3cret"
ADDRESSES = [
    f"http://me:{SECRET}@host/v1", f"http://{SECRET}@host/v1", f"http://me:a/{SECRET}@host/v1",
    f"http://me:a?{SECRET}@host", f"http://me:a#{SECRET}@host", f"http://me:a@{SECRET}@host", f"http://a@{SECRET}/b@host",
    f"http://me:a {SECRET}@host", f"http://me:[{SECRET}@host", f"http://me:a'{SECRET}@host", f"http://host/v1?key={SECRET}",
    f"http://host/v1#{SECRET}", f"http://me:a@http://{SECRET}@host", f"https://me:99999{SECRET}@host:1/v1",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("spec", ["chat=model@{}", "chatt=model@{}", "chat={}", "refusal={}"])
def test_no_error_shows_what_an_address_carries(address, spec):
    from mechrefusal.evaluation.settings import EvaluationSettings

    with pytest.raises(MechrefusalError) as caught:
        judge_of(spec.format(address))
    assert SECRET not in str(caught.value)
    if spec.startswith("chat=") and "model" in spec:
        with pytest.raises(MechrefusalError) as caught:
            EvaluationSettings(suites=("builtin",), judges=(spec.format(address),))
        assert SECRET not in str(caught.value), "nor does a recipe take it, which would be written to files"


@pytest.mark.parametrize(("key", "variable"), [("secret", "MECHREFUSAL_JUDGE_KEY"), ("", None), (None, None)])
def test_the_key_comes_from_the_environment_alone(monkeypatch, key, variable):
    given = {}
    monkeypatch.setattr("mechrefusal.evaluation.judges.chat_client.ChatClient", lambda _, **named: given.update(named))
    monkeypatch.setattr("mechrefusal.evaluation.judges.chat.ChatJudge", lambda client, model: None)
    if key is None:
        monkeypatch.delenv("MECHREFUSAL_JUDGE_KEY", raising=False)
    else:
        monkeypatch.setenv("MECHREFUSAL_JUDGE_KEY", key)
    judge_of(f"chat=own-model@{URL}")
    assert given == {"key_variable": variable}, "the name of the variable is handed on, never the key"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("rules", "unknown judge 'rules': expected one of refusal, phrases, harmbench, strongreject, llamaguard, chat"),
        ("", "unknown judge ''"),
        ("Refusal", "unknown judge 'Refusal'"),
        ("refusal=model", "the rules take no model"),
        ("chat", "give chat=MODEL@URL"),
        ("chat=model", "give chat=MODEL@URL"),
        ("chat=@http://x", "give chat=MODEL@URL"),
        ("harmbench=/no/such/folder", "/no/such/folder"),
    ],
)
def test_what_is_no_judge_is_named(spec, said):
    with pytest.raises(MechrefusalError, match=said):
        judge_of(spec)
