"use strict";
// A run of a scenario: what the outcome says, over time.

const { outcome } = data;
const line = outcome.timeline;
const END = Math.max(outcome.sim_ms, ...line.faults.map((fault) => fault.to_ms), 1);
const LEFT = 64;
const RIGHT = 10;
const COLOURS = Array.from({ length: 8 }, (_, index) => `var(--s${index})`);
const MUTED = "var(--axis)";

const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);

/// Milliseconds in which a building had no session, from its marks.
function down(marks) {
  let [sum, from, up] = [0, 0, false];
  for (const [at, now] of [...marks, [END, true]]) {
    if (!up) sum += at - from;
    [from, up] = [at, now];
  }
  return sum;
}

/// Colours stay with buildings in all charts: where there are more buildings than colours, the most cut-off ones have them.
const coloured = line.nodes.map((_, index) => index)
  .sort((a, b) => down(line.nodes[b].link) - down(line.nodes[a].link) || a - b)
  .slice(0, COLOURS.length)
  .sort((a, b) => a - b);
const colour = (node) => COLOURS[coloured.indexOf(node)] ?? MUTED;

const scale = (width) => (ms) => LEFT + (ms / END) * (width - LEFT - RIGHT);
const cross = (height) => `<line class="cross" data-axis="time" y1="0" y2="${height}"/>`;
function timeAxis(width, height) {
  const x = scale(width);
  return timeTicks(END, width - LEFT).map((ms) =>
    `<line x1="${x(ms)}" x2="${x(ms)}" y1="0" y2="${height}" stroke="var(--grid)"/>
    <text x="${x(ms)}" y="${height + 14}" text-anchor="middle">${clock(ms)}</text>`).join("");
}
const timeAt = (x, width) => Math.max(0, Math.min(END, ((x - LEFT) / (width - LEFT - RIGHT)) * END));

/// Lines over the samples of the run.
function sampled(label, series, format, marked = ticks) {
  const legend = series.filter((one) => one.colour !== MUTED).map((one) => [one.name, one.colour]);
  if (series.some((one) => one.colour === MUTED)) legend.push([word("others"), MUTED]);
  return chart(label, (width) => {
    const height = 130;
    const x = scale(width);
    const marks = marked(most(series.map((one) => most(one.values))));
    const top = marks.at(-1);
    const y = (value) => height - (value / top) * (height - 8);
    const grid = marks.map((value) => `<line x1="${LEFT}" x2="${width - RIGHT}" y1="${y(value)}" y2="${y(value)}" stroke="var(--grid)"/>
      <text x="${LEFT - 6}" y="${y(value) + 4}" text-anchor="end">${esc(format(value))}</text>`).join("");
    const path = (one) => {
      const points = one.values.map((value, index) => `${x(index * line.every_ms).toFixed(1)},${y(value).toFixed(1)}`);
      return `<polyline points="${points.join(" ")}" fill="none" stroke="${one.colour}" stroke-width="${one.colour === MUTED ? 1 : 2}" stroke-linejoin="round"/>`;
    };
    // Coloured ones lie on top.
    const ordered = [...series].sort((a, b) => (b.colour === MUTED) - (a.colour === MUTED));
    return {
      svg: timeAxis(width, height) + grid + ordered.map(path).join("") + cross(height),
      height: height + 20,
      at: (px) => {
        const index = Math.min(Math.round(timeAt(px, width) / line.every_ms), series[0].values.length - 1);
        const rows = series.map((one) => [one.name, one.values[index] ?? 0, one.colour]);
        if (rows.length > COLOURS.length) rows.sort((a, b) => b[1] - a[1]).splice(COLOURS.length);
        const head = `${word("time")} ${clock(index * line.every_ms)}`;
        const html = tipRows(head, rows.map(([name, value, mark]) => [name, format(value), mark]));
        return { x: x(index * line.every_ms), axis: "time", html };
      },
    };
  }, legend);
}
const ofNodes = (field) => line.nodes.map((node, index) => ({ name: node.node, values: node[field], colour: colour(index) }));
const hasSamples = line.every_ms > 0 && line.stand_in_out_fen.length > 0;

/// What a building's marks say at a time.
const isUp = (marks, ms) => marks.findLast(([at]) => at <= ms)?.[1] ?? false;

/// Intervals of a building: [from, to, state].
function states(node) {
  const times = [...new Set([0, ...node.link.map(([at]) => at), ...node.process.map(([at]) => at)])].sort((a, b) => a - b);
  return times.map((from, index) => {
    const state = !isUp(node.process, from) ? "stopped" : isUp(node.link, from) ? "connected" : "cut";
    return [from, times[index + 1] ?? END, state];
  });
}
const STATES = {
  connected: (x, y, w) => `<rect x="${x}" y="${y + 5}" width="${w}" height="4" fill="var(--s0)"/>`,
  cut: (x, y, w) => `<rect x="${x}" y="${y + 1}" width="${w}" height="12" fill="var(--cut)"/>`,
  stopped: (x, y, w) => `<rect x="${x}" y="${y + 1}" width="${w}" height="12" fill="var(--ink-2)"/>`,
};

/// Rows of bars over time, each row with a name.
function lanes(label, rows, legend) {
  return chart(label, (width) => {
    const x = scale(width);
    const [high, height] = [28, rows.length * 28 + 4];
    const drawn = rows.map((row, index) => `<text class="name" x="2" y="${index * high + 11}">${esc(row.name)}</text>`
      + row.bars.map((bar) => bar.draw(x(bar.from), index * high + 13, Math.max(1.5, x(bar.to) - x(bar.from)))).join(""));
    return {
      svg: timeAxis(width, height) + drawn.join("") + cross(height),
      height: height + 20,
      at: (px, py) => {
        const ms = timeAt(px, width);
        const slack = (2 / (width - LEFT - RIGHT)) * END;
        const row = rows[Math.floor(py / high)];
        if (!row) return undefined;
        const here = row.bars.filter((bar) => bar.from - slack <= ms && ms <= bar.to + slack).slice(0, 8);
        const html = tipRows(`${row.name} · ${clock(ms)}`, here.map((bar) => [bar.text, span(bar.to - bar.from)]));
        return { x: px, axis: "time", html };
      },
    };
  }, legend);
}
function links() {
  const rows = line.nodes.map((node) => ({
    name: node.node,
    bars: states(node).map(([from, to, state]) => ({ from, to, text: word(`state.${state}`), draw: STATES[state] })),
  }));
  const legend = [["connected", "var(--s0)"], ["cut", "var(--cut)", true], ["stopped", "var(--ink-2)", true]]
    .map(([state, mark, box]) => [word(`state.${state}`), mark, box]);
  return section("links", lanes(word("links"), rows, legend), word("links.note"));
}
function faults() {
  const kinds = [...new Set(line.faults.map((fault) => fault.kind))].sort();
  const rows = kinds.map((kind) => ({
    name: named("fault", kind),
    bars: line.faults.filter((fault) => fault.kind === kind).map((fault) => ({
      from: fault.from_ms,
      to: fault.to_ms,
      text: fault.place,
      draw: (x, y, w) => `<rect x="${x}" y="${y + 1}" width="${Math.max(3, w)}" height="11" rx="2" fill="var(--s4)" fill-opacity=".75"/>`,
    })),
  }));
  const list = table([word("time"), [word("fault")], [word("where")], word("lasted")],
    line.faults.map((fault) => [clock(fault.from_ms), [named("fault", fault.kind)], [fault.place], span(fault.to_ms - fault.from_ms)]));
  const drawn = rows.length ? lanes(word("faults"), rows, []) : `<p class="note">${esc(word("faults.none"))}</p>`;
  const all = line.faults.length ? `<details><summary>${esc(word("faults.all", line.faults.length))}</summary>${list}</details>` : "";
  return section("faults", drawn + all, word("faults.note"));
}

/// From 2^(index-1) microseconds up to twice that.
const bin = (index) => (index === 0 ? "0" : micros(2 ** (index - 1)));
function micros(value) {
  if (value < 1000) return `${value} µs`;
  return value < 1000000 ? `${digits(value / 1000, value < 10000 ? 1 : 0)} ms` : `${digits(value / 1000000, 1)} s`;
}
function latency() {
  const counts = line.latency_us;
  const all = counts.reduce((a, b) => a + b, 0);
  if (!all) return "";
  const first = counts.findIndex((many) => many > 0);
  const shown = counts.map((many, index) => [index, many]).slice(first);
  const below = (part) => {
    let sum = 0;
    return counts.findIndex((many) => (sum += many) >= all * part);
  };
  const note = word("latency.note", micros(2 ** below(0.5)), micros(2 ** below(0.99)));
  return section("latency", chart(word("latency"), (width) => {
    const height = 130;
    const marks = ticks(most(counts));
    const y = (value) => height - (value / marks.at(-1)) * (height - 8);
    const each = (width - LEFT - RIGHT) / shown.length;
    const every = Math.ceil(54 / each);
    const grid = marks.map((value) => `<line x1="${LEFT}" x2="${width - RIGHT}" y1="${y(value)}" y2="${y(value)}" stroke="var(--grid)"/>
      <text x="${LEFT - 6}" y="${y(value) + 4}" text-anchor="end">${count(value)}</text>`).join("");
    const bars = shown.map(([index, many], place) => {
      const x = LEFT + place * each;
      const name = place % every ? "" : `<text x="${x}" y="${height + 14}">${bin(index)}</text>`;
      return `<rect x="${x + 1}" y="${y(many)}" width="${Math.max(1, each - 2)}" height="${height - y(many)}" fill="var(--s0)"/>${name}`;
    });
    return {
      svg: grid + bars.join(""),
      height: height + 20,
      at: (px) => {
        const found = shown[Math.floor((px - LEFT) / each)];
        if (!found) return undefined;
        return { html: tipRows(`${bin(found[0])} – ${micros(2 ** found[0])}`, [[word("taps"), count(found[1])]]) };
      },
    };
  }), note);
}

function buildings() {
  const starts = (marks) => marks.filter(([, up]) => up).length;
  const heads = [[word("building")], word("cut.total"), word("starts")];
  if (hasSamples) heads.push(word("backlog.most"), word("age.most"), word("exposed.most"), word("behind.last"));
  const rows = line.nodes.map((node) => {
    const row = [[node.node], span(down(node.link)), count(starts(node.process))];
    if (hasSamples) {
      row.push(count(most(node.backlog)), span(most(node.view_age_ms)), yuan(most(node.exposed_fen)), count(node.behind.at(-1) ?? 0));
    }
    return row;
  });
  return section("buildings", table(heads, rows));
}
function verdict() {
  const broken = outcome.violations;
  if (!broken.length) return `<section class="verdict">✓ ${esc(word("kept"))}</section>`;
  const list = broken.map((one) => `<div class="broken"><p><b>${esc(named("promise", one.promise))}</b> (${esc(one.promise)}) · ${clock(one.at_ms)}</p>
    <p>${esc(one.text)}</p><details><summary>${esc(word("events"))}</summary>
    <ol class="events">${one.last_events.map((event) => `<li>${esc(event)}</li>`).join("")}</ol></details></div>`);
  return `<section class="verdict bad">✗ ${esc(word("broken", broken.length))}${list.join("")}</section>`;
}
function reached() {
  const rows = Object.entries(outcome.coverage).map(([name, many]) => [[named("path", name)], count(many)]);
  if (!rows.length) return "";
  return section("coverage", `<details><summary>${esc(word("coverage.all", rows.length))}</summary>${table([[word("path")], word("times")], rows)}</details>`,
    word("coverage.note"));
}

show(() => {
  const { taps } = outcome;
  const struck = Object.values(outcome.faults).reduce((a, b) => a + b, 0);
  const head = `<header><div><h1>${esc(zh ? data.title_zh : data.title)}</h1>
    <p class="sub">${esc(outcome.scenario)} · ${esc(word("seed"))} ${outcome.seed} · ${esc(named("mode", outcome.mode))}</p>
    <p class="sub">${esc(word("again"))} <code>${esc(data.replay)}</code></p></div>${languageButton()}</header>`;
  const tiles = [
    [word("taps"), count(taps.begun)], [word("approved"), count(taps.approved)], [word("declined"), count(taps.declined)],
    [word("unanswered"), count(taps.unanswered)], [word("approved.sum"), yuan(taps.approved_fen)], [word("stand_in.sum"), yuan(taps.stand_in_fen)],
    [word("struck"), count(struck)], [word("simulated"), span(outcome.sim_ms)], [word("entries"), count(outcome.entries)],
  ].map(([name, value]) => tile(name, value));
  const lined = !hasSamples ? `<section><p class="note">${esc(word("no_samples"))}</p></section>` : [
    section("backlog", sampled(word("backlog"), ofNodes("backlog"), count), word("backlog.note")),
    section("age", sampled(word("age"), ofNodes("view_age_ms"), span, spanTicks), word("age.note")),
    section("exposed", sampled(word("exposed"), ofNodes("exposed_fen"), yuanShort), word("exposed.note")),
    section("risk", sampled(word("risk"), [
      { name: word("stand_in.out"), values: line.stand_in_out_fen, colour: COLOURS[0] },
      { name: word("cases.open"), values: line.open_cases_fen, colour: COLOURS[5] },
    ], yuanShort), word("risk.note")),
    section("behind", sampled(word("behind"), ofNodes("behind"), count), word("behind.note")),
  ].join("");
  return `${head}${verdict()}<div class="tiles">${tiles.join("")}</div>${links()}${faults()}<div class="grid">${lined}${latency()}</div>${buildings()}${reached()}`;
});
