"""The word lists of the refusal rules, one object a file: `REFUSALS.declines` is list `declines` of refusals.txt."""

from mechrefusal.evaluation.judges.word_lists import word_lists

ANSWERS = word_lists("answers")
DEFLECTION = word_lists("deflection")
FRAMING = word_lists("framing")
KNOWLEDGE = word_lists("knowledge")
MORALISING = word_lists("moralising")
PERSONAS = word_lists("personas")
PREMISES = word_lists("premises")
PROMPTS = word_lists("prompts")
REFUSALS = word_lists("refusals")
WRITING = word_lists("writing")
