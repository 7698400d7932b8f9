/** A report in one file: every page stands in a template, and the fragment says which is shown. */

/** Whether all pages stand in this file. */
function isSingleFile() {
  return document.querySelector("template[data-page]") !== null;
}

/** @param {string} name @returns {HTMLTemplateElement | null} */
function templateOf(name) {
  return (
    all("template[data-page]")
      .map((template) => /** @type {HTMLTemplateElement} */ (template))
      .find(({ dataset }) => dataset.page === name) ?? null
  );
}

/** Show the page that the address names, or the first. @returns {boolean} whether another page is shown now */
function showPage() {
  const template =
    templateOf(address.page) ?? /** @type {HTMLTemplateElement} */ (document.querySelector("template[data-page]"));
  const name = template.dataset.page ?? "";
  address.page = name;
  if (document.body.dataset.shown === name) return false;
  document.body.dataset.shown = name;
  document.body.dataset.page = name;
  for (const area of plots.keys()) forgetPlot(area);
  const page = /** @type {DocumentFragment} */ (template.content.cloneNode(true));
  const main = page.querySelector("main") ?? element("main", { id: "main", class: "inner" }, page);
  document.querySelector("main")?.remove();
  template.before(main);
  scrollTo(0, 0);
  document.title = [main.querySelector("h1")?.textContent, document.body.dataset.run].filter(Boolean).join(" – ");
  for (const link of all("nav a")) link.setAttribute("aria-current", String(link.getAttribute("href") === `#${name}/`));
  return true;
}

/** Links between pages of the folder become fragments of this file. @param {ParentNode} within */
function rewriteLinks(within) {
  for (const link of all("a[href]", within)) {
    const target = /^([^/#?:]+)\.html(?:#(.*))?$/.exec(link.getAttribute("href") ?? "");
    if (target && templateOf(decoded(target[1]))) {
      const rest = target[2] ?? "";
      link.setAttribute("href", `#${target[1]}/${rest.split("&")[0].includes("=") ? "&" : ""}${rest}`);
    }
  }
}
