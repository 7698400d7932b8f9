/** What is said of a node of the graph. */

const EDGES_IN_LIST = 6;

/** @param {number | null | undefined} value */
function signed(value) {
  return `${(value ?? 0) > 0 ? "+" : ""}${number(value)}`;
}

/**
 * What is known of a node, and its strongest paths.
 * @param {GraphPanel} panel
 * @param {GraphNode} node
 */
function aboutNode(panel, node) {
  const { label, layer, head, effect, low, high, held_out: heldOut, p } = node;
  const place = { "data-checkpoint": panel.checkpoint, "data-layer": layer, "data-head": head };
  const heading =
    node.kind === "head" ? element("a", { class: "head", href: `#head=${layer}.${head}`, ...place }, label) : label;
  const state = panel.choice.pins.has(node.id) ? element("span", { class: "detail" }, " pinned") : null;
  /** @type {HTMLElement[]} */
  const parts = [element("h3", {}, heading, state)];
  if (node.members) {
    const undo = button("undo", () => panel.group(node.id.slice("group ".length), []));
    parts.push(element("p", {}, `${node.members.join(", ")} `, undo));
  }
  if (isComponent(node)) {
    const held = heldOut === null || heldOut === undefined ? "" : `; on held-out pairs ${signed(heldOut)}`;
    const chance = p === null || p === undefined ? "" : `, p ${number(p)}`;
    parts.push(element("p", {}, `effect ${signed(effect)} ${interval(low, high)} of the gap${held}${chance}`));
  }
  const why = Object.entries(node.why ?? {}).map(([role, sentence]) =>
    element("li", {}, swatch(ROLE_COLOURS[role]), element("b", {}, role), ` ${sentence}`),
  );
  if (why.length) parts.push(element("ul", { class: "roles" }, ...why));
  if (node.kind !== "embedding") parts.push(strongestPaths(panel, node, "target", "source", "strongest paths in"));
  if (node.kind !== "logits") parts.push(strongestPaths(panel, node, "source", "target", "strongest paths out"));
  return parts;
}

/**
 * @param {GraphPanel} panel
 * @param {GraphNode} node
 * @param {"source" | "target"} end which end the node is
 * @param {"source" | "target"} other
 * @param {string} title
 */
function strongestPaths(panel, node, end, other, title) {
  const edges = panel.seen.edges.filter((edge) => edge[end] === node.id);
  edges.sort((a, b) => Math.abs(b.effect) - Math.abs(a.effect));
  const items = edges.slice(0, EDGES_IN_LIST).map((edge) => {
    const label = panel.seen.nodes.find(({ id }) => id === edge[other])?.label ?? "";
    const doubt = unsure(edge.p) ? " not told from nothing on held-out pairs" : "";
    return element(
      "li",
      { class: edge.effect < 0 ? "against" : "for" },
      button(label, () => panel.pin(edge[other])),
      ` ${signed(edge.effect)} `,
      element("span", { class: "detail" }, `${interval(edge.low, edge.high)}${doubt}`),
    );
  });
  const list = items.length ? element("ol", {}, ...items) : element("p", { class: "detail" }, "none that is shown");
  return element("div", {}, element("h4", {}, `${title} (${edges.length})`), list);
}

/** A small square of a colour, for legends. @param {string} of */
function swatch(of) {
  return element("i", { style: `background:${of}` });
}
