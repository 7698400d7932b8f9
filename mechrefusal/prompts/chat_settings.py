"""How a model is asked: by which chat template, what that is told beside the messages, and how long it may think."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.thoughts import MAX_THOUGHT_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RESERVED = ("messages", "add_generation_prompt", "tools", "documents", "bos_token", "eos_token")
_MARK = "{# chat_template_kwargs #}"
# The empty expression keeps the environment from cutting a line end that the template itself begins with.
_SET = re.compile(re.escape(_MARK) + r".*?\{\{ '' \}\}", re.DOTALL)


@dataclass(frozen=True)
class ChatSettings:
    """How a model is asked, wherever it is asked.

    Attributes:
        template_kwargs: JSON object of what the chat template gets beside the messages, sorted by name.
        max_thought_tokens: tokens that a thought may take beside those of the answer; 0: it takes the answer's.
        template: text of the chat template in place of the model's own, which a base model has none of; empty: its own.
    """

    template_kwargs: str = "{}"
    max_thought_tokens: int = MAX_THOUGHT_TOKENS
    template: str = ""

    def __post_init__(self) -> None:
        if self.max_thought_tokens < 0:
            raise MechrefusalError(f"max_thought_tokens is {self.max_thought_tokens}: give 0 or more")

    @classmethod
    def of(
        cls,
        template_kwargs: Mapping[str, Any] | None = None,
        max_thought_tokens: int = MAX_THOUGHT_TOKENS,
        template: str | Path = "",
    ) -> Self:
        """Settings from plain values.

        Args:
            template: file of a chat template (Jinja), or the name of a packaged one (`packaged_chat_templates`).

        Raises:
            MechrefusalError: a name that is none or that the template gets anyhow, a value that JSON does not know, a
                negative number of tokens, or a template that is not there or cannot be read.
        """
        values = dict(template_kwargs or {})
        for name in values:
            if not str(name).isidentifier() or name in _RESERVED:
                raise MechrefusalError(f"chat_template_kwargs cannot hold '{name}': name a variable of the template")
        try:
            text = json.dumps(values, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise MechrefusalError(f"chat_template_kwargs are no plain values ({error}): {values!r:.120}") from error
        return cls(text, max_thought_tokens, _template_of(template) if str(template) else "")

    def hashed(self, weights: str) -> str:
        """The hash of a model that is asked so: its own where nothing but the default is said."""
        if self == ChatSettings():
            return weights
        told = [weights, self.template_kwargs, self.max_thought_tokens, *([self.template] if self.template else [])]
        hashed_text = json.dumps(told)
        return hashlib.sha256(hashed_text.encode()).hexdigest()[:16]

    def apply(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Make them the tokenizer's own: every rendering has them, here and where it is saved.

        The chat template itself is given the variables, in front; so training, attacks and measurements cannot differ.

        Raises:
            MechrefusalError: the chat template knows no variable of that name, or there is no template.
        """
        tokenizer.max_thought_tokens = self.max_thought_tokens
        values = json.loads(self.template_kwargs)
        if self.template:
            tokenizer.chat_template = self.template
        template = tokenizer.chat_template
        if not values:
            return
        if not template:
            raise MechrefusalError(
                f"the tokenizer '{tokenizer.name_or_path}' has no chat template that could take {sorted(values)}: "
                "leave chat_template_kwargs out"
            )
        if isinstance(template, dict):
            tokenizer.chat_template = {
                name: _with_variables(text, values, tokenizer) for name, text in template.items()
            }
        else:
            tokenizer.chat_template = _with_variables(template, values, tokenizer)


def packaged_chat_templates() -> list[str]:
    """Names of the chat templates that come with the package."""
    folder = files("mechrefusal.prompts") / "chat_templates"
    return sorted(path.name.removesuffix(".jinja") for path in folder.iterdir() if path.name.endswith(".jinja"))


def _template_of(source: str | Path) -> str:
    packaged, path = files("mechrefusal.prompts") / "chat_templates" / f"{source}.jinja", Path(source).expanduser()
    if not path.is_file() and not packaged.is_file():
        raise MechrefusalError(
            f"chat_template '{source}' is no file: give a Jinja file, or one of {', '.join(packaged_chat_templates())}"
        )
    try:
        text = (path if path.is_file() else packaged).read_text(encoding="utf-8")
        known = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text))
    except (OSError, UnicodeDecodeError) as error:
        raise MechrefusalError(f"chat_template '{source}' cannot be read ({error}): give a text file") from error
    except TemplateSyntaxError as error:
        raise MechrefusalError(f"chat_template '{source}' is no Jinja, line {error.lineno}: {error.message}") from error
    if "messages" not in known:
        raise MechrefusalError(f"chat_template '{source}' does not write 'messages': it would ask nothing")
    return text


def max_thought_tokens(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens that a thought may take beside those of the answer."""
    return int(getattr(tokenizer, "max_thought_tokens", MAX_THOUGHT_TOKENS))


def _with_variables(template: str, values: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> str:
    body = _SET.sub("", template, count=1) if template.startswith(_MARK) else template
    try:
        known = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(body))
    except TemplateError:  # tags that only transformers knows
        known = set(re.findall(r"\w+", body))
    if unknown := sorted(set(values) - known):
        raise MechrefusalError(
            f"the chat template of '{tokenizer.name_or_path}' knows no '{unknown[0]}': chat_template_kwargs would "
            "change nothing; leave it out"
        )
    return (
        _MARK + "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in values.items()) + "{{ '' }}" + body
    )


def _literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # Braces and percent signs as escapes, so that no text can end the tag that it stands in.
        return '"' + "".join(c if c.isalnum() or c in " _-.,:/" else f"\\U{ord(c):08x}" for c in value) + '"'
    return repr(value)
