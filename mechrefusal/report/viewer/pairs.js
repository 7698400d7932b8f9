/** Two checkpoints side by side: two selects choose which of the sections of the page is shown. */

/** @param {ParentNode} within */
function startPairs(within) {
  const sections = all("section[data-pair]", within);
  if (!sections.length) return;
  const pairs = sections.map((section) => (section.dataset.pair ?? "").split("|"));
  const firsts = [...new Set(pairs.map(([first]) => first))];
  const seconds = [...new Set(pairs.map(([, second]) => second))];
  const recalledPair = recalled("pair").split("|");
  const at = pairs.findIndex(([first, second]) => first === recalledPair[0] && second === recalledPair[1]);
  let [first, second] = pairs[at >= 0 ? at : pairs.length - 1];
  const show = () => {
    const fits = new Set(pairs.filter(([one]) => one === first).map(([, other]) => other));
    if (!fits.has(second)) second = [...fits].at(-1) ?? second;
    for (const option of others.select.options) option.disabled = !fits.has(option.value);
    others.select.value = second;
    sections.forEach((section, place) => {
      section.hidden = pairs[place][0] !== first || pairs[place][1] !== second;
    });
    remember({ pair: `${first}|${second}` });
  };
  const named = (/** @type {string} */ id) => /** @type {[string, string]} */ ([id, checkpointName(id)]);
  const ones = choice("Compare", firsts.map(named), first, (value) => {
    first = value;
    show();
  });
  const others = choice("with", seconds.map(named), second, (value) => {
    second = value;
    show();
  });
  sections[0].before(element("div", { class: "filters" }, ones.label, others.label));
  show();
}
