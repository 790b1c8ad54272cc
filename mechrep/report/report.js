"use strict";
// Draws the figures with the page's own colours, again whenever the theme, the width or the medium changes.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const colours = read("colours");
  const root = document.documentElement;
  const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 560; // pixels of a figure below which labels are wrapped and margins shrink
  const LETTER = 7.2; // pixels of one letter of an axis title, on average

  // A probe element resolves a custom property to a colour that plotly understands.
  const resolve = (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
  };

  const palette = () => new Map(Object.entries(colours).map(([name, written]) => [written, resolve(`plot-${name}`)]));

  // A deep copy in which the colours that stand for ink, grid and paper are those of the page.
  const recoloured = (value, map) => {
    if (Array.isArray(value)) return value.map((part) => recoloured(part, map));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, recoloured(part, map)]));
    }
    return map.get(value) ?? value;
  };

  const wrapped = (text, letters) => {
    const lines = [""];
    for (const word of text.split(" ")) {
      const last = lines[lines.length - 1];
      if (last && last.length + word.length + 1 > letters) lines.push(word);
      else lines[lines.length - 1] = last ? `${last} ${word}` : word;
    }
    return lines.join("<br>");
  };

  const fitted = (layout, width) => {
    if (width >= NARROW) return layout;
    layout.margin = { ...layout.margin, l: 48, r: 6, t: 16 };
    layout.font = { ...layout.font, size: 12 };
    for (const axis of [layout.xaxis, layout.yaxis]) {
      if (axis?.title?.text) axis.title.text = wrapped(axis.title.text, Math.floor((width - 60) / LETTER));
    }
    return layout;
  };

  const draw = (width) => {
    const map = palette();
    for (const [name, figure] of Object.entries(figures)) {
      const box = document.getElementById(name);
      const layout = fitted(recoloured(figure.layout, map), width ?? box.clientWidth);
      if (width) layout.width = width;
      Plotly.react(box, recoloured(figure.data, map), layout, {
        responsive: true,
        displaylogo: false,
        displayModeBar: layout.width || box.clientWidth < NARROW ? false : "hover",
        modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
        toImageButtonOptions: { filename: name, format: "svg" },
      });
    }
  };

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);

  const fromAddress = () => {
    const asked = location.hash.slice(1);
    if (asked !== "dark" && asked !== "light") return false; // a section
    root.dataset.theme = asked;
    return true;
  };

  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    draw();
  });
  wantsDark.addEventListener("change", () => draw());
  window.addEventListener("hashchange", () => {
    if (fromAddress()) draw();
  });

  let narrow = window.innerWidth < NARROW;
  window.addEventListener("resize", () => {
    if (narrow === window.innerWidth < NARROW) return; // plotly follows the width by itself
    narrow = !narrow;
    draw();
  });

  // Paper is white and as wide as paper, whatever the screen was.
  let onScreen;
  window.addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    root.dataset.theme = "light";
    draw(660);
  });
  window.addEventListener("afterprint", () => {
    if (onScreen) root.dataset.theme = onScreen;
    else delete root.dataset.theme;
    draw();
  });

  fromAddress();
  draw();
})();
