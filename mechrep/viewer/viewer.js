// A text with its tokens coloured, its loop laid out, and what heads look at. One file for files, notebooks and pages:
// a module that shows every view on the page, and a widget (the default export) where a kernel runs.
// Texts come from models and files: they are set with textContent, never as markup.

import { colourAt, foldedRows, levelAt, levelsOf, linedToken, loopRows, placeIn, pooled, rootOf, shadeOf, shareOf, shownToken, topOf, valuesOf, written } from "./numbers.js";
import { canvasOf, make, pageTheme, quoted, tintOf } from "./page.js";

let views = 0;

// --- one view --------------------------------------------------------------------------------------------------------

class Viewer {
  constructor(root, given, ask = null) {
    Object.assign(this, { root, given, ask, n: given.tokens.length, cycle: given.cycle, name: `mv${++views}` });
    this.rows = loopRows(this.cycle);
    this.values = given.quantities.map((one) => (one.data ? valuesOf(one) : null));
    this.maps = new Map(); // "layer head": levels, once they are unpacked
    this.marked = {}; // class: the tokens that have it
    this.waiting = new Set(); // layers that a kernel has been asked for
    this.active = 0;
    this.hover = this.pin = null;
    this.rest = this.cycle ? Math.min(this.cycle.start + this.cycle.period, this.n - 1) : this.n - 1;
    this.cursor = this.rest;
    this.layout = this.rows.length > 2 ? "loop" : "text";
    this.folded = { text: this.rows.length > 7, loop: this.rows.length > 40 };
    this.choice = given.theme;
    this.chosen = given.quantities.find((one) => one.head !== undefined);
  }

  async start() {
    this.build();
    this.follow();
    this.theme();
    this.lay();
    await Promise.all(this.given.maps.map((one) => this.unpack(one)));
    this.heads();
    this.draw();
  }

  async unpack({ layer, head, data }) {
    const levels = await levelsOf(data);
    levels.top = topOf(levels, this.n);
    this.maps.set(`${layer} ${head}`, levels);
  }

  get quantity() {
    return this.given.quantities[this.active];
  }
  // The token that attention is shown of: pinned, under the pointer, or the first of the second repetition.
  get focus() {
    return this.pin ?? this.hover ?? this.rest;
  }
  levels(one) {
    return one && one.head !== undefined ? this.maps.get(`${one.layer} ${one.head}`) : undefined;
  }
  // The map that is large: that of the quantity, or the one chosen among the heads.
  get head() {
    return this.quantity?.head !== undefined ? this.quantity : this.chosen;
  }

  // --- what stands where

  build() {
    const { given } = this;
    const loop = this.cycle
      ? `loop of ${this.cycle.period} from token ${this.cycle.start}, ` +
        `${Number(((this.cycle.end - this.cycle.start) / this.cycle.period).toFixed(1))} times`
      : "no loop";
    this.title = make("p", { class: "mv-title" });
    this.title.append(make("b", {}, given.model), ` ${this.n} tokens, ${loop}${given.under ? `, under ${given.under}` : ""}`);
    this.layouts = ["loop", "text"].map((name) =>
      make("button", { type: "button", onclick: () => this.show(name) }, name === "loop" ? "Loop" : "Text"));
    this.fold = make("button", { type: "button", class: "mv-fold", onclick: () => this.toggle() });
    this.shade = make("button", { type: "button", class: "mv-theme", onclick: () => this.turn() });
    const tools = make("div", { class: "mv-tools" }, this.fold);
    if (this.rows.length > 1) tools.append(make("span", { class: "mv-switch", role: "group", "aria-label": "Layout" }, ...this.layouts));
    tools.append(this.shade);
    this.legend = make("div", { class: "mv-legend" });
    this.text = make("div", {
      class: "mv-text", role: "listbox", tabindex: "0", "aria-label": `Tokens of ${given.text}. Arrow keys move, Enter pins, Escape lets go.`,
      onkeydown: (event) => this.key(event), onmousemove: (event) => this.over(event), onmouseleave: () => this.point(null),
      onclick: (event) => this.click(event), onfocus: () => this.point(this.pin ?? this.cursor), onblur: () => this.point(null),
    });
    this.readout = make("p", { class: "mv-readout", role: "status", "aria-live": "polite" });
    this.strips = make("div", {
      class: "mv-strips", role: "radiogroup", "aria-label": "What tokens are coloured by",
      onkeydown: (event) => {
        const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        const count = this.given.quantities.length;
        this.choose((Math.max(this.active, 0) + by + count) % count);
        this.strips.children[this.active].firstChild.focus();
        event.preventDefault();
      },
    });
    this.gallery = make("div", { class: "mv-heads" });
    this.root.replaceChildren(make("div", { class: "mv-top" }, this.title, tools), this.legend, this.text, this.readout, this.strips, this.gallery);
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", `Text ${given.text} in ${given.model}`);
    this.tokens = given.tokens.map((_, i) => this.token(i));
    this.given.quantities.forEach((one, i) => this.strip(one, i));
    this.strips.classList.toggle("mv-many", this.given.quantities.length > 5);
  }

  token(i) {
    const span = make("span", { class: "mv-token", role: "option", id: `${this.name}-${i}`, "data-at": i, "aria-selected": "false" });
    const place = placeIn(this.cycle, i);
    if (place?.place === 1) span.dataset.repetition = place.repetition;
    if (place && this.given.ids[i] !== this.given.ids[this.cycle.start + place.place - 1]) span.classList.add("mv-other");
    if (i && i === this.given.prompt) span.classList.add("mv-begin");
    return span;
  }

  strip(one, i) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const value = make("output", { class: "mv-value" });
    const button = make("button", { type: "button", role: "radio", onclick: () => this.choose(i) }, one.name);
    if (one.unit && one.unit !== one.name) button.append(make("small", {}, one.unit));
    const bars = make("span", { class: "mv-bars" }, canvas, make("i"));
    const line = make("div", { class: "mv-strip" }, button, bars, value);
    canvas.addEventListener("mousemove", (event) => this.point(this.tokenIn(canvas, event)));
    canvas.addEventListener("mouseleave", () => this.point(null));
    canvas.addEventListener("click", (event) => this.pinned(this.tokenIn(canvas, event)));
    this.strips.append(line);
  }
  tokenIn(canvas, event) {
    const box = canvas.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    return Math.min(this.n - 1, Math.max(0, Math.floor(across * this.n)));
  }

  // The text: in lines, or repetition under repetition. Tokens are made once and moved.
  lay() {
    const fold = this.folded[this.layout] ? foldedRows(this.rows) : null;
    const hidden = fold ? [this.rows[fold.from].first, this.rows[fold.to].first] : [0, 0];
    this.hidden = (i) => i >= hidden[0] && i < hidden[1];
    const count = fold ? this.rows[fold.to].number - this.rows[fold.from].number : 0;
    this.text.replaceChildren(...(this.layout === "loop" ? this.laidOut(fold, count) : this.inLines(fold, count)));
    this.text.classList.toggle("mv-looped", this.layout === "loop");
    this.layouts.forEach((button, i) => button.setAttribute("aria-pressed", String(this.layout === ["loop", "text"][i])));
    this.fold.hidden = !foldedRows(this.rows);
    this.fold.textContent = this.folded[this.layout] ? "Unfold" : "Fold";
    this.fit();
  }

  // Tokens as running text, which breaks its lines, or as cells, which do not.
  run(first, last, written = linedToken) {
    const pieces = this.tokens.slice(first, last);
    pieces.forEach((piece, i) => { piece.textContent = written(this.given.tokens[first + i]); });
    return pieces;
  }
  chip(count) {
    return make("button", { type: "button", class: "mv-chip", onclick: () => this.toggle() }, `⋯ ${count} more repetitions`);
  }

  inLines(fold, count) {
    if (!fold) return this.run(0, this.n);
    return [...this.run(0, this.rows[fold.from].first), this.chip(count), ...this.run(this.rows[fold.to].first, this.n)];
  }

  laidOut(fold, count) {
    const { start, end, period } = this.cycle;
    const columns = this.rows[0].last - this.rows[0].first;
    const grid = make("div", { class: "mv-grid", role: "presentation" });
    grid.style.setProperty("--columns", columns);
    this.places = Array.from({ length: columns }, (_, j) => {
      const name = make("span", { class: "mv-place", "aria-hidden": "true" });
      name.append(make("i", {}, period > 1 ? String((j % period) + 1) : ""), make("b", {}, shownToken(this.given.tokens[start + j])));
      return name;
    });
    grid.append(make("span", { class: "mv-corner" }), ...this.places, make("span", { class: "mv-mean mv-corner", "aria-hidden": "true" }, "mean"));
    this.means = [];
    this.labels = [];
    this.rows.forEach((row, number) => {
      if (fold && number === fold.from) grid.append(this.chip(count));
      if (fold && number >= fold.from && number < fold.to) return;
      const label = make("span", { class: "mv-row", "aria-hidden": "true" }, row.upTo > row.number ? `${row.number}–${row.upTo}` : String(row.number));
      if (number === 1 && row.number === 2) label.append(make("em", {}, "onset"));
      const bar = make("span", { class: "mv-mean", "aria-hidden": "true" }, make("i"));
      const blanks = Array.from({ length: columns - (row.last - row.first) }, () => make("span", { "aria-hidden": "true" }));
      grid.append(label, ...this.run(row.first, row.last, shownToken), ...blanks, bar);
      this.labels.push({ row, label });
      this.means.push({ row, bar: bar.firstChild });
    });
    const before = make("div", { class: "mv-before", role: "presentation" }, ...this.run(0, start));
    const after = make("div", { class: "mv-before", role: "presentation" }, ...this.run(end, this.n));
    return [...(start ? [before] : []), grid, ...(end < this.n ? [after] : [])];
  }

  // Words where they fit beside each other, else cells with the words above them.
  fit() {
    const grid = this.text.querySelector(".mv-grid");
    if (!grid) return;
    grid.classList.remove("mv-cells", "mv-thin");
    if (grid.scrollWidth > this.text.clientWidth + 1) {
      grid.classList.add("mv-cells");
      const width = (this.text.clientWidth - 130) / this.places.length;
      grid.classList.toggle("mv-thin", width < 11);
    }
  }

  // --- colours

  theme() {
    this.dark = (this.choice === "auto" ? pageTheme(this.root) : this.choice) === "dark";
    this.root.dataset.theme = this.dark ? "dark" : "light";
    const next = { auto: "dark", dark: "light", light: "auto" }[this.choice];
    this.shade.textContent = { auto: "◐", light: "○", dark: "●" }[this.choice];
    this.shade.title = `Colours: ${this.choice}. Press for ${next}.`;
    this.shade.setAttribute("aria-label", this.shade.title);
  }
  turn() {
    this.choice = { auto: "dark", dark: "light", light: "auto" }[this.choice];
    this.theme();
    this.draw();
  }
  tint(name, share) {
    return tintOf(this.dark ? "dark" : "light", name, share);
  }

  // Ramp and share of every token under the active quantity.
  shades() {
    const one = this.quantity ?? this.chosen;
    const levels = this.levels(one);
    if (one?.head === undefined) return Array.from(this.values[this.active] ?? [], (value) => shadeOf(value, one));
    if (!levels) return [];
    return this.tokens.map((_, i) => this.attended(levels, this.focus, i));
  }
  // What a token reads of those before it, and how much those behind read of it.
  attended(levels, token, other) {
    const [name, level] = other <= token ? ["warm", levelAt(levels, token, other)] : ["cool", levelAt(levels, other, token)];
    return { name, share: rootOf(level) / Math.sqrt(levels.top) };
  }

  // Everything, or only what follows the pointer.
  draw(all = true) {
    const shades = this.shades();
    this.tokens.forEach((token, i) => {
      const tint = shades[i] ? this.tint(shades[i].name, shades[i].share) : null;
      if (token.tint === tint) return;
      token.tint = tint;
      token.style.backgroundColor = tint?.fill ?? "";
      token.style.color = tint?.ink ?? "";
    });
    if (all) {
      this.drawMeans();
      this.drawLegend();
    }
    this.drawStrips(all);
    this.drawMaps();
    this.mark();
  }

  drawMeans() {
    const values = this.layout === "loop" ? this.values[this.active] : null;
    this.text.querySelector(".mv-grid")?.classList.toggle("mv-bare", !values);
    if (!values) return;
    const means = this.means.map(({ row }) => {
      const known = values.slice(row.first, row.last).filter(Number.isFinite);
      return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
    });
    const most = Math.max(...means.map((mean) => Math.abs(mean) || 0)) || 1;
    this.means.forEach(({ bar }, i) => {
      bar.style.width = `${(100 * (Math.abs(means[i]) || 0)) / most}%`;
      bar.style.backgroundColor = this.tint(means[i] < 0 ? "cool" : "warm", 0.62).fill;
      bar.parentElement.title = `mean ${written(means[i])}`;
    });
  }

  scale(name, from, to, title) {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const context = canvasOf(canvas, 120, 9);
    for (let x = 0; x < 120; x++) {
      const share = x / 119;
      const shade = name === "both" ? { name: share < 0.5 ? "cool" : "warm", share: Math.abs(2 * share - 1) } : { name, share };
      context.fillStyle = this.tint(shade.name, shade.share).fill;
      context.fillRect(x, 0, 2, 9);
    }
    return make("span", { class: "mv-scale" }, make("b", {}, title), make("span", {}, from), canvas, make("span", {}, to));
  }

  drawLegend() {
    const one = this.quantity ?? this.chosen;
    if (!one) return this.legend.replaceChildren();
    if (one.head !== undefined) {
      const most = `≥ ${written(this.levels(one)?.top ?? 1)}`;
      return this.legend.replaceChildren(
        this.scale("warm", "0", most, `L${one.layer}H${one.head}: the token reads`), this.scale("cool", "0", most, "and is read by"));
    }
    const unit = one.unit && one.unit !== one.name ? ` (${one.unit})` : "";
    const scale = one.low < 0
      ? this.scale("both", written(one.low), written(one.high), one.name + unit)
      : this.scale("warm", written(one.low), written(one.high), one.name + unit);
    if (one.beyond !== null) scale.append(make("small", {}, `first token ${written(one.beyond)}`));
    this.legend.replaceChildren(scale);
  }

  // All strips, or only those of heads, which follow the pointer.
  drawStrips(all = true) {
    [...this.strips.children].forEach((line, i) => {
      if (!all && this.values[i]) return;
      line.classList.toggle("mv-on", i === this.active);
      line.firstChild.setAttribute("aria-checked", String(i === this.active));
      line.firstChild.tabIndex = i === Math.max(this.active, 0) ? 0 : -1;
      this.drawStrip(line.querySelector("canvas"), this.given.quantities[i], this.values[i]);
    });
  }

  drawStrip(canvas, one, values) {
    const [width, height] = [canvas.clientWidth || 400, canvas.clientHeight || 34];
    const context = canvasOf(canvas, width, height);
    const at = (i) => (i / this.n) * width;
    const wide = Math.max(1, width / this.n - (width / this.n > 4 ? 1 : 0));
    if (this.cycle) {
      context.fillStyle = this.dark ? "rgba(255,255,255,.05)" : "rgba(60,40,20,.045)";
      this.rows.forEach((row, number) => number % 2 || context.fillRect(at(row.first), 0, at(row.last) - at(row.first), height));
    }
    const levels = this.levels(one);
    const signed = one.low < 0;
    const known = signed ? values.filter(Number.isFinite) : [];
    const below = signed ? Math.min(1, -Math.min(0, ...known) / one.high) : 0; // how far bars go down and up, in shares
    const above = signed ? Math.min(1, Math.max(0, ...known) / one.high) : 1;
    const zero = 1 + ((height - 2) * above) / (above + below);
    for (let i = 0; i < this.n; i++) {
      const shade = values ? shadeOf(values[i], one) : levels ? this.attended(levels, this.focus, i) : null;
      if (!shade) continue;
      const share = Math.min(shade.share, 1);
      const tall = Math.max(1, (share * (height - 2)) / (above + below));
      context.fillStyle = this.tint(shade.name, 0.35 + 0.65 * share).fill;
      context.fillRect(at(i), signed && values[i] < 0 ? zero : zero - tall, wide, tall);
    }
  }

  // --- heads

  // The heads of the chosen layer, small; all of them where they are few.
  heads() {
    const { maps, layers } = this.given;
    if (!layers.length) return;
    this.many = maps.length > 16 || this.ask !== null;
    this.layer ??= this.head?.layer ?? maps[0]?.layer ?? layers[0];
    if (!maps.some((one) => one.layer === this.layer)) this.request(this.layer);
    const shown = maps.filter((one) => !this.many || one.layer === this.layer);
    this.chosen = shown.find((one) => one.layer === this.chosen?.layer && one.head === this.chosen?.head) ?? shown[0];
    this.thumbs = shown.map((one) => {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const button = make("button", { type: "button", class: "mv-thumb", onclick: () => this.chooseHead(one) }, canvas, `L${one.layer}H${one.head}`);
      return { one, canvas, button };
    });
    this.large = make("canvas", { class: "mv-large", role: "img", "aria-label": "Attention map: queries downwards, keys across" });
    this.cross = make("canvas", { class: "mv-cross", "aria-hidden": "true" });
    this.cross.addEventListener("mousemove", (event) => this.cell(event));
    this.cross.addEventListener("mouseleave", () => { this.pair = null; this.point(null); });
    this.cross.addEventListener("click", (event) => this.pinned(this.cellAt(event)[0]));
    const grid = make("div", { class: "mv-thumbs", role: "group", "aria-label": "Heads" }, ...this.thumbs.map((one) => one.button));
    const caption = make("p", { class: "mv-caption" });
    this.caption = caption;
    const map = make("div", { class: "mv-square" }, this.large, caption, this.cross);
    this.gallery.replaceChildren(...(this.many && layers.length > 1 ? [this.slider()] : []), make("div", { class: "mv-both" }, map, ...(shown.length > 1 || this.ask ? [grid] : [])));
  }

  slider() {
    const { layers } = this.given;
    const value = make("output", {}, `layer ${this.layer}${this.waiting.has(this.layer) ? ", reading …" : ""}`);
    const range = make("input", { type: "range", min: 0, max: layers.length - 1, step: 1, value: layers.indexOf(this.layer), "aria-label": "Layer" });
    range.setAttribute("aria-valuetext", `layer ${this.layer}`);
    range.addEventListener("input", () => this.toLayer(layers[range.value], value, range));
    return make("label", { class: "mv-slider" }, range, value);
  }

  toLayer(layer, value, range) {
    value.textContent = `layer ${layer}`;
    range.setAttribute("aria-valuetext", `layer ${layer}`);
    this.layer = layer;
    if (!this.given.maps.some((one) => one.layer === layer)) {
      this.request(layer);
      value.textContent = `layer ${layer}, reading …`;
      return;
    }
    const at = range.matches(":focus");
    this.active = this.quantity?.head === undefined ? this.active : -1;
    this.heads();
    this.draw();
    if (at) this.gallery.querySelector("input")?.focus();
  }

  request(layer) {
    if (!this.waiting.has(layer)) this.ask?.(layer);
    this.waiting.add(layer);
  }
  // Maps of a layer that a kernel was asked for.
  async receive({ layer, maps, error }) {
    this.waiting.delete(layer);
    if (error) {
      const told = this.gallery.querySelector(".mv-slider output");
      if (told && layer === this.layer) told.textContent = `layer ${layer} could not be read`;
      return void (this.readout.textContent = error);
    }
    await Promise.all(maps.map((one) => this.unpack(one)));
    const known = new Set(this.given.maps.map((one) => `${one.layer} ${one.head}`));
    this.given.maps.push(...maps.filter((one) => !known.has(`${one.layer} ${one.head}`)));
    if (layer !== this.layer) return;
    const at = this.gallery.querySelector("input")?.matches(":focus");
    this.heads();
    this.draw();
    if (at) this.gallery.querySelector("input")?.focus();
  }

  chooseHead(one) {
    this.chosen = one;
    const index = this.given.quantities.findIndex((other) => other.layer === one.layer && other.head === one.head);
    this.active = index; // -1: no strip of its own, but the text shows it
    this.draw();
  }

  drawMaps() {
    if (!this.thumbs?.length) return;
    const large = this.head ?? this.chosen;
    for (const { one, canvas, button } of this.thumbs) {
      const on = one.layer === large.layer && one.head === large.head;
      button.setAttribute("aria-pressed", String(on));
      this.paint(canvas, this.levels(one), Math.min(this.n, 84 * (globalThis.devicePixelRatio || 1)));
    }
    const width = this.cross.clientWidth || 420;
    this.paint(this.large, this.levels(large), Math.min(this.n, Math.round(width * (globalThis.devicePixelRatio || 1))));
    this.drawCross();
  }

  paint(canvas, levels, size) {
    if (!levels) return;
    size = Math.round(size);
    const key = `${size} ${this.dark}`;
    if (canvas.of === levels && canvas.key === key) return;
    [canvas.of, canvas.key, canvas.width, canvas.height] = [levels, key, size, size];
    const square = pooled(levels, this.n, size);
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    const colours = Array.from({ length: 256 }, (_, level) => colourAt(this.dark ? "dark" : "light", "warm", rootOf(level) / Math.sqrt(levels.top)));
    for (let y = 0; y < size; y++) {
      for (let x = 0; x <= y; x++) image.data.set([...colours[square[y * size + x]], 255], 4 * (y * size + x));
    }
    context.putImageData(image, 0, 0);
  }

  drawCross() {
    const large = this.head ?? this.chosen;
    const width = this.cross.clientWidth || 420;
    const context = canvasOf(this.cross, width, width);
    const step = width / this.n;
    const line = (color, x, y, wide, high) => { context.fillStyle = color; context.fillRect(x, y, wide, high); };
    if (this.cycle && this.rows.length < 60) {
      const soft = this.dark ? "rgba(255,255,255,.13)" : "rgba(40,46,56,.13)";
      for (const { first } of this.rows) {
        line(soft, 0, first * step, first * step, 1);
        line(soft, first * step, first * step, 1, width - first * step);
      }
    }
    const [query, key] = this.pair ?? [this.pin ?? this.hover, this.pin ?? this.hover];
    const name = `L${large.layer}H${large.head}`;
    if (query === null) return void this.caption.replaceChildren(make("b", {}, name), make("br"), "queries downwards, keys across");
    const ink = this.dark ? "rgba(230,232,235,.75)" : "rgba(29,33,39,.6)";
    line(ink, 0, (query + 0.5) * step, (query + 0.5) * step, 1);
    line(ink, (key + 0.5) * step, (key + 0.5) * step, 1, width - (key + 0.5) * step);
    const levels = this.levels(large);
    if (!levels) return;
    const said = this.pair
      ? `${quoted(this.given.tokens[query])} (${query}) reads ${quoted(this.given.tokens[key])} (${key}): ${written(shareOf(levelAt(levels, query, key)))}`
      : `${quoted(this.given.tokens[query])} (${query}) ${this.reads(levels, query)}`;
    this.caption.replaceChildren(make("b", {}, name), make("br"), said);
  }

  // In words: what a token reads most, and by whom it is read most.
  reads(levels, token) {
    let [best, reader] = [0, token];
    for (let i = 1; i <= token; i++) if (levelAt(levels, token, i) > levelAt(levels, token, best)) best = i;
    for (let i = token + 1; i < this.n; i++) if (reader === token || levelAt(levels, i, token) > levelAt(levels, reader, token)) reader = i;
    const said = `reads ${quoted(this.given.tokens[best])} (${best}) most, ${written(shareOf(levelAt(levels, token, best)))}`;
    return reader === token ? said
      : `${said}; is read most by ${quoted(this.given.tokens[reader])} (${reader}), ${written(shareOf(levelAt(levels, reader, token)))}`;
  }

  cellAt(event) {
    const box = this.cross.getBoundingClientRect();
    const at = (where) => Math.min(this.n - 1, Math.max(0, Math.floor((where / box.width) * this.n)));
    return [at(event.clientY - box.top), at(event.clientX - box.left)];
  }
  cell(event) {
    const [query, key] = this.cellAt(event);
    this.pair = key <= query ? [query, key] : null;
    this.point(this.pair ? query : null);
  }

  // --- pointing, pinning, keys

  over(event) {
    const at = event.target.closest?.(".mv-token")?.dataset.at;
    this.point(at === undefined ? null : Number(at));
  }
  click(event) {
    const at = event.target.closest?.(".mv-token")?.dataset.at;
    if (at !== undefined) this.pinned(Number(at));
  }

  point(token) {
    if (token === this.hover && !this.pair) return;
    this.hover = token;
    if (token !== null) this.cursor = token;
    if (this.due) return;
    this.due = requestAnimationFrame(() => { this.due = null; this.refresh(); });
  }
  pinned(token) {
    this.pin = this.pin === token ? null : token;
    if (token !== null) this.cursor = token;
    this.refresh();
  }
  // What depends on the token that is pointed at.
  refresh() {
    if ((this.quantity ?? this.chosen)?.head !== undefined) return this.draw(false);
    this.drawStrips(false);
    if (this.thumbs?.length) this.drawCross();
    return this.mark();
  }

  // A class for some tokens and for no others.
  set(name, tokens) {
    for (const i of this.marked[name] ?? []) this.tokens[i].classList.remove(name);
    for (const i of tokens) this.tokens[i].classList.add(name);
    this.marked[name] = tokens;
  }

  mark() {
    const here = this.hover ?? this.pin;
    const attended = (this.quantity ?? this.chosen)?.head !== undefined;
    const place = placeIn(this.cycle, here ?? -1);
    const { start, period, end } = this.cycle ?? {};
    const same = [];
    if (place && period > 3) for (let i = start + place.place - 1; i < end; i += period) if (i !== here) same.push(i);
    this.set("mv-same", same);
    this.set("mv-here", here === null ? [] : [here]);
    this.set("mv-focus", attended ? [this.focus] : []);
    this.set("mv-key", this.pair ? [this.pair[1]] : []);
    for (const i of this.marked["mv-pin"] ?? []) this.tokens[i].setAttribute("aria-selected", "false");
    this.set("mv-pin", this.pin === null ? [] : [this.pin]);
    if (this.pin !== null) this.tokens[this.pin].setAttribute("aria-selected", "true");
    this.text.setAttribute("aria-activedescendant", `${this.name}-${here ?? this.cursor}`);
    const column = place ? (here - this.cycle.start) % (this.places?.length || this.cycle.period) : -1;
    this.places?.forEach((name, j) => name.classList.toggle("mv-on", j === column));
    this.labels?.forEach(({ row, label }) => label.classList.toggle("mv-on", here !== null && here >= row.first && here < row.last));
    this.say(here, place);
    [...this.strips.children].forEach((line, i) => {
      const value = this.values[i];
      line.lastChild.textContent = value && here !== null ? written(value[here]) : "";
      const pointer = line.querySelector("i");
      pointer.hidden = here === null;
      pointer.style.left = `${(100 * ((here ?? 0) + 0.5)) / this.n}%`;
    });
  }

  say(here, place) {
    if (here === null) {
      this.readout.textContent = "Point at a token; click or Enter pins it, arrows move.";
      return;
    }
    const where = place ? `, repetition ${place.repetition}, place ${place.place} of ${this.cycle.period}` : here < this.given.prompt ? ", prompt" : "";
    const numbers = this.given.quantities.flatMap((one, i) =>
      this.values[i] ? [`${one.name} ${written(this.values[i][here])}${one.unit === "nats" ? " nats" : ""}`] : []);
    const levels = this.levels(this.head);
    if (levels && this.head) numbers.push(`L${this.head.layer}H${this.head.head} ${this.reads(levels, here)}`);
    const token = make("b", {}, quoted(this.given.tokens[here]));
    this.readout.replaceChildren(token, ` token ${here} of ${this.n}${where}${numbers.length ? ` · ${numbers.join(" · ")}` : ""}`);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.hover ?? this.cursor;
    const moves = { ArrowLeft: () => this.step(at, -1), ArrowRight: () => this.step(at, 1), ArrowUp: () => this.line(at, -1),
      ArrowDown: () => this.line(at, 1), Home: () => 0, End: () => this.n - 1 };
    if (moves[event.key]) {
      this.point(moves[event.key]());
      this.tokens[this.cursor].scrollIntoView?.({ block: "nearest", inline: "nearest" });
    } else if (event.key === "Enter" || event.key === " ") this.pinned(at);
    else if (event.key === "Escape" && this.pin !== null) this.pinned(this.pin);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
  step(at, by) {
    let to = at + by;
    while (to > 0 && to < this.n - 1 && this.hidden(to)) to += by;
    return to < 0 || to >= this.n || this.hidden(to) ? at : to;
  }
  // The same place of the next repetition, or the nearest token of the next line.
  line(at, by) {
    if (this.layout === "loop" && placeIn(this.cycle, at)) {
      const width = this.rows[0].last - this.rows[0].first;
      let to = at + by * width;
      while (placeIn(this.cycle, to) && this.hidden(to)) to += by * width;
      return placeIn(this.cycle, to) ? to : this.step(by < 0 ? this.cycle.start : this.cycle.end - 1, by);
    }
    const from = this.tokens[at].getBoundingClientRect();
    let [best, least, top] = [at, Infinity, null];
    for (let i = at + by; i >= 0 && i < this.n; i += by) {
      const box = this.tokens[i].getBoundingClientRect();
      if (this.hidden(i) || (box.top - from.top) * by < from.height / 2) continue;
      top ??= box.top;
      if (Math.abs(box.top - top) > from.height / 2) break;
      if (Math.abs(box.left - from.left) < least) [best, least] = [i, Math.abs(box.left - from.left)];
    }
    return best;
  }

  choose(i) {
    this.active = i;
    if (this.quantity.head !== undefined) {
      this.chosen = this.given.maps.find((one) => one.layer === this.quantity.layer && one.head === this.quantity.head);
      if (this.many && this.layer !== this.chosen.layer) {
        this.layer = this.chosen.layer;
        this.heads();
      }
    }
    this.draw();
  }
  show(name) {
    this.layout = name;
    this.lay();
    this.draw();
  }
  toggle() {
    this.folded[this.layout] = !this.folded[this.layout];
    this.lay();
    this.draw();
  }

  // Sizes and colours of the page around may change.
  follow() {
    let width = 0;
    const sizes = new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      this.fit();
      this.draw();
    });
    sizes.observe(this.root);
    const again = () => {
      const before = this.dark;
      this.theme();
      if (this.dark !== before) this.draw();
    };
    const query = matchMedia("(prefers-color-scheme: dark)");
    query.addEventListener("change", again);
    const page = new MutationObserver(again);
    for (const one of [document.documentElement, document.body]) {
      page.observe(one, { attributes: true, attributeFilter: ["class", "data-theme", "data-jp-theme-light", "style"] });
    }
    this.stop = () => { sizes.disconnect(); page.disconnect(); query.removeEventListener("change", again); };
  }
}

// --- where it is shown -----------------------------------------------------------------------------------------------

export const showAll = (within) => {
  for (const root of within.querySelectorAll(".mechrep-view:not([data-shown])")) {
    const data = root.querySelector('script[type="application/json"]');
    if (!data) continue;
    root.dataset.shown = "true";
    new Viewer(root, JSON.parse(data.textContent)).start();
  }
};

const render = ({ model, el }) => {
  const root = make("div", { class: "mechrep-view", "data-shown": "true" });
  el.append(root);
  const viewer = new Viewer(root, structuredClone(model.get("payload")), (layer) => model.send({ layer }));
  const receive = (message) => viewer.receive(message);
  model.on("msg:custom", receive);
  viewer.start();
  return () => { model.off("msg:custom", receive); viewer.stop(); };
};
export default { render };

if (globalThis.document) showAll(document);
