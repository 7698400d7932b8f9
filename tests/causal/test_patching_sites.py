"""Patching at every site against TransformerLens' own, both of our ways against each other, and a planted circuit."""

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import FAMILIES, build
from runners import through_hooks
from tolerances import FORWARD, REORDERED
from transformer_lens import patching as reference

from mechrefusal import MechrefusalError, causal, models
from mechrefusal.causal import patching
from mechrefusal.forward import RefusalMetric, patching_trials, unhooked_model
from mechrefusal.forward.hooked_patching import HookedPatching
from mechrefusal.forward.joined_rows import Rows
from mechrefusal.forward.patches import HEAD_SITES
from mechrefusal.forward.refusal_metric import ForcedOpenings
from mechrefusal.prompts import Pair, PairSet

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((), (10, 11), (12, 13, 14))
FORCED = RefusalMetric((), (10,), (12,), forced=ForcedOpenings(((20, 21, 22),), ((20, 23), (30,))))
# The prompts differ in one token, seven from the end.
PAIR = ("A bomb today", "A home today")
SITES = {
    "resid_pre": lambda *a, **k: patching.residual(*a, **k),
    "resid_post": lambda *a, **k: patching.residual(*a, site="post", **k),
    "attn_out": lambda *a, **k: patching.attention_output(*a, **k),
    "mlp_out": lambda *a, **k: patching.mlp_output(*a, **k),
    **{
        f"{site}{by}": lambda *a, site=site, by=by, **k: patching.heads(*a, site=site, by_position=bool(by), **k)
        for site in ("z", "pattern", "q", "k", "v")
        for by in ("", ", by position")
    },
}
LAYERS = [1, 3]


def both(model, pair=PAIR):
    found = []
    for text in pair:
        chat = [{"role": "user", "content": text}]
        ids = model.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        found.append(torch.tensor([ids]))
    return found


def by_transformer_lens(model, pair, score, name: str, table: pd.DataFrame) -> np.ndarray:
    """What its plain loop gives for the rows of one of our tables (denoising), less the unpatched score."""
    source, target = both(model, pair)
    cells = {"layer": table["layer"]}
    by_position = "position" in name or name.split(",")[0] not in HEAD_SITES
    if name.startswith("pattern"):
        cells["head_index"] = table["head"]
        setter = reference.layer_head_pattern_patch_setter
    elif name.split(",")[0] in HEAD_SITES:
        setter = reference.layer_head_vector_patch_setter
    else:
        setter = reference.layer_pos_patch_setter
    if by_position:
        cells["pos"] = table["position"] + target.shape[1]
        if name.startswith("pattern"):
            setter = reference.layer_head_pos_pattern_patch_setter
        elif name.split(",")[0] in HEAD_SITES:
            setter = reference.layer_pos_head_vector_patch_setter
    if name.split(",")[0] in HEAD_SITES:
        cells["head_index"] = table["head"]
    with torch.no_grad():
        _, cache = model.run_with_cache(source)
        patched = reference.generic_activation_patch(
            model=model,
            corrupted_tokens=target,
            clean_cache=cache,
            patching_metric=lambda logits: score(logits[:, -1])[0],
            patch_setter=setter,
            activation_name=name.split(",")[0],
            index_df=pd.DataFrame(cells).astype(int),
        )
        return (patched - score(model(target)[:, -1])[0]).numpy()


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "gemma2"])
def test_every_site_equals_transformer_lens(family, architecture, name):
    model = family(architecture).hooked
    found = SITES[name](model, [PAIR], METRIC, layers=LAYERS)
    site = name.split(",")[0]
    assert model.__dict__[patching_trials._KEY][site] == "", "token trees take part"
    grouped = model.cfg.n_key_value_heads or model.cfg.n_heads
    n_heads = 1 if site not in HEAD_SITES else grouped if site in ("k", "v") else model.cfg.n_heads
    n_positions = 1 if site in HEAD_SITES and "position" not in name else 7
    assert len(found.table) == len(LAYERS) * n_heads * n_positions
    assert set(found.table["site"]) == {site}
    some = found.table.iloc[:: max(1, len(found.table) // 10)]
    expected = by_transformer_lens(model, PAIR, METRIC.of, name, some)
    np.testing.assert_allclose(some["raw"], expected, atol=FORWARD)
    assert np.abs(expected).max() > 1e-3, "the patches do nothing here"


@pytest.mark.parametrize("name", ["resid_post", "pattern, by position", "k, by position", "v"])
def test_a_sliding_window_shorter_than_the_prompts(tmp_path, name):
    words = models.tiny.tokenizer()
    build("mistral", len(words), sliding_window=4).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    model = models.load_hooked(tmp_path)
    table = SITES[name](model, [PAIR], METRIC, layers=[1]).table
    np.testing.assert_allclose(table["raw"], by_transformer_lens(model, PAIR, METRIC.of, name, table), atol=FORWARD)
    assert table["raw"].abs().max() > 1e-3


@pytest.mark.parametrize("architecture", FAMILIES)
def test_trees_give_what_the_hooks_give(family, architecture, monkeypatch):
    """With forced openings: several runs after a prompt, which a patched row continues."""
    model = family(architecture).hooked
    ours = {name: SITES[name](model, [PAIR], FORCED, layers=[2]) for name in SITES}
    assert not any(model.__dict__[patching_trials._KEY].values())
    through_hooks(monkeypatch)
    for name, found in ours.items():
        expected = SITES[name](model, [PAIR], FORCED, layers=[2])
        np.testing.assert_allclose(found.table["raw"], expected.table["raw"], atol=FORWARD, err_msg=name)
        keys = [column for column in found.table if column not in ("raw", "effect", "low", "high")]
        pd.testing.assert_frame_equal(found.table[keys], expected.table[keys])


def test_forced_openings_equal_their_log_probabilities_under_hooks(tiny_hooked):
    source, target = both(tiny_hooked)

    def score(fwd_hooks=()):
        likely = []
        for opening in FORCED.forced.all:
            tokens = torch.cat([target, torch.tensor([opening])], 1)
            with torch.no_grad(), tiny_hooked.hooks(fwd_hooks=list(fwd_hooks)):
                logits = tiny_hooked(tokens).log_softmax(-1)[0, target.shape[1] - 1 : -1]
            likely.append(logits[range(len(opening)), list(opening)].sum())
        return (torch.stack(likely)[:1].logsumexp(0) - torch.stack(likely)[1:].logsumexp(0)).item()

    with torch.no_grad():
        _, cache = tiny_hooked.run_with_cache(source)
    table = patching.residual(tiny_hooked, [PAIR], FORCED, layers=[1]).table.set_index("position")
    for position in (-7, -4, -1):

        def put(activation, hook, at=target.shape[1] + position):
            activation = activation.clone()
            activation[:, at] = cache["blocks.1.hook_resid_pre"][:, at]
            return activation

        expected = score([("blocks.1.hook_resid_pre", put)]) - score()
        assert table.loc[position, "raw"] == pytest.approx(expected, abs=FORWARD)
    assert table["raw"].abs().max() > 0.01


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_resid_mid_is_the_stream_between_attention_and_mlp(family, architecture):
    """Against a loop of hooks: attention writes what makes the stream after it the other run's."""
    model = family(architecture).hooked
    source, target = both(model)
    found = patching.residual(model, [PAIR], METRIC, site="mid", layers=LAYERS).table
    post = patching.residual(model, [PAIR], METRIC, site="post", layers=LAYERS).table
    np.testing.assert_allclose(found["raw"], post["raw"], atol=REORDERED)
    with torch.no_grad():
        base = METRIC.of(model(target)[0, -1])
        _, clean = model.run_with_cache(source)
        _, corrupted = model.run_with_cache(target)
        for row in found[found["position"].isin([-7, -1])].itertuples():
            name, at = f"blocks.{row.layer}.", row.position + target.shape[1]
            mid = [c[f"{name}hook_resid_pre"][:, at] + c[f"{name}hook_attn_out"][:, at] for c in (clean, corrupted)]

            def put(written, hook, at=at, mid=mid):
                written = written.clone()
                written[:, at] += mid[0] - mid[1]
                return written

            patched = METRIC.of(model.run_with_hooks(target, fwd_hooks=[(f"{name}hook_attn_out", put)])[0, -1])
            assert row.raw == pytest.approx((patched - base).item(), abs=FORWARD)


@pytest.mark.parametrize("name", ["resid_pre", "attn_out", "z, by position", "v, by position"])
@pytest.mark.parametrize("trees", [True, False])
def test_memory_changes_no_number(tiny_hooked, monkeypatch, name, trees):
    expected = SITES[name](tiny_hooked, [PAIR], FORCED, layers=LAYERS).table["raw"]
    if not trees:
        through_hooks(monkeypatch)
    sizes = []
    rows = Rows.__init__
    monkeypatch.setattr(Rows, "__init__", lambda *a, **k: (sizes.append(len(a[1])), rows(*a, **k))[1])
    run = HookedPatching.scores
    monkeypatch.setattr(HookedPatching, "scores", lambda self, p: (sizes.append(self.memory), run(self, p))[1])
    found = SITES[name](tiny_hooked, [PAIR], FORCED, layers=LAYERS, memory=1).table["raw"]
    np.testing.assert_allclose(found, expected, atol=FORWARD)  # scores of openings: sums over their tokens
    assert set(sizes) == {1}, "one row at a time"


def test_any_function_of_the_last_logits_is_a_metric(tiny_hooked):
    def weighed(logits):
        return logits[:, 5] - 2 * logits[:, 7:20].amax(-1)

    found = patching.heads(tiny_hooked, [PAIR], weighed, site="v").table
    expected = by_transformer_lens(tiny_hooked, PAIR, weighed, "v", found)
    np.testing.assert_allclose(found["raw"], expected, atol=FORWARD)
    same = patching.heads(tiny_hooked, [PAIR], METRIC.of).table
    np.testing.assert_allclose(same["raw"], patching.heads(tiny_hooked, [PAIR], METRIC).table["raw"], atol=REORDERED)


def test_under_an_addition_of_the_caller_the_added_model_is_patched(tiny_hooked):
    step = torch.randn(64, generator=torch.Generator().manual_seed(0))
    with causal.add(tiny_hooked, step, layer=1):
        for name in ("resid_pre", "q", "v, by position"):
            found = SITES[name](tiny_hooked, [PAIR], METRIC, layers=LAYERS).table[::5]
            expected = by_transformer_lens(tiny_hooked, PAIR, METRIC.of, name, found)
            np.testing.assert_allclose(found["raw"], expected, atol=FORWARD, err_msg=name)


def test_top_names_a_head_once(tiny_hooked):
    found = patching.heads(tiny_hooked, [PAIR], METRIC, by_position=True)
    assert len(set(found.top(6))) == 6


def test_noising_at_every_site_is_denoising_of_the_swapped_pair(tiny_hooked):
    for name, patch in SITES.items():
        noising = patch(tiny_hooked, [PAIR], METRIC, layers=[1], mode="noising").table["raw"]
        np.testing.assert_allclose(
            noising, patch(tiny_hooked, [PAIR[::-1]], METRIC, layers=[1]).table["raw"], atol=REORDERED, err_msg=name
        )


# A planted circuit


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """One head, (2, 3), writes; no other head and no MLP does: what precedes the last token is read by it alone."""
    folder, words = tmp_path_factory.mktemp("planted"), models.tiny.tokenizer()
    made = build("llama", len(words))
    with torch.no_grad():
        for layer, block in enumerate(made.model.layers):
            block.mlp.down_proj.weight.zero_()
            written = block.self_attn.o_proj.weight
            kept = written[:, 48:64].clone()
            written.zero_()
            if layer == 2:
                written[:, 48:64] = 4 * kept
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return models.load_hooked(folder)


def test_the_planted_head_is_found_at_every_site(planted):
    tokens = both(planted)
    first = int((tokens[0] != tokens[1])[0].nonzero()[0]) - tokens[0].shape[1]
    gap = patching.residual(planted, [PAIR], METRIC, layers=[0])
    assert abs(float(gap.clean - gap.corrupted)) > patching.SMALLEST_GAP
    for site, head in (("z", 3), ("v", 1), ("k", 1), ("pattern", 3)):
        found = patching.heads(planted, [PAIR], METRIC, site=site)
        table = found.table.set_index(["layer", "head"])["raw"]
        assert found.top(1) == [(2, head)]
        assert table.drop((2, head)).abs().max() < REORDERED
    assert patching.heads(planted, [PAIR], METRIC).table.set_index(["layer", "head"])["effect"][2, 3] == pytest.approx(
        1, abs=FORWARD
    )
    # Its queries are the last token's, which both prompts share.
    assert patching.heads(planted, [PAIR], METRIC, site="q").table["raw"].abs().max() < REORDERED
    by_position = patching.heads(planted, [PAIR], METRIC, site="v", by_position=True).table
    where = by_position.set_index(["layer", "head", "position"])["raw"]
    assert where.drop((2, 1, first)).abs().max() < REORDERED < abs(where[2, 1, first])
    last = patching.heads(planted, [PAIR], METRIC, site="z", by_position=True).table
    assert last.set_index(["layer", "head", "position"])["effect"][2, 3, -1] == pytest.approx(1, abs=FORWARD)
    stream = patching.residual(planted, [PAIR], METRIC).table.set_index(["layer", "position"])["effect"]
    for layer in range(4):
        assert stream[layer, first] == pytest.approx(float(layer < 3), abs=FORWARD)
        assert stream[layer, -1] == pytest.approx(float(layer == 3), abs=FORWARD)
    written = patching.attention_output(planted, [PAIR], METRIC).table.set_index(["layer", "position"])["effect"]
    assert written[2, -1] == pytest.approx(1, abs=FORWARD)
    assert patching.mlp_output(planted, [PAIR], METRIC).table["raw"].abs().max() < REORDERED


# Bad input


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda logits: logits[:, :2], r"shape \[2, 2\]"),
        (lambda logits: logits[:, 0].mean(), r"shape \[\]"),
        (lambda logits: 1.0, "float"),
        (lambda logits: [0.0, 1.0], "list"),
        (lambda logits: logits[:, 10**6], "IndexError"),
        (lambda logits: torch.arange(len(logits)).float(), "other order"),
        (lambda logits: 100 * (logits[:, 5] - logits[:1, 5]), "other order"),
        (lambda logits: torch.zeros(len(logits)), "does not depend on the logits"),
        ("refusal", "'refusal'"),
        (None, "None"),
    ],
)
def test_what_is_no_function_of_the_logits_is_refused(tiny_hooked, metric, said):
    with pytest.raises(MechrefusalError, match=said):
        patching.heads(tiny_hooked, [PAIR], metric, layers=[0])


def test_the_same_metric_on_both_sides_gives_no_effect_and_says_why(tiny_hooked):
    found = patching.heads(tiny_hooked, [PAIR], lambda logits: 1e-3 * logits[:, 5])
    assert found.table["effect"].isna().all()
    assert found.table[["low", "high"]].isna().all(axis=None)
    assert found.table["raw"].abs().max() > 0
    assert "16 of 16 effects are NaN" in found.reason
    assert str(patching.SMALLEST_GAP) in found.reason
    assert patching.heads(tiny_hooked, [PAIR], lambda logits: 10 * logits[:, 5]).reason == ""


def test_pairs_as_texts(tiny_hooked):
    longer = ("Tell me how to steal a very expensive car tonight.", "Tell me how to wash.")
    expected = patching.heads(tiny_hooked, PairSet((Pair("a", "", *PAIR),)), METRIC)
    found = patching.heads(tiny_hooked, [PAIR, longer], METRIC)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert [name for name, *_ in found.left_out] == ["pair 1"]
    assert found.left_out[0][1] > found.left_out[0][2]
    with pytest.raises(MechrefusalError, match=r"none of 1 pairs has equal token length.*'pair 0'"):
        patching.heads(tiny_hooked, [longer], METRIC)
    for wrong in (["A bomb today"], [("one", "two", "three")], [("one", 2)]):
        with pytest.raises(MechrefusalError, match="pair 0"):
            patching.heads(tiny_hooked, wrong, METRIC)


def test_sites_that_are_not_there(family, tiny_hooked):
    with pytest.raises(MechrefusalError, match=r"GPTNeoX.*resid_mid"):
        patching.residual(family("gpt-neox").hooked, [PAIR], METRIC, site="mid")
    with pytest.raises(MechrefusalError, match="'middle'"):
        patching.residual(tiny_hooked, [PAIR], METRIC, site="middle")
    with pytest.raises(MechrefusalError, match="'o'"):
        patching.heads(tiny_hooked, [PAIR], METRIC, site="o")
    for memory in (0, -1, 1.5, True):
        with pytest.raises(MechrefusalError, match="memory"):
            patching.heads(tiny_hooked, [PAIR], METRIC, memory=memory)


def test_the_model_is_as_before_when_a_metric_breaks_off(tiny_hooked):
    source, _ = both(tiny_hooked)
    with torch.no_grad():
        before = tiny_hooked(source)
    calls = []

    def breaks(logits):
        calls.append(len(logits))
        if len(calls) > 6:
            raise MechrefusalError("stop")
        return logits[:, 5]

    for patch in (lambda *a: patching.residual(*a), lambda *a: patching.heads(*a, site="k", by_position=True)):
        calls.clear()
        with pytest.raises(MechrefusalError, match="stop"):
            patch(tiny_hooked, [PAIR], breaks)
        assert len(calls) == 7
    found = unhooked_model(tiny_hooked)
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in found.modules())
    assert not any(point.fwd_hooks for point in tiny_hooked.hook_dict.values())
    with torch.no_grad():
        assert torch.equal(tiny_hooked(source), before)
