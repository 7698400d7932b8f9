"use strict";
// A stand-in until the viewer's own: draws figures, shows the chosen pair.
window.mechrefusal = { data() {} };
document.addEventListener("DOMContentLoaded", () => {
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const config = { responsive: true, displaylogo: false };
  const draw = (target) => {
    const data = document.querySelector(`script[data-plot-json="${target.dataset.plot}"]`);
    const figure = JSON.parse(data.textContent);
    const layout = { ...figure.layout, paper_bgcolor: "rgba(0,0,0,0)", font: { ...figure.layout.font, color: ink() } };
    Plotly.newPlot(target, figure.data, layout, config);
  };
  const seen = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { seen.unobserve(e.target); draw(e.target); }));
  document.querySelectorAll(".plot").forEach((plot) => seen.observe(plot));
  const pairs = [...document.querySelectorAll("[data-pair]")];
  pairs.forEach((pair, place) => { pair.hidden = place !== pairs.length - 1; });
});
