/** What one chooses of a graph, and how the address keeps it. */

/**
 * The row of controls above a graph.
 * @param {GraphPanel} panel
 * @returns {HTMLElement[]}
 */
function graphControls(panel) {
  const { choice: chosen, graph, components, most } = panel;
  const size = rangeInput("Heads and MLPs shown", 1, components.length, (value) => {
    chosen.size = value;
    panel.show();
  });
  const least = rangeInput("Least effect of a path", 0, 100, (value) => {
    chosen.least = most.edge * (value / 100) ** 2;
    panel.show();
  });
  const place = () => {
    size.value = String(chosen.size);
    least.value = String(Math.round(100 * Math.sqrt(chosen.least / most.edge)));
  };
  const options = components.map(({ id, label }) => /** @type {[string, string]} */ ([id, label]));
  const pick = choice("Look at", [["", "a component"], ...options], "", (id) => {
    if (id) panel.pin(id);
    pick.select.value = "";
  });
  const name = element("input", {
    type: "text",
    placeholder: "name",
    "aria-label": "Name of the group",
    maxlength: 40,
  });
  const group = () => panel.group(name.value.trim() || `group ${chosen.groups.size + 1}`, panel.picked());
  const byRole = () => {
    for (const role of ROLES) {
      const members = components.filter(({ roles }) => roles.at(-1) === role);
      panel.group(role, members.map(({ id }) => id)); // prettier-ignore
    }
  };
  const reset = () => {
    chosen.pins.clear();
    chosen.groups.clear();
    Object.assign(chosen, { size: components.length, least: 0 });
    place();
    panel.show();
  };
  const exports = Object.entries(GRAPH_EXPORTS).map(([ending, { title, type, text }]) => {
    const save = () => download(`${panel.checkpoint}${ending}`, text(graph, chosen, panel.checkpoint), type);
    return button(ending.slice(1), save, { title });
  });
  place();
  return [
    element("label", {}, "heads and MLPs ", size, panel.sizeText),
    element("label", {}, "paths of at least ", least, panel.leastText),
    pick.label,
    element(
      "span",
      { class: "together" },
      button("group pinned", group, { title: "Make one node of what is pinned, or selected with Shift and a drag" }),
      name,
    ),
    button("group by role", byRole),
    button("fit", () => panel.fit()),
    button("reset", reset),
    element("span", { class: "together" }, "save what is seen as ", ...exports),
  ];
}

/**
 * @param {string} label
 * @param {number} min
 * @param {number} max
 * @param {(value: number) => void} change
 */
function rangeInput(label, min, max, change) {
  const input = element("input", {
    type: "range",
    min,
    max,
    "aria-label": label,
    input: () => change(Number(input.value)),
  });
  return input;
}

/** What the address says of the graph. @param {Graph} graph @returns {GraphChoice} */
function graphChoiceOf(graph) {
  const n = graph.nodes.filter(isComponent).length;
  const known = new Set(graph.nodes.map(({ id }) => id));
  const groups = recalled("groups")
    .split(";")
    .filter(Boolean)
    .map(
      (text) =>
        /** @type {[string, string[]]} */ ([
          text.slice(0, text.indexOf(":")),
          text
            .slice(text.indexOf(":") + 1)
            .split(",")
            .filter((id) => known.has(id)),
        ]),
    );
  const pins = recalled("pins")
    .split(",")
    .filter((id) => known.has(id) || id.startsWith("group "));
  return {
    size: Math.max(1, Math.min(n, Number(recalled("size")) || n)),
    least: Math.max(0, Number(recalled("paths")) || 0),
    pins: new Set(pins),
    groups: new Map(groups),
  };
}

/** @param {Graph} graph @param {GraphChoice} chosen */
function rememberGraph(graph, { size, least, pins, groups }) {
  const whole = size === graph.nodes.filter(isComponent).length;
  remember({
    size: whole ? null : size,
    paths: least ? Number(least.toPrecision(3)) : null,
    pins: [...pins].join(","),
    groups: [...groups].map(([name, members]) => `${name}:${members.join(",")}`).join(";"),
  });
}
