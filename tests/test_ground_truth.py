"""Known circuits: programs compiled by tracr, opened like any model, and what the measures make of them."""

import numpy as np
import pytest
from tolerances import COMPOUND, FORWARD

from calibration import planted
from calibration.compiled import load
from calibration.ground_truth import QUICK, auroc, cases, circuits, markdown
from mechrefusal.causal.attribution_patching.pairs import prepare_pairs
from mechrefusal.causal.circuits.edge_sets import SIZES, areas, ranked, score_of
from mechrefusal.causal.circuits.paths import EMBEDDING, Node, PathPatching, edges_between, every_node, logits_of
from mechrefusal.forward import RefusalMetric

pytestmark = pytest.mark.slow

METRIC = RefusalMetric((7,), (419,), (296,))
PAIRS = [("A bomb today", "A home today")]


@pytest.fixture(scope="module")
def table():
    return circuits(QUICK, 4, 0, ["EAP", "EAP-IG, 5 steps", "exact"])


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("frac_prevs", lambda text: text.count("x") / len(text)),
        ("hist", lambda text: text.count(text[-1])),
        ("reverse", lambda text: text[0]),
        ("pair_balance", lambda text: (text.count("(") - text.count(")")) / len(text)),
        ("detect_pattern", lambda text: text.endswith("abc")),
    ],
)
def test_loaded_programs_answer_as_the_program_says(tmp_path, name, answer):
    """At the last position, under causal attention: there the reversed text is at its first token."""
    program = load(name, tmp_path)
    assert program.largest_error() < FORWARD
    seen = {}
    for one in program.about["examples"]:
        found, text = program.answer(one["input"]), one["input"]
        if program.categorical:
            seen.setdefault(answer(text), set()).add(int(found.argmax()))
            assert float(found.max()) == pytest.approx(1, abs=COMPOUND)
        else:
            assert float(found[0]) == pytest.approx(answer(text), abs=COMPOUND)
    if program.categorical:  # one output an answer, and no output for two
        assert all(len(values) == 1 for values in seen.values())
        assert len({min(values) for values in seen.values()}) == len(seen) > 1


def test_exact_patching_finds_the_true_circuit(table):
    exact = table[table["method"] == "exact"]
    assert len(exact) == len(QUICK)
    np.testing.assert_array_equal(exact["AUROC edges"], 1)
    assert set(exact["AUROC nodes"].dropna()) == {1}
    np.testing.assert_allclose(table["f true circuit"], 1, atol=COMPOUND)
    np.testing.assert_allclose(table["f 100%"], 1, atol=COMPOUND)
    estimated = table[table["method"] != "exact"]
    assert (estimated["AUROC edges"] >= 0.5).all()
    assert (estimated["AUROC edges"] < 1).any(), "hard steps have no gradient: where exact patching is needed"
    lines = markdown(table).splitlines()
    assert len(lines) == len(table) + 2
    assert len({line.count("|") for line in lines}) == 1


def test_true_edges_carry_all_and_the_others_nothing(tmp_path):
    program = load("detect_pattern", tmp_path)
    every = edges_between(program.model, every_node(program.model))
    for case in cases(program, 3, 5):
        paths = PathPatching(program.model, case.run)
        gap = score_of(paths, every)
        assert gap == pytest.approx(2, abs=COMPOUND), "two logits that are 0 or 1 change places"
        assert score_of(paths, sorted(program.edges)) == pytest.approx(gap, abs=COMPOUND)
        assert score_of(paths, [edge for edge in every if edge not in program.edges]) == pytest.approx(0, abs=COMPOUND)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_edges_alone_are_paths_and_all_of_them_the_gap(family, architecture, mode):
    model = family(architecture).hooked
    runs = prepare_pairs(model, PAIRS, METRIC, mode)
    paths = PathPatching(model, runs.runs[0])
    edges = edges_between(model, every_node(model))
    gap = float(runs.clean[0] - runs.corrupted[0]) * (1 if mode == "denoising" else -1)
    assert score_of(paths, edges) == pytest.approx(gap, abs=FORWARD)
    assert score_of(paths, []) == 0
    assert score_of(paths, [edge for edge in edges if edge[0] != EMBEDDING]) == 0, "nothing has changed"
    inner = [edge for edge in edges if edge[0] != EMBEDDING]
    for receiver in (Node(0, "head", 1), Node(1, "mlp"), Node(2, "head", 3), logits_of(model)):
        (path,) = paths.effects([(EMBEDDING, receiver)]).tolist()
        assert score_of(paths, [(EMBEDDING, receiver), *inner]) == pytest.approx(path, abs=FORWARD)


def test_areas_ranks_and_auroc_by_hand():
    half = [size >= 0.1 for size in SIZES]
    # From 5% to 10% the curve rises: a triangle, then a rectangle.
    cpr, cmd = areas(half)
    assert cpr == pytest.approx(0.05 / 2 + 0.9)
    assert cmd == pytest.approx(0.999 - cpr)
    assert areas([2.0] * len(SIZES)) == pytest.approx((2 * 0.999, 0.999))
    a, b, c = ((EMBEDDING, Node(layer, "mlp")) for layer in range(3))
    assert ranked({a: 0.1, b: -3.0, c: 0.1}, 2 / 3) == [b, a]
    assert ranked({a: 1.0}, 0.001) == []
    assert auroc({a: 0.1, b: -3.0, c: 0.1}, frozenset([b, a])) == 0.75
    assert np.isnan(auroc({a: 1.0}, frozenset([a])))


def test_planted_carriers_are_found():
    found = planted.found(range(2), (4,), noises=(0.1,))
    assert set(found["found"]) == set(planted.QUESTIONS)
    right = found.set_index("found")["4 prompts"]
    # Where later layers hold the direction as well, the published rule takes any of them.
    sure = right.drop("its layer")
    assert all(cell.startswith("1.00 (0.34 to 1.00") for cell in sure), right.to_dict()
