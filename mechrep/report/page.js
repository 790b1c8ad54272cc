"use strict";
// Makes figures live when they come into view, in the page's own colours; sorts, unfolds and saves tables.
// Without it the page shows still pictures and all rows.
(() => {
  const colours = JSON.parse(document.getElementById("colours").textContent);
  const boxes = [...document.querySelectorAll(".plot")];
  const drawn = new Map(); // box: its figure, once it has been in view
  const root = document.documentElement;
  const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
  const NARROW = 560; // pixels of a figure below which labels are wrapped and margins shrink
  const LETTER = 7.2; // pixels of one letter of an axis title, on average

  // --- figures ---------------------------------------------------------------------------------------------------

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
    layout.margin = { ...layout.margin, l: 48, r: 6 };
    layout.font = { ...layout.font, size: 12 };
    for (const [name, axis] of Object.entries(layout)) {
      if (/^[xy]axis/.test(name) && axis?.title?.text) {
        axis.title.text = wrapped(axis.title.text, Math.floor((width - 60) / LETTER));
      }
    }
    return layout;
  };

  // The library that draws lies packed in the page, so that nothing waits for it; it is unpacked for the first figure.
  let library;
  const unpacked = async () => {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  const draw = async (box, map) => {
    await (library ??= unpacked());
    if (!drawn.has(box)) {
      drawn.set(box, JSON.parse(document.getElementById(`data-${box.dataset.figure}`).textContent));
      box.still = box.querySelector("svg.still");
      box.live = document.createElement("div");
      box.append(box.live);
    }
    const figure = drawn.get(box);
    const layout = fitted(recoloured(figure.layout, map), box.clientWidth);
    await Plotly.react(box.live, recoloured(figure.data, map), layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: box.clientWidth < NARROW ? false : "hover",
      modeBarButtons: [["zoom2d", "resetScale2d", "toImage"]],
      toImageButtonOptions: { filename: box.dataset.figure, format: "svg" },
    });
    box.classList.add("drawn"); // now the still picture goes
  };
  const redraw = () => [...drawn.keys()].forEach((box) => draw(box, palette()));

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        watcher.unobserve(entry.target);
        draw(entry.target, palette());
      }
    },
    { rootMargin: "150px" },
  );

  // --- light and dark ----------------------------------------------------------------------------------------------

  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  const fromAddress = () => {
    const asked = location.hash.slice(1);
    if (asked !== "dark" && asked !== "light") return false; // a section
    root.dataset.theme = asked;
    return true;
  };
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  wantsDark.addEventListener("change", redraw);
  // What a link leads to may be folded away.
  const reveal = () => {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    for (let one = place.closest("details"); one; one = one.parentElement.closest("details")) one.open = true;
    const inside = place.querySelector(":scope > details"); // a section that is folded to one line
    if (inside) inside.open = true;
    const rows = place.closest(".short");
    if (rows) rows.classList.remove("short");
    place.scrollIntoView({ block: place.closest("tr") ? "center" : "start" });
  };
  window.addEventListener("hashchange", () => {
    if (fromAddress()) redraw();
    reveal();
  });

  let narrow = window.innerWidth < NARROW;
  window.addEventListener("resize", () => {
    if (narrow === window.innerWidth < NARROW) return; // plotly follows the width by itself
    narrow = !narrow;
    redraw();
  });

  // On paper: light, still pictures, and everything unfolded but the glossary and raw settings.
  let onScreen, folded;
  window.addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("section:not(#glossary, #provenance) details:not([open])")];
    folded.forEach((one) => (one.open = true));
  });
  window.addEventListener("afterprint", () => {
    if (onScreen) root.dataset.theme = onScreen;
    else delete root.dataset.theme;
    folded.forEach((one) => (one.open = false));
  });

  // --- tables ------------------------------------------------------------------------------------------------------

  const shown = (cell) => cell.textContent.trim();
  const size = (text) => {
    const match = text.replace(/,/g, "").replace(/−/g, "-").match(/^(< )?([+-]?[\d.]+(e[+-]?\d+)?)/i);
    if (match) return match[1] ? Number(match[2]) / 2 : Number(match[2]); // "< 0.001" before 0.001
    return text.startsWith("∞") ? Infinity : NaN;
  };
  // Numbers by size, words by the alphabet, what is unknown last.
  const compare = (a, b, sign) => {
    const [x, y] = [size(a), size(b)];
    if (!Number.isNaN(x) && !Number.isNaN(y)) return sign * (x - y);
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return sign * a.localeCompare(b);
  };
  const sort = (head) => {
    const table = head.closest("table");
    const column = [...head.parentElement.children].indexOf(head);
    // The first click shows large numbers first (of p and q small ones), and words from A.
    const number = head.classList.contains("number") && !["p", "q"].includes(shown(head));
    const now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : number;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => compare(shown(a.cells[column]), shown(b.cells[column]), down ? -1 : 1));
    table.tBodies[0].append(...rows);
  };
  for (const button of document.querySelectorAll(".sortable thead button")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // a page from disk may not write to the clipboard: select it
        button.textContent = "Selected";
      }
    });
  }
  const tableOf = (button) => document.querySelector(`#${CSS.escape(button.dataset.table)} table`);
  for (const button of document.querySelectorAll("button.all")) {
    button.addEventListener("click", () => {
      tableOf(button).classList.remove("short");
      button.remove();
    });
  }
  // What begins like a formula is text, and stays text in a spreadsheet.
  const plain = (text) => (/^[=+@\t\r-]/.test(text) ? `'${text}` : text);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${plain(text).replace(/"/g, '""')}"` : plain(text));
  for (const button of document.querySelectorAll("button.csv")) {
    button.addEventListener("click", () => {
      const cell = (one) => {
        const text = shown(one);
        if (text === "–") return "";
        return /^−?[\d,.]+(e[−+]?\d+)?$/.test(text) ? text.replace(/,/g, "").replace(/−/g, "-") : quoted(text);
      };
      const lines = [...tableOf(button).rows].map((row) => [...row.cells].map(cell).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
      link.download = `${button.dataset.table}.csv`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  boxes.forEach((box) => watcher.observe(box));
  window.addEventListener("load", reveal); // texts have taken their place above it
  if (!fromAddress()) reveal(); // last: an address may be malformed
})();
