// What the viewer works out without a page: numbers unpacked, the loop's rows, colours.

// --- numbers ---------------------------------------------------------------------------------------------------------

export const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// float16 in little-endian bytes, times the scale.
export const valuesOf = ({ data, scale }) => {
  const bytes = bytesOf(data);
  const values = new Float64Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8);
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 31 ? (fraction ? NaN : Infinity)
      : exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    values[i] = (bits & 0x8000 ? -size : size) * scale;
  }
  return values;
};

// Bytes of the lower triangle, row by row: a query and the keys up to it, on the scale of the square root.
export const levelsOf = async (base64) => {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};
export const levelAt = (levels, query, key) => (key > query ? 0 : levels[(query * (query + 1)) / 2 + key]);
// The square root of the attention that a level stands for: steps of 1/96 up to 1/4, smaller ones above.
export const rootOf = (level) => (level <= 24 ? level / 96 : 0.25 + ((level - 24) * 0.75) / 231);
export const shareOf = (level) => rootOf(level) ** 2;

// A square of the largest levels that fall onto each pixel: thin lines stay visible however small it is.
export const pooled = (levels, n, size) => {
  const square = new Uint8Array(size * size);
  const place = Int32Array.from({ length: n }, (_, i) => Math.floor((i * size) / n));
  for (let query = 0, at = 0; query < n; query++) {
    const row = place[query] * size;
    for (let key = 0; key <= query; key++, at++) {
      if (levels[at] > square[row + place[key]]) square[row + place[key]] = levels[at];
    }
  }
  return square;
};

// Where the colours of a head end: what 19 of 20 tokens read at most of another token behind the first, which is often
// a sink. At least 1/20, so that a head that reads everything alike stays pale.
export const topOf = (levels, n) => {
  const most = [];
  for (let query = 2, at = 3; query < n; at += ++query) most.push(Math.max(...levels.subarray(at + 1, at + query)));
  most.sort((a, b) => a - b);
  return Math.max(0.05, most.length ? shareOf(most[Math.ceil(0.95 * most.length) - 1]) : 1);
};

export const written = (value) => {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (!size) return "0";
  if ( (size < 0.001 || size >= 1e5)) return value.toExponential(1).replace("-", "−");
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return value.toFixed(digits).replace("-", "−");
};

// --- the loop --------------------------------------------------------------------------------------------------------

// Rows of a loop: repetitions, each at the same places. Where a repetition is very short, several stand in one row.
export const loopRows = (cycle, columns = 12) => {
  if (!cycle) return [];
  const { start, period, end } = cycle;
  const together = period <= 3 && (end - start) / period > 12 ? Math.max(1, Math.floor(columns / period)) : 1;
  const rows = [];
  for (let first = start, number = 1; first < end; first += period * together, number += together) {
    const last = Math.min(first + period * together, end);
    rows.push({ first, last, number, upTo: number + Math.ceil((last - first) / period) - 1 });
  }
  return rows;
};

// Where a token stands in the loop: its repetition from 1, its place in it from 1; null outside.
export const placeIn = (cycle, token) => {
  if (!cycle || token < cycle.start || token >= cycle.end) return null;
  const offset = token - cycle.start;
  return { repetition: Math.floor(offset / cycle.period) + 1, place: (offset % cycle.period) + 1 };
};

// Which rows are folded away: all but the first three and the last two, where that is worth a fold.
export const foldedRows = (rows) => (rows.length < 8 ? null : { from: 3, to: rows.length - 2 });

// --- colours ---------------------------------------------------------------------------------------------------------

const RAMPS = {
  light: {
    warm: ["#fbf8f4", "#fde3cd", "#fbbd8f", "#f08a4b", "#cf4f17", "#8c2a06"],
    cool: ["#f7f8fa", "#d7e6f4", "#a5cae8", "#5f9fd3", "#2a6cab", "#123f73"],
  },
  dark: {
    warm: ["#1b1e24", "#3b2519", "#6d351a", "#aa4d1c", "#e97c3c", "#ffc79b"],
    cool: ["#1b1e24", "#1b2d43", "#1f476f", "#2c6ca6", "#58a0da", "#b6dbfa"],
  },
};
const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

// The colour of a ramp at a share from 0 to 1.
export const colourAt = (theme, name, share) => {
  const stops = RAMPS[theme][name];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [parts(stops[low]), parts(stops[low + 1])];
  return from.map((part, i) => Math.round(part + (to[i] - part) * (at - low)));
};
const linear = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
export const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
// Black or white, whichever can be read better on a colour.
export const inkOn = (colour) => (luminance(colour) > 0.188 ? "#0b0d10" : "#ffffff");
export const css = (colour) => `rgb(${colour.join(",")})`;

// Ramp and share of a value: below zero cool, above warm; from the low end of the scale where there is nothing below.
export const shadeOf = (value, { low, high }) => {
  if (!Number.isFinite(value)) return null;
  if (low < 0) return { name: value < 0 ? "cool" : "warm", share: Math.abs(value) / high };
  return { name: "warm", share: high > low ? (value - low) / (high - low) : 0 };
};

// --- tokens ----------------------------------------------------------------------------------------------------------

const MARKS = { "\n": "↵", "\r": "␍", "\t": "⇥" };
// A token as one line: what cannot be seen is written out, and letters that turn the order round do nothing.
export const shownToken = (token) =>
  [...token].map((one) => MARKS[one] ?? (/[\p{C}\u2028\u2029]/u.test(one) ? "·" : one)).join("") || "·";
// The same where lines break.
export const linedToken = (token) =>
  token.includes("\n") ? token.split("\n").map((part) => part && shownToken(part)).join("↵\n") : shownToken(token);
