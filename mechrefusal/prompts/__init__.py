"""What is asked: own prompts, benchmark readers, splits and leakage audit, chat templates as named token segments."""

from mechrefusal.prompts.builtin_sets import Builtin, builtin
from mechrefusal.prompts.leakage import Audit, audit, leakage, leaks
from mechrefusal.prompts.lengths import require_room
from mechrefusal.prompts.pairs import Pair, PairSet
from mechrefusal.prompts.prompt_set import PromptSet
from mechrefusal.prompts.readers import read
from mechrefusal.prompts.sides import read_pairs, read_plain, read_sides
from mechrefusal.prompts.splits import Split, normalised
from mechrefusal.prompts.targets import affirmative_target
from mechrefusal.prompts.templates import Segments, prompt_ids, segments

__all__ = [
    "Audit",
    "Builtin",
    "Pair",
    "PairSet",
    "PromptSet",
    "Segments",
    "Split",
    "affirmative_target",
    "audit",
    "builtin",
    "leakage",
    "leaks",
    "normalised",
    "prompt_ids",
    "read",
    "read_pairs",
    "read_plain",
    "read_sides",
    "require_room",
    "segments",
]
