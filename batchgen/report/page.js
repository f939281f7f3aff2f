"use strict";
// Samples: unpacked, searched, filtered, sorted and shown, a few at a time. Whatever comes from the data becomes text by
// textContent, and never markup.

const STEP = 20; // cases that are shown at once
const MOST_DIFFERENT = 0.6; // of a text that is marked
const LONGEST_DIFF = 400; // words of a text, beyond which only its ends are compared
const ORDERS = {
  random: ["Random sample", (a, b) => (a.k < 0) - (b.k < 0) || a.k - b.k],
  worst: ["Worst first", (a, b) => b.b - a.b || b.s - a.s],
  row: ["In order of the input", (a, b) => a.r - b.r],
  long: ["Longest first", (a, b) => b.s - a.s],
  short: ["Shortest first", (a, b) => a.s - b.s],
};
const COLOURS = 8, MOST_NAMES = 4, GOOD = ["stop", "right", "best"], BAD = ["wrong"]; // as in samples.py
const DEFAULTS = { case: { w: "", f: [], b: 0, s: 0, k: -1 }, answer: { n: 1, f: [], o: "" }, text: { l: "", m: 0 } };

const $ = (id) => document.getElementById(id);

function make(name, attributes = {}, ...parts) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  for (const part of parts.flat()) if (part !== null) made.append(part);
  return made;
}

async function unpack() {
  const packed = Uint8Array.from(atob($("data").textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).json();
  data.cases.forEach((each, at) => {
    each.at = at;
    for (const [key, value] of Object.entries(DEFAULTS.case)) each[key] ??= value;
    for (const answer of each.a) for (const [key, value] of Object.entries(DEFAULTS.answer)) answer[key] ??= value;
    const texts = [...each.q.map((turn) => turn[1]), ...each.a.map((answer) => answer.t)];
    for (const text of texts) for (const [key, value] of Object.entries(DEFAULTS.text)) text[key] ??= value;
    each.words = [each.i, each.w, ...texts.map(plain)].join("\n").toLowerCase();
  });
  return data;
}

const plain = (text) => text.p.map((piece) => piece[0]).join("");

// --- differences

const words = (text) => text.match(/[\p{Script=Latin}\p{N}]+|\s+|./gsu) ?? [];

// The words of `other`, each with whether it is not in `base`: a longest common subsequence between equal ends.
function differences(base, other) {
  const a = words(base), b = words(other);
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && a[head] === b[head]) head++;
  while (tail < Math.min(a.length, b.length) - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  const from = a.slice(head, a.length - tail), to = b.slice(head, b.length - tail);
  const isNew = new Array(to.length).fill(true);
  if (from.length <= LONGEST_DIFF && to.length <= LONGEST_DIFF) {
    const rows = Array.from({ length: from.length + 1 }, () => new Uint16Array(to.length + 1));
    for (let i = from.length - 1; i >= 0; i--)
      for (let j = to.length - 1; j >= 0; j--)
        rows[i][j] = from[i] === to[j] ? rows[i + 1][j + 1] + 1 : Math.max(rows[i + 1][j], rows[i][j + 1]);
    for (let i = 0, j = 0; i < from.length && j < to.length; )
      if (from[i] === to[j]) (isNew[j] = false), i++, j++;
      else if (rows[i + 1][j] >= rows[i][j + 1]) i++;
      else j++;
  }
  const marks = [...new Array(head).fill(false), ...isNew, ...new Array(tail).fill(false)];
  const isOther = marks.filter(Boolean).length > MOST_DIFFERENT * b.length; // to mark all of it would say nothing
  return b.map((word, at) => [word, marks[at] && !isOther ? "diff" : ""]);
}

// Neighbours that are marked alike are one.
function joined(pieces) {
  const found = [];
  for (const [text, mark] of pieces)
    if (found.length && found.at(-1)[1] === mark) found.at(-1)[0] += text;
    else found.push([text, mark]);
  return found;
}

// --- cases, as samples.py makes them too

function shown(text, base) {
  const isMarked = text.p.some((piece) => piece[1]);
  const pieces = base && !isMarked ? joined(differences(plain(base), plain(text))) : text.p;
  const parts = pieces.map(([piece, mark]) => (mark ? make("mark", { class: mark }, piece) : piece));
  if (!plain(text)) parts.push(make("span", { class: "more" }, "(empty)"));
  if (text.m) parts.push(make("span", { class: "more" }, ` … ${text.m.toLocaleString("en")} more characters`));
  return make("p", { class: "text", dir: "auto", lang: text.l || null }, parts);
}

const isBad = (word) => BAD.includes(word) || word.startsWith("fails ");
const mood = (word) => `tag${isBad(word) ? " bad" : GOOD.includes(word) ? " fine" : ""}`;

function answerOf(answer, base) {
  const groups = answer.g.map((g) => make("bdi", { class: `group g${g % COLOURS}` }, data.groups[g]));
  const title = `${groups.length.toLocaleString("en")} of ${data.groups.length.toLocaleString("en")} settings`;
  const named = groups.length <= MOST_NAMES ? groups : make("details", {}, make("summary", {}, title), groups);
  const names = data.groups.length > 1 ? named : make("span", {}, data.answer);
  const times = answer.n > answer.g.length ? make("span", { class: "times" }, `${answer.n.toLocaleString("en")} times`) : null;
  const notes = [...answer.f.map((word) => make("span", { class: mood(word) }, word)), make("span", {}, answer.o)];
  return make("section", { class: "answer" }, make("h4", {}, names, times), shown(answer.t, base), make("footer", {}, notes));
}

function caseOf(each) {
  const about = [`row ${each.r.toLocaleString("en")}`, each.w].filter(Boolean).join(" · ");
  const answers = state.group < 0 ? each.a : each.a.filter((answer) => answer.g.includes(state.group));
  return make("article", { class: "case", tabindex: 0 },
    make("header", {}, make("h3", {}, make("bdi", {}, each.i)), make("span", { class: "about" }, about)),
    make("div", { class: "turns" }, each.q.map(([speaker, text]) =>
      make("div", { class: "turn" }, speaker ? make("h4", {}, make("bdi", {}, speaker)) : null, shown(text)))),
    make("div", { class: "answers" }, answers.map((answer, at) => answerOf(answer, at && data.compares ? answers[0].t : null))));
}

// --- what is shown

let data, found = [], reached = 0;
const state = { words: "", order: "random", group: -1, tags: new Set() };

function search() {
  const wanted = state.words.toLowerCase().split(/\s+/).filter(Boolean);
  found = data.cases.filter((each) =>
    wanted.every((word) => each.words.includes(word)) &&
    [...state.tags].every((tag) => each.f.includes(tag)) &&
    (state.group < 0 || each.a.some((answer) => answer.g.includes(state.group))));
  found.sort((a, b) => ORDERS[state.order][1](a, b) || a.at - b.at);
  $("cases").replaceChildren();
  reached = 0;
  more();
  $("found").textContent = `${found.length.toLocaleString("en")} of ${data.cases.length.toLocaleString("en")}`;
}

function more() {
  const next = found.slice(reached, reached + STEP);
  reached += next.length;
  $("cases").append(...next.map(caseOf));
  if (!found.length) $("cases").append(make("p", { class: "quiet" }, "Nothing fits. Try fewer words or filters."));
  $("more").hidden = reached >= found.length;
}

// --- tools

function choice(name, options, value, choose) {
  const made = make("select", { "aria-label": name }, options.map(([key, text]) => make("option", { value: key }, text)));
  made.value = value;
  made.addEventListener("change", () => (choose(made.value), search()));
  return made;
}

function chip([tag, count]) {
  const made = make("button", { type: "button", "aria-pressed": "false" }, tag, make("small", {}, count.toLocaleString("en")));
  made.addEventListener("click", () => {
    state.tags.delete(tag) || state.tags.add(tag);
    made.setAttribute("aria-pressed", String(state.tags.has(tag)));
    search();
  });
  return made;
}

function tools() {
  const input = make("input", { type: "search", id: "words", placeholder: "Search ids and texts  ( / )", "aria-label": "Search ids and texts" });
  input.addEventListener("input", () => ((state.words = input.value), search()));
  const orders = Object.entries(ORDERS).map(([key, [text]]) => [key, text]);
  const groups = [["-1", "All answers"], ...data.groups.map((name, at) => [String(at), name])];
  $("tools").append(input, choice("Order", orders, state.order, (value) => (state.order = value)));
  if (data.groups.length > 1) $("tools").append(choice("Answers of", groups, "-1", (value) => (state.group = Number(value))));
  $("tools").append(make("span", { class: "found", id: "found", role: "status" }));
  const chips = data.tags.filter(([, count]) => count < data.cases.length).map(chip);
  if (chips.length) $("tools").append(make("div", { class: "chips", role: "group", "aria-label": "Filters" }, chips));
  $("tools").hidden = false;
  $("more").addEventListener("click", more);
}

function go(step) {
  const cases = [...document.querySelectorAll(".case")];
  const at = cases.indexOf(document.activeElement?.closest?.(".case"));
  if (step > 0 && at === cases.length - 1 && !$("more").hidden) return more(), go(step);
  const next = cases[Math.min(Math.max(at + step, 0), cases.length - 1)];
  next?.focus();
}

function keys(event) {
  const isTyping = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && !isTyping) $("words").focus();
  else if (event.key === "Escape" && isTyping) event.target.blur();
  else if (isTyping || event.target.matches(".text")) return;
  else if (event.target.matches(".case") && ["ArrowDown", "ArrowUp"].includes(event.key)) go(event.key === "ArrowDown" ? 1 : -1);
  else if (["j", "k"].includes(event.key)) go(event.key === "j" ? 1 : -1);
  else return;
  event.preventDefault();
}

// --- tables

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    if (!head.textContent) return;
    const button = make("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      const value = (row) => row.cells[at].dataset.value ?? "";
      const compare = (a, b) => (at ? (value(a) === "") - (value(b) === "") || sign * (value(a) - value(b))
        : -sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent, "en", { numeric: true }));
      body.append(...[...body.rows].sort(compare));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    });
  });
}

async function start() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  if (!$("tools") || typeof DecompressionStream === "undefined") return; // the first samples are there all the same
  data = await unpack();
  tools();
  search();
  document.addEventListener("keydown", keys);
}

start();
