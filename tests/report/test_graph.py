"""The circuit as a graph: its numbers are the tables', its roles follow from them, and other tools can read it."""

import importlib.util
import json
from pathlib import Path

import networkx as nx
import pandas as pd
import pytest
import viewer_fixture

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.report import graph


@pytest.fixture(scope="module")
def measured():
    return viewer_fixture.measured(carries=True)


@pytest.fixture(scope="module")
def circuit(measured):
    return graph.of_checkpoint(measured)


def _only(measured, **changed):
    """Tables in which nothing gives a role but what is changed."""
    return {
        **measured,
        **{name: measured[name].iloc[:0] for name in ("attribution_compared", "token_sources")},
        **changed,
    }


def test_nodes_and_edges_are_those_of_the_tables(measured, circuit):
    kept = measured["circuit_nodes"].query("kept")
    inner = circuit["nodes"][1:-1]
    assert [circuit["nodes"][i]["id"] for i in (0, -1)] == ["embedding", "logits"]
    assert {node["id"]: node["effect"] for node in inner} == dict(zip(kept["node"], kept["effect"], strict=True))
    assert [abs(node["effect"]) for node in inner] == sorted((abs(e) for e in kept["effect"]), reverse=True)
    paths = measured["circuit_edges"].query("kept")
    assert {(e["source"], e["target"]): e["effect"] for e in circuit["edges"]} == {
        (row.sender, row.receiver): row.effect for row in paths.itertuples()
    }
    assert {"L19.H3", "MLP 18"} <= {node["label"] for node in inner}


def test_faithfulness_is_of_the_first_nodes_in_order_of_effect(measured, circuit):
    rows = measured["faithfulness"].query("of == 'harmful'").set_index("size")
    assert [size["n_nodes"] for size in circuit["sizes"]] == sorted(rows.index)
    for size in circuit["sizes"]:
        row = rows.loc[size["n_nodes"]]
        for name, column in {"faithfulness": "kept", "low": "kept_low", "lost_high": "lost_high"}.items():
            assert size[name] == row[column]
        assert size["random"] == row["random_kept"]
    assert circuit["score"] == "the refusal score of harmful prompts"


def _edge(measured, sender, receiver, effect, p):
    row = measured["circuit_edges"].iloc[0].to_dict()
    return {**row, "sender": sender, "receiver": receiver, "effect": effect, "kept": True, "p": p}


@pytest.mark.parametrize(
    ("sender", "receiver", "effect", "p", "roles"),
    [
        ("embedding", "head 19.3", -0.1, 0.01, {"head 19.3": ["reads harm"]}),
        ("embedding", "head 19.3", 0.1, 0.2, {}),
        ("head 19.3", "head 20.4", 0.1, float("nan"), {"head 19.3": ["moves it"]}),
        ("head 19.3", "logits", 0.1, 0.01, {"head 19.3": ["writes refusal"]}),
        ("head 19.3", "logits", -0.1, 0.01, {}),
        ("embedding", "logits", 0.1, 0.01, {}),
    ],
)
def test_roles_follow_from_paths(measured, sender, receiver, effect, p, roles):
    edges = tables.frame("circuit_edges", [_edge(measured, sender, receiver, effect, p)])
    circuit = graph.of_checkpoint(_only(measured, circuit_edges=edges))
    assert {node["id"]: node["roles"] for node in circuit["nodes"] if node["roles"]} == roles


def test_roles_follow_from_what_is_written_and_read(measured):
    edges = measured["circuit_edges"].iloc[:0]
    compared, sources = measured["attribution_compared"], measured["token_sources"]
    circuit = graph.of_checkpoint({**measured, "circuit_edges": edges})
    for node in circuit["nodes"][1:-1]:
        component = (compared["layer"] == node["layer"]) & (
            compared["head"] == (-1 if node["head"] is None else node["head"])
        )
        row = compared[
            component & (compared["onto"] == "refusal_logits") & (compared["component"] == node["kind"])
        ].iloc[0]
        assert ("writes refusal" in node["roles"]) == (row["p"] < 0.05 and row["difference"] > 0)
        segment = sources[(sources["layer"] == node["layer"]) & (sources["head"] == node["head"])]
        read = segment.query("set == 'harmful' and by == 'segment' and name == 'instruction' and low > 0")
        assert ("reads harm" in node["roles"]) == bool(len(read))
        assert all(node["why"][role].endswith(".") for role in node["roles"])


def test_a_checkpoint_without_a_circuit_says_why():
    circuit = viewer_fixture.no_circuit()
    assert [node["id"] for node in circuit["nodes"]] == ["embedding", "logits"]
    assert circuit["reason"]
    assert circuit["sizes"] == []


def test_circuit_tracer_reads_it(circuit):
    """By the models of circuit-tracer itself, read from the installed package without importing it (and its torch)."""
    package = importlib.util.find_spec("circuit_tracer")
    if package is None:
        pytest.skip("circuit-tracer is not installed: pip install --no-deps circuit-tracer")
    pytest.importorskip("pydantic")
    path = Path(package.origin or "").parent / "frontend" / "graph_models.py"
    spec = importlib.util.spec_from_file_location("graph_models", path)
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    written = graph.circuit_tracer(circuit, "demo")
    read = models.Model.model_validate(written, strict=True)
    assert json.loads(read.model_dump_json()) == written
    for link in written["links"]:
        models.Link.model_validate(link, strict=True)


def test_circuit_tracers_viewer_can_draw_it(circuit):
    """What its JavaScript takes for granted, beside the types."""
    written = graph.circuit_tracer(circuit, "demo")
    ids = [node["node_id"] for node in written["nodes"]]
    assert len(set(ids)) == len(ids) == len(circuit["nodes"])
    assert {link[end] for link in written["links"] for end in ("source", "target")} <= set(ids)
    assert all(node["ctx_idx"] < len(written["metadata"]["prompt_tokens"]) for node in written["nodes"])
    assert {node["feature_type"] for node in written["nodes"]} == {"embedding", "cross layer transcoder", "logit"}
    assert [node["layer"] for node in written["nodes"] if node["feature_type"] == "embedding"] == ["E"]
    logit = written["nodes"][-1]
    assert float(logit["clerp"].split("(p=")[1].split(")")[0]) == logit["token_prob"] == 1
    shares = [node["influence"] for node in written["nodes"][1:-1]]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert {member for group in written["qParams"]["supernodes"] for member in group[1:]} <= set(ids)


def test_graphml_and_csv_hold_every_number(circuit, tmp_path):
    read = nx.parse_graphml(graph.graphml(circuit, "demo"))
    assert set(read.nodes) == {node["id"] for node in circuit["nodes"]}
    for node in circuit["nodes"][1:-1]:
        assert read.nodes[node["id"]]["effect"] == node["effect"]
        assert read.nodes[node["id"]]["roles"] == "; ".join(node["roles"])
    (tmp_path / "edges.csv").write_text(graph.edge_list(circuit, "demo"), encoding="utf-8")
    rows = pd.read_csv(tmp_path / "edges.csv")
    assert len(rows) == len(circuit["edges"]) == read.number_of_edges()
    for edge, (_, row) in zip(circuit["edges"], rows.iterrows(), strict=True):
        assert (row["checkpoint"], row["source"], row["target"]) == ("demo", edge["source"], edge["target"])
        assert row["effect"] == edge["effect"] == read.edges[edge["source"], edge["target"]]["effect"]


def test_a_measured_checkpoint_is_written(measured, tmp_path):
    folder = tmp_path / "measurements" / "r2d2-step-00060"
    folder.mkdir(parents=True)
    for name, table in measured.items():
        tables.write(table, name, folder)
    for ending in (".json", ".graphml", ".csv"):
        path = graph.write(tmp_path, "r2d2-step-00060", tmp_path / f"circuit{ending}")
        assert path.read_text(encoding="utf-8") == graph.EXPORTS[ending](
            graph.of_checkpoint(measured), "r2d2-step-00060"
        )
    with pytest.raises(MechrefusalError, match=r"must end in \.json, \.graphml, \.csv"):
        graph.write(tmp_path, "r2d2-step-00060", tmp_path / "circuit.dot")
    with pytest.raises(MechrefusalError, match="no measured checkpoint 'r2d2-step-00070'"):
        graph.write(tmp_path, "r2d2-step-00070", tmp_path / "circuit.csv")
    (tmp_path / "measurements" / "base-step-00000").mkdir()
    with pytest.raises(MechrefusalError, match="'base-step-00000' has no circuit: the circuit was not looked for"):
        graph.write(tmp_path, "base-step-00000", tmp_path / "circuit.csv")
