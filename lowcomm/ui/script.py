"""Scripts of the pages: forms that are checked while one types, runs that are drawn while they go on.

They keep nothing: a form is read off the page each time, a run comes whole with each event.
"""

from __future__ import annotations

from lowcomm.report.script import THEMED

COMMON = """"use strict";
const base = document.documentElement.dataset.base;
function $(id) { return document.getElementById(id); }
async function send(path, value) {
  const answer = await fetch(base + path, {method: "POST", headers: {"Content-Type": "application/json"},
    body: JSON.stringify(value), cache: "no-store"});
  const kind = answer.headers.get("content-type") || "";
  const body = kind.startsWith("application/json") ? await answer.json() : {problem: await answer.text()};
  if (!answer.ok && !body.problem) { body.problem = "the server answered " + answer.status; }
  return body;
}
function gone(problem) { return {problem: "the server does not answer: " + problem}; }
function finder() {
  const box = $("filter");
  if (!box) { return; }
  box.addEventListener("input", function () {
    const wanted = box.value.toLowerCase().trim();
    for (const item of document.querySelectorAll(".row[data-find], .card a[data-find]")) {
      item.hidden = wanted !== "" && !item.dataset.find.toLowerCase().includes(wanted);
    }
    for (const group of document.querySelectorAll("details.section, .card")) {
      group.hidden = !group.querySelector(":scope > :not(summary):not(h3):not([hidden])");
      if (group.tagName === "DETAILS" && wanted !== "" && !group.hidden) { group.open = true; }
    }
  });
}
function asker() {
  const form = $("ask");
  if (!form) { return; }
  form.addEventListener("submit", async function (event) {
    event.preventDefault();
    const text = form.elements.text.value;
    const answer = await send("intent", {text: text, current: form.dataset.current || null}).catch(gone);
    const place = $("understood");
    if (answer.problem) {
      const line = Object.assign(document.createElement("p"), {className: "problem", textContent: answer.problem});
      place.replaceChildren(line);
    } else { place.innerHTML = answer.html; }
  });
}
finder();
asker();
"""

FORM = """"use strict";
(function () {
  const form = $("fields"), side = $("side");
  let asked = 0, timer = null;
  function given() {
    const values = {};
    for (const row of form.querySelectorAll(".row")) {
      const box = row.querySelector(".value");
      const value = box.type === "checkbox" ? (box.checked ? "True" : "False") : box.value;
      if (value !== row.dataset.before) { values[row.dataset.path] = value; }
    }
    return values;
  }
  function mark(values, problems) {
    for (const row of form.querySelectorAll(".row")) {
      const path = row.dataset.path, text = problems[path] || "", line = row.querySelector(".problem");
      row.classList.toggle("changed", path in values);
      row.classList.toggle("bad", text !== "");
      line.hidden = text === "";
      line.textContent = text;
    }
    for (const section of form.querySelectorAll("details.section")) {
      const bad = section.querySelectorAll(".row.bad").length;
      const changed = section.querySelectorAll(".row.changed").length;
      const count = section.querySelector("summary em");
      count.textContent = bad ? bad + " to mend" : changed ? changed + " changed" : "";
      count.classList.toggle("bad", bad > 0);
    }
  }
  function redraw(html) {
    const open = Array.from(form.querySelectorAll("details[open]"), function (d) { return d.dataset.section; });
    const focus = document.activeElement ? document.activeElement.id : "";
    form.innerHTML = html;
    for (const section of form.querySelectorAll("details")) { section.open = open.includes(section.dataset.section); }
    if (focus && $(focus)) { $(focus).focus(); }
    if ($("filter").value) { $("filter").dispatchEvent(new Event("input")); }
  }
  async function check(choose) {
    const turn = ++asked, rows = $("rows");
    clearTimeout(timer);
    const wanted = {recipe: form.dataset.recipe, given: given(), shape: rows.dataset.shape, choose: choose || null};
    const answer = await send("check", wanted).catch(gone);
    if (turn !== asked) { return; }
    if (answer.problem) { $("refused").textContent = answer.problem; return; }
    if (answer.form) { redraw(answer.form); }
    side.innerHTML = answer.side;
    mark(answer.given, answer.problems);
    document.body.dataset.checked = String(turn);
  }
  form.addEventListener("input", function (event) {
    if (event.target.classList.contains("choose")) { return; }
    clearTimeout(timer);
    timer = setTimeout(check, 350);
  });
  form.addEventListener("change", function (event) {
    const row = event.target.closest(".row");
    check(event.target.classList.contains("choose") ? [row.dataset.path, event.target.value] : null);
  });
  form.addEventListener("click", function (event) {
    if (!event.target.classList.contains("undo")) { return; }
    const row = event.target.closest(".row"), box = row.querySelector(".value");
    if (box.type === "checkbox") { box.checked = row.dataset.before === "True"; }
    else { box.value = row.dataset.before; }
    check(null);
  });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  side.addEventListener("click", async function (event) {
    if (event.target.id !== "start") { return; }
    event.target.disabled = true;
    const answer = await send("start", {recipe: form.dataset.recipe, given: given()}).catch(gone);
    if (answer.problem) { $("refused").textContent = answer.problem; event.target.disabled = false; return; }
    location.href = answer.url;
  });
  check(null);
})();
"""

PLOT = (
    """"use strict";
const look = {responsive: true, displayModeBar: false};
let drawn = {};
"""
    + THEMED
    + """function draw(figures) {
  drawn = figures;
  const style = getComputedStyle(document.documentElement);
  for (const id of Object.keys(figures)) {
    const place = $(id);
    if (!place) { continue; }
    const empty = place.parentElement.querySelector(".empty");
    if (empty) { empty.hidden = figures[id] !== null; }
    place.hidden = figures[id] === null;
    if (figures[id] === null) { continue; }
    const figure = themed(figures[id], "", style);
    if (figure.layout.height) { place.style.height = figure.layout.height + "px"; }
    Plotly.react(place, figure.data, figure.layout, look);
  }
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { draw(drawn); });
"""
)

LIVE = """"use strict";
(function () {
  const name = $("run").dataset.name, path = "runs/" + encodeURIComponent(name);
  const known = ["done", "running", "stopped", "failed", "starting", "interrupted", "unreadable", "refused"];
  let source = null;
  function show(run) {
    $("status").textContent = run.status;
    $("status").className = "status " + (known.includes(run.status) ? run.status : "");
    $("stop").hidden = !run.alive;
    $("resume").hidden = run.alive || !run.html || run.status === "done";
    $("report").hidden = !run.html;
    $("said").hidden = !run.said;
    $("said").textContent = run.said || "";
    const output = $("console"), low = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    output.textContent = run.console || "Not started from a page: its output is where it was started.";
    if (low) { output.scrollTop = output.scrollHeight; }
    $("plots").hidden = !run.html;
    if (!run.html) { return; }
    $("steps").textContent = "· inner step " + run.done + " of " + run.steps;
    const share = run.steps ? Math.min(100, 100 * run.done / run.steps) : 0;
    $("progress").firstElementChild.style.width = share + "%";
    for (const part of Object.keys(run.html)) { $(part).innerHTML = run.html[part]; }
    for (const id of Object.keys(run.captions)) {
      $(id).closest("figure").querySelector("figcaption").textContent = run.captions[id];
    }
    draw(run.figures);
    document.body.dataset.shown = run.status;
  }
  function follow() {
    source = new EventSource(base + path + "/events");
    source.addEventListener("run", function (event) { show(JSON.parse(event.data)); });
    source.addEventListener("end", function () { source.close(); });
  }
  function ask(id) {
    $(id).addEventListener("click", async function () {
      $(id).disabled = true;
      $("refused").textContent = "";
      const answer = await send(path + "/" + id, {}).catch(gone);
      $(id).disabled = false;
      if (answer.problem) { $("refused").textContent = answer.problem; return; }
      if (id === "stop") { $("refused").textContent = "asked to save and stop"; }
      source.close();
      follow();
    });
  }
  ask("stop");
  ask("resume");
  follow();
})();
"""

COMPARE = """"use strict";
draw(JSON.parse($("figures").textContent));
"""

HOME = """"use strict";
(function () {
  const form = $("runs");
  function chosen() {
    return Array.from(form.querySelectorAll("input[name=run]:checked"), function (box) { return box.value; });
  }
  function count() { $("compare").disabled = chosen().length < 2; }
  form.addEventListener("change", count);
  count();
  async function again() {
    if (document.hidden) { return; }
    const answer = await fetch(base + "table", {cache: "no-store"}).catch(function () { return null; });
    if (!answer || !answer.ok) { return; }
    const keep = chosen(), text = await answer.text();
    $("run-table").outerHTML = text;
    for (const box of form.querySelectorAll("input[name=run]")) { box.checked = keep.includes(box.value); }
    count();
  }
  setInterval(again, 4000);
})();
"""

SCRIPTS = {
    "common.js": COMMON, "form.js": FORM, "plot.js": PLOT, "live.js": LIVE, "compare.js": COMPARE, "home.js": HOME,
}  # fmt: skip
