/** Elements, data and libraries: what every other file uses. */

/** @typedef {string | Node | null | undefined | false} Child */

/**
 * Make an element. Text stays text: no string is ever read as markup.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, any>} [attributes] a function is a listener of that event (`click`); null and false leave it out
 * @param {Child[]} children
 * @returns {HTMLElementTagNameMap[T]}
 */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(
    .../** @type {(string | Node)[]} */ (
      children.filter((child) => child !== null && child !== undefined && child !== false)
    ),
  );
  return node;
}

/**
 * A button.
 * @param {string} words
 * @param {(event: Event) => void} click
 * @param {Record<string, any>} [attributes]
 */
function button(words, click, attributes = {}) {
  return element("button", { type: "button", click, ...attributes }, words);
}

/**
 * Elements that fit a selector.
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {HTMLElement[]}
 */
function all(selector, within = document) {
  return /** @type {HTMLElement[]} */ ([...within.querySelectorAll(selector)]);
}

/**
 * The JSON in a script element of the page.
 * @param {string} selector
 * @param {ParentNode} [within]
 */
function json(selector, within = document) {
  const script = within.querySelector(selector);
  return script ? JSON.parse(script.textContent || "null") : null;
}

/**
 * A select with its label.
 * @param {string} label
 * @param {[string, string][]} options value and words
 * @param {string} value
 * @param {(value: string) => void} change
 */
function choice(label, options, value, change) {
  const select = element("select", { "aria-label": label, change: () => change(select.value) });
  for (const [key, words] of options) select.append(element("option", { value: key }, words));
  select.value = value;
  return { label: element("label", {}, `${label} `, select), select };
}

/**
 * A number with a minus sign, or a dash where there is none.
 * @param {number | null | undefined} value
 * @param {number} [digits]
 */
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const small = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  return (small ? value.toExponential(1) : value.toFixed(digits)).replace("-", "−");
}

/**
 * `[low, high]`, or nothing where there is no interval.
 * @param {number | null | undefined} low
 * @param {number | null | undefined} high
 * @param {number} [digits]
 */
function interval(low, high, digits = 3) {
  const known = [low, high].every((end) => end !== null && end !== undefined);
  return known ? `[${number(low, digits)}, ${number(high, digits)}]` : "";
}

/** @param {number | null | undefined} share */
function percent(share) {
  return share === null || share === undefined ? "–" : `${Math.round(100 * share)}%`.replace("-", "−");
}

/**
 * `L12.H3`, as TransformerLens writes it.
 * @param {string} head `12.3`
 */
function headName(head) {
  return `L${head.replace(".", ".H")}`;
}

/**
 * `r2d2, step 60` for `r2d2-step-00060`.
 * @param {string} id
 */
function checkpointName(id) {
  return id.replace(/-step-0*(\d+)$/, ", step $1");
}

/**
 * A token in which spaces at its ends and line breaks can be seen.
 * @param {string} text
 */
function visibleToken(text) {
  return text
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

/** Data that was registered, by name. @type {Map<string, any>} */
const registered = new Map();
/** Scripts of this report's own folder that were asked for, by address. @type {Map<string, Promise<void>>} */
const loading = new Map();

/**
 * Load a script of this report's own folder, once. In a single file it stands in the page, as text that was not run yet.
 * @param {string} path
 * @returns {Promise<void>}
 */
function load(path) {
  const started = loading.get(path);
  if (started) return started;
  const inlined = document.querySelector(`script[type="text/plain"][data-script="${path}"]`);
  const promise = new Promise((resolve, reject) => {
    const script = element("script", inlined ? {} : { src: path });
    script.addEventListener("load", () => resolve(undefined));
    script.addEventListener("error", () => reject(new Error(`${path} is missing beside this page`)));
    if (inlined) script.textContent = inlined.textContent;
    document.head.append(script);
    if (inlined) resolve(undefined);
  });
  loading.set(path, promise);
  return promise;
}

/**
 * Data that several pages share: `heads`, `prompts` or `circuits`; null where this report has none.
 * @param {string} name
 * @returns {Promise<any>}
 */
async function shared(name) {
  if (!registered.has(name)) {
    const inlined = json(`script[type="application/json"][data-name="${name}"]`);
    if (inlined) registered.set(name, inlined);
    else await load(`data/${name}.js`).catch(() => registered.set(name, null));
  }
  return registered.get(name) ?? null;
}

/**
 * A library, loaded when it is first needed.
 * @template {"Plotly" | "CircuitsVis" | "cytoscape"} N
 * @param {N} name
 * @returns {Promise<Libraries[N]>}
 */
async function library(name) {
  const files = { Plotly: "plotly", CircuitsVis: "circuitsvis", cytoscape: "cytoscape" };
  if (!window[name]) await load(`assets/${files[name]}.js`);
  return /** @type {any} */ (window[name]);
}

/**
 * Offer a file to the reader.
 * @param {string} name
 * @param {string} text
 * @param {string} type
 */
function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/**
 * Run at most once a frame, with the last arguments.
 * @template {any[]} A
 * @param {(...args: A) => void} run
 * @returns {(...args: A) => void}
 */
function oncePerFrame(run) {
  /** @type {A | null} */
  let waiting = null;
  return (...args) => {
    if (!waiting)
      requestAnimationFrame(() => {
        const last = /** @type {A} */ (waiting);
        waiting = null;
        run(...last);
      });
    waiting = args;
  };
}
