/** Figures: drawn when they come into view, in the colours of the page, and all of them before printing. */

/** @typedef {{ data: any[], layout: any }} Figure */
/** @typedef {{ build: () => Figure, stale: boolean, drawing: Promise<any> | null, click?: (point: any) => void }} Plot */

/** Figures of the page by the element that they are drawn in. @type {Map<HTMLElement, Plot>} */
const plots = new Map();
const PLOT_CONFIG = {
  displaylogo: false,
  displayModeBar: "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
/** Blue below zero, red above: white at zero on white, dark at zero on dark. */
const DARK_DIVERGING = [
  [0, "#b6d9ff"],
  [0.2, "#5ba3e6"],
  [0.4, "#2a5687"],
  [0.5, "#262b31"],
  [0.6, "#8c3a32"],
  [0.8, "#e5705c"],
  [1, "#ffc2b4"],
];
const LIGHT_DIVERGING = [
  [0, "#053061"],
  [0.125, "#2166ac"],
  [0.25, "#4393c3"],
  [0.375, "#92c5de"],
  [0.5, "#f7f7f7"],
  [0.625, "#f4a582"],
  [0.75, "#d6604d"],
  [0.875, "#b2182b"],
  [1, "#67001f"],
];
/** Colours of lines and areas that are too dark on a dark ground, and what stands there instead. */
const ON_DARK = new Map([
  ["#0072B2", "#4aa8e0"],
  ["#2166ac", "#6aaeea"],
  ["#b2182b", "#ef6a5a"],
]);

/** The colour on a dark ground: dark greys turn light, and keep how much shows through. @param {string} written */
function onDark(written) {
  const known = ON_DARK.get(written);
  if (known) return known;
  const hex = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(written);
  const rgb = /^rgba?\((\d+), ?(\d+), ?(\d+)(?:, ?([\d.]+))?\)$/.exec(written);
  const channels = hex ? hex.slice(1).map((part) => parseInt(part, 16)) : rgb?.slice(1, 4).map(Number);
  if (!channels || Math.max(...channels) > 90 || Math.max(...channels) - Math.min(...channels) > 24) return written;
  return `rgba(${channels.map((channel) => 240 - Math.round(channel / 2)).join(",")},${rgb?.[4] ?? 1})`;
}

/** Draw figures as they come into view; a stale one is drawn again. */
const plotWatcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) drawPlot(/** @type {HTMLElement} */ (entry.target));
  },
  { rootMargin: "250px" },
);

/** A figure takes the width that it has. */
const widthWatcher = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const area = /** @type {any} */ (target);
    if (contentRect.width > 0 && area._fullLayout && Math.abs(area._fullLayout.width - contentRect.width) > 1)
      window.Plotly?.Plots.resize(area);
  }
});

/**
 * Let a figure be drawn in `area` when it comes into view.
 * @param {HTMLElement} area
 * @param {() => Figure} build
 * @param {(point: any) => void} [click]
 */
function addPlot(area, build, click) {
  plots.set(area, { build, stale: true, drawing: null, click });
  plotWatcher.observe(area);
}

/** @param {HTMLElement} area */
function forgetPlot(area) {
  plotWatcher.unobserve(area);
  widthWatcher.unobserve(area);
  if (plots.get(area)?.drawing) window.Plotly?.purge(area);
  plots.delete(area);
}

/** Draw one figure, unless it stands there already. @param {HTMLElement} area @returns {Promise<any>} */
async function drawPlot(area) {
  const plot = plots.get(area);
  if (!plot || (!plot.stale && plot.drawing)) return plot?.drawing;
  plot.stale = false;
  const isFirst = !plot.drawing;
  plot.drawing = library("Plotly").then((Plotly) => {
    const figure = themed(plot.build());
    figure.layout.height = area.clientHeight || figure.layout.height;
    return Plotly.react(area, figure.data, figure.layout, PLOT_CONFIG);
  });
  await plot.drawing;
  if (!isFirst) return plot.drawing;
  widthWatcher.observe(area);
  /** @type {any} */ (area).on("plotly_click", (/** @type {any} */ event) => plot.click?.(event.points[0]));
  return plot.drawing;
}

/** Draw again what changed: at once where it can be seen, else when it comes into view. @param {HTMLElement[]} areas */
function redraw(areas) {
  for (const area of areas) {
    const plot = plots.get(area);
    if (plot) plot.stale = true;
    plotWatcher.unobserve(area);
    plotWatcher.observe(area);
  }
}

/**
 * The figure in the colours of the page; what is not a colour is shared, not copied.
 * @param {Figure} figure
 * @returns {Figure}
 */
function themed(figure) {
  const dark = isDark();
  const layout = recoloured(figure.layout, dark);
  const ink = getComputedStyle(document.documentElement).getPropertyValue("color");
  layout.paper_bgcolor = "rgba(0,0,0,0)";
  layout.plot_bgcolor ??= layout.template?.layout?.plot_bgcolor ?? "rgba(0,0,0,0)";
  layout.font = { ...layout.font, color: ink };
  layout.hoverlabel = {
    ...layout.hoverlabel,
    bgcolor: dark ? "#2b3138" : "#ffffff",
    bordercolor: dark ? "#59636e" : "#c3cad1",
    font: { ...layout.hoverlabel?.font, color: ink },
  };
  delete layout.width;
  return { data: recoloured(figure.data, dark), layout };
}

/** @param {any} value @param {boolean} dark @param {string} [key] @returns {any} */
function recoloured(value, dark, key = "") {
  if (!dark) return key === "" && !Array.isArray(value) ? { ...value } : value;
  if (typeof value === "string") return /color$/i.test(key) ? onDark(value) : value;
  if (key === "colorscale") return isDiverging(value) ? DARK_DIVERGING : value;
  if (Array.isArray(value)) {
    const isPlain =
      typeof value[0] === "number" ||
      value[0] === null ||
      (typeof value[0] === "string" && !/color$/i.test(key)) ||
      Array.isArray(value[0]);
    return isPlain ? value : value.map((entry) => recoloured(entry, dark, key));
  }
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([name, entry]) => [name, recoloured(entry, dark, name)]));
}

/** Whether it is RdBu, as the maps or as plotly writes it. @param {any} scale */
function isDiverging(scale) {
  return Array.isArray(scale) && [LIGHT_DIVERGING[0][1], "rgb(5,48,97)"].includes(scale[0][1]);
}

/** Draw every figure now, hidden ones too. @returns {Promise<any>} */
function drawAll() {
  return Promise.all([...plots.keys()].map(drawPlot));
}

/**
 * Bring the figures of a page to life.
 * @param {ParentNode} within
 */
function startPlots(within) {
  for (const script of all("script[data-plot-json]", within)) {
    const name = script.dataset.plotJson ?? "";
    const area = all(".plot", within).find((candidate) => candidate.dataset.plot === name);
    if (!area) continue;
    /** @type {Figure | null} */
    let parsed = null;
    const build = () => (parsed ??= JSON.parse(script.textContent ?? ""));
    addPlot(area, build, (point) => {
      const meta = build().layout.meta;
      if (meta?.heads) openHead(headAt(point), meta.checkpoint, area);
    });
  }
  for (const button of all("button.svg", within)) {
    button.addEventListener("click", () => saveSvg(button));
  }
}

/** The head that a point of a map stands for: x is its number, y its layer. @param {any} point */
function headAt(point) {
  return [point.y, point.x].map((label) => Number(String(label).replace(/\D+/g, ""))).join(".");
}

/** Save a figure as SVG, in light colours and with its title. @param {HTMLElement} button */
async function saveSvg(button) {
  const panel = button.closest("figure");
  const area = /** @type {HTMLElement | null} */ (panel?.querySelector(".plot"));
  const plot = area && plots.get(area);
  if (!panel || !area || !plot) return;
  const Plotly = await library("Plotly");
  const { data, layout } = plot.build();
  const heading = panel.querySelector("h3")?.cloneNode(true);
  if (heading instanceof HTMLElement) all("button", heading).forEach((inner) => inner.remove());
  const words = (/** @type {Node | null | undefined} */ node) =>
    (node?.textContent ?? "").trim().replace(/&/g, "&amp;").replace(/</g, "&lt;");
  const title = {
    text: words(heading),
    x: 0,
    xref: "container",
    pad: { l: 12, t: 10 },
    yref: "container",
    y: 1,
    yanchor: "top",
    subtitle: { text: words(panel.querySelector(".subtitle")) },
  };
  const height = (area.clientHeight || layout.height || 320) + 56;
  const whole = {
    ...layout,
    title,
    height,
    width: area.clientWidth || 720,
    margin: { ...layout.margin, t: (layout.margin?.t ?? 22) + 56 },
    paper_bgcolor: "#ffffff",
  };
  const address = await Plotly.toImage({ data, layout: whole }, { format: "svg", width: whole.width, height });
  download(
    `${button.dataset.svg || panel.id}.svg`,
    decodeURIComponent(address.slice(address.indexOf(",") + 1)),
    "image/svg+xml",
  );
}

/** Before printing everything is drawn and open, in light colours and the width of paper; afterwards it is as it was. */
function startPrinting() {
  /** @type {HTMLDetailsElement[]} */
  let opened = [];
  /** @type {string | undefined} */
  let theme;
  addEventListener("beforeprint", () => {
    document.body.classList.add("printing");
    theme = document.documentElement.dataset.theme;
    setTheme("light");
    opened = /** @type {HTMLDetailsElement[]} */ (all("details:not([open])"));
    for (const details of opened) details.open = true;
    for (const plot of plots.values()) plot.stale = true;
    drawAll();
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
    setTheme(theme ?? null);
    setTimeout(() => document.body.classList.remove("printing"));
  });
}
