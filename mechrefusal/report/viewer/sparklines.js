/** Small lines of a value over checkpoints, one an arm, drawn as SVG. */

/** @typedef {{ arm: string, step: number, value: number, low: number | null, high: number | null, here: boolean }} SparkPoint */

const SVG = "http://www.w3.org/2000/svg";
/** Okabe and Ito's colours, in the order that figures give them to arms. */
const ARM_COLOURS = { r2d2: "#0072B2", sft: "#D55E00", base: "#7f7f7f", "warm-up": "#3b3b3b" };
const OTHER_ARMS = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

/** @param {string} arm @param {string[]} arms all of the run */
function armColour(arm, arms) {
  const others = arms.filter((name) => !(name in ARM_COLOURS));
  const found =
    /** @type {Record<string, string>} */ (ARM_COLOURS)[arm] ?? OTHER_ARMS[others.indexOf(arm) % OTHER_ARMS.length];
  return isDark() ? (ON_DARK.get(found) ?? found) : found;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 * @param {...(Node | string)} children
 */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/**
 * A line for each arm over steps, with intervals; the point that one looks at is filled.
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
  const drawn = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width, height, class: "spark", role: "img" },
    svg("title", {}, label),
  );
  drawn.append(svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "zero" }));
  for (const arm of arms) {
    const own = points.filter((point) => point.arm === arm);
    const stroke = armColour(arm, arms);
    const path = own
      .map(({ step, value }, place) => `${place ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`)
      .join("");
    drawn.append(svg("path", { d: path, stroke, class: "line" }));
    for (const { step, value, low, high, here } of own) {
      if (low !== null && high !== null)
        drawn.append(svg("line", { x1: x(step), x2: x(step), y1: y(low), y2: y(high), stroke, class: "whisker" }));
      drawn.append(
        svg(
          "circle",
          { cx: x(step), cy: y(value), r: here ? 3.6 : 1.8, fill: stroke, class: here ? "here" : "" },
          svg("title", {}, `${arm}, step ${step}: ${number(value)} ${interval(low, high)}`),
        ),
      );
    }
  }
  return drawn;
}
