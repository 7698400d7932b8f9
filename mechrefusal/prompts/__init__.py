"""What is asked: own prompts, benchmark readers, splits and leakage audit, chat templates as named token segments."""

from mechrefusal.prompts.builtin_sets import Builtin, builtin
from mechrefusal.prompts.chat_settings import ChatSettings, packaged_chat_templates
from mechrefusal.prompts.leak_audit import Audit, audit, leakage, leaks
from mechrefusal.prompts.lengths import require_room
from mechrefusal.prompts.pairs import Pair, PairSet
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.readers import read
from mechrefusal.prompts.sides import read_pairs, read_plain, read_sides
from mechrefusal.prompts.splits import Split, normalised
from mechrefusal.prompts.targets import affirmative_target
from mechrefusal.prompts.templates import Segments, prompt_ids, segments
from mechrefusal.prompts.thoughts import ThoughtMarks, after_thought, texts_of
from mechrefusal.prompts.turns import (
    Turn,
    after_empty_thought,
    answer_room,
    end_of_turn_tokens,
    opening_ids,
    thought_marks,
    turn,
)

__all__ = [
    "Audit",
    "Builtin",
    "ChatSettings",
    "Pair",
    "PairSet",
    "PromptSet",
    "Segments",
    "Split",
    "ThoughtMarks",
    "Turn",
    "affirmative_target",
    "after_empty_thought",
    "after_thought",
    "answer_room",
    "audit",
    "builtin",
    "end_of_turn_tokens",
    "leakage",
    "leaks",
    "normalised",
    "opening_ids",
    "packaged_chat_templates",
    "prompt_ids",
    "read",
    "read_pairs",
    "read_plain",
    "read_sides",
    "require_room",
    "segments",
    "texts_of",
    "thought_marks",
    "turn",
]
