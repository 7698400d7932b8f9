/** The card of a head: what was measured of it at a checkpoint, over checkpoints, and where it looks. */

/**
 * @typedef {object} HeadData
 * @property {{ id: string, arm: string, step: number, label: string }[]} checkpoints
 * @property {number} n_layers
 * @property {number} n_heads
 * @property {Record<string, { title: string, unit: string, definition: string }>} columns
 * @property {Record<string, Record<string, ([number, number | null, number | null, number | null] | null)[]>>} values
 * @property {Record<string, Record<string, [string, number][]>>} sources
 * @property {Record<string, Record<string, Attention[]>>} attention
 */
/** @typedef {{ prompt_id: string, set: string, tokens: string[], pattern: number[][], max: number }} Attention */

/** What had the focus before the card was opened. @type {HTMLElement | null} */
let openedFrom = null;

/** @returns {HTMLElement | null} */
function cardOf() {
  return document.getElementById("head-card");
}

/**
 * Open the card of a head.
 * @param {string} head `12.3`
 * @param {string} [checkpoint] its id; the last one where none is named
 * @param {HTMLElement | null} [from] where the focus goes back to
 */
async function openHead(head, checkpoint, from = null) {
  if (from) openedFrom = from;
  const data = /** @type {HeadData | null} */ (await shared("heads"));
  const known = data?.checkpoints.map(({ id }) => id) ?? [];
  const at = checkpoint && (known.includes(checkpoint) || !known.length) ? checkpoint : (known.at(-1) ?? "");
  remember({ head, at });
  let card = cardOf();
  if (!card) {
    card = element("aside", {
      id: "head-card",
      role: "dialog",
      "aria-labelledby": "head-name",
      tabindex: -1,
      keydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key === "Escape") closeHead();
      },
    });
    document.body.append(card);
  }
  const scrolled = card.scrollTop;
  const isUsed = from !== null || card.contains(document.activeElement);
  card.replaceChildren(...cardParts(data, head, at));
  card.scrollTop = scrolled;
  if (isUsed) card.focus({ preventScroll: true });
  document.body.classList.add("with-card");
}

function closeHead() {
  cardOf()?.remove();
  document.body.classList.remove("with-card");
  remember({ head: null, at: null });
  openedFrom?.focus({ preventScroll: true });
  openedFrom = null;
}

/** @param {HeadData | null} data @param {string} head @param {string} at */
function cardParts(data, head, at) {
  const close = button("×", closeHead, { class: "close", "aria-label": "Close this card" });
  const title = element("h2", { id: "head-name" }, headName(head));
  if (!data) return [element("header", {}, title, close), reason("This report holds no measurements of heads.")];
  const [layer, number_] = head.split(".").map(Number);
  const place = layer * data.n_heads + number_;
  const checkpoints = choice(
    "at",
    data.checkpoints.map(({ id, label }) => [id, label]),
    at,
    (id) => openHead(head, id),
  ).label;
  const step = (/** @type {number} */ by) => {
    const to = (place + by + data.n_layers * data.n_heads) % (data.n_layers * data.n_heads);
    openHead(`${Math.floor(to / data.n_heads)}.${to % data.n_heads}`, at);
  };
  const turning = element(
    "span",
    { class: "together" },
    button("‹", () => step(-1), { "aria-label": "Head before" }),
    button("›", () => step(1), { "aria-label": "Next head" }),
  );
  return [
    element("header", {}, title, checkpoints, turning, close),
    valuesTable(data, place, at),
    sourceTokens(data.sources[at]?.[head] ?? []),
    attentionPart(data.attention[at]?.[head] ?? [], head),
  ];
}

/** All that was measured, with what it was at the other checkpoints. @param {HeadData} data @param {number} place @param {string} at */
function valuesTable(data, place, at) {
  const rows = Object.entries(data.columns).map(([name, { title, unit, definition }]) => {
    const measured = data.values[at]?.[name]?.[place];
    const points = data.checkpoints.flatMap(({ id, arm, step }) => {
      const entry = data.values[id]?.[name]?.[place];
      return entry ? [{ arm, step, value: entry[0], low: entry[1], high: entry[2], here: id === at }] : [];
    });
    if (!points.length) return null;
    const isClear = measured && measured[3] !== null && measured[3] < 0.05;
    return element(
      "tr",
      {},
      element("th", { scope: "row", title: definition }, title, element("span", { class: "unit" }, unit)),
      element(
        "td",
        { class: "figure" },
        element("b", {}, measured ? number(measured[0]) : "–"),
        isClear
          ? element("span", { class: "told", title: `p = ${number(measured[3])}, adjusted for all heads` }, " ●")
          : null,
        element("span", { class: "detail" }, measured ? interval(measured[1], measured[2]) : "not measured here"),
      ),
      element("td", {}, points.length > 1 ? sparkline(points, `${title} over checkpoints`) : null),
    );
  });
  const arms = [...new Set(data.checkpoints.map(({ arm }) => arm))];
  const legend = element(
    "p",
    { class: "legend" },
    "over steps: ",
    ...arms.map((arm) => element("span", {}, element("i", { style: `background:${armColour(arm, arms)}` }), arm)),
    element("span", { class: "told" }, "● p < 0.05, adjusted for all heads"),
  );
  return element("div", {}, element("table", { class: "values" }, element("tbody", {}, ...rows)), legend);
}

/** Why something is not there. @param {string} words */
function reason(words) {
  return element("p", { class: "reason" }, words);
}

/** A part of the card. @param {string} heading @param {(Node | null)[]} inside */
function cardPart(heading, ...inside) {
  return element("section", {}, element("h3", {}, heading), ...inside);
}

/** Tokens that it takes refusal from. @param {[string, number][]} tokens */
function sourceTokens(tokens) {
  const heading = "Where it takes refusal from";
  if (!tokens.length)
    return cardPart(heading, reason("Not traced to tokens: only the strongest heads of a checkpoint are."));
  const most = Math.max(...tokens.map(([, share]) => Math.abs(share))) || 1;
  return cardPart(
    heading,
    element(
      "ul",
      { class: "sources" },
      ...tokens.map(([token, share]) =>
        element(
          "li",
          {},
          element("code", { dir: "auto" }, visibleToken(token)),
          element("span", {
            class: "bar",
            style: `width:${(90 * Math.abs(share)) / most}px`,
            "data-sign": share < 0 ? "-" : "+",
          }),
          number(share, 2),
        ),
      ),
    ),
  );
}

/** Attention on harmful and harmless prompts; circuitsvis is loaded here, when it is first needed. @param {Attention[]} patterns @param {string} head */
function attentionPart(patterns, head) {
  const heading = "Where it looks";
  if (!patterns.length)
    return cardPart(
      heading,
      reason("Its attention was not kept: only that of the strongest heads of a checkpoint is."),
    );
  const area = element("div", { class: "attentions" });
  const groups = sideBySide(patterns);
  const show = (/** @type {number} */ place) => {
    const max = Math.max(...groups[place].map((attention) => attention.max));
    area.replaceChildren(
      ...groups[place].map((attention) => {
        const paper = element("div", { class: "paper attention" });
        drawAttention(paper, { ...attention, max });
        return element("figure", {}, element("figcaption", {}, promptName(attention)), paper);
      }),
    );
  };
  const options = groups.map(
    (group, place) => /** @type {[string, string]} */ ([String(place), group.map(promptName).join(" and ")]),
  );
  show(0);
  return cardPart(
    heading,
    groups.length > 1 ? choice("on", options, "0", (place) => show(Number(place))).label : null,
    area,
    onlyOf(patterns),
    element(
      "p",
      { class: "detail" },
      `Row: the token that ${headName(head)} writes at. Column: the token that it reads from. Colour is full at the largest weight off the first token.`,
    ),
  );
}

const SIDES = ["harmful", "harmless"];

/** @param {Attention} attention */
function promptName({ set, prompt_id: id }) {
  return `${set} prompt ${id}`.trim();
}

/**
 * Patterns that are shown together: both prompts of a pair, or where no pair is whole a harmful and a harmless prompt.
 * @param {Attention[]} patterns
 * @returns {Attention[][]}
 */
function sideBySide(patterns) {
  const inOrder = [...patterns].sort((a, b) => SIDES.indexOf(a.set) - SIDES.indexOf(b.set));
  const pairs = [...new Set(patterns.map(({ prompt_id: id }) => id))].map((id) =>
    inOrder.filter(({ prompt_id: other }) => other === id),
  );
  const [harmful, harmless] = SIDES.map((side) => patterns.filter(({ set }) => set === side));
  if (pairs.some(({ length }) => length > 1) || !harmful.length || !harmless.length) return pairs;
  const many = Math.max(harmful.length, harmless.length);
  const rest = patterns.filter(({ set }) => !SIDES.includes(set)).map((attention) => [attention]);
  return [...Array(many).keys()].map((at) => [harmful[at], harmless[at]].filter(Boolean)).concat(rest);
}

/** Which prompts the tables lack, where they hold one side only. @param {Attention[]} patterns */
function onlyOf(patterns) {
  const [has, lacks] = [true, false].map((is) => SIDES.find((side) => patterns.some(({ set }) => set === side) === is));
  if (!lacks) return null;
  const words = has
    ? `The tables hold its attention on ${has} prompts only: that on ${lacks} prompts was not kept.`
    : "The tables do not say whether this prompt is harmful or harmless.";
  return reason(words);
}

/** @param {HTMLElement} area @param {Attention} attention */
async function drawAttention(area, { tokens, pattern, max }) {
  const CircuitsVis = await library("CircuitsVis");
  const inner = element("div", { id: `attention-${(attentionsDrawn += 1)}` });
  area.replaceChildren(inner);
  const shown = tokens.map((token) => {
    const text = visibleToken(token);
    return text.length > 16 ? `${text.slice(0, 15)}…` : text;
  });
  const attention = {
    tokens: shown,
    attention: pattern,
    maxValue: max,
    minValue: -1,
    positiveColor: "#08306b",
    maskUpperTri: true,
    showAxisLabels: true,
  };
  if (inner.isConnected) CircuitsVis.render(inner.id, CircuitsVis.AttentionPattern, attention);
}
let attentionsDrawn = 0;

/** Every link that names a head opens its card. */
function startHeads() {
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a.head") : null;
    if (!(link instanceof HTMLElement) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    openHead(`${link.dataset.layer}.${link.dataset.head}`, link.dataset.checkpoint, link);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && cardOf()) closeHead();
  });
  themeListeners.push(() => followHead());
}

/** Show the card that the address names. */
function followHead() {
  const head = recalled("head");
  if (/^\d+\.\d+$/.test(head)) openHead(head, recalled("at"));
  else cardOf()?.remove();
}
