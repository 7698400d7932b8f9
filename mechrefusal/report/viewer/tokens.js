/** Tokens on a ground that shows a value, red above zero and blue below; always text. */

/**
 * @param {[string, number | null][]} tokens
 * @param {number} limit |value| at which colour is full
 */
function colouredTokens(tokens, limit) {
  return element(
    "div",
    { class: "tokens", dir: "auto" },
    ...tokens.map(([text, value]) => {
      const share = value === null ? 0 : Math.max(-1, Math.min(1, value / (limit || 1)));
      const ground = `rgba(${share < 0 ? "45,120,200" : "205,60,40"},${(0.75 * Math.abs(share)).toFixed(3)})`;
      return element(
        "span",
        {
          style: value === null ? null : `background:${ground}`,
          title: value === null ? "not measured" : number(value, 2),
        },
        text.replace(/\n/g, "↵\n"),
      );
    }),
  );
}
