/* The page's program: asks the server it came from, and shows what each answer's tokens and rounds were.
   What comes from a model is only ever set as textContent. Figures are the server's own; while an answer grows,
   and after a stop, they are counted from its tokens, and speed is taken by this browser's clock. */
"use strict";

const ORIGINS = {
  accepted: "accepted draft",
  recovered: "recovered, in place of a rejected draft",
  bonus: "bonus, behind a window that stood",
  forced: "forced by the answer's form",
  plain: "plain, no draft was judged",
};
const ROUNDS_SHOWN = 56;
const LANE_ROUNDS = 12;
const FRAME_MS = 80;    /* between frames while an answer grows: a long text takes a while to lay out */

const at = (id) => document.getElementById(id);
/* What was said, as messages; and all of it as one text, for a model without a chat template. */
let talk = { messages: [], text: "" };
let model = null;       /* of /v1/models */
let running = null;     /* the AbortController of the answer that grows */
let shown = null;       /* the answer whose figures are shown */
let drawing = 0;        /* a frame that is asked for */
let drawn = 0;          /* when the last one was */

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const few = (value, digits = 2) => value.toFixed(value >= 100 ? 0 : value >= 10 ? Math.min(digits, 1) : digits);
const count = (value, one) => `${value.toLocaleString("en")} ${one}${value === 1 ? "" : "s"}`;

/* --- asking the server --- */

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function stored(kind, name, value) {
  try {
    if (value !== undefined) window[kind].setItem(name, value);
    return window[kind].getItem(name);
  } catch {
    return value ?? null;    /* storage is switched off: the page works without */
  }
}

async function refusal(response) {
  try {
    return new Refused(response.status, (await response.json()).error.message);
  } catch {
    return new Refused(response.status, `the server answered ${response.status}`);
  }
}

/* A response that is good. A server that wants a key gets one, asked for as often as it is wrong. */
async function call(path, options = {}) {
  for (;;) {
    const key = stored("sessionStorage", "pearl_rt.key") ?? call.key;
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.ok) return response;
    const refused = await refusal(response);
    if (response.status !== 401 || !(await askedForKey(Boolean(key)))) throw refused;
  }
}

let askingForKey = null;   /* several requests may be refused at once: one dialog is enough */

function askedForKey(wasWrong) {
  askingForKey ??= new Promise((resolve) => {
    const dialog = at("key-dialog");
    at("key-problem").textContent = wasWrong
      ? "That key was not accepted. Try another one."
      : "It is kept in this tab until you close it.";
    at("key").value = "";
    at("key-form").onsubmit = (event) => {
      event.preventDefault();
      call.key = at("key").value.trim();
      stored("sessionStorage", "pearl_rt.key", call.key);
      dialog.close("given");
    };
    at("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => {
      askingForKey = null;
      resolve(dialog.returnValue === "given");
      dialog.returnValue = "";
    };
    dialog.showModal();
  });
  return askingForKey;
}

/* The events of a stream, each as its JSON. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/* --- the answer that is asked for --- */

function given() {
  const fields = {};
  const how = { report: true, trace: true };
  for (const [name, into] of [["field", fields], ["how", how]]) {
    for (const input of document.querySelectorAll(`[data-${name}]`)) {
      if (input.value === "") continue;
      if (!input.reportValidity()) throw new Error(`${input.labels[0].firstChild.textContent.trim()}: ${input.validationMessage}`);
      into[input.dataset[name]] = input.type === "number" ? Number(input.value) : input.value;
    }
  }
  const form = at("form").value;
  const text = at("form-text").value;
  if (form === "object") fields.response_format = { type: "json_object" };
  if (form === "schema") fields.guided_json = text;
  if (form === "regex") fields.guided_regex = text;
  return { ...fields, model: model.id, stream: true, stream_options: { include_usage: true }, speculative: how };
}

function bodyFor(text) {
  if (!model.has_chat_template) return ["v1/completions", { ...given(), prompt: talk.text + text }];
  const system = at("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...talk.messages, { role: "user", content: text }];
  return ["v1/chat/completions", { ...given(), messages }];
}

class Answer {
  constructor(place, caption) {
    this.place = place;
    this.caption = caption;
    this.text = "";          /* what the next turn repeats */
    this.tokens = 0;
    this.waiting = [];       /* tokens that are not in the text yet */
    this.origins = Object.fromEntries(Object.keys(ORIGINS).map((kind) => [kind, 0]));
    this.rounds = [];        /* by round: the origins of its tokens */
    this.first = null;       /* of the first event with tokens: when, and how many */
    this.last = null;
    this.figures = null;     /* the server's, once the answer is whole */
    this.ended = "";
  }

  take(event) {
    if (event.error) throw new Refused(500, event.error.message);
    if (event.usage?.speculation) this.figures = event.usage.speculation;
    const choice = event.choices?.[0];
    if (!choice) return;
    this.text += choice.delta ? choice.delta.content ?? "" : choice.text ?? "";
    const tokens = choice.speculation ?? [];
    for (const token of tokens) this.add(token);
    if (tokens.length) {
      this.last = performance.now();
      this.first ??= { when: this.last, tokens: tokens.length };
    }
    if (choice.finish_reason) this.finish(choice.finish_reason);
  }

  add(token) {
    const span = make("span", "token", token.text);
    span.dataset.origin = token.origin;
    span.title = `${ORIGINS[token.origin] ?? token.origin}, ` + (token.round ? `round ${token.round}` : "from the prompt");
    this.waiting.push(span);
    this.tokens += 1;
    this.origins[token.origin] = (this.origins[token.origin] ?? 0) + 1;
    (this.rounds[token.round] ??= []).push(token.origin);
  }

  show() {
    this.place.append(...this.waiting);
    this.waiting = [];
    this.caption.textContent = this.told();
  }

  finish(reason) {
    this.ended = reason;
    this.show();
    const last = this.place.lastElementChild;
    if (reason === "stop" && last && last.textContent === "") {
      last.classList.add("end");
      last.title = `the end: ${last.title}`;
    }
  }

  get numRounds() {
    return this.figures?.rounds ?? Math.max(this.rounds.length - 1, 0);
  }

  get perRound() {
    if (this.figures) return this.figures.tokens_per_round;
    return this.numRounds ? (this.tokens - (this.rounds[0]?.length ?? 0)) / this.numRounds : null;
  }

  get speed() {
    if (this.figures) return this.figures.tokens_per_second ?? null;
    const seconds = this.first ? (this.last - this.first.when) / 1000 : 0;
    return seconds > 0.05 ? (this.tokens - this.first.tokens) / seconds : null;
  }

  told() {
    const parts = [count(this.tokens, "token")];
    if (this.perRound !== null) parts.push(`${few(this.perRound)} a round`);
    if (this.speed !== null) parts.push(`${few(this.speed)} tokens/s`);
    if (this.ended === "length") parts.push("cut at the limit");
    if (this.ended === "stopped") parts.push("stopped");
    return parts.join(" · ");
  }
}

function addTurn(name, className) {
  const turn = make("li");
  turn.append(make("h3", "", name));
  const text = turn.appendChild(make("div", className));
  at("turns").append(turn);
  return [turn, text];
}

function problem(message) {
  at("problem").textContent = message;
  at("problem").hidden = !message;
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  at("turns").setAttribute("aria-busy", is);
}

function follow(scrolls) {
  if (scrolls) at("turns").lastElementChild?.scrollIntoView({ block: "end" });
}

function isAtEnd() {
  const turns = at("turns");
  const page = document.scrollingElement;
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < 60
    && (getComputedStyle(turns).overflowY !== "visible" || page.scrollTop < at("talk").offsetHeight);
}

async function ask() {
  const text = at("question").value;
  if (running || !text.trim()) return;
  if (!model) await start();
  if (!model) return;
  problem("");
  let request;
  try {
    request = bodyFor(text);
  } catch (error) {
    problem(error.message);
    return;
  }
  const [path, body] = request;
  const mine = talk;
  running = new AbortController();
  const [turn, said] = addTurn("You", "said");
  said.textContent = text;
  const [reply, place] = addTurn(model.id, "answer");
  place.setAttribute("aria-busy", "true");
  const answer = (shown = new Answer(place, reply.appendChild(make("p", "caption faint number"))));
  at("question").value = "";
  busy(true);
  follow(true);
  let failure = null;
  try {
    const options = { method: "POST", body: JSON.stringify(body), signal: running.signal };
    const response = await call(path, { ...options, headers: { "content-type": "application/json" } });
    for await (const event of events(response)) {
      answer.take(event);
      if (performance.now() - drawn > FRAME_MS) draw();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.ended = "stopped";
    else failure = error;
  }
  running = null;
  answer.show();
  place.removeAttribute("aria-busy");
  busy(false);
  follow(isAtEnd());
  if (failure) {
    problem(failure instanceof Refused ? failure.message : `The server cannot be reached (${failure.message}).`);
  }
  if (failure && !answer.tokens) {   /* nothing came: the question is still the reader's */
    turn.remove();
    reply.remove();
    at("question").value = text;
  } else {
    mine.messages.push({ role: "user", content: text }, { role: "assistant", content: answer.text });
    mine.text += text + answer.text;
  }
  draw();
  at("question").focus({ preventScroll: true });
  refreshStats();
}

function startAgain() {
  running?.abort();
  talk = { messages: [], text: "" };
  shown = null;
  at("turns").replaceChildren();
  problem("");
  draw();
  at("question").focus();
}

/* --- the figures of an answer --- */

function draw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    drawn = performance.now();
    const scrolls = isAtEnd();
    shown?.show();
    drawTokens(shown);
    for (const id of ["figures", "places-section", "lanes-section"]) at(id).hidden = true;
    if (!shown) return;
    drawWorth(shown);
    if (shown.figures) drawPlaces(shown.figures);
    if (shown.figures?.rounds && shown.figures.trace?.rows.length) drawLanes(shown.figures.trace.rows);
    if (running) follow(scrolls);
  });
}

function drawLegend() {
  at("legend").replaceChildren(...Object.entries(ORIGINS).map(([origin, told]) => {
    const item = make("li");
    item.dataset.origin = origin;
    item.append(make("span", "sample", "token"), make("span", "", told), make("b", "number", "0"));
    return item;
  }));
}

function drawTokens(answer) {
  at("total").textContent = answer ? answer.tokens.toLocaleString("en") : "";
  at("shares").replaceChildren();
  for (const item of at("legend").children) {
    const number = answer?.origins[item.dataset.origin] ?? 0;
    item.lastElementChild.textContent = number.toLocaleString("en");
    if (!number) continue;
    const share = at("shares").appendChild(make("i"));
    share.dataset.origin = item.dataset.origin;
    share.style.flexGrow = number;
  }
}

function drawWorth(answer) {
  if (answer.perRound === null) return;
  at("figures").hidden = false;
  at("per-round").textContent = few(answer.perRound);
  const rounds = Array.from(answer.rounds, (origins) => origins ?? []).slice(1).slice(-ROUNDS_SHOWN);
  at("rounds").setAttribute("aria-label", `Tokens of the last rounds: ${rounds.map((own) => own.length).join(", ")}`);
  at("rounds").replaceChildren(...rounds.map((own, place) => {
    const column = make("span");
    column.title = `round ${answer.rounds.length - rounds.length + place}: ${count(own.length, "token")}`;
    for (const origin of own) column.appendChild(make("i")).dataset.origin = origin;
    return column;
  }));
  drawSpeeds(answer);
}

function drawSpeeds(answer) {
  const plain = answer.figures?.plain_tokens_per_second ?? null;
  const isPlain = answer.figures?.strategy === "ar";
  const rows = [];
  if (answer.speed !== null) rows.push([isPlain ? "plain decoding" : "with speculation", answer.speed, isPlain ? "without" : "with"]);
  if (plain !== null && !isPlain) rows.push(["plain decoding", plain, "without"]);
  const most = Math.max(...rows.map((row) => row[1]));
  at("speeds").replaceChildren(...rows.flatMap(([name, speed, className]) => {
    const bar = make("span", `bar ${className}`);
    bar.style.width = `${(100 * speed) / most}%`;
    const value = make("dd");
    value.append(bar, make("span", "number", `${few(speed)} tokens/s`));
    return [make("dt", "", name), value];
  }));
  let note = "";
  if (!answer.figures) note = "Counted from the tokens that came, by this browser's clock.";
  else if (plain !== null && answer.speed !== null && !isPlain) {
    note = `${few(answer.speed / plain)} times plain decoding, by the step of one token that the engine measured.`;
  }
  at("speed-note").textContent = note;
}

function drawPlaces(figures) {
  at("places-section").hidden = figures.judged_at.length === 0;
  at("places").replaceChildren(...figures.judged_at.map((judged, place) => {
    const accepted = figures.accepted_at[place];
    const item = make("li");
    item.title = `place ${place + 1}: ${accepted} of ${count(judged, "draft")} accepted`;
    const bar = item.appendChild(make("div", "column")).appendChild(make("i"));
    bar.style.height = judged ? `${(100 * accepted) / judged}%` : "0";
    item.append(make("div", "number", judged ? (accepted / judged).toFixed(2) : "–"), make("div", "faint number", String(place + 1)));
    return item;
  }));
}

function drawLanes(rows) {
  at("lanes-section").hidden = false;
  const slider = at("first-round");
  slider.max = Math.max(rows.reduce((most, row) => Math.max(most, row[2]), 0) - LANE_ROUNDS + 1, 0);
  if (slider.answer !== shown) {   /* of another answer: begin in its middle, where nothing is cold */
    slider.answer = shown;
    slider.value = Math.floor(slider.max / 2);
  }
  const first = Number(slider.value);
  at("first-round-value").textContent = first;
  const inside = rows.filter((row) => row[2] >= first && row[2] < first + LANE_ROUNDS);
  if (!inside.length) return;
  const begin = Math.min(...inside.map((row) => row[3]));
  const end = Math.max(...inside.map((row) => row[4]));
  const names = ["draft", "target"].filter((name) => rows.some((row) => row[0] === name));
  at("lanes").replaceChildren(...names.map((name) => {
    const lane = make("div", "lane");
    lane.append(make("span", "", name));
    const track = lane.appendChild(make("div", "track"));
    const own = inside.filter((row) => row[0] === name);
    const waits = own.filter((row) => row[1] === "wait");
    for (const row of [...waits, ...own.filter((row) => row[1] !== "wait")]) track.append(step(row, begin, end));
    return lane;
  }));
  at("axis-begin").textContent = `${few(begin / 1000)} ms`;
  at("axis-end").textContent = `${few(end / 1000)} ms`;
}

function step([, op, round, from, to], begin, end) {
  const kind = op.split(" ")[0];
  const bar = make("i", `step ${["draft", "score", "verify", "wait"].includes(kind) ? kind : "other"}`);
  bar.style.left = `${(100 * (from - begin)) / (end - begin)}%`;
  bar.style.width = `${(100 * (to - from)) / (end - begin)}%`;
  bar.title = `${op}, round ${round}: ${few((to - from) / 1000, 3)} ms`;
  return bar;
}

/* The trace in the form of Chrome's tracing, which Perfetto opens: one track a lane. */
function saveTrace() {
  const rows = shown.figures.trace.rows;
  const lanes = [...new Set(rows.map((row) => row[0]))].sort();
  const named = lanes.map((name, place) => ({ ph: "M", name: "thread_name", pid: 1, tid: place + 1, args: { name } }));
  const steps = rows.map(([lane, name, round, from, to]) => (
    { ph: "X", name, cat: lane, pid: 1, tid: lanes.indexOf(lane) + 1, ts: from, dur: to - from, args: { round } }
  ));
  const text = JSON.stringify({ traceEvents: [...named, ...steps], displayTimeUnit: "ms" });
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "pearl_rt_trace.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/* --- why this program --- */

const PROGRAMS = { ar: "plain (ar)", sd: "serial (sd)", pearl: "parallel (pearl)" };
const DRAFTERS = {
  model: "a draft model", lookup: "lookup of what was said before (no draft model)", none: "nothing drafts",
};

function windowOf(plan) {
  return plan.gamma ? `a window of ${plan.gamma}` : "no window";
}

function drawWhy(stats) {
  const next = stats.next;
  const told = [`Drafter: ${DRAFTERS[stats.drafter.kind] ?? stats.drafter.kind}.`];
  const isOnly = stats.candidates.every((plan) => plan.strategy === next.strategy);
  if (stats.strategy === "auto") {
    const why = isOnly ? "no other program can run" : "it is expected to be the fastest";
    told.push(`auto takes ${PROGRAMS[next.strategy]} with ${windowOf(next)}: ${why}.`);
  } else told.push(`The server was started with ${PROGRAMS[stats.strategy]}.`);
  const rates = Object.entries(stats.acceptance).map(([regime, rate]) => `${rate.toFixed(2)} (${regime})`);
  if (rates.length && stats.drafter.kind !== "none") told.push(`Drafts were accepted at a rate of ${rates.join(", ")}.`);
  const times = stats.step_times[next.placement];
  if (times?.is_measured) {
    const parts = [`one token of the target ${few(1000 * times.target["1"])} ms`];
    const windows = Object.entries(times.window ?? {});
    const [size, seconds] = windows.find(([gamma]) => Number(gamma) >= 4) ?? windows.at(-1) ?? [];
    if (size) parts.push(`${count(Number(size), "draft")} ${few(1000 * seconds)} ms`);
    told.push(`Measured at the start: ${parts.join(", ")}.`);
  }
  at("why").textContent = told.join(" ");
  const best = new Map();   /* the best window of each program and placement */
  for (const plan of stats.candidates) {
    const name = `${plan.strategy} ${plan.placement}`;
    if (!best.has(name)) best.set(name, plan);
  }
  at("candidates").hidden = best.size < 2 || !times?.is_measured;
  at("candidates").tBodies[0].replaceChildren(...[...best.values()].slice(0, 6).map((plan, place) => {
    const row = make("tr", place === 0 ? "chosen" : "");
    const cells = [PROGRAMS[plan.strategy], plan.gamma || "–", plan.placement, few(plan.tokens_per_round), few(plan.tokens_per_second)];
    row.append(...cells.map((cell) => make("td", "", String(cell))));
    return row;
  }));
}

async function refreshStats() {
  try {
    drawWhy(await (await call("stats")).json());
  } catch (error) {
    at("why").textContent = `Not known: ${error.message}`;
  }
}

/* --- the page --- */

function theme(chosen = document.documentElement.dataset.theme) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (chosen) document.documentElement.dataset.theme = chosen;
  at("dark").setAttribute("aria-checked", dark);
  return dark;
}

function showMarks() {
  document.body.classList.toggle("marked", at("marks").checked);
}

async function start() {
  problem("");
  try {
    model = (await (await call("v1/models")).json()).data[0];
  } catch (error) {
    problem(error instanceof Refused ? error.message : `The server cannot be reached (${error.message}).`);
    return;
  }
  document.title = `${model.id} · pearl_rt`;
  at("served").textContent = `${model.id}, up to ${model.max_model_len.toLocaleString("en")} tokens`;
  if (!model.has_chat_template) {
    document.body.classList.add("continues");
    at("served").textContent += "; no chat template: it goes on from your text";
    at("question-label").textContent = "Text to go on from";
    at("send").textContent = "Go on";
    at("system-field").hidden = true;
  }
  refreshStats();
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("key-dialog").open) running?.abort();
});
at("stop").addEventListener("click", () => running?.abort());
at("again").addEventListener("click", startAgain);
at("dark").addEventListener("click", () => {
  theme(stored("localStorage", "pearl_rt.theme", theme() ? "light" : "dark"));
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme());
at("marks").addEventListener("change", showMarks);
at("first-round").addEventListener("input", draw);
at("trace").addEventListener("click", saveTrace);
at("settings-form").addEventListener("submit", (event) => event.preventDefault());
at("form").addEventListener("change", () => {
  at("form-text-field").hidden = !["schema", "regex"].includes(at("form").value);
});
theme(stored("localStorage", "pearl_rt.theme") ?? undefined);
drawLegend();
showMarks();
start();
