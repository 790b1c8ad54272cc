// What the viewer works out without a page; `node --test` runs it, and so does tests/viewer/test_script.py.
import assert from "node:assert/strict";
import { deflateSync } from "node:zlib";
import test from "node:test";
import * as numbers from "../../mechrep/viewer/numbers.js";

const base64 = (bytes) => Buffer.from(bytes).toString("base64");

test("float16: signs, zeros, the smallest, the largest, NaN and a scale", () => {
  const halves = [0x3c00, 0xc000, 0x0000, 0x8000, 0x0001, 0x03ff, 0x0400, 0x7bff, 0x7e00];
  const bytes = halves.flatMap((half) => [half & 255, half >> 8]);
  const values = numbers.valuesOf({ data: base64(bytes), scale: 2 });
  assert.deepEqual([...values], [2, -4, 0, -0, 2 ** -23, 2 * (1023 / 1024) * 2 ** -14, 2 ** -13, 131008, NaN]);
});

test("a lower triangle comes back, with nothing above the diagonal", async () => {
  const levels = await numbers.levelsOf(base64(deflateSync(Buffer.from([255, 128, 221, 0, 90, 239]))));
  const rows = [0, 1, 2].map((query) => [0, 1, 2].map((key) => numbers.levelAt(levels, query, key)));
  assert.deepEqual(rows, [[255, 0, 0], [128, 221, 0], [0, 90, 239]]);
  assert.deepEqual([0, 24, 255].map(numbers.shareOf), [0, 0.0625, 1]);
});

test("a small map keeps the largest level of what falls onto a pixel, and loses none", () => {
  const n = 37;
  const levels = Uint8Array.from({ length: (n * (n + 1)) / 2 }, (_, i) => (i * 7919) % 256);
  for (const size of [1, 5, 36, 37]) {
    const expected = new Uint8Array(size * size);
    for (let query = 0; query < n; query++) {
      for (let key = 0; key <= query; key++) {
        const at = Math.floor((query * size) / n) * size + Math.floor((key * size) / n);
        expected[at] = Math.max(expected[at], numbers.levelAt(levels, query, key));
      }
    }
    assert.deepEqual(numbers.pooled(levels, n, size), expected);
  }
});

test("the colours of a head end at what tokens read of others, whatever the first token gets", () => {
  const n = 41;
  const levels = new Uint8Array((n * (n + 1)) / 2);
  const at = (query, key) => (query * (query + 1)) / 2 + key;
  for (let query = 0; query < n; query++) levels[at(query, 0)] = levels[at(query, query)] = 255;
  assert.equal(numbers.topOf(levels, n), 0.05);
  for (let query = 2; query < n; query++) levels[at(query, query - 1)] = 72;
  levels[at(40, 3)] = 250; // one token alone
  assert.equal(numbers.topOf(levels, n), numbers.shareOf(72));
  assert.equal(numbers.topOf(levels.subarray(0, 1), 1), 1);
});

test("rows of a loop hold each of its tokens once, the same places under each other", () => {
  for (const [start, period, end] of [[4, 7, 40], [0, 1, 100], [2, 3, 17], [2, 3, 80], [5, 50, 160], [3, 4, 9]]) {
    const rows = numbers.loopRows({ start, period, end });
    const width = rows[0].last - rows[0].first;
    assert.ok(width % period === 0 || rows.length === 1);
    assert.equal(rows[0].first, start);
    assert.equal(rows.at(-1).last, end);
    for (const [i, row] of rows.entries()) {
      assert.equal(row.first, start + i * width);
      assert.equal(row.number, numbers.placeIn({ start, period, end }, row.first).repetition);
      assert.equal(row.upTo, numbers.placeIn({ start, period, end }, row.last - 1).repetition);
      assert.equal(numbers.placeIn({ start, period, end }, row.first).place, 1);
    }
  }
  assert.deepEqual(numbers.loopRows(null), []);
  assert.equal(numbers.placeIn({ start: 4, period: 7, end: 40 }, 40), null);
  assert.equal(numbers.placeIn({ start: 4, period: 7, end: 40 }, 3), null);
});

test("what is folded away lies between rows that stay", () => {
  assert.equal(numbers.foldedRows(Array(7)), null);
  const fold = numbers.foldedRows(Array(20));
  assert.ok(fold.from > 0 && fold.from < fold.to && fold.to < 20);
});

test("colours: the ends of a ramp, one side of zero each, nothing for what has no value", () => {
  const gray = ([r, g, b]) => numbers.luminance([r, g, b]);
  for (const name of ["warm", "cool"]) {
    const light = [0, 0.25, 0.5, 0.75, 1].map((share) => gray(numbers.colourAt("light", name, share)));
    const dark = [0, 0.25, 0.5, 0.75, 1].map((share) => gray(numbers.colourAt("dark", name, share)));
    assert.deepEqual(light, [...light].sort((a, b) => b - a));
    assert.deepEqual(dark, [...dark].sort((a, b) => a - b));
  }
  const signed = { low: -2, high: 2 };
  assert.deepEqual(numbers.shadeOf(-1, signed), { name: "cool", share: 0.5 });
  assert.deepEqual(numbers.shadeOf(2, signed), { name: "warm", share: 1 });
  assert.deepEqual(numbers.shadeOf(7, { low: 4, high: 8 }), { name: "warm", share: 0.75 });
  assert.equal(numbers.shadeOf(NaN, signed), null);
});

test("ink can be read on every colour", () => {
  const contrast = (one, two) => (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
  for (const theme of ["light", "dark"]) {
    for (const name of ["warm", "cool"]) {
      for (let share = 0; share <= 1; share += 0.01) {
        const colour = numbers.colourAt(theme, name, share);
        const ink = [1, 3, 5].map((at) => parseInt(numbers.inkOn(colour).slice(at, at + 2), 16));
        assert.ok(contrast(numbers.luminance(colour), numbers.luminance(ink)) >= 4.3, `${theme} ${name} ${share}`);
      }
    }
  }
});

test("tokens: what cannot be seen is written out, and what turns the order of letters round does nothing", () => {
  assert.equal(numbers.shownToken(" the"), " the");
  assert.equal(numbers.shownToken("\n\t"), "↵⇥");
  assert.equal(numbers.shownToken("a\u202eb\u0000"), "a·b·");
  assert.equal(numbers.shownToken(""), "·");
  assert.equal(numbers.shownToken("海<b>"), "海<b>");
  assert.deepEqual(["\n", "\n\n", "a\n  b", "a", ""].map(numbers.linedToken), ["↵\n", "↵\n↵\n", "a↵\n  b", "a", "·"]);
});

test("numbers in words of a few letters", () => {
  assert.deepEqual([0, 0.5, -1.234, 12.34, 1234.5, 1e-5, NaN].map(numbers.written), ["0", "0.500", "−1.23", "12.3", "1235", "1.0e−5", "–"]);
});
