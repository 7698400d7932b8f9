/**
 * What one sees is in the address: `#section&step=70&arm=sft&head=12.3&at=ID`, and `#page/section&…` in a single file. It is
 * read when the page opens and when the address changes, and kept up to date without new entries in the history.
 */

const address = { hash: "", page: "", section: "", values: /** @type {Map<string, string>} */ (new Map()) };
function readAddress() {
  address.hash = location.hash;
  const [place = "", ...pairs] = location.hash.slice(1).split("&");
  const parts = place.includes("=") ? [] : place.split("/").map(decoded);
  if (place.includes("=")) pairs.unshift(place);
  address.page = parts.length > 1 ? parts[0] : address.page;
  address.section = parts.at(-1) ?? "";
  address.values = new Map(
    pairs.filter(Boolean).map((pair) => {
      const at = pair.indexOf("=");
      return at < 0 ? [decoded(pair), ""] : [decoded(pair.slice(0, at)), decoded(pair.slice(at + 1))];
    }),
  );
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** @param {string} text */
function encoded(text) {
  return encodeURIComponent(text).replace(/%7C/g, "|").replace(/%2C/g, ",");
}

/** The fragment that leads back to what is seen now. */
function fragment() {
  const place = address.page ? `${address.page}/${address.section}` : address.section;
  const pairs = [...address.values].map(([key, value]) => `${encoded(key)}=${encoded(value)}`);
  return [...(place ? [place] : []), ...pairs].join("&");
}

const writeAddress = oncePerFrame(() => {
  // A link was followed since the last frame: what it leads to is read next, and must not be written over.
  if (location.hash !== address.hash) return;
  if (location.hash.slice(1) !== fragment()) history.replaceState(null, "", `#${fragment()}`);
  address.hash = location.hash;
});

/**
 * Keep something that is seen; null or "" takes it out.
 * @param {Record<string, string | number | null>} values
 */
function remember(values) {
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === "") address.values.delete(key);
    else address.values.set(key, String(value));
  }
  writeAddress();
}

/**
 * What the address says of something.
 * @param {string} key
 */
function recalled(key) {
  return address.values.get(key) ?? "";
}

/** Go to the section that the address names; what it stands in is opened. */
function showSection() {
  const target = address.section ? document.getElementById(address.section) : null;
  for (let node = target; node; node = node.parentElement) if (node instanceof HTMLDetailsElement) node.open = true;
  target?.scrollIntoView();
}

/** Open the details that the address names, and keep which are open. @param {ParentNode} within */
function followDetails(within) {
  const named = all("details", within).map((details, place) => ({
    details: /** @type {HTMLDetailsElement} */ (details),
    name: details.id || `d${place}`,
  }));
  const opened = new Set(recalled("open").split(",").filter(Boolean));
  const closed = new Set(recalled("closed").split(",").filter(Boolean));
  for (const { details, name } of named) {
    const asWritten = details.open;
    if (opened.has(name)) details.open = true;
    if (closed.has(name)) details.open = false;
    details.addEventListener("toggle", () => {
      opened.delete(name);
      closed.delete(name);
      if (details.open !== asWritten) (details.open ? opened : closed).add(name);
      if (!document.body.classList.contains("printing"))
        remember({ open: [...opened].join(","), closed: [...closed].join(",") });
    });
  }
}

/** Links of the navigation into this page, and where they lead. @type {{ link: HTMLElement, target: HTMLElement }[]} */
let contents = [];

/** Mark where the reader is in the navigation, and in the address. */
const followScroll = oncePerFrame(() => {
  const passed = contents.filter(({ target }) => target.getBoundingClientRect().top < 140);
  const now = scrollY > 40 ? passed.at(-1) : undefined;
  const wanted = contents.find(({ target }) => target.id === address.section);
  const { top = Infinity, bottom = 0 } = wanted?.target.getBoundingClientRect() ?? {};
  if (wanted && wanted !== now && top >= 0 && bottom <= innerHeight + 140) return; // too near the end to be scrolled to
  for (const { link } of contents) link.setAttribute("aria-current", String(link === now?.link));
  address.section = now?.target.id ?? "";
  writeAddress();
});

function followSections() {
  contents = all('nav a[href^="#"]').flatMap((link) => {
    const target = document.getElementById(decoded((link.getAttribute("href") ?? "").slice(1).split("/").at(-1) ?? ""));
    return target ? [{ link, target }] : [];
  });
}
