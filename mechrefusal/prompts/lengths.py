"""Whether prompts leave room for what comes after them."""

from typing import TYPE_CHECKING

from mechrefusal.errors import MechrefusalError
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.templates import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def require_room(tokenizer: "PreTrainedTokenizerBase", chosen: PromptSet, *, limit: int, spare: int, what: str) -> None:
    """Raise MechrefusalError where a prompt of the set and `spare` more tokens are longer than `limit` tokens.

    Args:
        what: what holds so many tokens ('the context of sft-step-00050'), for the message.
    """
    lengths = [len(ids) for ids in prompt_ids(tokenizer, chosen.texts)]
    if too_long := [row for row, length in enumerate(lengths) if length + spare > limit]:
        first = too_long[0]
        raise MechrefusalError(
            f"{len(too_long)} of {len(lengths)} prompts of '{chosen.name}' leave no room for {spare} more tokens in "
            f"{what} of {limit} tokens, such as '{chosen.ids[first]}' with {lengths[first]} tokens "
            f"('{chosen.texts[first][:60]}'): leave them out, ask for shorter answers or thoughts, or raise the limit"
        )
