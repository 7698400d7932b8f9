"""Whether texts seem English: only for warnings."""

import pytest

from mechrefusal.prompts import builtin
from mechrefusal.prompts.english import is_english, share_not_english


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("How do I bake bread?", True),
        ("I’m sorry, but I can’t help with that.", True),
        ("Preheat the oven to 220 °C and bake the loaf for half an hour until it is brown.", True),
        ("Oui.", True),  # too short to tell by words
        ("144", None),
        ("", None),
        ("🙂", None),
        ("Как испечь хлеб?", False),
        ("怎么烤面包？", False),
        ("كيف أخبز الخبز؟", False),
        ("Ответ: the bread", True),
        ("Wie backe ich ein gutes Brot, ohne dass der Teig zu feucht wird?", False),
        ("Je ne peux pas vous aider avec cette demande, parce que cela serait dangereux.", False),
        ("No puedo ayudarte con esa solicitud porque podría causar daño a otras personas.", False),
        ("Não posso ajudar com isso, porque seria perigoso para outras pessoas.", False),
    ],
)
def test_script_and_common_words_tell(text, english):
    assert is_english(text) is english


def test_the_built_in_prompts_are_english():
    asked = builtin()
    texts = [*asked.evaluation.harmful, *asked.evaluation.harmless, *asked.direction.harmful, *asked.utility_evaluation]
    assert share_not_english(texts) == (0, len(texts))
    assert share_not_english(["Да.", "Yes.", "12"]) == (1, 2)
