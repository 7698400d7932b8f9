"""Trees of token sequences against plain passes, one sequence at a time: logits, gradients, and what is kept."""

import copy
from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from architectures import FAMILIES, build
from tolerances import FORWARD
from torch.utils._python_dispatch import TorchDispatchMode

from mechrefusal.forward import tree_attention, tree_forward
from mechrefusal.forward.tree import Branch, KeyValues, Tree
from mechrefusal.forward.tree_attention import attending
from mechrefusal.forward.tree_forward import TreeForward, shares

pytestmark = pytest.mark.slow

VOCAB = 60
WINDOWED = ("mistral", "gemma2", "gemma3")


@pytest.fixture(scope="module", params=[*FAMILIES, *(f"{name}, window 8" for name in WINDOWED)])
def model(request, family):
    """Every family, and those with sliding windows once more with windows shorter than the prompts here."""
    name, _, window = request.param.partition(", ")
    return build(name, VOCAB, sliding_window=8) if window else family(name).hf


@pytest.fixture(scope="module")
def llama():
    return build("llama", VOCAB)


def ids(seed: int, n: int) -> tuple[int, ...]:
    """`n` token ids drawn from `seed`."""
    return tuple(torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def everywhere(tokens: Sequence[int], context: tuple[int, ...] = ()) -> Branch:
    """A branch whose logits are wanted at every token."""
    return Branch(tuple(tokens), tuple(range(len(tokens))), context)


def plainly(model, branches: Sequence[Branch], bank: KeyValues | None = None) -> torch.Tensor:
    """Logits at the kept places through one ordinary pass a branch over its whole text."""
    found = []
    for branch in branches:
        before = [bank.tokens[place] for place in branch.context] if bank is not None else []
        logits = model(torch.tensor([[*before, *branch.tokens]]), use_cache=False).logits[0]
        found.append(logits[[len(before) + place for place in branch.keep]])
    return torch.cat(found)


def distinct(branches: Sequence[Branch]) -> int:
    """Tokens that have to be run: different beginnings of different contexts."""
    return len({(b.context, b.tokens[: n + 1]) for b in branches for n in range(len(b.tokens))})


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = FORWARD) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def forest() -> list[Branch]:
    """Branches of 1 to 40 tokens: shared beginnings, one a prefix of another, the same one twice, one of a token."""
    stem = ids(0, 20)
    return [
        everywhere((*stem, *ids(1, 20))),
        everywhere((*stem, *ids(2, 3))),
        everywhere((*stem[:11], *ids(3, 13))),
        everywhere(stem),  # the beginning of two others
        everywhere((*stem, *ids(2, 3))),  # the second once more
        Branch((*stem, *ids(2, 3)), (22, 0, 5, 5)),  # and again, with logits in an order of its own
        Branch(ids(4, 17), (16,)),
        Branch((stem[0],), (0,)),
        Branch(ids(5, 2), ()),  # nothing wanted
    ]


# Logits


def test_a_tree_gives_the_logits_of_plain_passes(model):
    with torch.no_grad():
        found = TreeForward(model).run(forest())
        close(found.logits, plainly(model, forest()))
    assert found.tokens == distinct(forest()) < sum(len(branch.tokens) for branch in forest())


def test_every_family_shares(model):
    assert shares(model)
    assert TreeForward(model).shares


def test_the_order_of_the_branches_is_that_of_the_logits(llama):
    forward, branches = TreeForward(llama), forest()
    with torch.no_grad():
        for seed in range(4):
            order = torch.randperm(len(branches), generator=torch.Generator().manual_seed(seed)).tolist()
            shuffled = [branches[place] for place in order]
            close(forward.run(shuffled).logits, plainly(llama, shuffled))


def test_one_token_alone_and_branches_without_wanted_logits(llama):
    with torch.no_grad():
        one = TreeForward(llama).run([Branch((7,), (0,))])
        close(one.logits, plainly(llama, [Branch((7,), (0,))]))
        none = TreeForward(llama).run([Branch((7, 8), ()), Branch((9,), ())], capture=True)
    assert one.tokens == 1
    assert none.logits.shape == (0, VOCAB)
    assert (none.tokens, len(none.bank), sorted(none.bank.tokens)) == (3, 3, [7, 8, 9])


def test_a_continuation_is_predicted_not_read():
    branch = Branch.continuing((5, 6, 7), (8, 9, 4), (0, 1))
    assert branch == Branch((5, 6, 7, 8, 9), (2, 3, 4), (0, 1))
    assert Branch.continuing((5,), (8,)) == Branch((5,), (0,))


@pytest.mark.parametrize(("tokens", "keep"), [((), ()), ((1, 2), (2,)), ((1, 2), (-1,))])
def test_impossible_branches_are_refused(tokens, keep):
    with pytest.raises(AssertionError):
        Branch(tokens, keep)


def test_without_sharing_every_branch_stands_for_itself(model):
    with torch.no_grad():
        found = TreeForward(model).run(forest(), share=False)
        close(found.logits, plainly(model, forest()))
    assert found.tokens == sum(len(branch.tokens) for branch in forest())
    assert found.places == tuple(
        tuple(range(start, start + len(branch.tokens)))
        for start, branch in zip([0, 40, 63, 87, 107, 130, 153, 170, 171], forest(), strict=True)
    )


def test_embeddings_in_place_of_ids(model):
    tokens = torch.tensor([token for branch in forest() for token in branch.tokens])
    with torch.no_grad():
        embeds = model.get_input_embeddings()(tokens)
        close(TreeForward(model).run(forest(), share=False, embeds=embeds).logits, plainly(model, forest()))
    with pytest.raises(AssertionError, match="every branch stands for itself"):
        TreeForward(model).run(forest(), embeds=embeds)


# Kept tokens


def kept(model) -> tuple[KeyValues, list[tuple[int, ...]]]:
    """A bank joined of three, and contexts in it: whole branches, beginnings of branches, and none."""
    forward = TreeForward(model)
    first = forward.run([everywhere(ids(10, 14)), everywhere((*ids(10, 9), *ids(11, 4)))], capture=True)
    second = forward.run([Branch(ids(12, 19), ())], capture=True, share=False)
    # The third one continues the first: its tokens and those that it continues make one context.
    third = forward.run([Branch(ids(13, 5), (4,), first.places[1])], bank=first.bank, capture=True)
    bank = KeyValues.joined([KeyValues(), first.bank, second.bank, KeyValues(), third.bank])
    start = [0, len(first.bank), len(first.bank) + len(second.bank)]
    moved = [tuple(start[1] + place for place in second.places[0]), tuple(start[2] + p for p in third.places[0])]
    contexts = [(), first.places[0], first.places[1], first.places[0][:1], moved[0], moved[0][:12]]
    return bank, [*contexts, (*first.places[1], *moved[1])]


def test_branches_continue_tokens_that_were_kept(model):
    with torch.no_grad():
        bank, contexts = kept(model)
        assert len(bank) == 18 + 19 + 5
        branches = [
            everywhere((*ids(20, 6), *ids(21 + place, length)), context)
            for place, context in enumerate(contexts)
            for length in (0, 1, 9)
        ]
        found = TreeForward(model).run(branches, bank=bank)
        close(found.logits, plainly(model, branches, bank))
        assert found.tokens == distinct(branches) == len(contexts) * (6 + 9)
        alone = TreeForward(model).run(branches, bank=bank, share=False)
        close(alone.logits, plainly(model, branches, bank))


def test_a_part_of_a_bank_is_a_bank(model):
    with torch.no_grad():
        bank, contexts = kept(model)
        context = contexts[-1]
        part = bank.at(context)
        assert part.tokens == tuple(bank.tokens[place] for place in context)
        branch = everywhere(ids(30, 4), tuple(range(len(part))))
        close(TreeForward(model).run([branch], bank=part).logits, plainly(model, [branch], part))
    assert len(bank.at(())) == 0
    for layer, whole in zip(part.keys, bank.keys, strict=True):
        assert torch.equal(layer, whole[list(context)])


def test_a_bank_holds_the_ids_keys_and_values_of_what_was_run(llama):
    branches = forest()
    found = TreeForward(llama).run(branches, capture=True)
    assert len(found.bank) == found.tokens
    for branch, places in zip(branches, found.places, strict=True):
        assert tuple(found.bank.tokens[place] for place in places) == branch.tokens
    cache = llama(torch.tensor([branches[0].tokens]), use_cache=True).past_key_values
    picked = found.bank.at(found.places[0])
    for layer, keys, values in zip(cache.layers, picked.keys, picked.values, strict=True):
        close(keys.transpose(0, 1), layer.keys[0].detach())
        close(values.transpose(0, 1), layer.values[0].detach())
    assert not any(part.requires_grad for part in (*found.bank.keys, *found.bank.values))
    assert len(TreeForward(llama).run(branches).bank) == 0


def test_joining_nothing_and_joining_one(llama):
    bank = TreeForward(llama).run([everywhere(ids(1, 3))], capture=True).bank
    assert len(KeyValues.joined([])) == len(KeyValues.joined([KeyValues(), KeyValues()])) == 0
    assert KeyValues.joined([KeyValues(), bank]) is bank


# Random trees


@pytest.mark.parametrize("seed", range(30))
def test_random_trees_of_three_letters(llama, seed):
    drawn = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=drawn))

    def word(longest: int) -> tuple[int, ...]:
        return tuple(number(3, 5) for _ in range(number(1, longest)))

    forward = TreeForward(llama)
    with torch.no_grad():
        above = forward.run([Branch(word(6), ()) for _ in range(number(1, 4))], capture=True)
        contexts = [(), *(places[: number(0, len(places))] for places in above.places)]
        branches = []
        for _ in range(number(1, 14)):
            tokens = word(9)
            keep = tuple(number(0, len(tokens) - 1) for _ in range(number(0, 4)))
            branches.append(Branch(tokens, keep, contexts[number(0, len(contexts) - 1)]))
        branches.append(everywhere(word(9)))  # something is wanted
        found = forward.run(branches, bank=above.bank, capture=True)
        close(found.logits, plainly(llama, branches, above.bank))
        close(forward.run(branches, bank=above.bank, share=False).logits, plainly(llama, branches, above.bank))
    assert found.tokens == len(found.bank) == distinct(branches)
    for branch, places in zip(branches, found.places, strict=True):
        assert tuple(found.bank.tokens[place] for place in places) == branch.tokens
    tree = Tree.of(branches, bank_size=len(above.bank))
    for branch, places in zip(branches, tree.places, strict=True):
        start = len(branch.context)
        assert tree.positions[list(places)].tolist() == list(range(start, start + len(places)))


# Gradients


def weighted(logits: torch.Tensor) -> torch.Tensor:
    """A loss in which every logit has a weight of its own."""
    return (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))).sum() / len(logits)


def gradients(model, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    weighted(logits).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        bound = FORWARD * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, atol=bound, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def test_gradients_of_the_weights_are_those_of_plain_passes(model):
    found = gradients(model, TreeForward(model).run(forest()).logits)
    same_gradients(found, gradients(model, plainly(model, forest())))
    assert set(found) == {name for name, _ in model.named_parameters()}


def test_gradients_of_embeddings_are_those_of_plain_passes(model):
    with torch.no_grad():
        bank, contexts = kept(model)
    branches = [everywhere(ids(40 + place, 5), context) for place, context in enumerate(contexts)]
    embed = model.get_input_embeddings()
    embeds = [embed(torch.tensor(branch.tokens)).detach() for branch in branches]
    flat = torch.cat(embeds).requires_grad_()
    weighted(TreeForward(model).run(branches, bank=bank, share=False, embeds=flat).logits).backward()
    leaves, logits = [part.clone().requires_grad_() for part in embeds], []
    for branch, leaf in zip(branches, leaves, strict=True):
        before = embed(torch.tensor([bank.tokens[place] for place in branch.context], dtype=torch.long)).detach()
        logits.append(model(inputs_embeds=torch.cat([before, leaf])[None], use_cache=False).logits[0, len(before) :])
    weighted(torch.cat(logits)).backward()
    model.zero_grad(set_to_none=True)
    expected = torch.cat([leaf.grad for leaf in leaves])
    close(flat.grad, expected, atol=FORWARD * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-neox"])
def test_gradient_checkpointing_inside_attending_changes_no_gradient(name):
    plain = build(name, VOCAB, attention_dropout=0.0)
    model = copy.deepcopy(plain).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert model.is_gradient_checkpointing
    runs = []
    layer = model.get_decoder().layers[1]
    layer.mlp.register_forward_hook(lambda *_: runs.append(1))
    with attending(model):
        found = gradients(model, TreeForward(model).run(forest()).logits)
    shares_checked = 2  # passes of the check, which has no gradient
    assert len(runs) - shares_checked in (2, 3)  # the forward pass, and again in the backward pass
    same_gradients(found, gradients(plain, plainly(plain, forest())))


def test_a_model_that_peft_wrapped():
    from peft import LoraConfig, get_peft_model

    base = build("llama", VOCAB)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    forward = TreeForward(model)
    assert forward.shares
    found = forward.run(forest())
    close(found.logits, plainly(model, forest()))
    assert found.tokens == distinct(forest())
    lora = gradients(model, found.logits)
    assert lora
    assert all("lora" in name for name in lora)
    same_gradients(lora, gradients(model, plainly(model, forest())))


# Precision


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mistral, window 8"])
def test_bf16_is_within_its_own_rounding(name):
    """Mean error below 2% of a standard deviation of the logits, and no more than 1.5 times that of plain bf16."""
    name, _, window = name.partition(", ")
    low = build(name, VOCAB, **({"sliding_window": 8} if window else {})).to(torch.bfloat16)
    exact = copy.deepcopy(low).float()
    with torch.no_grad():
        found, expected = TreeForward(low).run(forest()), plainly(exact, forest())
        plain = plainly(low, forest())
    assert TreeForward(low).shares
    assert found.logits.dtype == torch.bfloat16
    errors = [float((logits.float() - expected).abs().mean() / expected.std()) for logits in (found.logits, plain)]
    assert errors[0] < 0.02
    assert errors[0] < 1.5 * errors[1]


# Models that cannot share


def different(monkeypatch) -> None:
    monkeypatch.setattr(tree_forward, "shares", lambda model: False)


def test_a_model_that_cannot_share_runs_plainly_with_the_same_logits(model, monkeypatch):
    different(monkeypatch)
    forward = TreeForward(model)
    assert not forward.shares
    with torch.no_grad():
        above = forward.run([Branch(ids(10, 6), ()), Branch(ids(11, 9), ())], capture=True)
        bank = KeyValues.joined([above.bank, forward.run([Branch(ids(12, 3), ())], capture=True).bank])
        assert bank.tokens == (*ids(10, 6), *ids(11, 9), *ids(12, 3))
        contexts = [(), *above.places, (15, 16)]
        branches = [Branch(b.tokens, b.keep, contexts[place % 4]) for place, b in enumerate(forest())]
        found = forward.run(branches, bank=bank, capture=True)
        close(found.logits, plainly(model, branches, bank))
        tokens = torch.tensor([token for branch in branches for token in branch.tokens])
        embeds = model.get_input_embeddings()(tokens)
        close(forward.run(branches, bank=bank, share=False, embeds=embeds).logits, plainly(model, branches, bank))
    assert found.tokens == sum(len(branch.context) + len(branch.tokens) for branch in branches)
    for branch, places in zip(branches, found.places, strict=True):
        assert tuple(found.bank.tokens[place] for place in places) == branch.tokens
    assert len(found.bank.at(found.places[1])) == len(branches[1].tokens)


def test_gradients_of_a_model_that_cannot_share(llama, monkeypatch):
    expected = gradients(llama, plainly(llama, forest()))
    different(monkeypatch)
    same_gradients(gradients(llama, TreeForward(llama).run(forest()).logits), expected)


def test_layers_of_another_kind_are_not_shared():
    model = build("qwen3", VOCAB, layer_types=["full_attention", "chunked_attention"] * 2)
    assert not shares(model)
    assert not shares(build("llama", VOCAB, attention_chunk_size=8))


def test_an_attention_of_its_own_is_not_shared():
    """Bloom reads no position ids; GPT-J has an attention that is not exchangeable."""
    import transformers

    bloom = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2)
    gptj = transformers.GPTJConfig(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, rotary_dim=8)
    for config in (bloom, gptj):
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
        assert not shares(model)
        with torch.no_grad():
            close(TreeForward(model).run(forest()).logits, plainly(model, forest()))


def test_a_lack_of_memory_is_not_taken_for_an_answer(monkeypatch):
    model, run = build("llama", VOCAB), TreeForward.run

    def fails(self, *args, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(TreeForward, "run", fails)
    with suppress(torch.OutOfMemoryError):
        shares(model)
    monkeypatch.setattr(TreeForward, "run", run)
    assert shares(model)


def test_a_window_that_the_attention_is_not_told_of_gives_the_same_logits():
    """Qwen2-MoE slides in its mask alone. The window here is longer than the check of `shares`."""
    import transformers

    config = transformers.Qwen2MoeConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        shared_expert_intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, num_experts=4,
        num_experts_per_tok=2, sliding_window=32, use_sliding_window=True, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    branches = [everywhere(ids(0, 50)), everywhere((*ids(0, 40), *ids(1, 20)))]
    with torch.no_grad():
        close(TreeForward(model).run(branches).logits, plainly(model, branches))


def test_a_model_that_knows_no_list_of_logits_to_keep(llama):
    """Its logits come for all tokens as they are packed: picked in the order of the branches, whatever their number."""

    def call(logits_to_keep, **inputs):
        return llama(**inputs)

    some = [Branch(ids(1, 6), (5, 0)), Branch(ids(0, 4), (1,))]
    all_ = [everywhere(ids(1, 6)), everywhere(ids(0, 4))]
    with torch.no_grad():
        for branches in (some, all_, all_[::-1]):
            close(TreeForward(llama, call=call).run(branches).logits, plainly(llama, branches))


def test_what_is_called_in_place_of_the_model_is_called_once(llama):
    calls = []

    def call(**inputs):
        calls.append(inputs)
        return llama(**inputs)

    with torch.no_grad():
        close(TreeForward(llama, call=call).run(forest()).logits, plainly(llama, forest()))
    assert len(calls) == 1


def test_a_model_is_left_as_it_was(llama):
    model = copy.deepcopy(llama).train()
    model.model.layers[0].eval()
    weights = list(model.parameters())
    weights[2].requires_grad_(False)
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    TreeForward(model).run(forest(), capture=True)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in weights] == [i != 2 for i in range(len(weights))]
    assert all(p.grad is None for p in weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_output_embeddings()._forward_pre_hooks


# Cost


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(part, torch.Tensor) and func is not torch.ops.aten.expand.default:
                self.elements = max(self.elements, part.numel())
        return found


def test_memory_grows_with_the_tokens_not_with_their_square(llama):
    branches = [Branch.continuing(ids(seed, 20), (3,)) for seed in range(150)]
    forward = TreeForward(llama)
    with torch.no_grad(), Largest() as largest:
        found = forward.run(branches)
    assert found.tokens > 2500
    assert largest.elements < found.tokens**2 / 4


# Attention that reads trees


@pytest.fixture(params=["llama", "llama, eager", "gemma2", "gemma3, window 8", "mistral, window 8", "gpt2"])
def attended(request):
    name, _, how = request.param.partition(", ")
    made = build(name, VOCAB, **({"sliding_window": 8} if how == "window 8" else {}))
    if how == "eager":
        made.set_attn_implementation("eager")
    return made


def ordinary(model) -> list[torch.Tensor]:
    """Logits of padded rows, of packed positions, and of cached steps."""
    rows, mask = torch.tensor([ids(0, 14), ids(1, 14)]), torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad():
        padded = model(rows, attention_mask=mask).logits[mask.bool()]
        positions = torch.tensor([[*range(6), *range(8)]])
        packed = model(rows[:1], position_ids=positions, use_cache=False).logits
        head = model(rows[:, :9], use_cache=True)
        tail = model(rows[:, 9:], past_key_values=head.past_key_values, use_cache=True).logits
        new = model.generate(rows, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    return [padded, packed, head.logits, tail, new]


def test_ordinary_passes_inside_equal_those_outside(attended):
    outside = ordinary(attended)
    with attending(attended):
        inside = ordinary(attended)
        with attending(attended):
            deeper = ordinary(attended)
    for one, two, three in zip(outside, inside, deeper, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    with torch.no_grad():
        close(TreeForward(attended).run(forest()).logits, plainly(attended, forest()))


def test_gradients_of_shared_tokens_are_the_same_every_time():
    """With several threads torch sums that of `rows[places]` in any order: two trainings of one recipe would part."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(40, (24, 60), generator=generator)
    rows, gradient = (torch.randn(*shape, 3, 64, generator=generator) for shape in ((40,), (24, 60)))

    def of(read, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        leaf = rows.to(dtype, copy=True).requires_grad_()
        out = read(leaf)
        assert torch.equal(out, rows.to(dtype)[places])
        out.backward(gradient.to(dtype))
        return leaf.grad

    every = [of(lambda leaf: tree_attention.rows_at(leaf, places)) for _ in range(20)]
    assert all(torch.equal(every[0], other) for other in every)
    torch.testing.assert_close(every[0].double(), of(lambda leaf: leaf[places], torch.float64), atol=1e-4, rtol=1e-5)


def test_the_attention_of_a_model_is_as_it_was_whatever_happens(attended):
    before, entries = attended.config._attn_implementation, copy.deepcopy(vars(attended.config))
    with attending(attended):
        assert attended.config._attn_implementation == tree_attention.ATTENTION
        with attending(attended):
            TreeForward(attended).run(forest())
        assert attended.config._attn_implementation == tree_attention.ATTENTION
        with torch.no_grad():
            TreeForward(attended).run(forest())
        assert attended.config._attn_implementation == tree_attention.ATTENTION
    with pytest.raises(ZeroDivisionError), attending(attended):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), attending(attended), attending(attended):
        raise KeyboardInterrupt

    def fails(**inputs):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        TreeForward(attended, call=fails).run(forest())
    assert attended.config._attn_implementation == before
    assert vars(attended.config) == entries
    assert not attended.get_output_embeddings()._forward_pre_hooks
