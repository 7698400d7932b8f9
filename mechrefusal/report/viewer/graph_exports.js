/** The graph that is seen as files of other tools; `mechrefusal/report/graph.py` writes whole graphs in the same forms. */

const EDGE_NUMBERS = ["effect", "low", "high", "n", "held_out", "held_out_low", "held_out_high", "n_held_out", "p"];

/** @type {Record<string, { title: string, type: string, text: (graph: Graph, chosen: GraphChoice, name: string) => string }>} */
const GRAPH_EXPORTS = {
  ".json": {
    title: "Attribution graph of circuit-tracer, for its viewer",
    type: "application/json",
    text: (graph, chosen, name) => `${JSON.stringify(circuitTracer(graph, chosen, name), null, 2)}\n`,
  },
  ".graphml": {
    title: "GraphML, for Gephi, yEd, networkx or Cytoscape",
    type: "application/xml",
    text: (graph, chosen, name) => graphml(pruned(graph, chosen), name),
  },
  ".csv": {
    title: "Edges, a row each",
    type: "text/csv",
    text: (graph, chosen, name) => edgeList(pruned(graph, chosen).edges, name),
  },
};

/** Schema 1 of circuit-tracer: columns, there a prompt's tokens, are heads. @param {Graph} graph @param {GraphChoice} chosen @param {string} name */
function circuitTracer(graph, chosen, name) {
  const { nodes, edges } = pruned(graph, chosen);
  const columns = ["embedding", ...Array.from({ length: graph.n_heads }, (_, head) => `head ${head}`), "MLP", "logits"];
  const total = nodes.reduce((sum, { effect = 0 }) => sum + Math.abs(effect), 0) || 1;
  /** @type {Map<string, string>} */
  const ids = new Map();
  let passed = 0;
  const written = nodes.map((node) => {
    const { kind, layer, head, effect = 0 } = node;
    const isEnd = !isComponent(node);
    const column =
      kind === "embedding"
        ? 0
        : kind === "logits"
          ? columns.length - 1
          : kind === "mlp"
            ? columns.length - 2
            : (head ?? 0) + 1;
    const layerName = kind === "embedding" ? "E" : String(layer + (kind === "logits" ? 1 : 0));
    const place = isEnd ? 0 : kind === "mlp" ? graph.n_heads : (head ?? 0);
    ids.set(node.id, `${layerName}_${place}_${column}`);
    passed += Math.abs(effect);
    return {
      node_id: ids.get(node.id),
      feature: isEnd ? place : ((layer + place) * (layer + place + 1)) / 2 + place,
      layer: layerName,
      ctx_idx: column,
      feature_type: kind === "embedding" ? "embedding" : kind === "logits" ? "logit" : "cross layer transcoder",
      token_prob: kind === "logits" ? 1 : 0,
      is_target_logit: kind === "logits",
      run_idx: 0,
      reverse_ctx_idx: 0,
      jsNodeId: `${kind === "logits" ? "L" : layerName}_${place}-0`,
      clerp:
        kind === "logits"
          ? 'Output "refusal" (p=1.000)'
          : node.label + (node.roles.length ? ` (${node.roles.join(", ")})` : ""),
      influence: isEnd ? null : passed / total,
      activation: isEnd ? null : effect,
    };
  });
  const idsOf = (/** @type {Iterable<string>} */ members) => [...members].flatMap((id) => ids.get(id) ?? []);
  const byRole = ROLES.map(
    (role) =>
      /** @type {[string, string[]]} */ ([
        role,
        nodes.filter(({ roles }) => roles.at(-1) === role).map(({ id }) => id),
      ]),
  );
  const groups = [...(chosen.groups.size ? chosen.groups : byRole)]
    .map(([title, members]) => [title, ...idsOf(members)])
    .filter((group) => group.length > 2);
  return {
    metadata: {
      slug: name,
      scan: "mechrefusal",
      transcoder_list: [],
      prompt_tokens: columns,
      prompt: `${name}: heads and MLPs patched at all positions; columns are heads`,
      node_threshold: null,
      schema_version: 1,
    },
    qParams: {
      pinnedIds: chosen.pins.size ? idsOf(chosen.pins) : [...ids.values()],
      supernodes: groups,
      linkType: "both",
      clickedId: "",
      sg_pos: "",
    },
    nodes: written,
    links: edges.map(({ source, target, effect }) => ({
      source: ids.get(source),
      target: ids.get(target),
      weight: effect,
    })),
  };
}

/** @param {string} text */
function xmlText(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");
}

/** @param {{ nodes: GraphNode[], edges: GraphEdge[] }} seen @param {string} name */
function graphml({ nodes, edges }, name) {
  const nodeKeys = ["kind", "layer", "head", "label", "roles", ...EDGE_NUMBERS];
  const kindOf = (/** @type {string} */ key) =>
    ["kind", "label", "roles"].includes(key)
      ? "string"
      : ["layer", "head", "n", "n_held_out"].includes(key)
        ? "long"
        : "double";
  const keys = [...nodeKeys.map((key) => ["node", key]), ...EDGE_NUMBERS.map((key) => ["edge", key])].map(
    ([of, key]) => `  <key id="${of}_${key}" for="${of}" attr.name="${key}" attr.type="${kindOf(key)}" />`,
  );
  const values = (/** @type {string} */ of, /** @type {string[]} */ names, /** @type {any} */ item) =>
    names
      .flatMap((key) =>
        item[key] === null || item[key] === undefined
          ? []
          : [
              `<data key="${of}_${key}">${xmlText(Array.isArray(item[key]) ? item[key].join("; ") : String(item[key]))}</data>`,
            ],
      )
      .join("");
  const lines = [
    ...nodes.map((node) => `    <node id="${xmlText(node.id)}">${values("node", nodeKeys, node)}</node>`),
    ...edges.map(
      (edge) =>
        `    <edge source="${xmlText(edge.source)}" target="${xmlText(edge.target)}">${values("edge", EDGE_NUMBERS, edge)}</edge>`,
    ),
  ];
  return [
    '<?xml version="1.0" encoding="utf-8"?>',
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">',
    ...keys,
    `  <graph id="${xmlText(name)}" edgedefault="directed">`,
    ...lines,
    "  </graph>",
    "</graphml>",
    "",
  ].join("\n");
}

/** @param {GraphEdge[]} edges @param {string} name */
function edgeList(edges, name) {
  const cell = (/** @type {any} */ value) =>
    value === null || value === undefined
      ? ""
      : /[",\n]/.test(String(value))
        ? `"${String(value).replace(/"/g, '""')}"`
        : String(value);
  const rows = edges.map((edge) => [
    name,
    edge.source,
    edge.target,
    ...EDGE_NUMBERS.map((key) => /** @type {any} */ (edge)[key]),
  ]);
  return `${[["checkpoint", "source", "target", ...EDGE_NUMBERS], ...rows].map((row) => row.map(cell).join(",")).join("\n")}\n`;
}
