"""Chat templates of the forms that model families have, and a tokenizer as SentencePiece makes it."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

ROLES = "{% for one in messages %}{{ '<|im_start|>' + one.role + '\n' + one.content + '<|im_end|>\n' }}{% endfor %}"
# As Qwen3's: the thought of the last answer is rendered, also where it is empty, and may be turned off.
QWEN3 = (
    "{% for one in messages %}{% if one.role == 'assistant' %}"
    "{% set content = one.content %}{% set thought = '' %}"
    "{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content.lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + one.role + '\n' + one.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# As DeepSeek-R1's: the prompt opens a thought, and what was said before is rendered without one.
R1 = (
    "{% for one in messages %}{% if one.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + one.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>user\n' + one.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for one in messages %}{% if one.role == 'user' %}{{ '[INST] ' + one.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + one.content + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for one in messages %}{{ '<|start_header_id|>' + one.role + '<|end_header_id|>\n\n' }}"
    "{{ one.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for one in messages %}"
    "{{ '<start_of_turn>' + ('model' if one.role == 'assistant' else one.role) + '\n' }}"
    "{{ one.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# As GLM-4's: nothing ends an answer but the mark of the user's next turn.
GLM = (
    "{% for one in messages %}{{ ('<|im_start|>' if one.role == 'user' else '<start_of_turn>') + '\n' + one.content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>' }}{% endif %}"
)


def sentencepiece(template: str) -> PreTrainedTokenizerBase:
    """A Unigram tokenizer as SentencePiece makes it: a space belongs to the word after it."""
    words = ["▁Sure", "S", "ure", "▁", ",", "▁here", "here", "▁Tell", "▁me", "▁how", "[", "]", "/", "INST", "▁I", "I"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((word, -float(len(word) < 3)) for word in words)]
    letters = sorted({*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'.!?[]/"} - {p for p, _ in pieces})
    tokenizer = Tokenizer(models.Unigram([*pieces, *((letter, -9.0) for letter in letters)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )
