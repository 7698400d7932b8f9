/** What is run when a page opens. */

/** Definitions open by pointing, by the keyboard and by touch. @param {ParentNode} within */
function startDefinitions(within) {
  for (const button of all("button.about", within)) {
    const definition = button.closest("figure, section, th, td, p, div")?.querySelector(".definition");
    if (!definition) continue;
    const open = (/** @type {boolean} */ is) => {
      definition.classList.toggle("open", is);
      button.setAttribute("aria-expanded", String(is));
    };
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", () => open(!definition.classList.contains("open")));
    button.addEventListener("blur", () =>
      setTimeout(() => definition.contains(document.activeElement) || open(false), 150),
    );
    button.addEventListener("keydown", (event) => {
      if (event.key === "Escape") open(false);
    });
  }
}

/** Links into this page keep what else the address holds. */
function startLinks() {
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest('a[href^="#"]') : null;
    if (!link || link.matches("a.head") || event.defaultPrevented || event.ctrlKey || event.metaKey) return;
    const target = decoded((link.getAttribute("href") ?? "#").slice(1));
    if (isSingleFile() && target.includes("/")) return;
    event.preventDefault();
    address.section = target;
    history.pushState(null, "", `#${fragment()}`);
    address.hash = location.hash;
    showSection();
    document.getElementById(target)?.focus({ preventScroll: true });
  });
}

/** Bring a page to life. @param {ParentNode} within */
function startPage(within) {
  startMaps(within);
  startPlots(within);
  startDefinitions(within);
  startPairs(within);
  startGraphs(within);
  startPrompts(within);
  followDetails(within);
  followSections();
  showSection();
  followHead();
}

function start() {
  readAddress();
  startTheme();
  startPrinting();
  startHeads();
  startLinks();
  themeListeners.push(() => redraw([...plots.keys()]));
  addEventListener("scroll", followScroll, { passive: true });
  if (isSingleFile()) {
    rewriteLinks(document);
    all("template[data-page]").forEach((template) =>
      rewriteLinks(/** @type {HTMLTemplateElement} */ (template).content),
    );
    showPage();
  }
  startPage(document);
  addEventListener("hashchange", () => {
    const seen = new Map(address.values);
    readAddress();
    const keys = new Set([...seen.keys(), ...address.values.keys()]);
    const changed = [...keys].filter((key) => seen.get(key) !== address.values.get(key));
    if (isSingleFile() && showPage()) startPage(document);
    else if (changed.some((key) => key !== "head" && key !== "at")) location.reload();
    else {
      showSection();
      followHead();
    }
  });
  document.documentElement.dataset.ready = "true";
  performance.mark("mechrefusal-ready");
}

window.mechrefusal = {
  data: (name, value) => {
    registered.set(name, value);
  },
  drawAll,
  openHead,
};
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
