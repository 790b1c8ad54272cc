// Small things for the page: elements, canvases, the theme of what is around, the tint of a token.

import { colourAt, css, inkOn, luminance, shownToken } from "./numbers.js";

export const make = (kind, given = {}, ...children) => {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(given)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  // JupyterLab takes no keys from an element with this mark; its shortcuts look at whatever has the focus.
  if (kind === "button" || kind === "input" || "tabindex" in given) element.setAttribute("data-lm-suppress-shortcuts", "true");
  element.append(...children);
  return element;
};

export const quoted = (token) => `“${shownToken(token).replaceAll(" ", "␣")}”`;

export const canvasOf = (canvas, width, height) => {
  const ratio = globalThis.devicePixelRatio || 1;
  [canvas.width, canvas.height] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
};

// Light or dark, as the page around an element really is: its background decides, whatever notebook or site it is.
export const pageTheme = (element) => {
  for (let one = element.parentElement; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor.match(/[\d.]+/g)?.map(Number);
    if (colour && (colour[3] ?? 1) > 0.5) return luminance(colour) > 0.35 ? "light" : "dark";
  }
  const scheme = getComputedStyle(document.documentElement).colorScheme;
  if (/dark/.test(scheme) && !/light/.test(scheme)) return "dark";
  return matchMedia("(prefers-color-scheme: dark)").matches && /dark/.test(scheme) ? "dark" : "light";
};

// Background and ink of a share on a ramp, as CSS; a hundred steps are all that can be seen.
const tints = new Map();
export const tintOf = (theme, name, share) => {
  const step = Math.round(100 * Math.min(Math.max(share, 0), 1));
  const key = `${theme} ${name} ${step}`;
  if (!tints.has(key)) {
    const colour = colourAt(theme, name, step / 100);
    tints.set(key, { fill: css(colour), ink: inkOn(colour) });
  }
  return tints.get(key);
};
