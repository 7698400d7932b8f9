/** How faithful the circuit is at the size that is chosen, and what its colours mean. */

/** How faithful the strongest `size` components are, as far as it was measured. @param {Graph} graph @param {number} size */
function faithfulnessAt(graph, size) {
  const known = graph.sizes.filter(({ faithfulness }) => faithfulness !== null);
  const share = (/** @type {GraphSize} */ row) =>
    `${percent(row.faithfulness)} [${percent(row.low)}, ${percent(row.high)}]`;
  const exact = known.find(({ n_nodes: n }) => n === size);
  const below = known.findLast(({ n_nodes: n }) => n < size);
  const above = known.find(({ n_nodes: n }) => n > size);
  if (!known.length) return [element("p", { class: "reason" }, "Faithfulness was not measured.")];
  const sentence = exact
    ? [
        `The strongest ${size} alone keep `,
        element("b", {}, share(exact)),
        ` of ${graph.score} (n = ${exact.n} pairs; as many at random ${percent(exact.random)}).`,
      ]
    : [
        `Not measured at ${size}; `,
        ...[below, above].flatMap((row, place) =>
          row ? [place && below ? ", " : "", `the strongest ${row.n_nodes} keep `, element("b", {}, share(row))] : [],
        ),
        ` of ${graph.score}.`,
      ];
  return [element("p", {}, ...sentence), faithfulnessCurve(known, size)];
}

/** Share kept over size (as log), with random sets in grey. @param {GraphSize[]} sizes @param {number} size */
function faithfulnessCurve(sizes, size) {
  const [width, height, margin] = [300, 92, 16];
  const most = Math.log2(1 + Math.max(...sizes.map(({ n_nodes: n }) => n)));
  const x = (/** @type {number} */ n) => margin + 14 + ((width - 2 * margin - 14) * Math.log2(1 + n)) / most;
  const y = (/** @type {number} */ share) =>
    height - margin - (height - 2 * margin) * Math.max(-0.15, Math.min(1.15, share));
  const line = (/** @type {"faithfulness" | "random"} */ key) =>
    sizes
      .filter((row) => row[key] !== null)
      .map((row, place) => `${place ? "L" : "M"}${x(row.n_nodes).toFixed(1)} ${y(row[key] ?? 0).toFixed(1)}`)
      .join("");
  const curve = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "spark faith", role: "img" },
    svg("title", {}, "Share kept by the strongest components, over their number; random sets in grey"),
  );
  for (const share of [0, 1])
    curve.append(
      svg("line", { x1: margin + 14, x2: width - margin, y1: y(share), y2: y(share), class: "zero" }),
      svg("text", { x: margin + 10, y: y(share) + 3, "text-anchor": "end" }, `${100 * share}%`),
    );
  curve.append(
    svg("line", { x1: x(size), x2: x(size), y1: 4, y2: height - margin, class: "now" }),
    svg("text", { x: x(size), y: height - 3, "text-anchor": "middle" }, String(size)),
  );
  curve.append(
    svg("path", { d: line("random"), class: "line random" }),
    svg("path", { d: line("faithfulness"), class: "line kept" }),
  );
  for (const row of sizes)
    curve.append(
      svg("line", {
        x1: x(row.n_nodes),
        x2: x(row.n_nodes),
        y1: y(row.low ?? row.faithfulness ?? 0),
        y2: y(row.high ?? row.faithfulness ?? 0),
        class: "whisker kept",
      }),
      svg(
        "circle",
        { cx: x(row.n_nodes), cy: y(row.faithfulness ?? 0), r: row.is_circuit ? 4 : 2.2, class: "kept" },
        svg(
          "title",
          {},
          `${row.n_nodes} components: ${percent(row.faithfulness)}${row.is_circuit ? " (the circuit)" : ""}`,
        ),
      ),
    );
  return curve;
}

function graphLegend() {
  const roles = ROLES.map((role) =>
    element("span", {}, element("i", { style: `background:${ROLE_COLOURS[role]}` }), role),
  );
  const signs = [
    ["for", "carries refusal"],
    ["against", "works against it"],
  ].map(([sign, text]) => element("span", {}, element("i", { class: `ring ${sign}` }), text));
  return element(
    "p",
    { class: "legend" },
    ...roles,
    ...signs,
    element("span", {}, "● head  ■ MLP  ⬡ group"),
    element("span", {}, "size and width: |effect|"),
    element("span", {}, "dashed: not told from nothing on held-out pairs"),
  );
}
