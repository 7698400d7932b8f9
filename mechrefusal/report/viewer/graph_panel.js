/** The graph of a checkpoint in its page: drawing, pruning, pinning and grouping, and what is said beside it. */

/** Draw graphs when they come into view: cytoscape is loaded for the first of them. @param {ParentNode} within */
function startGraphs(within) {
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries)
        if (isIntersecting) {
          watcher.unobserve(target);
          openGraph(/** @type {HTMLElement} */ (target));
        }
    },
    { rootMargin: "250px" },
  );
  for (const area of all("div.graph[data-graph]", within)) watcher.observe(area);
}

/** @param {HTMLElement} area */
async function openGraph(area) {
  const checkpoint = area.dataset.graph ?? "";
  const graph = /** @type {Graph | undefined} */ ((await shared("circuits"))?.[checkpoint]);
  if (!graph || graph.nodes.every((node) => !isComponent(node))) {
    area.replaceChildren(
      element(
        "p",
        { class: "reason" },
        `There is no circuit to draw: ${graph?.reason || "this report holds none of this checkpoint"}.`,
      ),
    );
    return;
  }
  const cytoscape = await library("cytoscape");
  new GraphPanel(area, checkpoint, graph, cytoscape).show();
}

class GraphPanel {
  /**
   * @param {HTMLElement} area
   * @param {string} checkpoint
   * @param {Graph} graph
   * @param {Libraries["cytoscape"]} cytoscape
   */
  constructor(area, checkpoint, graph, cytoscape) {
    this.graph = graph;
    this.width = 0;
    this.checkpoint = checkpoint;
    this.components = graph.nodes.filter(isComponent);
    const largest = (/** @type {number[]} */ effects) => Math.max(1e-9, ...effects.map(Math.abs));
    this.most = {
      node: largest(this.components.map(({ effect = 0 }) => effect)),
      edge: largest(graph.edges.map(({ effect }) => effect)),
    };
    this.choice = graphChoiceOf(graph);
    this.seen = grouped(pruned(graph, this.choice), this.choice.groups);
    this.canvas = element("div", {
      class: "canvas",
      role: "img",
      "aria-label": `Circuit of ${checkpoint}: its heads, MLPs and paths are listed beside it`,
    });
    this.side = element("div", { class: "graph-side" });
    this.faith = element("div", { class: "graph-faith", role: "status" });
    this.bar = element("div", { class: "filters" });
    this.sizeText = element("output");
    this.leastText = element("output");
    area.replaceChildren(
      this.bar,
      element("div", { class: "graph-body" }, this.canvas, element("div", {}, this.faith, this.side)),
      graphLegend(),
    );
    this.cy = cytoscape({
      container: this.canvas,
      style: graphStyle(),
      minZoom: 0.2,
      maxZoom: 3,
      userZoomingEnabled: false,
      boxSelectionEnabled: true,
    });
    this.listen();
    this.bar.append(...graphControls(this));
    /** @type {any} */ (area).graph = this;
  }

  listen() {
    this.cy.on("mouseover", "node", ({ target }) => this.point(target.id()));
    this.cy.on("mouseout", "node", () => this.point(null));
    this.cy.on("tap", "node", ({ target, originalEvent }) => {
      if (!(/** @type {MouseEvent} */ (originalEvent)?.shiftKey)) this.pin(target.id());
    });
    this.cy.on("dbltap", "node.group", ({ target }) => this.group(target.id().slice("group ".length), []));
    this.canvas.addEventListener("pointerdown", () => this.cy.userZoomingEnabled(true));
    this.canvas.addEventListener("pointerleave", () => this.cy.userZoomingEnabled(false));
    themeListeners.push(() => this.cy.style(graphStyle()));
    new ResizeObserver(() => {
      if (this.canvas.clientWidth === this.width) return;
      this.width = this.canvas.clientWidth;
      this.place();
      this.fit();
    }).observe(this.canvas);
  }

  /** What is pinned or selected. */
  picked() {
    const selected = this.cy.$("node:selected").map((node) => node.id());
    return [...new Set([...this.choice.pins, ...selected])].filter((id) =>
      this.components.some((node) => node.id === id),
    );
  }

  /** @param {string} name @param {string[]} members none: the group is undone */
  group(name, members) {
    const safe = name.replace(/[;:,&|]/g, " ");
    if (members.length > 1) this.choice.groups.set(safe, members);
    else this.choice.groups.delete(safe);
    for (const id of members) this.choice.pins.delete(id);
    this.show();
  }

  /** @param {string} id */
  pin(id) {
    const { pins } = this.choice;
    if (pins.has(id)) pins.delete(id);
    else pins.add(id);
    this.show();
  }

  show() {
    const { graph, choice: chosen } = this;
    this.seen = grouped(pruned(graph, chosen), chosen.groups);
    this.place();
    this.fit();
    const inside = this.seen.nodes.filter(isComponent).length;
    this.sizeText.textContent = ` ${chosen.size} of ${this.components.length}`;
    this.leastText.textContent = ` ${number(chosen.least)} of the gap: ${this.seen.edges.length} of ${graph.edges.length}`;
    this.canvas.setAttribute("data-shown", `${inside} ${this.seen.edges.length}`);
    this.faith.replaceChildren(...faithfulnessAt(graph, chosen.size));
    this.point(null);
    rememberGraph(graph, chosen);
  }

  /** Draw what is seen, in the width that there is. */
  place() {
    const { seen, choice: chosen, cy, canvas } = this;
    canvas.style.height = `${Math.min(900, Math.max(400, 54 * layersOf(seen.nodes).length + 90))}px`;
    cy.resize();
    const frame = { width: canvas.clientWidth, height: canvas.clientHeight };
    cy.elements().remove();
    cy.add(graphElements(seen, chosen.pins, this.most, frame));
  }

  fit() {
    this.cy.fit(undefined, 14);
    if (this.cy.zoom() > 1) this.cy.zoom(1);
    this.cy.center();
  }

  /** Show what leads into and out of a node; of the last pinned one where none is pointed at. @param {string | null} id */
  point(id) {
    const at = id ?? [...this.choice.pins].at(-1) ?? null;
    const node = this.seen.nodes.find((candidate) => candidate.id === at);
    this.cy.elements().removeClass("faded");
    if (!node) {
      this.side.replaceChildren(
        element(
          "p",
          { class: "reason" },
          "Point at a node to see its strongest paths; click to pin it, Shift and drag to select several.",
        ),
      );
      return;
    }
    const drawnNode = this.cy.getElementById(node.id);
    this.cy.elements().not(drawnNode.closedNeighborhood()).not(".tick").addClass("faded");
    this.side.replaceChildren(...aboutNode(this, node));
  }
}
