// A page for one conversation with the server that it came from.

import { render } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const SLIDERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"];
const NUMBERS = ["top_k", "seed", "max_tokens"];

let turns = []; // what is sent: {role, content}
let attached = []; // {kind, url (data:), preview (blob:), name}
let writing = null; // AbortController of the answer under way
let limits = {};
let model = null;
const empty = $("empty");

const make = (name, className, text) => {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

const headers = () => {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
};

function say(state, kind = "") {
  $("state").textContent = state;
  $("state").className = `pill ${kind}`;
}

async function connect() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) { say("needs the API key", "bad"); openSettings(true); return; }
    const about = (await response.json()).data[0];
    if (model === null) setDefaults(about.defaults);
    model = about.id;
    limits = about.limits;
    $("model").textContent = model;
    document.title = `${model} · vlmkit`;
    say("ready", "good");
  } catch (error) {
    say("no connection", "bad");
  }
}

function setDefaults(defaults) {
  for (const name of [...SLIDERS, "top_k", "max_tokens"]) $(name).value = defaults[name];
  showSliders();
}

function showSliders() {
  for (const name of SLIDERS) $(name).parentElement.querySelector("output").value = $(name).value;
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle").setAttribute("aria-expanded", open);
}

// Media

const asDataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

async function attach(files) {
  for (const file of files) {
    const kind = file.type.split("/")[0];
    if (kind !== "image" && kind !== "video") { complain(`${file.name} is neither an image nor a video`); continue; }
    if (file.size * 4 / 3 > limits.request_bytes) {
      complain(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB; the server takes ${(limits.request_bytes * 0.75 / 1e6).toFixed(0)} MB in all`);
      continue;
    }
    attached.push({ kind, url: await asDataUrl(file), preview: URL.createObjectURL(file), name: file.name });
    showAttached();
  }
  $("text").focus();
}

function showMedium(item, controls) {
  const element = make(item.kind === "image" ? "img" : "video");
  element.src = item.preview;
  if (item.kind === "image") element.alt = item.name;
  else Object.assign(element, { muted: true, controls, preload: "metadata", title: item.name });
  return element;
}

function showAttached() {
  $("attached").replaceChildren(...attached.map((item) => {
    const thumb = make("div", "thumb");
    const remove = make("button", "", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.onclick = () => { attached = attached.filter((other) => other !== item); showAttached(); };
    thumb.append(showMedium(item, false), remove);
    return thumb;
  }));
  $("attached").hidden = !attached.length;
}

// Conversation

function complain(message) {
  $("messages").append(make("div", "error", message));
  toEnd();
}

const nearEnd = () => { const m = $("messages"); return m.scrollHeight - m.scrollTop - m.clientHeight < 80; };
const toEnd = () => { $("messages").scrollTop = $("messages").scrollHeight; };

function showQuestion(text, media) {
  empty.remove();
  const turn = make("div", "turn user");
  if (media.length) {
    const row = turn.appendChild(make("div", "media"));
    row.append(...media.map((item) => showMedium(item, true)));
  }
  if (text) turn.append(make("div", "said", text));
  $("messages").append(turn);
  toEnd();
}

function settings() {
  const chosen = {};
  for (const name of [...SLIDERS, ...NUMBERS])
    if ($(name).value !== "") chosen[name] = Number($(name).value);
  if ($("stop_text").value) chosen.stop = $("stop_text").value;
  return chosen;
}

async function ask() {
  const text = $("text").value.trim();
  if (writing || (!text && !attached.length)) return;
  const media = attached;
  attached = [];
  showAttached();
  $("text").value = "";
  grow();
  showQuestion(text, media);
  const content = media.map(({ kind, url }) => ({ type: `${kind}_url`, [`${kind}_url`]: { url } }));
  if (text) content.push({ type: "text", text });
  turns.push({ role: "user", content });
  await answer();
}

async function answer() {
  const turn = $("messages").appendChild(make("div", "turn assistant writes"));
  const said = turn.appendChild(make("div", "said"));
  toEnd();
  const mine = turns, stopper = writing = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  const began = performance.now();
  let text = "", reason = null, usage = null, drawn = false;
  const draw = () => {
    drawn = false;
    const follow = nearEnd();
    render(said, text);
    if (follow) toEnd();
  };
  const system = $("system").value.trim();
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      signal: stopper.signal,
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({
        ...settings(),
        messages: system ? [{ role: "system", content: system }, ...turns] : turns,
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error(await reasonOf(response));
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      for (const choice of event.choices) {
        text += choice.delta.content ?? "";
        reason = choice.finish_reason ?? reason;
      }
      if (!drawn) { drawn = true; requestAnimationFrame(draw); }
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped";
    else turn.append(make("div", "error", error.message));
  }
  if (mine !== turns) return; // the conversation was forgotten
  writing = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  draw();
  turn.classList.remove("writes");
  turn.append(footer(turn, text, reason, usage, (performance.now() - began) / 1000));
  if (text) turns.push({ role: "assistant", content: text });
  toEnd();
}

function footer(turn, text, reason, usage, seconds) {
  const foot = make("div", "foot");
  if (usage) {
    const rate = (usage.completion_tokens / seconds).toFixed(1);
    foot.append(make("span", "", `${usage.prompt_tokens} + ${usage.completion_tokens} tokens`), make("span", "", `${rate} tokens/s`));
  }
  if (reason && reason !== "stop") foot.append(make("span", "", reason === "length" ? "cut at the longest answer" : reason));
  const copy = make("button", "", "Copy"), again = make("button", "", "Again");
  copy.onclick = () => navigator.clipboard?.writeText(text);
  again.onclick = () => {
    if (writing || turn !== $("messages").lastElementChild) return;
    if (turns.at(-1)?.role === "assistant") turns.pop();
    turn.remove();
    answer();
  };
  foot.append(copy, again);
  return foot;
}

async function reasonOf(response) {
  const body = await response.text();
  if (response.status === 401) openSettings(true);
  try { return JSON.parse(body).error.message; } catch { return `${response.status} ${body.slice(0, 300)}`; }
}

/** The JSON of server-sent events. */
async function* events(body) {
  let held = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// Wiring

function grow() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("stop").onclick = () => writing?.abort();
$("text").addEventListener("input", grow);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
});
$("attach").onclick = () => $("files").click();
$("files").onchange = () => { attach([...$("files").files]); $("files").value = ""; };
$("toggle").onclick = () => openSettings($("settings").hidden);
$("settings").addEventListener("input", showSliders);
$("key").onchange = connect;
$("fresh").onclick = () => {
  writing?.abort();
  writing = null;
  turns = [];
  $("send").hidden = false;
  $("stop").hidden = true;
  $("messages").replaceChildren(empty);
};
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length) { event.preventDefault(); attach(files); }
});

let depth = 0; // of elements that a dragged file has entered
const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragenter", (event) => { if (carriesFiles(event)) { depth++; $("drop").hidden = false; } });
document.addEventListener("dragleave", () => { depth = Math.max(depth - 1, 0); if (!depth) $("drop").hidden = true; });
document.addEventListener("dragover", (event) => { if (carriesFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  depth = 0;
  $("drop").hidden = true;
  if (!carriesFiles(event)) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});

openSettings(innerWidth > 760);
connect();
