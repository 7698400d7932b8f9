"""Pages of made-up data in the markup that the viewer brings to life: what the report's own pages look like to it."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_causal import causal_tables

from mechrefusal import tables
from mechrefusal.report import embedding, graph, viewer

LAYERS, HEADS = 12, 6
ARMS = {"r2d2": (0, 20, 40, 60), "sft": (0, 40, 60)}
CHECKPOINTS = [f"{arm}-step-{step:05d}" for arm, steps in ARMS.items() for step in steps]
LAST = "r2d2-step-00060"
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "\"quotes\" 'single' `back` &amp; &lt;b&gt; </script><!-- -->",
    "emoji 👩‍🚀🧪 \u202eright to left override",
    "שלום עולם — مرحبا بالعالم",
    "ten thousand " * 770,
)
TOKENS = ["<|im_start|>", "user", "\n", "How", " do", " I", " <b>bold</b>", " “quote”", " שלום", "?", "<|im_end|>"]
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
SINGLE = {"index": "Index", "maps": "Maps", LAST: LAST, "prompts": "Prompts", "compare": "Compare"}


def write(folder: Path) -> Path:
    """Write the pages, their assets and their data; return `folder`."""
    for name, text in {
        **assets(),
        **{f"data/{key}.js": _data_script(key, value) for key, value in data().items()},
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "line.csv").write_text("step,value\n0,1\n", encoding="utf-8")
    for name, (main, scripts) in pages().items():
        loaded = "".join(f'<script src="{path}" defer></script>' for path in scripts)
        link = '<link rel="stylesheet" href="assets/report.css">'
        text = _document(name, POLICY.format(scripts="'self'"), link, _navigation(single=False), main, loaded)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_single(), encoding="utf-8")
    return folder


def assets() -> dict[str, str]:
    """Scripts and the style sheet that pages share."""
    return {
        "assets/plotly.js": embedding.plotly_script(),
        "assets/circuitsvis.js": embedding.circuits_script(),
        "assets/cytoscape.js": viewer.cytoscape_script(),
        "assets/report.js": viewer.script(),
        "assets/report.css": viewer.style(),
    }


def data() -> dict[str, Any]:
    """Data that pages share, by name."""
    return {"heads": heads(), "prompts": prompts(), "circuits": {LAST: circuit(), CHECKPOINTS[0]: no_circuit()}}


def pages() -> dict[str, tuple[str, list[str]]]:
    """The main part of each page, and the scripts that it loads at once; the viewer loads the others when it must."""
    script = ["assets/report.js"]
    return {
        "index": (_index(), script),
        "maps": (_maps(), ["assets/plotly.js", *script]),
        LAST: (_checkpoint(), [*script, "data/circuits.js"]),
        "prompts": ('<h1>Prompts</h1><section id="prompts-browser"></section>', script),
        "compare": (_compare(), script),
    }


def circuit() -> dict[str, Any]:
    """The graph of the made-up circuit."""
    return graph.of_checkpoint(measured(carries=True))


def no_circuit() -> dict[str, Any]:
    """The graph of a checkpoint that has no gap to have a share of."""
    return graph.of_checkpoint(measured(carries=False))


def measured(*, carries: bool) -> dict[str, Any]:
    """Tables of one checkpoint that a graph is made of."""
    rows = causal_tables(np.random.default_rng(3), 1.0, carries=carries)
    at = {"arm": "r2d2", "step": 60, "weights": "0" * 8}
    return {name: tables.frame(name, [{**at, **row} for row in rows[name]]) for name in graph.TABLES}


def heads() -> dict[str, Any]:
    """Measurements of every head at every checkpoint."""
    rng = np.random.default_rng(1)
    columns = {
        "patching": {"title": "Patching", "unit": "share of the gap", "definition": "What patching it restores."},
        "attribution_refusal": {"title": "Writes onto refusal", "unit": "logits", "definition": "What it writes."},
        "knockout_score": {"title": "Knocked out", "unit": "nats", "definition": "What refusal loses without it."},
    }
    values: dict[str, Any] = {}
    for checkpoint in CHECKPOINTS:
        values[checkpoint] = {}
        for name in columns:
            sizes = rng.normal(0, 0.2, LAYERS * HEADS)
            sizes[3 * HEADS + 2] += int(checkpoint[-5:]) / 60
            entries = [[float(v), float(v - 0.1), float(v + 0.1), 0.01 if abs(v) > 0.4 else 0.6] for v in sizes]
            values[checkpoint][name] = [None if i % 17 == 0 else entry for i, entry in enumerate(entries)]
    pattern = np.tril(rng.random((len(TOKENS), len(TOKENS))))
    pattern = (pattern / pattern.sum(1, keepdims=True)).round(3).tolist()
    looks = {"tokens": TOKENS, "pattern": pattern, "max": 0.4}
    attention = {
        "3.2": [("pair-0", "harmful"), ("pair-1", "harmless")],
        "3.3": [("pair-0", "harmless"), ("pair-1", "harmful"), ("pair-0", "harmful"), ("pair-1", "harmless")],
        "3.4": [("pair-0", "harmful")],
    }
    return {
        "checkpoints": [
            {"id": name, "arm": name.split("-step-")[0], "step": int(name[-5:]), "label": name} for name in CHECKPOINTS
        ],
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "columns": columns,
        "values": values,
        "sources": {LAST: {"3.2": [["<img src=x onerror=alert(7)>", 0.4], [" bomb", 0.2], ["\n", -0.1]]}},
        "attention": {
            LAST: {
                head: [{"prompt_id": prompt, "set": side, **looks} for prompt, side in prompts]
                for head, prompts in attention.items()
            }
        },
    }


def prompts() -> dict[str, Any]:
    """Prompts with anything in them, and what two interventions of two checkpoints made of them."""
    keys = [f"{checkpoint}|{name}" for checkpoint in (CHECKPOINTS[0], LAST) for name in ("none", "ablated")]
    rows = []
    for i in range(120):
        text = HOSTILE[i] if i < len(HOSTILE) else f"prompt number {i}"
        by = {
            key: {"label": "refusal" if (i + j) % 3 == 0 else "compliance", "completion": f"{text} answer {j}"}
            for j, key in enumerate(keys)
        }
        row = {"id": f"p{i}", "suite": "harmful_set" if i % 2 else "benign_set", "side": "harmful", "prompt": text}
        rows.append(
            row | {"by": by, "tokens": {LAST: [[t, place - 4.0] for place, t in enumerate(TOKENS)]} if i == 6 else {}}
        )
    return {"rows": rows, "checkpoints": [CHECKPOINTS[0], LAST], "interventions": ["none", "ablated"], "limit": 3.4}


def maps_of(arm: str) -> dict[str, Any]:
    """A map by heads and a map by positions, of which the last step was not measured."""
    steps, rng = ARMS[arm], np.random.default_rng(len(arm))
    common = {"subtitle": "share of the gap", "definition": "What patching restores.", "unit": "share", "limit": 1.2}
    common |= {"scale": "diverging", "y": list(range(LAYERS))}
    z = rng.normal(0, 0.4, (len(steps), LAYERS, HEADS)).round(3)
    at = rng.normal(0, 0.4, (len(steps), LAYERS, len(TOKENS))).round(3)
    by_head = {"name": "patching_heads", "title": "Patching, heads", "kind": "head", "z": z.tolist(), **common}
    by_head |= {"x": [str(i) for i in range(HEADS)], "n": [16] * len(steps), "marks": [[[3, 2]]] * len(steps)}
    by_head |= {"low": (z - 0.1).tolist(), "high": (z + 0.1).tolist()}
    by_position = {"name": "patching_positions", "title": "Positions", "kind": "position", **common}
    by_position |= {"x": [html.escape(token.strip(), quote=False) for token in TOKENS]}
    by_position |= {"z": [*at.tolist()[:-1], None]}
    checkpoints = [f"{arm}-step-{step:05d}" for step in steps]
    return {"arm": arm, "steps": steps, "checkpoints": checkpoints, "maps": [by_head, by_position]}


def panel(name: str, figure: Mapping[str, Any], title: str = "A title") -> str:
    """A figure in the markup of the report."""
    return f"""<figure class="panel" id="{name}" data-figure="{name}">
<h3>{title} <button class="about" type="button" aria-describedby="{name}-definition">?</button></h3>
<div class="definition" role="tooltip" id="{name}-definition">What it shows. <a href="https://example.org/">More</a></div>
<p class="subtitle">nats; n = 16 prompts</p>
<div class="plot" data-plot="{name}" role="img" aria-label="{title}" style="height:280px"></div>
<script type="application/json" data-plot-json="{name}">{embedding.json_for_html(figure)}</script>
<p class="offers"><a class="csv" href="tables/line.csv" download>table (CSV)</a>
<button type="button" class="svg" data-svg="{name}">SVG</button></p>
</figure>"""


def line(values: list[float]) -> dict[str, Any]:
    """A line as plotly's JSON."""
    trace = {"type": "scatter", "x": list(range(len(values))), "y": values, "line": {"color": "#3b3b3b"}}
    return {"data": [trace], "layout": {"margin": {"t": 20, "l": 40, "r": 10, "b": 30}, "height": 280}}


def _heads_map() -> dict[str, Any]:
    z = np.random.default_rng(2).normal(0, 0.3, (LAYERS, HEADS)).round(3).tolist()
    trace = {"type": "heatmap", "z": z, "x": list(range(HEADS)), "y": list(range(LAYERS))}
    return {"data": [trace], "layout": {"meta": {"heads": True, "checkpoint": LAST}, "margin": {"t": 20}}}


def _index() -> str:
    lines = "".join(panel(f"fig-line-{i}", line([1.0, 3.0, 2.0 + i]), f"Line {i}") for i in range(4))
    hidden = f'<details id="more"><summary>More</summary>{panel("fig-hidden-1", line([2.0, 1.0]))}</details>'
    place = f'data-checkpoint="{LAST}" data-layer="3" data-head="2"'
    link = f'<a class="head" {place} href="#head=3.2&amp;at={LAST}">L3.H2</a>'
    return f"""<h1>A run</h1><section id="story"><h2>Story</h2><p>Head {link} carries refusal; see
<a href="{LAST}.html#circuit">the circuit</a> and <a href="maps.html">maps</a>.</p>
<div class="grid">{lines}</div></section>
<section id="heads"><h2>Heads</h2>{panel("fig-heads-1", _heads_map(), "Heads")}</section>
<section id="rest"><h2>Rest</h2>{hidden}</section>"""


def _maps() -> str:
    return "<h1>Maps</h1>" + "".join(
        f'<section class="maps" id="maps-{arm}" data-maps="{arm}"><h2>{arm}</h2><script type="application/json" '
        f'data-maps-json="{arm}">{embedding.json_for_html(maps_of(arm))}</script></section>'
        for arm in ARMS
    )


def _checkpoint() -> str:
    return f"""<h1>{LAST}</h1><section id="circuit"><h2>The circuit</h2>
<div class="graph" data-graph="{LAST}"></div></section>
<section id="none"><h2>Another</h2><div class="graph" data-graph="{CHECKPOINTS[0]}"></div></section>"""


def _compare() -> str:
    pairs = [(one, other) for i, one in enumerate(CHECKPOINTS[:3]) for other in CHECKPOINTS[i + 1 : 4]]
    return "<h1>Compare</h1>" + "".join(
        f'<section data-pair="{one}|{other}"><h2>{one} and {other}</h2>'
        f"{panel(f'fig-pair-{i}', line([float(i), 1.0]))}</section>"
        for i, (one, other) in enumerate(pairs)
    )


def _navigation(*, single: bool) -> str:
    to = "#{}/" if single else "{}.html"
    links = "".join(f'<a href="{to.format(name)}">{title}</a>' for name, title in SINGLE.items())
    inside = "" if single else '<a href="#story">Story</a><a href="#heads">Heads</a><a href="#rest">Rest</a>'
    return f'<nav aria-label="Contents"><div class="inner">{links}{inside}</div></nav>'


def _document(name: str, policy: str, head: str, nav: str, main: str, tail: str) -> str:
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<title>{name}</title>{head}</head><body data-page="{name}" data-run="demo">
<a class="skip" href="#main">Skip to content</a>{nav}<main class="inner" id="main" tabindex="-1">{main}</main>{tail}
</body></html>"""


def _single() -> str:
    """One file with everything: pages in templates, libraries as text that runs when it is needed."""
    late = {path: text for path, text in assets().items() if path.endswith(".js") and "report" not in path}
    digests = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*late.values(), viewer.script())
    )
    policy = POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests))
    templates = "".join(
        f'<template data-page="{name}"><main class="inner" id="main" tabindex="-1">{main}</main></template>'
        for name, (main, _) in pages().items()
    )
    stored = "".join(f'<script type="text/plain" data-script="{path}">{text}</script>' for path, text in late.items())
    stored += "".join(
        f'<script type="application/json" data-name="{name}">{embedding.json_for_html(value)}</script>'
        for name, value in data().items()
    )
    text = _document("index", policy, f"<style>{viewer.style()}</style>", _navigation(single=True), "", "")
    main = text.index("<main")
    return f"{text[:main]}{templates}{stored}<script>{viewer.script()}</script></body></html>"


def _data_script(name: str, value: Any) -> str:
    return f"mechrefusal.data({json.dumps(name)}, {embedding.json_for_html(value)});\n"
