/** The circuit as a graph: what of it is seen, where it stands, and how it looks. */

/**
 * @typedef {object} GraphNode
 * @property {string} id
 * @property {"embedding" | "head" | "mlp" | "logits" | "group"} kind
 * @property {number} layer
 * @property {number | null} head
 * @property {string} label
 * @property {string[]} roles
 * @property {Record<string, string>} [why] a sentence for each role
 * @property {number} [effect] share of the gap between harmful and harmless prompts
 * @property {number | null} [low]
 * @property {number | null} [high]
 * @property {number | null} [n]
 * @property {number | null} [held_out]
 * @property {number | null} [p]
 * @property {string[]} [members] of a group
 */
/** @typedef {{ source: string, target: string, effect: number, low?: number | null, high?: number | null, p?: number | null, n?: number | null }} GraphEdge */
/** @typedef {{ n_nodes: number, faithfulness: number | null, low: number | null, high: number | null, random: number | null, n: number, is_circuit: boolean }} GraphSize */
/** @typedef {{ nodes: GraphNode[], edges: GraphEdge[], sizes: GraphSize[], score: string, n_layers: number, n_heads: number, reason: string }} Graph */
/** @typedef {{ size: number, least: number, pins: Set<string>, groups: Map<string, string[]> }} GraphChoice */

const ROLES = ["reads harm", "moves it", "writes refusal"];
/** Of Okabe and Ito. @type {Record<string, string>} */
const ROLE_COLOURS = { "reads harm": "#E69F00", "moves it": "#56B4E9", "writes refusal": "#009E73" };

/** Heads, MLPs and groups: all but the two ends. @param {GraphNode} node */
function isComponent(node) {
  return node.kind !== "embedding" && node.kind !== "logits";
}

/**
 * The part of a graph that is seen: the strongest components, what is pinned, and paths of at least some effect. It is
 * not grouped; `grouped` does that.
 * @param {Graph} graph
 * @param {GraphChoice} chosen
 */
function pruned(graph, { size, least, pins }) {
  const strongest = new Set(graph.nodes.filter(isComponent).slice(0, size));
  const nodes = graph.nodes.filter((node) => !isComponent(node) || strongest.has(node) || pins.has(node.id));
  const seen = new Set(nodes.map(({ id }) => id));
  const edges = graph.edges.filter(
    ({ source, target, effect }) => seen.has(source) && seen.has(target) && Math.abs(effect) >= least,
  );
  return { nodes, edges };
}

/**
 * Members of a group become one node, as in circuit-tracer: effects of the same two ends add up.
 * @param {{ nodes: GraphNode[], edges: GraphEdge[] }} seen
 * @param {Map<string, string[]>} groups members by the group's name
 */
function grouped({ nodes, edges }, groups) {
  /** @type {Map<string, string>} */
  const into = new Map();
  /** @type {GraphNode[]} */
  const groupNodes = [];
  for (const [name, ids] of groups) {
    const members = nodes.filter(({ id }) => ids.includes(id) && !into.has(id));
    if (members.length < 2) continue;
    for (const { id } of members) into.set(id, `group ${name}`);
    const layer = members.reduce((sum, member) => sum + member.layer, 0) / members.length;
    const roles = ROLES.filter((role) => members.some((member) => member.roles.includes(role)));
    groupNodes.push({
      id: `group ${name}`,
      kind: "group",
      layer: Math.round(layer),
      head: null,
      label: `${name} (${members.length})`,
      roles,
      effect: members.reduce((sum, { effect = 0 }) => sum + effect, 0),
      members: members.map(({ label }) => label),
    });
  }
  /** @type {Map<string, GraphEdge>} */
  const sums = new Map();
  for (const edge of edges) {
    const [source, target] = [into.get(edge.source) ?? edge.source, into.get(edge.target) ?? edge.target];
    if (source === target) continue;
    const key = `${source}→${target}`;
    const before = sums.get(key);
    sums.set(key, before ? { source, target, effect: before.effect + edge.effect } : { ...edge, source, target });
  }
  return { nodes: [...nodes.filter(({ id }) => !into.has(id)), ...groupNodes], edges: [...sums.values()] };
}

/** Rows of a graph: a layer each, from the embedding to the logits. @param {GraphNode[]} nodes */
function layersOf(nodes) {
  return [...new Set(nodes.map(({ layer }) => layer))].sort((a, b) => a - b);
}

/**
 * Where nodes stand: a row a layer, the embedding below, the logits above; in a row heads by number, then the MLP. Rows
 * are shifted by the golden ratio, so that paths do not run through the nodes between their ends.
 * @param {GraphNode[]} nodes
 * @param {{ width: number, height: number }} frame
 * @returns {{ places: Map<string, { x: number, y: number }>, rows: { layer: number, y: number }[] }}
 */
function layered(nodes, { width, height }) {
  const layers = layersOf(nodes);
  const half = Math.min(380, width / 2 - 90);
  const places = new Map();
  const rows = [];
  for (const [turn, layer] of layers.entries()) {
    const row = nodes.filter((node) => node.layer === layer).sort((a, b) => (a.head ?? 1e6) - (b.head ?? 1e6));
    const y = -((height - 100) * turn) / Math.max(1, layers.length - 1);
    const shift = ((turn * 0.618) % 1) * 2 - 1;
    row.forEach((node, place) => {
      const spread = row.length > 1 ? (2 * place) / (row.length - 1) - 1 : 0;
      const share = row.length > 1 ? 0.72 * spread + 0.28 * shift : 0.85 * shift;
      places.set(node.id, { x: isComponent(node) ? 40 + half * share : 40, y });
    });
    if (row.some(isComponent)) rows.push({ layer, y });
  }
  return { places, rows };
}

/**
 * What cytoscape draws.
 * @param {{ nodes: GraphNode[], edges: GraphEdge[] }} seen
 * @param {Set<string>} pins
 * @param {{ node: number, edge: number }} most largest effects, the same whatever is seen
 * @param {{ width: number, height: number }} frame
 * @returns {any[]}
 */
function graphElements({ nodes, edges }, pins, most, frame) {
  const { places, rows } = layered(nodes, frame);
  const of = new Map(nodes.map((node) => [node.id, node]));
  const drawnNodes = nodes.map((node) => {
    const share = Math.min(1, Math.abs(node.effect ?? 0) / most.node);
    /** @type {Record<string, number>} */
    const slices = {};
    ROLES.forEach((role, place) => {
      slices[`role${place}`] = node.roles.includes(role) ? 100 / node.roles.length : 0;
    });
    const data = {
      id: node.id,
      label: node.label,
      size: isComponent(node) ? 20 + 22 * Math.sqrt(share) : 20,
      ...slices,
    };
    const classes = [
      node.kind,
      (node.effect ?? 0) < 0 ? "against" : "for",
      pins.has(node.id) ? "pinned" : "",
      unsure(node.p) ? "unsure" : "",
      node.roles.length ? "" : "plain",
    ];
    return { group: "nodes", data, position: places.get(node.id), classes: classes.join(" ") };
  });
  const drawnEdges = edges.map((edge) => {
    const share = Math.min(1, Math.abs(edge.effect) / most.edge);
    const far = Math.abs((of.get(edge.target)?.layer ?? 0) - (of.get(edge.source)?.layer ?? 0));
    const right = (places.get(edge.source)?.x ?? 0) + (places.get(edge.target)?.x ?? 0) >= 0;
    const data = {
      id: `${edge.source}→${edge.target}`,
      source: edge.source,
      target: edge.target,
      width: 1 + 6 * share,
      opacity: 0.3 + 0.6 * share,
      bend: (right ? 1 : -1) * Math.min(70, 8 + 4 * far),
    };
    return {
      group: "edges",
      data,
      classes: `${edge.effect < 0 ? "against" : "for"} ${unsure(edge.p) ? "unsure" : ""}`,
    };
  });
  const ticks = rows.map(({ layer, y }) => ({
    group: "nodes",
    data: { id: `layer ${layer}`, label: `layer ${layer}`, size: 1 },
    position: { x: 50 - frame.width / 2, y },
    classes: "tick",
    selectable: false,
    grabbable: false,
    events: "no",
  }));
  return [...ticks, ...drawnNodes, ...drawnEdges];
}

/** Whether held-out pairs were asked, and do not tell it from nothing. @param {number | null | undefined} p */
function unsure(p) {
  return p !== null && p !== undefined && p >= 0.05;
}

/** How a graph looks, in the colours of the page. @returns {any[]} */
function graphStyle() {
  const [ink, ground, soft] = [colour("--ink"), colour("--ground"), colour("--soft")];
  const [positive, negative] = isDark() ? ["#ef6a5a", "#6aaeea"] : ["#b2182b", "#2166ac"];
  /** Roles as slices of a disc, or as stripes of what is no disc. @param {"pie" | "stripe"} form */
  const roles = (form) =>
    Object.fromEntries(
      ROLES.flatMap((role, place) => [
        [`${form}-${place + 1}-background-color`, ROLE_COLOURS[role]],
        [`${form}-${place + 1}-background-size`, `data(role${place})`],
      ]),
    );
  return [
    {
      selector: "node",
      style: {
        width: "data(size)",
        height: "data(size)",
        label: "data(label)",
        color: ink,
        "font-size": 12,
        "text-valign": "bottom",
        "text-margin-y": 4,
        "text-outline-color": ground,
        "text-outline-width": 2.5,
        "background-color": isDark() ? "#59636e" : "#c3cad1",
        "border-width": 3.5,
        "border-color": positive,
      },
    },
    { selector: "node.head", style: { "pie-size": "100%", ...roles("pie") } },
    {
      selector: "node.mlp, node.group",
      style: { shape: "round-rectangle", "stripe-size": "100%", ...roles("stripe") },
    },
    { selector: "node.group", style: { shape: "round-hexagon", "font-weight": "bold" } },
    {
      selector: "node.embedding, node.logits",
      style: { shape: "diamond", "border-color": soft, "border-width": 1.5, "background-color": soft },
    },
    { selector: "node.logits", style: { "text-valign": "top", "text-margin-y": -4 } },
    { selector: "node.against", style: { "border-color": negative } },
    { selector: "node.unsure", style: { "border-style": "dashed" } },
    {
      selector: "node.tick",
      style: {
        "background-opacity": 0,
        "border-width": 0,
        "text-valign": "center",
        "text-margin-y": 0,
        color: soft,
        "font-size": 11,
      },
    },
    {
      selector: "edge",
      style: {
        width: "data(width)",
        "line-color": positive,
        "line-opacity": "data(opacity)",
        "curve-style": "unbundled-bezier",
        "control-point-distances": "data(bend)",
        "control-point-weights": 0.5,
        "target-arrow-shape": "triangle",
        "target-arrow-color": positive,
        "arrow-scale": 0.7,
      },
    },
    { selector: "edge.against", style: { "line-color": negative, "target-arrow-color": negative } },
    { selector: "edge.unsure", style: { "line-style": "dashed", "line-dash-pattern": [4, 3] } },
    { selector: ".faded", style: { opacity: 0.18 } },
    {
      selector: "node.pinned",
      style: {
        "underlay-color": "#E69F00",
        "underlay-opacity": 0.55,
        "underlay-padding": 7,
        "underlay-shape": "ellipse",
      },
    },
    { selector: "node:selected", style: { "overlay-color": ink, "overlay-opacity": 0.15, "overlay-padding": 6 } },
  ];
}
