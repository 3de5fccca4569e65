"use strict";
// The trajectory browser. All text of records is set as text, never as markup.
const TONES = {
  scored: "#1f9d78", info: "#5b8fd6", script_error: "#d9603f", invalid_submission: "#d6a13a",
  timeout: "#8d63c7", out_of_memory: "#7a75a8", resource_limit: "#b07aa1", invalid_action: "#b5404f",
};
const ROW = 56;
// The name space of SVG elements, as the page itself got it.
const svgSpace = $("empty-svg").namespaceURI;
const state = { index: null, shown: [], selected: -1, step: -1, split: false, deep: null };
const chunks = new Map(); // number -> promise of its trajectories
const waiting = new Map(); // number -> function that a chunk script calls

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// Called by trajectories/<number>.js; a page opened from a disk can load scripts only.
function receive(number, text) {
  waiting.get(number)(unpack(text));
}

function loadChunk(number) {
  if (!chunks.has(number)) {
    chunks.set(number, new Promise((resolve, reject) => {
      waiting.set(number, resolve);
      const script = document.createElement("script");
      script.src = `trajectories/${number}.js`;
      script.onerror = () => reject(new Error(`${script.src} is missing: keep the folder beside index.html`));
      document.head.append(script);
    }));
  }
  return chunks.get(number);
}

function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

const signed = (x, digits = 1) => (x > 0 ? "+" : x < 0 ? "−" : "") + Math.abs(x).toFixed(digits);
const score = (x) => (Math.abs(x) >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(4))));
const words = (name) => name.replaceAll("_", " ");

// ---- index, filters, list ----

let opening = null;
function openBrowser() {
  opening ??= unpack($("index").textContent.trim()).then((index) => {
    const names = index.columns;
    index.rows = index.rows.map((row, number) => {
      const item = Object.fromEntries(names.map((name, i) => [name, row[i]]));
      item.number = number;
      item.outcomes = item.outcomes.map((o) => index.outcomes[o]);
      item.text = [item.id, item.policy, item.task, item.status, item.source, item.ideas, ...item.outcomes]
        .join(" ").toLowerCase();
      return item;
    });
    state.index = index;
    fillFilters();
    filter();
  });
  opening.then(followHash);
}

function fillSelect(id, every, values) {
  $(id).replaceChildren(new Option(every, ""), ...values.map((v) => new Option(v, v)));
}

function fillFilters() {
  const distinct = (key) => [...new Set(state.index.rows.map((row) => row[key]))];
  fillSelect("policy", "every policy", distinct("policy"));
  fillSelect("task", "every task", distinct("task").sort());
  fillSelect("source", "every source", distinct("source"));
  const present = new Set(state.index.rows.flatMap((row) => row.outcomes));
  for (const outcome of state.index.outcomes.filter((o) => present.has(o))) {
    const chip = element("button", "chip");
    chip.type = "button";
    chip.dataset.outcome = outcome;
    chip.style.setProperty("--tone", TONES[outcome]);
    chip.setAttribute("aria-pressed", "false");
    chip.append(element("i"), words(outcome));
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      filter();
    });
    $("outcomes").append(chip);
  }
}

function filter() {
  const policy = $("policy").value, task = $("task").value, source = $("source").value;
  const wanted = $("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = [...$("outcomes").querySelectorAll('[aria-pressed="true"]')].map((c) => c.dataset.outcome);
  const low = $("low").value === "" ? -Infinity : Number($("low").value);
  const high = $("high").value === "" ? Infinity : Number($("high").value);
  const deep = $("deep").checked && wanted.length ? state.deep : null;
  state.shown = state.index.rows.filter((row) =>
    (!policy || row.policy === policy) && (!task || row.task === task) && (!source || row.source === source)
    && row.reward >= low && row.reward <= high
    && outcomes.every((o) => row.outcomes.includes(o))
    && (wanted.every((word) => row.text.includes(word)) || (deep !== null && deep.has(row.number))));
  const order = $("order").value, key = order.replace("-", ""), sign = order.startsWith("-") ? -1 : 1;
  if (order) {
    // Trajectories without a value come last either way.
    state.shown.sort((a, b) => (a[key] === null) - (b[key] === null) || sign * (a[key] - b[key]) || a.number - b.number);
  }
  $("count").textContent = `${state.shown.length.toLocaleString()} of ${state.index.rows.length.toLocaleString()} trajectories`;
  $("space").style.height = `${state.shown.length * ROW}px`;
  drawList();
}

// Reads every chunk once, newest search wins.
let search = 0;
async function searchDeep() {
  const mine = ++search;
  const wanted = $("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  state.deep = new Set();
  if (!$("deep").checked || !wanted.length) return filter();
  const rowsOf = Map.groupBy ? Map.groupBy(state.index.rows, (row) => row.chunk)
    : state.index.rows.reduce((m, r) => m.set(r.chunk, [...(m.get(r.chunk) ?? []), r]), new Map());
  for (const [number, rows] of rowsOf) {
    const details = await loadChunk(number);
    if (mine !== search) return;
    for (const row of rows) {
      const text = details[row.position].steps.map((s) => `${s.reply}\n${s.diff}\n${s.feedback}`).join("\n").toLowerCase();
      if (wanted.every((word) => text.includes(word) || row.text.includes(word))) state.deep.add(row.number);
    }
    filter();
  }
}

// Only the rows in sight exist as elements.
function drawList() {
  const list = $("list"), space = $("space");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW) + 10);
  space.replaceChildren(...state.shown.slice(first, last).map((row, i) => listItem(row, first + i)));
}

function listItem(row, place) {
  const item = element("div", "item");
  item.style.top = `${place * ROW}px`;
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", String(row.number === state.selected));
  const top = element("div", "top"), sub = element("div", "sub");
  const gain = element("span", "num");
  if (row.gain !== null) {
    gain.textContent = `${signed(row.gain)} %`;
    gain.classList.add(row.gain > 0 ? "up" : row.gain < 0 ? "down" : "soft");
  }
  top.append(element("b", "", row.id), gain);
  const dots = element("span", "dots");
  for (const outcome of row.outcomes) {
    const dot = element("i");
    dot.style.setProperty("--tone", TONES[outcome]);
    dot.title = words(outcome);
    dots.append(dot);
  }
  sub.append(
    element("span", "", `${row.policy} · ${row.steps} step${row.steps === 1 ? "" : "s"} · ${words(row.status)}`),
    element("span", "num", `reward ${row.reward.toFixed(2)} `),
  );
  sub.lastChild.append(dots);
  item.append(top, sub);
  item.addEventListener("click", () => select(row.number));
  return item;
}

function select(number) {
  location.hash = `#trajectories/${encodeURIComponent(state.index.rows[number].id)}`;
}

function followHash() {
  const id = decodeURIComponent(location.hash.split("/").slice(1).join("/"));
  $("browser").classList.toggle("open", id !== "");
  const row = state.index.rows.find((r) => r.id === id);
  if (!row) {
    state.selected = -1;
    showEmpty(id ? `There is no trajectory “${id}”.` : "");
    return drawList();
  }
  if (row.number === state.selected) return;
  state.selected = row.number;
  const place = state.shown.indexOf(row), list = $("list");
  if (place >= 0 && (place * ROW < list.scrollTop || (place + 1) * ROW > list.scrollTop + list.clientHeight)) {
    list.scrollTop = place * ROW - list.clientHeight / 2;
  }
  drawList();
  show(row);
}

function moveSelection(by) {
  const place = state.shown.findIndex((row) => row.number === state.selected);
  const next = state.shown[place < 0 ? 0 : place + by];
  if (next) select(next.number);
}

// ---- one trajectory ----

function showEmpty(message) {
  const box = element("div", "empty");
  box.append(element("h1", "", message || "Pick a trajectory"));
  const hint = element("p");
  hint.append(element("kbd", "", "j"), " ", element("kbd", "", "k"), " walk through the list, ",
    element("kbd", "", "/"), " search, ", element("kbd", "", "?"), " all keys");
  box.append(hint);
  $("detail").replaceChildren(box);
}

async function show(row) {
  const box = $("detail");
  let detail;
  try {
    detail = (await loadChunk(row.chunk))[row.position];
  } catch (error) {
    return showEmpty(error.message);
  }
  if (row.number !== state.selected) return;
  state.step = -1;
  box.replaceChildren(...header(row, detail), ...detail.steps.map((step, i) => stepCard(detail, step, i)));
  box.scrollTop = 0;
}

function header(row, detail) {
  const task = state.index.tasks[row.task];
  const title = element("h1", "", row.id);
  const facts = element("div", "facts num");
  const fact = (value, name, className = "") => {
    const box = element("div");
    box.append(element("b", className, value), element("span", "", name));
    facts.append(box);
  };
  if (detail.scores.final !== undefined) {
    fact(`${signed(detail.gain)} %`, "relative gain, hidden test rows", detail.gain > 0 ? "up" : detail.gain < 0 ? "down" : "");
    fact(`${score(detail.scores.starter)} → ${score(detail.scores.final)}`, `${task.metric}, ${task.direction === "max" ? "higher" : "lower"} is better`);
  } else {
    fact(task.metric, task.direction === "max" ? "higher is better" : "lower is better");
  }
  fact(row.reward.toFixed(3), "mean step reward");
  fact(words(row.status), `${row.steps} step${row.steps === 1 ? "" : "s"}`);
  fact(row.policy, `${row.split === "held_in" ? "held-in" : "held-out"} task, ${row.source}`);
  const parts = [title, facts, scorePath(detail, task)];
  if (detail.ideas.length) {
    const fold = folded("Ideas in the first prompt", true);
    const list = element("ul", "ideas");
    list.append(...detail.ideas.map((idea) => element("li", "", idea)));
    fold.append(list);
    parts.push(fold);
  }
  const about = folded(`Task ${row.task}`);
  const text = element("p", "soft", task.description);
  text.style.whiteSpace = "pre-wrap";
  about.append(text);
  const usage = Object.entries(detail.usage).filter(([, v]) => v).map(([k, v]) => `${words(k)} ${v}`).join(" · ");
  const tools = element("div", "tools");
  const split = element("button", "", "side by side");
  split.addEventListener("click", toggleSplit);
  const all = element("button", "", "open all");
  all.addEventListener("click", toggleAll);
  tools.append(split, all, element("span", "", `seed ${detail.seed}${usage ? " · " + usage : ""}`));
  parts.push(about, tools);
  return parts;
}

// The selection score after every step, with the outcome as colour.
function scorePath(detail, task) {
  const box = element("div", "path");
  if (!detail.steps.length) return box;
  const points = [detail.start, ...detail.steps.map((s) => s.after)];
  const low = Math.min(...points), high = Math.max(...points), span = high - low || 1;
  const width = 900, x = (i) => 14 + (i * (width - 28)) / Math.max(points.length - 1, 1);
  const up = task.direction === "max";
  const y = (v) => 14 + (up ? high - v : v - low) * (54 / span);
  const make = (tag, attributes) => {
    const node = document.createElementNS(svgSpace, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const svg = make("svg", { viewBox: `0 0 ${width} 76`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", "selection score after every step");
  svg.append(make("line", { x1: 0, x2: width, y1: y(points[0]), y2: y(points[0]), stroke: "var(--line)", "stroke-dasharray": "4 5" }));
  svg.append(make("polyline", {
    points: points.map((v, i) => `${x(i)},${y(v)}`).join(" "), fill: "none", stroke: "var(--accent)",
    "stroke-width": 2, "vector-effect": "non-scaling-stroke", "stroke-linejoin": "round",
  }));
  detail.steps.forEach((step, i) => {
    const dot = make("circle", { cx: x(i + 1), cy: y(step.after), r: 6, fill: TONES[step.outcome], stroke: "var(--paper)", "stroke-width": 2 });
    const title = make("title", {});
    title.textContent = `${i + 1}. ${step.label}: ${words(step.outcome)}, ${score(step.after)}`;
    dot.append(title);
    dot.addEventListener("click", () => goToStep(i));
    svg.append(dot);
  });
  box.append(svg, element("div", "soft", `selection score, ${score(points[0])} at the start; up is better`));
  box.lastChild.style.fontSize = "12.5px";
  return box;
}
function stepCard(detail, step, i) {
  const card = element("section", "step");
  card.style.setProperty("--tone", TONES[step.outcome]);
  const head = element("header");
  const tag = element("span", "tag", words(step.outcome));
  const meter = element("span", "meter num");
  const bar = element("i");
  bar.style.setProperty("--part", Math.min(1, Math.max(0, step.reward)));
  meter.append(bar, `reward ${step.reward.toFixed(3)}`);
  const change = step.after === step.before ? score(step.after) : `${score(step.before)} → ${score(step.after)}`;
  const time = step.seconds === null ? "" : ` · ${step.seconds.toFixed(2)} s${step.cached ? " (cached)" : ""}`;
  head.append(element("span", "n", String(i + 1)), element("b", "", step.label), tag, meter, element("span", "scores", change + time));
  const body = element("div", "body");
  if (step.diff) body.append(diffView(step.diff));
  const reply = folded("Reply", !step.diff);
  reply.append(codeBlock(step.reply || "(empty)", false));
  body.append(reply);
  if (step.feedback) body.append(element("div", "feedback", step.feedback));
  if (step.integrity.length) body.append(element("p", "warn", `Integrity: ${step.integrity.join(", ")}`));
  const before = folded(`State before: ${step.state.slice(0, 10)}, score ${score(step.before)}`);
  // Drawn when it is opened: most never are.
  before.addEventListener("toggle", () => {
    if (before.open && before.children.length === 1) before.append(codeBlock(detail.scripts[step.state] ?? "", true));
  });
  body.append(before);
  card.append(head, body);
  return card;
}

function folded(title, open = false) {
  const fold = element("details", "fold");
  fold.open = open;
  fold.append(element("summary", "", title));
  return fold;
}

function goToStep(i) {
  const cards = $("detail").querySelectorAll(".step");
  if (!cards.length) return;
  state.step = Math.max(0, Math.min(cards.length - 1, i));
  cards.forEach((card, k) => card.classList.toggle("current", k === state.step));
  cards[state.step].scrollIntoView({ block: "start" });
}

function toggleAll() {
  const folds = [...$("detail").querySelectorAll(".step .fold")];
  const open = folds.some((f) => !f.open);
  folds.forEach((f) => { f.open = open; });
}

function toggleSplit() {
  state.split = !state.split;
  for (const view of $("detail").querySelectorAll(".diff")) view.replaceWith(diffView(view.diff));
}

// ---- code and diffs ----

const PYTHON = /("""[\s\S]*?"""|'''[\s\S]*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(#[^\n]*)|\b(and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|if|import|in|is|lambda|not|or|pass|raise|return|try|while|with|yield|None|True|False)\b|\b(\d[\d_.eE]*)\b/g;

function colored(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(PYTHON)) {
    if (match.index > end) parts.push(text.slice(end, match.index));
    const kind = match[1] ? "s" : match[2] ? "c" : match[3] ? "k" : "d";
    parts.push(element("span", kind, match[0]));
    end = match.index + match[0].length;
  }
  parts.push(text.slice(end));
  return parts;
}

function codeBlock(text, numbered) {
  const box = element("div", "code"), table = element("table");
  text.replace(/\n$/, "").split("\n").forEach((line, i) => {
    const row = table.insertRow();
    if (numbered) {
      const number = row.insertCell();
      number.className = "ln";
      number.textContent = i + 1;
    }
    row.insertCell().append(...(numbered ? colored(line) : [line]));
  });
  box.append(table);
  return box;
}

// A unified diff as rows: {kind, old, new, text}.
function parseDiff(diff) {
  const rows = [];
  let oldLine = 0, newLine = 0;
  for (const line of diff.replace(/\n$/, "").split("\n")) {
    const hunk = line.match(/^@@ -(\d+)(?:,\d+)? \+(\d+)/);
    if (hunk) {
      [oldLine, newLine] = [Number(hunk[1]), Number(hunk[2])];
      rows.push({ kind: "hunk", text: line });
    } else if (line.startsWith("--- ") && !oldLine) {
      continue;
    } else if (line.startsWith("--- ") || line.startsWith("+++ ")) {
      rows.push({ kind: "file", text: line.slice(4).replace(/^[ab]\//, "") });
      oldLine = newLine = 0;
    } else if (line.startsWith("+")) {
      rows.push({ kind: "add", new: newLine++, text: line.slice(1) });
    } else if (line.startsWith("-")) {
      rows.push({ kind: "del", old: oldLine++, text: line.slice(1) });
    } else {
      rows.push({ kind: "same", old: oldLine++, new: newLine++, text: line.slice(1) });
    }
  }
  markPairs(rows);
  return rows;
}

// Removed and added lines that face each other get the changed middle marked.
function markPairs(rows) {
  for (let i = 0; i < rows.length; i++) {
    if (rows[i].kind !== "del") continue;
    let removed = i, added;
    while (rows[removed]?.kind === "del") removed++;
    added = removed;
    while (rows[added]?.kind === "add") added++;
    for (let k = 0; i + k < removed && removed + k < added; k++) markChange(rows[i + k], rows[removed + k]);
    i = added - 1;
  }
}

function markChange(a, b) {
  const shorter = Math.min(a.text.length, b.text.length);
  let start = 0, end = 0;
  while (start < shorter && a.text[start] === b.text[start]) start++;
  while (end < shorter - start && a.text.at(-1 - end) === b.text.at(-1 - end)) end++;
  if (start + end < 0.25 * shorter) return; // too different for a mark to help
  for (const row of [a, b]) row.mark = [start, row.text.length - end];
}

function marked(row) {
  if (!row.mark) return [row.text];
  const [start, end] = row.mark;
  return [row.text.slice(0, start), element("mark", "", row.text.slice(start, end)), row.text.slice(end)];
}

function diffView(diff) {
  const box = element("div", "code diff"), table = element("table");
  box.diff = diff;
  const rows = parseDiff(diff);
  if (state.split) splitRows(table, rows);
  else for (const row of rows) {
    const line = table.insertRow();
    line.className = row.kind;
    for (const number of [row.old, row.new]) {
      const cell = line.insertCell();
      cell.className = "ln";
      cell.textContent = number ?? "";
    }
    const sign = line.insertCell();
    sign.className = "ln";
    sign.style.minWidth = "0";
    sign.textContent = { add: "+", del: "−" }[row.kind] ?? "";
    line.insertCell().append(...marked(row));
  }
  box.append(table);
  return box;
}

function splitRows(table, rows) {
  const side = (line, row, number, kind) => {
    const ln = line.insertCell(), text = line.insertCell();
    ln.className = `ln ${kind}`;
    ln.textContent = number ?? "";
    text.className = kind;
    text.style.width = "50%";
    if (row) text.append(...marked(row));
  };
  let removed = [];
  const flush = () => {
    for (const row of removed) {
      const line = table.insertRow();
      side(line, row, row.old, "del");
      side(line, null, "", "none");
    }
    removed = [];
  };
  for (const row of rows) {
    if (row.kind === "del") {
      removed.push(row);
    } else if (row.kind === "add" && removed.length) {
      const other = removed.shift(), line = table.insertRow();
      side(line, other, other.old, "del");
      side(line, row, row.new, "add");
    } else {
      flush();
      const line = table.insertRow();
      if (row.kind === "hunk" || row.kind === "file") {
        line.className = row.kind;
        const cell = line.insertCell();
        cell.colSpan = 4;
        cell.textContent = row.text;
      } else {
        side(line, row.kind === "add" ? null : row, row.old, row.kind === "add" ? "none" : "");
        side(line, row, row.new, row.kind === "add" ? "add" : "");
      }
    }
  }
  flush();
}

// ---- events ----

function delayed(action, milliseconds) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, milliseconds); };
}

$("list").addEventListener("scroll", () => requestAnimationFrame(drawList));
window.addEventListener("resize", () => state.index && drawList());
const deepSearch = delayed(searchDeep, 250);
$("filters").addEventListener("input", (event) => {
  if (event.target.id === "words" || event.target.id === "deep") deepSearch();
  $("list").scrollTop = 0;
  filter();
});
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("reset", () => {
  for (const chip of $("outcomes").children) chip.setAttribute("aria-pressed", "false");
  setTimeout(filter);
});

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (isBrowsing()) location.hash = "#trajectories";
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const everywhere = { t: toggleTheme, g: toggleBrowser, "?": () => $("help").showModal() };
  const browsing = {
    j: () => moveSelection(1), ArrowDown: () => moveSelection(1), k: () => moveSelection(-1), ArrowUp: () => moveSelection(-1),
    n: () => goToStep(state.step + 1), p: () => goToStep(state.step - 1), s: toggleSplit, e: toggleAll,
    "/": () => $("words").focus(),
  };
  const action = everywhere[event.key] ?? (isBrowsing() ? browsing[event.key] : undefined);
  if (!action) return;
  event.preventDefault();
  action();
});
