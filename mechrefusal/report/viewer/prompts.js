/** Prompts, what two checkpoints or interventions answered, and where the verdicts differ. */

/** @typedef {{ label: string, completion: string }} Answer */
/** @typedef {{ id: string, suite: string, side: string, prompt: string, by: Record<string, Answer>, tokens?: Record<string, [string, number | null][]> }} Prompt */
/** @typedef {{ rows: Prompt[], checkpoints: string[], interventions: string[], limit: number }} Prompts */

const ROWS_A_PAGE = 50;

/** @param {ParentNode} within */
async function startPrompts(within) {
  const section = /** @type {HTMLElement | null} */ (within.querySelector("#prompts-browser"));
  if (!section) return;
  const data = /** @type {Prompts | null} */ (await shared("prompts"));
  if (data?.rows.length) browsePrompts(section, data);
  else section.replaceChildren(element("p", { class: "reason" }, "This report holds no answers to prompts."));
}

/** @param {HTMLElement} section @param {Prompts} data */
function browsePrompts(section, data) {
  const columns = [...new Set(data.rows.flatMap(({ by }) => Object.keys(by)))];
  const order = (/** @type {string} */ key) => {
    const [id, intervention] = key.split("|");
    return data.checkpoints.indexOf(id) * 1000 + data.interventions.indexOf(intervention);
  };
  columns.sort((a, b) => order(a) - order(b));
  const named = (/** @type {string} */ key) => {
    const [id, intervention] = key.split("|");
    return [checkpointName(id), intervention === "none" ? "" : words(intervention ?? "")].filter(Boolean).join(", ");
  };
  const options = columns.map((key) => /** @type {[string, string]} */ ([key, named(key)]));
  const pick = (/** @type {string} */ key, /** @type {string} */ otherwise) =>
    columns.includes(recalled(key)) ? recalled(key) : otherwise;
  const untouched = columns.filter((key) => !key.includes("|") || key.endsWith("|none"));
  const chosen = {
    left: pick("left", untouched[0] ?? columns[0]),
    right: pick("right", untouched.at(-1) ?? columns.at(-1) ?? ""),
    suite: recalled("suite"),
    label: recalled("label"),
    flips: recalled("flips") === "1",
    text: recalled("text"),
    page: Number(recalled("rows")) || 0,
  };
  const labels = [...new Set(data.rows.flatMap(({ by }) => Object.values(by).map(({ label }) => label)))]
    .filter(Boolean)
    .sort();
  const suites = [...new Set(data.rows.map(({ suite }) => suite))];
  const table = element("div", { class: "scroll" });
  const count = element("p", { class: "count", role: "status" });
  const pager = element("p", { class: "pager" });

  const fitting = () => {
    const words = chosen.text.toLowerCase();
    return data.rows.filter((row) => {
      const [left, right] = [row.by[chosen.left], row.by[chosen.right]];
      if (chosen.suite && row.suite !== chosen.suite) return false;
      if (chosen.label && left?.label !== chosen.label && right?.label !== chosen.label) return false;
      if (chosen.flips && !(left?.label && right?.label && left.label !== right.label)) return false;
      return (
        !words ||
        [row.id, row.prompt, left?.completion, right?.completion].some((text) => text?.toLowerCase().includes(words))
      );
    });
  };
  const show = oncePerFrame(() => {
    const rows = fitting();
    const pages = Math.max(1, Math.ceil(rows.length / ROWS_A_PAGE));
    chosen.page = Math.min(chosen.page, pages - 1);
    const flips = rows.filter(
      ({ by }) => by[chosen.left]?.label && by[chosen.right]?.label && by[chosen.left].label !== by[chosen.right].label,
    ).length;
    count.textContent = `${rows.length} of ${data.rows.length} prompts; the verdict differs for ${flips} of them.`;
    const head = element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", {}, "Prompt"),
        element("th", {}, named(chosen.left)),
        element("th", {}, named(chosen.right)),
      ),
    );
    const body = rows
      .slice(chosen.page * ROWS_A_PAGE, (chosen.page + 1) * ROWS_A_PAGE)
      .map((row) => promptRow(row, chosen.left, chosen.right, data.limit));
    table.replaceChildren(
      rows.length
        ? element("table", { class: "prompts" }, head, element("tbody", {}, ...body))
        : element("p", { class: "reason" }, "No prompt fits this search."),
    );
    const turn = (/** @type {number} */ by) => () => {
      chosen.page += by;
      show();
      section.scrollIntoView();
    };
    const earlier = button("‹ earlier", turn(-1), { disabled: chosen.page === 0 });
    const later = button("later ›", turn(1), { disabled: chosen.page === pages - 1 });
    pager.replaceChildren(...(pages > 1 ? [earlier, ` page ${chosen.page + 1} of ${pages} `, later] : []));
    remember({
      left: chosen.left,
      right: chosen.right,
      suite: chosen.suite,
      label: chosen.label,
      flips: chosen.flips ? 1 : null,
      text: chosen.text,
      rows: chosen.page || null,
    });
  });
  const change = (/** @type {Partial<typeof chosen>} */ values) => {
    Object.assign(chosen, { page: 0 }, values);
    show();
  };

  const flips = element("input", { type: "checkbox", change: () => change({ flips: flips.checked }) });
  flips.checked = chosen.flips;
  const search = element("input", {
    type: "search",
    placeholder: "words in prompts and answers",
    value: chosen.text,
    "aria-label": "Search prompts and answers",
    input: () => change({ text: search.value }),
  });
  const any = (/** @type {string[]} */ values) =>
    /** @type {[string, string][]} */ ([["", "all"], ...values.map((value) => [value, words(value)])]);
  section.replaceChildren(
    element(
      "div",
      { class: "filters" },
      choice("Compare", options, chosen.left, (left) => change({ left })).label,
      choice("with", options, chosen.right, (right) => change({ right })).label,
      element("label", {}, flips, " verdict flips"),
      choice("Set", any(suites), chosen.suite, (suite) => change({ suite })).label,
      choice("Verdict", any(labels), chosen.label, (label) => change({ label })).label,
      search,
    ),
    count,
    table,
    pager,
  );
  show();
}

/** @param {string} name */
function words(name) {
  return name.replace(/_/g, " ");
}

/** @param {Prompt} row @param {string} left @param {string} right @param {number} limit */
function promptRow(row, left, right, limit) {
  const [one, other] = [row.by[left], row.by[right]];
  const tokens = row.tokens?.[left.split("|")[0]] ?? row.tokens?.[right.split("|")[0]];
  const flips = one?.label && other?.label && one.label !== other.label;
  const prompt = element(
    "td",
    { class: "prompt" },
    element("span", { class: "id" }, `${row.id} · ${words(row.suite)}`),
    tokens ? colouredTokens(tokens, limit) : element("div", { class: "text", dir: "auto" }, row.prompt),
  );
  return element("tr", { class: flips ? "flips" : "" }, prompt, answerCell(one), answerCell(other));
}

/** @param {Answer | undefined} answer */
function answerCell(answer) {
  if (!answer) return element("td", { class: "detail" }, "not asked");
  return element(
    "td",
    {},
    element(
      "span",
      { class: "label", "data-label": answer.label || "none" },
      answer.label ? words(answer.label) : "not judged",
    ),
    element("div", { class: "text", dir: "auto" }, answer.completion),
  );
}
