"""The script of the page: draws the embedded figures and redraws them when the colour scheme changes."""

from __future__ import annotations

THEMED = """
function themed(node, key, style) {
  if (typeof node === "string") {
    return key.endsWith("color") && node.startsWith("--") ? style.getPropertyValue(node).trim() : node;
  }
  if (Array.isArray(node)) { return node.map(function (item) { return themed(item, "", style); }); }
  if (node !== null && typeof node === "object") {
    const copy = {};
    for (const name of Object.keys(node)) { copy[name] = themed(node[name], name, style); }
    return copy;
  }
  return node;
}
"""
"""A figure in which colours that are named by a variable of the page have its value; other strings stay."""

SCRIPT = (
    """
(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  // Without the tool bar: it covers the curves on touch screens, and dragging zooms without it.
  const config = {responsive: true, displayModeBar: false};
  // Only values of colour keys are replaced, so a run that is named like a variable keeps its name.
"""
    + THEMED
    + """  function draw() {
    const style = getComputedStyle(document.documentElement);
    for (const id of Object.keys(figures)) {
      const figure = themed(figures[id], "", style);
      Plotly.react(document.getElementById(id), figure.data, figure.layout, config);
    }
  }
  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
"""
)
