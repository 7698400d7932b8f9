"""Judges by what the command line calls them."""

import os

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge, RefusalJudge

KEY_VARIABLE = "MECHREFUSAL_JUDGE_KEY"
"""Environment variable with the key of the chat server; unset for a server that wants none."""
NAMES = ("refusal", "harmbench", "strongreject", "llamaguard", "chat")


def require_judge(spec: str) -> None:
    """Raise MechrefusalError where `spec` names no judge, or one without what it needs; nothing is loaded."""
    name, _, source = spec.partition("=")
    if name not in NAMES:
        raise MechrefusalError(f"unknown judge '{spec}': expected one of {', '.join(NAMES)}")
    if name == "refusal" and source:
        raise MechrefusalError(f"judge '{spec}': the rules take no model")
    model, _, url = source.partition("@")
    if name == "chat" and not (model and url):
        raise MechrefusalError(f"judge '{spec}': give chat=MODEL@URL, such as chat=llama3@http://localhost:8000/v1")


def judge_of(spec: str) -> Judge:
    """The judge that `spec` names.

    `refusal`: the rules. `harmbench`, `strongreject`, `llamaguard`, each with `=MODEL` for another model than the
    published one (a folder or a hub name). `chat=MODEL@URL`: StrongREJECT's rubric at an OpenAI-compatible server.

    Raises:
        MechrefusalError: an unknown name, a judge without what it needs, a model that cannot be loaded.
    """
    require_judge(spec)
    name, _, source = spec.partition("=")
    if name == "refusal":
        return RefusalJudge()
    if name == "chat":
        from mechrefusal.evaluation.judges.chat import ChatJudge

        model, _, url = source.partition("@")
        return ChatJudge(url, model, key_variable=KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None)
    from mechrefusal.evaluation.judges.classifier import HarmBenchClassifier, StrongREJECTClassifier
    from mechrefusal.evaluation.judges.llama_guard import LlamaGuard

    made = {"harmbench": HarmBenchClassifier, "strongreject": StrongREJECTClassifier, "llamaguard": LlamaGuard}[name]
    return made(source) if source else made()
