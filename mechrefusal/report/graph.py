"""The circuit of a checkpoint as a graph that one can play with, and export to the tools that others use.

The graph is what the tables `circuit_nodes`, `circuit_edges` and `faithfulness` say, in the order of effect. Beside
each node stand its roles, read from the tables:

    reads harm       the path from the embedding into it carries the difference between harmful and harmless prompts, or
                     what it takes from the instruction of harmful prompts raises refusal (`token_sources`)
    moves it         a path from it into another node carries the difference
    writes refusal   its path into the logits raises refusal, or it writes more refusal on harmful than on harmless
                     prompts (`attribution_compared`)

A path counts where the circuit holds it and, if pairs were held out, where it differs from nothing on them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.files import whole_file
from mechrefusal.report import wording
from mechrefusal.statistics.maps import ALPHA

EMBEDDING, LOGITS = "embedding", "logits"
READS, MOVES, WRITES = ROLES = ("reads harm", "moves it", "writes refusal")
TABLES = ("circuit_nodes", "circuit_edges", "faithfulness", "attribution_compared", "token_sources")
"""Tables of a checkpoint that its graph is made of."""
SCORES = {
    "harmful": "the refusal score of harmful prompts",
    "difference": "the difference between the refusal scores of harmful and harmless prompts",
}
_MEASURED = ("effect", "low", "high", "n", "held_out", "held_out_low", "held_out_high", "n_held_out", "p")
_SHARES = {"faithfulness": "kept", "lost": "lost"}


def of_checkpoint(measured: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """The graph of one checkpoint as JSON values; shares are of the gap between harmful and harmless prompts.

    Args:
        measured: the tables `TABLES` of the checkpoint; those of roles may be missing.

    Returns:
        `nodes`: id, kind (embedding, head, mlp or logits), layer, head, label, roles, why (a sentence a role), and for
        heads and MLPs effect, low, high, n, held_out, held_out_low, held_out_high, n_held_out, p; largest effect first,
        between the embedding and the logits.
        `edges`: source, target and the same numbers; largest effect first.
        `sizes`: n_nodes (the first so many in order of effect), faithfulness and lost, each with low, high and the
        mean, least and most of random sets; n, is_circuit. `score`: what these are shares of. `n_layers`, `n_heads`.
        `reason`: why there are no heads and MLPs, or empty. A value that is missing is None.
    """
    nodes = measured["circuit_nodes"]
    kept = _strongest_first(nodes[nodes["kept"] & nodes["effect"].notna()])
    names = {EMBEDDING, LOGITS, *kept["node"]}
    edges = measured["circuit_edges"]
    between = edges["sender"].isin(list(names)) & edges["receiver"].isin(list(names))
    edges = _strongest_first(edges[edges["kept"] & between & edges["effect"].notna()])
    labels = {
        row.node: wording.head_name(row.layer, row.head) if row.component == "head" else f"MLP {row.layer}"
        for row in kept.itertuples()
    }
    why = _roles(edges, measured, labels)
    n_layers = int(nodes["layer"].max()) + 1 if len(nodes) else 0
    n_heads = int(nodes["head"].max()) + 1 if len(nodes) else 0
    inner = [
        {
            "id": str(row["node"]),
            "kind": str(row["component"]),
            "layer": int(row["layer"]),
            "head": int(row["head"]) if row["component"] == "head" else None,
            "label": labels[row["node"]],
            **_numbers(row, _MEASURED),
            "roles": list(why.get(str(row["node"]), {})),
            "why": why.get(str(row["node"]), {}),
        }
        for _, row in kept.iterrows()
    ]
    of, sizes = _sizes(measured["faithfulness"])
    return {
        "nodes": [_end(EMBEDDING, -1), *inner, _end(LOGITS, n_layers)],
        "edges": [
            {"source": str(row["sender"]), "target": str(row["receiver"]), **_numbers(row, _MEASURED)}
            for _, row in edges.iterrows()
        ],
        "sizes": sizes,
        "score": SCORES.get(of, of),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "reason": "" if inner else _reason(nodes),
    }


def write(run_folder: Path | str, checkpoint: str, path: Path | str) -> Path:
    """Write the circuit of a measured checkpoint for another tool; the end of `path` says for which.

    Args:
        run_folder: holds `measurements/`.
        checkpoint: its id, such as `r2d2-step-00050`.
        path: `.json` (attribution graph of circuit-tracer, for its own viewer), `.graphml` (Gephi, yEd, networkx,
            Cytoscape) or `.csv` (one row an edge).

    Raises:
        MechrefusalError: another ending, no such checkpoint, or a checkpoint without a circuit.
    """
    path, folder = Path(path), Path(run_folder) / "measurements" / checkpoint
    if path.suffix not in EXPORTS:
        raise MechrefusalError(f"cannot write a graph to '{path}': its name must end in {', '.join(EXPORTS)}")
    if not folder.is_dir():
        raise MechrefusalError(f"no measured checkpoint '{checkpoint}': {folder} does not exist")
    graph = of_checkpoint({name: tables.read(name, folder) for name in TABLES})
    if graph["reason"]:
        raise MechrefusalError(f"checkpoint '{checkpoint}' has no circuit: {graph['reason']}")
    with whole_file(path) as draft:
        draft.write_text(EXPORTS[path.suffix](graph, checkpoint), encoding="utf-8", newline="\n")
    return path


def circuit_tracer(graph: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The graph as circuit-tracer's viewer reads it (schema 1 of its `graph_models.Model`).

    Heads and MLPs are patched at all positions, so that the columns of that viewer, which are a prompt's tokens, hold
    heads instead. `influence` is cumulative, as theirs: the share of all effects up to this node. The one logit is the
    refusal score; its probability of 1 stands for no more than that it is the only one.
    """
    columns = [EMBEDDING, *(f"head {head}" for head in range(graph["n_heads"])), "MLP", LOGITS]
    effects = [abs(node.get("effect") or 0.0) for node in graph["nodes"]]
    ids, nodes = {}, []
    for place, node in enumerate(graph["nodes"]):
        kind, head = node["kind"], node["head"]
        column = {EMBEDDING: 0, "mlp": len(columns) - 2, LOGITS: len(columns) - 1}.get(kind, (head or 0) + 1)
        layer = "E" if kind == EMBEDDING else str(node["layer"] + (kind == LOGITS))
        number = {EMBEDDING: 0, "mlp": graph["n_heads"], LOGITS: 0}.get(kind, head)
        ids[node["id"]] = f"{layer}_{number}_{column}"
        is_end = kind in (EMBEDDING, LOGITS)
        nodes.append(
            {
                "node_id": ids[node["id"]],
                "feature": number if is_end else (node["layer"] + number) * (node["layer"] + number + 1) // 2 + number,
                "layer": layer,
                "ctx_idx": column,
                "feature_type": {EMBEDDING: "embedding", LOGITS: "logit"}.get(kind, "cross layer transcoder"),
                "token_prob": float(kind == LOGITS),
                "is_target_logit": kind == LOGITS,
                "run_idx": 0,
                "reverse_ctx_idx": 0,
                "jsNodeId": f"{'L' if kind == LOGITS else layer}_{number}-0",
                "clerp": 'Output "refusal" (p=1.000)'
                if kind == LOGITS
                else node["label"] + (f" ({', '.join(node['roles'])})" if node["roles"] else ""),
                "influence": None if is_end else sum(effects[: place + 1]) / (sum(effects) or 1.0),
                "activation": None if is_end else node["effect"],
            }
        )
    groups = {role: [ids[node["id"]] for node in graph["nodes"] if node["roles"][-1:] == [role]] for role in ROLES}
    return {
        "metadata": {
            "slug": name,
            "scan": "mechrefusal",
            "transcoder_list": [],
            "prompt_tokens": columns,
            "prompt": f"{name}: heads and MLPs patched at all positions; columns are heads",
            "node_threshold": None,
            "schema_version": 1,
        },
        "qParams": {
            "pinnedIds": [ids[node["id"]] for node in graph["nodes"]],
            "supernodes": [[role, *members] for role, members in groups.items() if len(members) > 1],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": [
            {"source": ids[edge["source"]], "target": ids[edge["target"]], "weight": edge["effect"]}
            for edge in graph["edges"]
        ],
    }


def graphml(graph: Mapping[str, Any], name: str) -> str:
    """The graph as GraphML, with every number that is known and the roles joined by `; `."""
    import networkx as nx  # a fifth of a second, which no page needs

    digraph = nx.DiGraph(name=name)
    for node in graph["nodes"]:
        known = {key: value for key, value in node.items() if key not in ("id", "why", "roles") and value is not None}
        digraph.add_node(node["id"], **known, roles="; ".join(node["roles"]))
    for edge in graph["edges"]:
        known = {key: value for key, value in edge.items() if key not in ("source", "target") and value is not None}
        digraph.add_edge(edge["source"], edge["target"], **known)
    return "\n".join(nx.generate_graphml(digraph)) + "\n"


def edge_list(graph: Mapping[str, Any], name: str) -> str:
    """The edges as CSV: checkpoint, source, target and their numbers."""
    rows = [{"checkpoint": name, **edge} for edge in graph["edges"]]
    return pd.DataFrame(rows, columns=["checkpoint", "source", "target", *_MEASURED]).to_csv(index=False)


EXPORTS = {
    ".json": lambda graph, name: json.dumps(circuit_tracer(graph, name), ensure_ascii=False, indent=2) + "\n",
    ".graphml": graphml,
    ".csv": edge_list,
}
"""How a graph is written, by the end of a file's name."""


def _strongest_first(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values("effect", key=lambda values: -values.abs(), kind="stable")


def _end(name: str, layer: int) -> dict[str, Any]:
    """The embedding or the logits."""
    return {"id": name, "kind": name, "layer": layer, "head": None, "label": name, "roles": [], "why": {}}


def _numbers(row: pd.Series, names: tuple[str, ...]) -> dict[str, float | int | None]:
    whole = ("n", "n_held_out")
    return {
        name: None if wording.is_missing(row[name]) else int(row[name]) if name in whole else float(row[name])
        for name in names
    }


def _reason(nodes: pd.DataFrame) -> str:
    if not len(nodes):
        return "the circuit was not looked for"
    return "; ".join(sorted({wording.plain(text) for text in nodes["reason"]} - {""})) or "no head or MLP is kept"


def _sizes(table: pd.DataFrame) -> tuple[str, list[dict[str, Any]]]:
    """Which score faithfulness is a share of (the first that has values), and its rows by size."""
    known = table[table["kept"].notna()]
    of = next((name for name in SCORES if (known["of"] == name).any()), "")
    sizes = []
    for _, row in known[known["of"] == of].sort_values("size").iterrows():
        size: dict[str, Any] = {"n_nodes": int(row["size"]), "is_circuit": bool(row["is_circuit"]), "n": int(row["n"])}
        for name, column in _SHARES.items():
            prefix = "" if name == "faithfulness" else f"{name}_"
            columns = {name: column, f"{prefix}low": f"{column}_low", f"{prefix}high": f"{column}_high"}
            columns |= {f"{prefix}random{end}": f"random_{column}{end}" for end in ("", "_least", "_most")}
            values = _numbers(row, tuple(columns.values()))
            size |= {key: values[source] for key, source in columns.items()}
        sizes.append(size)
    return of, sizes


def _roles(
    edges: pd.DataFrame, measured: Mapping[str, pd.DataFrame], labels: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """For each node its roles, in the order of `ROLES`, and the sentence that says why it has each."""
    evidence: dict[str, dict[str, list[str]]] = {}

    def say(node: str, role: str, sentence: str) -> None:
        evidence.setdefault(node, {}).setdefault(role, []).append(sentence)

    for _, edge in edges[edges["p"].isna() | (edges["p"] < ALPHA)].iterrows():
        share = f"{wording.number(edge['effect'], 3, signed=True)}{wording.interval(edge, digits=3)} of the gap"
        if edge["sender"] == EMBEDDING and edge["receiver"] != LOGITS:
            say(edge["receiver"], READS, f"its path from the embedding carries {share}")
        elif edge["receiver"] == LOGITS and edge["sender"] != EMBEDDING and edge["effect"] > 0:
            say(edge["sender"], WRITES, f"its path into the logits carries {share}")
        elif edge["sender"] != EMBEDDING and edge["receiver"] != LOGITS:
            say(edge["sender"], MOVES, f"its path into {labels[edge['receiver']]} carries {share}")
    compared, sources = measured.get("attribution_compared"), measured.get("token_sources")
    if compared is not None:
        differs = (compared["onto"] == "refusal_logits") & (compared["p"] < ALPHA) & (compared["difference"] > 0)
        for _, row in compared[differs & compared["component"].isin(["head", "mlp"])].iterrows():
            much = f"{wording.number(row['difference'], signed=True)} logits{wording.interval(row)}"
            say(_node(row["component"], row["layer"], row["head"]), WRITES, f"it writes {much} more on harmful prompts")
    if sources is not None:
        rows = sources[(sources["by"] == "segment") & (sources["name"] == "instruction")]
        for _, row in rows[(rows["set"] == "harmful") & (rows["low"] > 0)].iterrows():
            much = f"{wording.number(row['value'], signed=True)} logits{wording.interval(row)}"
            say(_node("head", row["layer"], row["head"]), READS, f"from the instruction it takes {much}")
    return {
        node: {role: _sentence(by_role[role]) for role in ROLES if role in by_role}
        for node, by_role in evidence.items()
    }


def _sentence(reasons: list[str]) -> str:
    """The first reasons of a role, the strongest first, as one sentence."""
    rest = f"; and {len(reasons) - 2} more" if len(reasons) > 2 else ""
    text = "; ".join(reasons[:2]) + rest
    return text[0].upper() + text[1:] + "."


def _node(component: str, layer: int, head: int) -> str:
    """The node's name in the tables of the circuit."""
    return f"head {int(layer)}.{int(head)}" if component == "head" else f"mlp {int(layer)}"
