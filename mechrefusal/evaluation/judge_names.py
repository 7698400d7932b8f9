"""Judges by what the command line calls them."""

import os

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge, RefusalJudge
from mechrefusal.evaluation.judges.chat_address import model_and_url

KEY_VARIABLE = "MECHREFUSAL_JUDGE_KEY"
"""Environment variable with the key of the chat server; unset for a server that wants none."""
NAMES = ("refusal", "harmbench", "strongreject", "llamaguard", "chat")


def require_judge(spec: str) -> None:
    """Raise MechrefusalError where `spec` names no judge, or one without what it needs; nothing is loaded."""
    name, _, source = spec.partition("=")
    if name not in NAMES:
        # What follows the name is not shown: it may be an address with a password.
        raise MechrefusalError(f"unknown judge '{name}': expected one of {', '.join(NAMES)}")
    if name == "refusal" and source:
        raise MechrefusalError("judge 'refusal': the rules take no model")
    if name == "chat":
        model_and_url(source)


def judge_of(spec: str) -> Judge:
    """The judge that `spec` names.

    `refusal`: the rules. `harmbench`, `strongreject`, `llamaguard`, each with `=MODEL` for another model than the
    published one (a folder or a hub name). `chat=MODEL@URL`: StrongREJECT's rubric at an OpenAI-compatible server; the
    URL begins at the last `@http`.

    Raises:
        MechrefusalError: an unknown name, a judge without what it needs, a model that cannot be loaded.
    """
    require_judge(spec)
    name, _, source = spec.partition("=")
    if name == "refusal":
        return RefusalJudge()
    if name == "chat":
        from mechrefusal.evaluation.judges.chat import ChatJudge

        model, url = model_and_url(source)
        return ChatJudge(url, model, key_variable=KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None)
    from mechrefusal.evaluation.judges.classifier import HarmBenchClassifier, StrongREJECTClassifier
    from mechrefusal.evaluation.judges.llama_guard import LlamaGuard

    made = {"harmbench": HarmBenchClassifier, "strongreject": StrongREJECTClassifier, "llamaguard": LlamaGuard}[name]
    return made(source) if source else made()
