"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const printed = window.matchMedia("print");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PRINTED_WIDTH = 680;

  // "$copper" in a figure stands for the colour --copper of the scheme in use.
  const withColours = (value, style) => {
    if (typeof value === "string" && value.startsWith("$")) {
      return style.getPropertyValue("--" + value.slice(1)).trim();
    }
    if (Array.isArray(value)) return value.map((item) => withColours(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withColours(item, style)]));
    }
    return value;
  };

  const draw = (width) => {
    const style = getComputedStyle(document.documentElement);
    const font = getComputedStyle(document.body).fontFamily;
    for (const [id, figure] of Object.entries(figures)) {
      const { data, layout } = withColours(figure, style);
      layout.font.family = font;
      if (width) layout.width = width;
      Plotly.react(id, data, layout, { displayModeBar: false, responsive: true });
    }
  };

  draw();
  dark.addEventListener("change", () => draw());
  printed.addEventListener("change", (event) => draw(event.matches ? PRINTED_WIDTH : undefined));
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => { item.open = true; }));
})();
