"use strict";
// False declines against overspend: one chart and one table for every outage.

const LEFT = 44;
const BOTTOM = 34;
const outages = [];
for (const cell of data.cells) {
  const last = outages.at(-1);
  if (last?.kind === cell.kind && last.hours === cell.outage_h) last.cells.push(cell);
  else outages.push({ kind: cell.kind, hours: cell.outage_h, cells: [cell] });
}

const declines = (cell) => cell.false_declines + cell.unreachable;
const perMille = (part, of) => (part * 1000) / Math.max(1, of);
const mean = (cell, fen) => fen / Math.max(1, cell.seeds);
const basisPoints = (cell) => (cell.overspend_fen * 10000) / Math.max(1, cell.approved_fen);
const f = (cell) => (cell.f === null ? "–" : digits(cell.f, 3));
const isReference = (cell) => ["strict-reference", "optimistic", "sketch"].includes(cell.mode);
/// Settings are figures with a word before them.
const setting = (cell) => cell.setting.replace(/^[a-z]+/, (name) => named("setting", name));
const name = (cell) => `${named("policy", cell.mode)}${cell.setting ? ` ${setting(cell)}` : cell.default ? ` (${word("default")})` : ""}`;
const heading = (outage) => `${named("kind", outage.kind)}, ${outage.hours} h`;

function mark(cell) {
  if (cell.default) return { r: 7, fill: "var(--s0)", stroke: "var(--surface)" };
  if (isReference(cell)) return { r: 5, fill: "var(--surface)", stroke: "var(--ink-2)" };
  if (cell.mode === "strict") return { r: 5, fill: "var(--ink-2)", stroke: "var(--surface)" };
  return { r: 4, fill: cell.setting.startsWith("pool") ? "var(--s7)" : "var(--s1)", stroke: "var(--surface)" };
}

/// Where a label of such a size fits beside a point without lying on another one; nothing where it does not.
function placed(x, y, text, taken, width, height) {
  const wide = [...text].reduce((sum, one) => sum + (one.charCodeAt(0) > 255 ? 12 : 6.4), 0);
  for (const [dx, dy, anchor] of [[10, 4, 0], [-10, 4, 1], [0, -11, 0.5], [0, 20, 0.5], [10, -8, 0], [10, 16, 0], [-10, -8, 1], [-10, 16, 1]]) {
    const left = x + dx - wide * anchor;
    const box = [left, y + dy - 11, left + wide, y + dy + 3];
    const free = taken.every((other) => box[2] < other[0] || other[2] < box[0] || box[3] < other[1] || other[3] < box[1]);
    if (free && box[0] > LEFT && box[2] < width && box[1] > 0 && box[3] < height) {
      taken.push(box);
      return { left, top: y + dy };
    }
  }
  return undefined;
}

/// Both axes are stretched towards zero (by the square root), where the choice lies.
function curve(outage) {
  const cells = outage.cells.map((cell) => ({ cell, x: mean(cell, cell.overspend_fen) / 100, y: perMille(declines(cell), cell.taps) }));
  return chart(`${word("frontier")}: ${heading(outage)}`, (width) => {
    const height = 260;
    const [xs, ys] = ["x", "y"].map((axis) => {
      const top = Math.max(...cells.map((one) => one[axis]), 1);
      const round = [...ticks(top, 3), top / 10, top / 40].map((value) => Number(value.toPrecision(1)));
      return [...new Set(round)].filter((value) => value <= top * 1.1).sort((a, b) => a - b);
    });
    const [right, above] = [Math.max(...cells.map((one) => one.x), xs.at(-1)), Math.max(...cells.map((one) => one.y), ys.at(-1))];
    const x = (value) => LEFT + Math.sqrt(value / right) * (width - LEFT - 16);
    const y = (value) => height - Math.sqrt(value / above) * (height - 14);
    let [lastX, lastY] = [-99, 999];
    const grid = [
      ...xs.map((value) => {
        if (x(value) - lastX < 34) return "";
        lastX = x(value);
        return `<line x1="${x(value)}" x2="${x(value)}" y1="0" y2="${height}" stroke="var(--grid)"/><text x="${x(value)}" y="${height + 14}" text-anchor="middle">¥${value}</text>`;
      }),
      ...ys.map((value) => {
        if (lastY - y(value) < 16) return "";
        lastY = y(value);
        return `<line x1="${LEFT}" x2="${width}" y1="${y(value)}" y2="${y(value)}" stroke="var(--grid)"/><text x="${LEFT - 6}" y="${y(value) + 4}" text-anchor="end">${value}</text>`;
      }),
      `<text class="name" x="${LEFT}" y="${height + 29}">${esc(word("axis.x"))} →</text>`,
    ].join("");
    const prices = cells.filter(({ cell }) => cell.default || cell.setting.startsWith("price")).sort((a, b) => a.x - b.x);
    const along = `<polyline points="${prices.map((one) => `${x(one.x)},${y(one.y)}`).join(" ")}" fill="none" stroke="var(--s1)" stroke-width="2"/>`;
    const taken = cells.map((one) => [x(one.x) - 6, y(one.y) - 6, x(one.x) + 6, y(one.y) + 6]);
    const rank = ({ cell }) => (cell.default ? 0 : cell.setting ? 2 : 1);
    const points = [...cells].sort((a, b) => rank(b) - rank(a)).map((one) => {
      const { r, fill, stroke } = mark(one.cell);
      return `<circle cx="${x(one.x)}" cy="${y(one.y)}" r="${r}" fill="${fill}" stroke="${stroke}" stroke-width="2"/>`;
    });
    const labels = [...cells].sort((a, b) => rank(a) - rank(b)).map((one) => {
      const text = one.cell.setting ? setting(one.cell) : named("policy", one.cell.mode);
      const at = placed(x(one.x), y(one.y), text, taken, width, height);
      return at ? `<text class="${one.cell.default ? "own" : "name"}" x="${at.left}" y="${at.top}">${esc(text)}</text>` : "";
    });
    return {
      svg: grid + along + points.join("") + labels.join(""),
      height: height + BOTTOM,
      at: (px, py) => {
        const away = (one) => (x(one.x) - px) ** 2 + (y(one.y) - py) ** 2;
        const { cell } = cells.reduce((a, b) => (away(b) < away(a) ? b : a));
        return {
          html: tipRows(name(cell), [
            [word("declined.rate"), `${digits(perMille(cell.false_declines, cell.taps), 2)} ‰`],
            [word("topped_up"), `${digits(perMille(cell.unreachable, cell.taps), 2)} ‰`],
            [word("over"), yuan(mean(cell, cell.overspend_fen))], [word("bound"), yuan(mean(cell, cell.bound_fen))], ["F", f(cell)],
          ]),
        };
      },
    };
  });
}

function figures(outage) {
  const heads = [[word("policy")], word("declined.rate"), word("topped_up"), word("cut"), word("pin"), word("over.bp"), word("over"), word("stand_in"), word("bound"), "F"];
  const rows = outage.cells.map((cell) => [
    [name(cell)],
    digits(perMille(cell.false_declines, cell.taps), 2),
    digits(perMille(cell.unreachable, cell.taps), 2),
    digits(perMille(cell.cut_false_declines, cell.cut_taps), 2),
    digits(perMille(cell.pins_asked, cell.taps), 1),
    digits(basisPoints(cell), 2),
    yuan(mean(cell, cell.overspend_fen)),
    yuan(mean(cell, cell.stand_in_fen)),
    yuan(mean(cell, cell.bound_fen)),
    f(cell),
  ]);
  return table(heads, rows, (index) => outage.cells[index].default);
}

/// What could have been overspent, what was approved beyond rights, and what was overspent, of the default.
function exposure() {
  const own = outages.flatMap((outage) => outage.cells.filter((cell) => cell.default).map((cell) => [outage, cell]));
  const heads = [[word("outage")], word("bound"), word("stand_in"), word("over"), word("declined.rate"), word("topped_up"), "F"];
  const rows = own.map(([outage, cell]) => [
    [heading(outage)],
    yuan(mean(cell, cell.bound_fen)),
    yuan(mean(cell, cell.stand_in_fen)),
    yuan(mean(cell, cell.overspend_fen)),
    digits(perMille(cell.false_declines, cell.taps), 2),
    digits(perMille(cell.unreachable, cell.taps), 2),
    f(cell),
  ]);
  return section("exposure", table(heads, rows), word("exposure.note"));
}

show(() => {
  const exceeded = data.cells.filter((cell) => cell.bound_exceeded > 0);
  const said = exceeded.length ? `✗ ${word("bound.exceeded", exceeded.length)}` : `✓ ${word("bound.held")}`;
  const head = `<header><div><h1>${esc(word("frontier"))}</h1><p class="sub">${esc(word("again"))} <code>${esc(data.command)}</code></p></div>${languageButton()}</header>`;
  const how = `<section><p>${esc(word("frontier.how"))}</p><p class="note">${esc(word("columns"))}</p></section>`;
  const charts = outages.map((outage) => {
    const { seeds, taps } = outage.cells[0];
    const note = word("outage.note", count(seeds), count(taps / Math.max(1, seeds)));
    const table = `<details><summary>${esc(word("figures"))}</summary>${figures(outage)}</details>`;
    return `<section><h2>${esc(heading(outage))}</h2><p class="sub">${esc(note)}</p><p class="note">${esc(word("axis.y"))} ↑</p>${curve(outage)}${table}</section>`;
  });
  return `${head}<section class="verdict ${exceeded.length ? "bad" : ""}">${esc(said)}</section>${how}${exposure()}<div class="grid">${charts.join("")}</div>`;
});
