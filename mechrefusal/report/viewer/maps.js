/** Maps of layers by heads or by positions: one slider moves all maps of an arm through its checkpoints. */

/**
 * @typedef {object} LayerMap
 * @property {string} name
 * @property {string} title
 * @property {string} subtitle
 * @property {string} definition
 * @property {"head" | "position"} kind
 * @property {string[]} x labels of the columns, safe for plotly (which reads a small dialect of HTML in them)
 * @property {number[]} y layers
 * @property {string} unit
 * @property {"diverging" | "sequential"} scale
 * @property {number} limit where colour saturates, the same for all steps
 * @property {((number | null)[][] | null)[]} z step x layer x column; null was not measured
 * @property {[number, number][][]} [marks] layer and column of the marked cells of each step
 * @property {((number | null)[][] | null)[]} [low]
 * @property {((number | null)[][] | null)[]} [high]
 * @property {(number | null)[]} [n] of each step
 */
/** @typedef {{ arm: string, steps: number[], checkpoints: string[], maps: LayerMap[] }} Maps */

/** Sliders of the page by arm: move one from outside. @type {Map<string, (step: number) => void>} */
const sliders = new Map();

/** @param {ParentNode} within */
function startMaps(within) {
  sliders.clear();
  for (const section of all("section[data-maps]", within)) {
    const maps = /** @type {Maps | null} */ (json("script[data-maps-json]", section));
    if (maps?.maps.length) addMaps(section, maps);
  }
}

/** @param {HTMLElement} section @param {Maps} maps */
function addMaps(section, maps) {
  const { arm, steps, checkpoints } = maps;
  let place = steps.length - 1;
  const areas = maps.maps.map((map) => {
    const area = element("div", {
      class: "plot",
      role: "img",
      "aria-label": map.title,
      style: `height:${mapHeight(map)}px`,
    });
    const subtitle = element("p", { class: "subtitle" });
    const panel = element(
      "figure",
      { class: "panel", id: `map-${arm}-${map.name}` },
      panelTitle(map.title, map.definition),
      element("div", { class: "definition", role: "tooltip" }, map.definition),
      subtitle,
      area,
      element(
        "p",
        { class: "offers" },
        button("SVG", ({ target }) => saveSvg(/** @type {HTMLElement} */ (target)), {
          class: "svg",
          "data-svg": `${map.name}-${arm}`,
        }),
      ),
    );
    const click = (/** @type {any} */ point) =>
      openHead(headAt({ x: map.x[point.pointIndex?.[1] ?? point.x], y: point.y }), checkpoints[place], area);
    addPlot(area, () => mapFigure(map, place), map.kind === "head" ? click : undefined);
    return { area, subtitle, map, panel };
  });
  const shown = element("output", { class: "step" });
  const slider = element("input", {
    type: "range",
    min: 0,
    max: steps.length - 1,
    step: 1,
    value: place,
    "aria-label": `Optimiser step of ${arm}`,
    input: () => {
      move(Number(slider.value));
      remember({ step: steps[place], arm });
      follow(arm, steps[place]);
    },
  });
  const show = oncePerFrame(() => redraw(areas.map(({ area }) => area)));
  const move = (/** @type {number} */ to) => {
    place = Math.max(0, Math.min(steps.length - 1, to));
    slider.value = String(place);
    slider.setAttribute("aria-valuetext", `step ${steps[place]}, ${checkpoints[place]}`);
    shown.replaceChildren(element("b", {}, `step ${steps[place]}`), ` ${checkpoints[place]}`);
    for (const { subtitle, map } of areas)
      subtitle.textContent = [
        map.subtitle,
        map.n?.[place] && !map.subtitle.includes("n =") ? `n = ${map.n[place]}` : "",
      ]
        .filter(Boolean)
        .join("; ");
    show();
  };
  sliders.set(arm, (step) => {
    const at = steps.indexOf(step);
    if (at >= 0) move(at);
  });
  const by = (/** @type {number} */ many) => {
    slider.value = String(place + many);
    slider.dispatchEvent(new Event("input"));
  };
  const ticks = element(
    "div",
    { class: "ticks", "aria-hidden": true },
    ...steps.map((step, at) =>
      button(String(step), () => by(at - place), {
        tabindex: -1,
        style: `left:${steps.length > 1 ? (100 * at) / (steps.length - 1) : 50}%`,
      }),
    ),
  );
  const bar = element(
    "div",
    { class: "slider" },
    element("span", { class: "arm" }, arm),
    button("‹", () => by(-1), { "aria-label": "Earlier" }),
    element("div", { class: "track" }, slider, ticks),
    button("›", () => by(1), { "aria-label": "Later" }),
    shown,
    headChoice(maps.maps, (head, select) => openHead(head, checkpoints[place], select)),
  );
  section.append(bar, element("div", { class: "grid maps" }, ...areas.map(({ panel }) => panel)));
  const step = recalled("step");
  const at = step ? steps.indexOf(Number(step)) : -1;
  move(at >= 0 ? at : place);
}

/**
 * A select of all heads: what a click in a map does, for the keyboard.
 * @param {LayerMap[]} maps
 * @param {(head: string, select: HTMLElement) => void} open
 */
function headChoice(maps, open) {
  const map = maps.find(({ kind }) => kind === "head");
  if (!map) return null;
  const heads = map.y.flatMap((y) => map.x.map((x) => headAt({ x, y })));
  const options = heads.map((head) => /** @type {[string, string]} */ ([head, headName(head)]));
  const { label, select } = choice("card of", [["", "a head"], ...options], "", (head) => {
    select.value = "";
    if (head) open(head, select);
  });
  return label;
}

/** Other arms go to the same step, where they have it. @param {string} arm @param {number} step */
function follow(arm, step) {
  for (const [other, to] of sliders) if (other !== arm) to(step);
}

/** A title with the sign that opens its definition. @param {string} title @param {string} definition */
function panelTitle(title, definition) {
  return element(
    "h3",
    {},
    `${title} `,
    definition ? element("button", { type: "button", class: "about", "aria-label": `What ${title} means` }, "?") : null,
  );
}

/** @param {LayerMap} map */
function mapHeight(map) {
  return Math.round(Math.min(620, Math.max(260, 13 * map.y.length + 110)));
}

/**
 * The map of one step.
 * @param {LayerMap} map
 * @param {number} place
 * @returns {Figure}
 */
function mapFigure(map, place) {
  const z = map.z[place] ?? map.y.map(() => map.x.map(() => null));
  const columns = map.x.map((_, column) => column);
  const texts = map.y.map((layer, row) =>
    map.x.map((label, column) => {
      const ends = interval(map.low?.[place]?.[row]?.[column], map.high?.[place]?.[row]?.[column]);
      const isHead = map.kind === "head";
      const name = isHead ? headName(headAt({ x: label, y: layer })) : `layer ${layer}, ${label}`;
      return `<b>${name}</b><br>${number(z[row]?.[column])} ${ends} ${map.unit}${isHead ? "<br><i>click for its card</i>" : ""}`;
    }),
  );
  const isDiverging = map.scale === "diverging";
  const cells = {
    type: "heatmap",
    z,
    x: columns,
    y: map.y,
    text: texts,
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
    zmin: isDiverging ? -map.limit : 0,
    zmax: map.limit,
    zmid: isDiverging ? 0 : undefined,
    xgap: 1,
    ygap: 1,
    colorscale: isDiverging ? LIGHT_DIVERGING : "Cividis",
    colorbar: { thickness: 10, outlinewidth: 0, len: 1 },
  };
  const marked = map.marks?.[place] ?? [];
  const marks = {
    type: "scatter",
    mode: "markers",
    x: marked.map(([, column]) => column),
    y: marked.map(([layer]) => layer),
    hoverinfo: "skip",
    showlegend: false,
    marker: { size: 4, color: "#222222", line: { width: 0.6, color: "#ffffff" } },
  };
  const missing = { text: "not measured at this step", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 };
  return { data: [cells, marks], layout: mapLayout(map, columns, map.z[place] ? [] : [missing]) };
}

/**
 * @param {LayerMap} map
 * @param {number[]} columns
 * @param {any[]} annotations
 */
function mapLayout(map, columns, annotations) {
  const every = Math.max(1, Math.ceil(columns.length / 12));
  const shown = columns.filter((column) => column % every === 0);
  const axis = { showgrid: false, zeroline: false, ticks: "", automargin: true };
  const title = { text: map.kind === "head" ? "head" : "position, from the end", standoff: 6 };
  const [first, last] = [Math.min(...map.y), Math.max(...map.y)];
  return {
    height: mapHeight(map),
    margin: { l: 44, r: 8, t: 10, b: 40 },
    plot_bgcolor: "rgba(128,128,128,0.10)",
    font: { family: PLOT_FONT, size: 11 },
    annotations,
    xaxis: {
      ...axis,
      tickvals: shown,
      ticktext: shown.map((column) => map.x[column]),
      title,
      range: [-0.5, columns.length - 0.5],
    },
    yaxis: { ...axis, title: { text: "layer", standoff: 6 }, range: [first - 0.5, last + 0.5], nticks: 8 },
  };
}

const PLOT_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif";
