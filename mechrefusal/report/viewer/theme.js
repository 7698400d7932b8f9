/** Light and dark: as the system says, or as the reader chose. */

const darkSystem = matchMedia("(prefers-color-scheme: dark)");
/** Called when light turns to dark, or back. @type {(() => void)[]} */
const themeListeners = [];

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : darkSystem.matches;
}

/** @param {string | null} theme "light", "dark", or null: as the system says */
function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  for (const listener of themeListeners) listener();
}

/** Storage is not everywhere allowed for a file. @param {string | null} theme @returns {string | null} */
function keptTheme(theme = null) {
  try {
    if (theme) localStorage.setItem("mechrefusal-theme", theme);
    return localStorage.getItem("mechrefusal-theme");
  } catch {
    return null;
  }
}

function startTheme() {
  const kept = keptTheme();
  if (kept) setTheme(kept);
  const turn = () => {
    const theme = isDark() ? "light" : "dark";
    keptTheme(theme);
    setTheme(theme);
  };
  const switcher = button("", turn, { class: "theme" });
  const name = () => {
    const words = isDark() ? "Light colours" : "Dark colours";
    switcher.textContent = isDark() ? "☀" : "☾";
    switcher.setAttribute("aria-label", words);
    switcher.title = words;
  };
  themeListeners.push(name);
  darkSystem.addEventListener("change", () => themeListeners.forEach((listener) => listener()));
  name();
  const nav = document.querySelector("nav");
  (nav?.querySelector(".inner") ?? nav ?? document.body).append(switcher);
}

/** A colour of the style sheet. @param {string} name such as `--ink` */
function colour(name) {
  const probe = element("span", { style: `color:var(${name})` });
  document.body.append(probe);
  const computed = getComputedStyle(probe).color;
  probe.remove();
  return computed;
}
