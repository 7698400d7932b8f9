"""Judges by what the command line calls them."""

import os
from typing import Any

from mechrefusal.errors import MechrefusalError
from mechrefusal.evaluation.judges import Judge, PhraseJudge, RefusalJudge
from mechrefusal.evaluation.judges.chat_address import model_and_url
from mechrefusal.models import Placed

KEY_VARIABLE = "MECHREFUSAL_JUDGE_KEY"
"""Environment variable with the key of the chat server; unset for a server that wants none."""
NAMES = ("refusal", "phrases", "harmbench", "strongreject", "llamaguard", "chat")
OF_REFUSAL = ("refusal", "phrases")
"""Judges that say of every answer whether it refuses, and need no model: what measurements go by."""


def require_judge(spec: str) -> None:
    """Raise MechrefusalError where `spec` names no judge, or one without what it needs; nothing is loaded."""
    name, _, source = spec.partition("=")
    if name not in NAMES:
        # What follows the name is not shown: it may be an address with a password.
        raise MechrefusalError(f"unknown judge '{name}': expected one of {', '.join(NAMES)}")
    if name == "refusal" and source:
        raise MechrefusalError("judge 'refusal': the rules take no model")
    if name == "phrases":
        if not source:
            raise MechrefusalError("judge 'phrases': give phrases=FILE, a .txt or .yaml with one phrase a line")
        PhraseJudge(source)
    if name == "chat":
        model_and_url(source)


def judge_of(spec: str, placed: Placed | None = None) -> Judge:
    """The judge that `spec` names.

    `refusal`: the rules, for English. `phrases=FILE`: phrases of refusal of one's own, in any language. `harmbench`,
    `strongreject`, `llamaguard`, each with `=MODEL` for another model than the published one (a folder or a hub name).
    `chat=MODEL@URL`: StrongREJECT's rubric at an OpenAI-compatible server; the URL begins at the last `@http`.

    Args:
        placed: where a judge that is a model lies (`models.Placement`); its dtype stays the judge's own.

    Raises:
        MechrefusalError: an unknown name, a judge without what it needs, a model that cannot be loaded.
    """
    require_judge(spec)
    name, _, source = spec.partition("=")
    if name == "refusal":
        return RefusalJudge()
    if name == "phrases":
        return PhraseJudge(source)
    if name == "chat":
        from mechrefusal.evaluation.judges import chat, chat_client

        model, url = model_and_url(source)
        key_variable = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None
        return chat.ChatJudge(chat_client.ChatClient(url, key_variable=key_variable), model)
    from mechrefusal.evaluation.judges.classifier import HarmBenchClassifier, StrongREJECTClassifier
    from mechrefusal.evaluation.judges.llama_guard import LlamaGuard

    judge = {"harmbench": HarmBenchClassifier, "strongreject": StrongREJECTClassifier, "llamaguard": LlamaGuard}[name]
    options: Any = {name: value for name, value in (placed or {}).items() if name != "dtype"}
    return judge(source, **options) if source else judge(**options)


def measuring_judge(spec: str) -> Judge:
    """The judge that `spec` names, for measurements: it has to say of every answer whether it refuses.

    Raises:
        MechrefusalError: what `judge_of` raises, or a judge of harm.
    """
    require_measuring_judge(spec)
    return judge_of(spec)


def require_measuring_judge(spec: str) -> None:
    """Raise MechrefusalError where `spec` names no judge that measurements can go by; no file is read."""
    name = spec.partition("=")[0]
    if name not in NAMES:
        require_judge(spec)
    if name not in OF_REFUSAL:
        raise MechrefusalError(
            f"measuring judge '{spec}' says how harmful answers are, not whether they refuse: give refusal or "
            "phrases=FILE, and name it in evaluation.judges"
        )
