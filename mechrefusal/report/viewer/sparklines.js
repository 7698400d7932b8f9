/** Small lines of a value over checkpoints, one an arm, drawn as SVG. */

/** @typedef {{ arm: string, step: number, value: number, low: number | null, high: number | null, here: boolean }} SparkPoint */

const SVG = "http://www.w3.org/2000/svg";
/** Okabe and Ito's colours, in the order that figures give them to arms. */
const ARM_COLOURS = { r2d2: "#0072B2", sft: "#D55E00", base: "#7f7f7f", "warm-up": "#3b3b3b" };
/** Where every arm starts. */
const SHARED_ARMS = ["base", "warm-up"];
const OTHER_ARMS = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

/** @param {string} arm @param {string[]} arms all of the run */
function armColour(arm, arms) {
  const others = arms.filter((name) => !(name in ARM_COLOURS));
  const lightColour =
    /** @type {Record<string, string>} */ (ARM_COLOURS)[arm] ?? OTHER_ARMS[others.indexOf(arm) % OTHER_ARMS.length];
  return isDark() ? onDark(lightColour) : lightColour;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...(Node | string)} children
 */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  node.append(...children);
  return node;
}

/**
 * A line for each arm over steps, from where all arms start, with intervals; the point that one looks at is larger.
 * @param {SparkPoint[]} points in the order of steps
 * @param {string} label what a screen reader says
 */
function sparkline(points, label) {
  const [width, height, margin] = [150, 34, 4];
  const arms = [...new Set(points.map(({ arm }) => arm))];
  const steps = [...new Set(points.map(({ step }) => step))].sort((a, b) => a - b);
  const ends = points.flatMap(({ value, low, high }) => [value, low ?? value, high ?? value]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const x = (/** @type {number} */ step) =>
    margin +
    (steps.length > 1 ? (steps.indexOf(step) / (steps.length - 1)) * (width - 2 * margin) : (width - 2 * margin) / 2);
  const y = (/** @type {number} */ value) => margin + ((most - value) / (most - least || 1)) * (height - 2 * margin);
  const chart = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, class: "spark", role: "img" },
    svg("title", {}, label),
  );
  chart.append(svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "zero" }));
  for (const [place, arm] of arms.entries()) {
    const stroke = armColour(arm, arms);
    const dodge = SHARED_ARMS.includes(arm) ? 0 : 2 * (place - (arms.length - 1) / 2);
    const at = (/** @type {SparkPoint} */ point) => x(point.step) + (point.arm === arm ? dodge : 0);
    const armPoints = points.filter((point) => point.arm === arm);
    const before = SHARED_ARMS.includes(arm)
      ? []
      : points.filter((point) => SHARED_ARMS.includes(point.arm) && point.step < armPoints[0].step);
    const path = [...before, ...armPoints].map((point) => `${at(point).toFixed(1)} ${y(point.value).toFixed(1)}`);
    chart.append(svg("path", { d: `M${path.join("L")}`, stroke, class: "line" }));
    for (const point of armPoints) {
      const { step, value, low, high, here } = point;
      const [x1, text] = [at(point), `${arm}, step ${step}: ${number(value)} ${interval(low, high)}`];
      if (low !== null && high !== null)
        chart.append(svg("line", { x1, x2: x1, y1: y(low), y2: y(high), stroke, class: "whisker" }));
      const look = { cx: x1, cy: y(value), r: here ? 3.6 : 1.8, fill: stroke, class: here ? "here" : "" };
      chart.append(svg("circle", look, svg("title", {}, text)));
    }
  }
  return chart;
}
