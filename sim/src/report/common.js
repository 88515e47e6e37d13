"use strict";
// Text, figures and charts that both pages use. All text of the data goes through `esc`.

const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const words = read("words");
let zh = location.hash === "#zh" || (location.hash !== "#en" && /^zh/i.test(navigator.language)) ? 1 : 0;

const esc = (text) => String(text).replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

/// A word of the page in the language that is shown; {0}, {1}, … are filled in.
function word(key, ...values) {
  return values.reduce((text, value, index) => text.replace(`{${index}}`, () => value), words[key][zh]);
}
/// A stable name of the data in words, or as it is where there are none.
const named = (group, name) => (words[`${group}.${name}`] ?? [name, name])[zh];

const count = (value) => Math.round(value).toLocaleString("en-US");
const digits = (value, places) =>
  value.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
const yuan = (fen) => `¥${digits(fen / 100, 2)}`;
const yuanShort = (fen) => `¥${digits(fen / 100, fen % 100 ? 2 : 0)}`;

/// Simulated time since the start.
function clock(ms) {
  const seconds = Math.floor(ms / 1000);
  const two = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days > 0) return `${days}d ${two(hours)}:${two(minutes)}`;
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}
/// How long something took.
function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const [unit, name] = ms < 60000 ? [1000, "s"] : ms < 7200000 ? [60000, "min"] : [3600000, "h"];
  return `${digits(ms / unit, ms % unit ? 1 : 0)} ${name}`;
}

/// Round values from 0 to at least `most`, few enough to be read.
function ticks(most, few = 4) {
  const raw = Math.max(most, 1) / few;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= raw) * power);
  const all = [];
  for (let value = 0; value < most + step; value += step) all.push(value);
  return all.length > 1 ? all : [0, step];
}
/// Likewise of milliseconds, in steps that people count time by.
function spanTicks(most) {
  const step = (TIME_STEPS.find((seconds) => most / 1000 / seconds <= 4) ?? 2419200) * 1000;
  return Array.from({ length: Math.max(1, Math.ceil(most / step)) + 1 }, (_, index) => index * step);
}
const TIME_STEPS = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
function timeTicks(end, width) {
  const few = Math.max(2, Math.floor(width / 90));
  const step = (TIME_STEPS.find((seconds) => end / 1000 / seconds <= few) ?? 2419200) * 1000;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}

/// A section with a heading, a note, and what is drawn in it once its width is known.
const charts = [];
function section(key, inside, note) {
  return `<section><h2>${esc(word(key))}</h2>${note ? `<p class="sub">${esc(note)}</p>` : ""}${inside}</section>`;
}
function chart(label, draw, legend = []) {
  const marks = legend.map(([name, colour, box]) =>
    `<span><i class="${box ? "box" : ""}" style="background:${colour}"></i>${esc(name)}</span>`);
  charts.push(draw);
  const list = marks.length > 1 ? `<div class="legend">${marks.join("")}</div>` : "";
  return `${list}<div class="chart" tabindex="0" role="img" aria-label="${esc(label)}" data-chart="${charts.length - 1}"></div>`;
}
function table(heads, rows, own = () => false) {
  const row = (cells, index) => `<tr class="${own(index) ? "own" : ""}">${cells.map((cell) =>
    typeof cell === "string" ? `<td>${esc(cell)}</td>` : `<td class="left">${esc(cell[0])}</td>`).join("")}</tr>`;
  const head = heads.map((name) => `<th scope="col" class="${typeof name === "string" ? "" : "left"}">${esc(name)}</th>`);
  return `<div class="wide"><table><thead><tr>${head.join("")}</tr></thead><tbody>${rows.map(row).join("")}</tbody></table></div>`;
}
const tile = (name, value) => `<div class="tile"><span>${esc(name)}</span><b>${esc(value)}</b></div>`;

/// Draws all charts for their width. A chart gives its SVG, and what stands in the tip at a place of it.
function drawCharts() {
  for (const element of document.querySelectorAll(".chart")) {
    const width = Math.max(260, element.clientWidth);
    const { svg, height, at } = charts[element.dataset.chart](width);
    element.innerHTML = `<svg viewBox="0 0 ${width} ${height}" height="${height}">${svg}</svg>`;
    element.at = at;
  }
}

const tip = document.getElementById("tip");
function showTip(element, x, y, pageX, pageY) {
  const found = element.at?.(x, y);
  if (!found) return hideTip();
  for (const line of document.querySelectorAll(".cross")) {
    line.style.visibility = found.x === undefined || line.dataset.axis !== found.axis ? "hidden" : "visible";
    line.setAttribute("x1", found.x);
    line.setAttribute("x2", found.x);
  }
  tip.innerHTML = found.html;
  tip.style.visibility = "visible";
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(pageX + 14, innerWidth - box.width - 4))}px`;
  tip.style.top = `${pageY + 18 + box.height > innerHeight ? Math.max(4, pageY - box.height - 12) : pageY + 18}px`;
}
function hideTip() {
  tip.style.visibility = "hidden";
  for (const line of document.querySelectorAll(".cross")) line.style.visibility = "hidden";
}
function tipRows(head, rows) {
  const row = ([name, value, colour]) =>
    `<tr><td>${colour ? `<span style="color:${colour}">●</span> ` : ""}${esc(name)}</td><td>${esc(value)}</td></tr>`;
  return `<b>${esc(head)}</b><table>${rows.map(row).join("")}</table>`;
}
document.addEventListener("pointermove", (event) => {
  const element = event.target.closest?.(".chart");
  if (!element) return hideTip();
  const box = element.getBoundingClientRect();
  showTip(element, event.clientX - box.left, event.clientY - box.top, event.clientX, event.clientY);
});
document.addEventListener("pointerleave", hideTip);
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", (event) => {
  const element = document.activeElement;
  const step = { ArrowLeft: -8, ArrowRight: 8 }[event.key];
  if (!element?.classList.contains("chart") || !step) return;
  event.preventDefault();
  const box = element.getBoundingClientRect();
  element.place = Math.max(0, Math.min(box.width, (element.place ?? box.width / 2) + step));
  showTip(element, element.place, box.height / 2, box.left + element.place, box.top + box.height / 2);
});

/// Shows the page that `build` gives, and builds it anew in the other language.
function show(build) {
  charts.length = 0;
  document.documentElement.lang = zh ? "zh-CN" : "en";
  document.getElementById("page").innerHTML = build();
  const button = document.getElementById("language");
  button.onclick = () => {
    zh = 1 - zh;
    history.replaceState(null, "", zh ? "#zh" : "#en");
    show(build);
    document.getElementById("language").focus();
  };
  drawCharts();
}
const languageButton = () => `<button id="language" type="button">${["中文", "English"][zh]}</button>`;
let drawn = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === drawn) return;
  drawn = innerWidth;
  drawCharts();
});
