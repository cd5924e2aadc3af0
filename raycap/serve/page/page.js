// The demo page: one picture, captioned without the RBM and with it, side by side.

import { ApiError, caption, curlCommand, listModels } from "./client.js";

// Longer than the pause between two steps of a slider that is being moved.
const DEBOUNCE_MS = 250;
const KEY_STORE = "raycap.key";

const $ = (id) => document.getElementById(id);
const options = [...document.querySelectorAll("#options input")];
let models = [];
let picture = null; // {file, number}
let timer = 0;

/** What one card shows: `key` names the request it was last asked for, `answer` is null until it is whole. */
function makeSlot(id) {
  const card = $(id);
  const part = (name) => card.querySelector(name);
  return { card, title: part("h2"), text: part(".caption"), facts: part(".facts"), key: "", answer: null, abort: null };
}
const plain = makeSlot("plain");
const gated = makeSlot("gated");

const model = () => models.find(({ id }) => id === $("model").value) ?? models[0];
const refined = () => model()?.refined ?? true;
const slots = () => (refined() ? [plain, gated] : [plain]);
const apiKey = () => sessionStorage.getItem(KEY_STORE) ?? "";
const plural = (count, noun, ending = "s") => `${count} ${noun}${count === 1 ? "" : ending}`;
const gateTitle = (gate, passes) => `With the RBM: gate ${Number(gate).toFixed(2)}, ${plural(Number(passes), "pass", "es")}`;

/** The form's fields of a card's request; what is left open is the model's own setting, and not sent. */
function fieldsOf(slot) {
  const fields = {};
  if (model()) fields.model = model().id;
  if (refined()) Object.assign(fields, slot === plain ? { gate: "0" } : { gate: $("gate").value, passes: $("passes").value });
  for (const { name, value, disabled } of options) if (value !== "" && !disabled) fields[name] = value;
  if ($("explain").checked) fields.explain = "true";
  return fields;
}
const keyOf = (slot) => JSON.stringify([picture.number, fieldsOf(slot)]);

// ---- Asking

/** After any change: show what would be asked now, stop what is no longer asked, and ask after a pause. */
function changed(delay = DEBOUNCE_MS) {
  showControls();
  if (!picture) return;
  clearTimeout(timer);
  for (const slot of [plain, gated]) {
    const outdated = slot.key !== keyOf(slot) || !slots().includes(slot);
    if (outdated && slot.key) slot.card.classList.add("stale");
    if (outdated) stop(slot);
  }
  timer = setTimeout(() => slots().filter((slot) => slot.key !== keyOf(slot)).forEach(ask), delay);
}

function stop(slot) {
  slot.abort?.abort();
  Object.assign(slot, { abort: null, key: "", answer: null });
}

async function ask(slot) {
  const abort = new AbortController();
  Object.assign(slot, { abort, key: keyOf(slot), answer: null });
  if (slots().every(({ key }) => key)) showError(null);
  showVerdict();
  showHeat(null);
  $("figure").hidden = true;
  slot.text.ariaBusy = "true";
  const started = performance.now();
  let text = "";
  let firstMs = null;
  try {
    for await (const event of caption(picture.file, fieldsOf(slot), apiKey(), abort.signal)) {
      if (abort.signal.aborted) return;
      firstMs ??= performance.now() - started;
      if (event.delta !== undefined) showText(slot, (text += event.delta));
      else showAnswer(slot, event, { firstMs: text && firstMs, allMs: performance.now() - started });
    }
  } catch (error) {
    if (abort.signal.aborted) return;
    stop(slot);
    showText(slot, "No caption.", true);
    showError(error);
  } finally {
    if (slot.abort === abort || !slot.abort) slot.text.ariaBusy = "false";
  }
}

async function loadModels() {
  try {
    models = await listModels(apiKey());
  } catch (error) {
    showError(error);
    return;
  }
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  $("model").hidden = models.length < 2;
  chooseModel();
}

function chooseModel() {
  $("gate").value = model()?.gate ?? 1;
  $("passes").value = model()?.passes ?? 1;
  changed(0);
}

// ---- Showing

function showControls() {
  $("refinement").hidden = gated.card.hidden = !refined();
  document.querySelector(".cards").classList.toggle("single", !refined());
  plain.title.textContent = refined() ? "Without the RBM: gate 0" : "Caption";
  gated.title.textContent = gateTitle($("gate").value, $("passes").value);
  // An LSTM captioner continues no text.
  const prompt = options.find(({ name }) => name === "prompt");
  prompt.disabled = prompt.parentElement.hidden = model()?.kind === "lstm_captioner";
  $("gate-value").value = Number($("gate").value).toFixed(2);
  $("fewer").disabled = Number($("passes").value) <= Number($("passes").min);
  $("more").disabled = Number($("passes").value) >= Number($("passes").max);
  const asked = fieldsOf(refined() ? gated : plain);
  $("curl").textContent = curlCommand(picture?.file.name ?? "picture.jpg", asked, Boolean(apiKey()));
  $("copied").textContent = "";
  showVerdict();
}

function showText(slot, text, waiting = false) {
  slot.card.classList.remove("stale");
  slot.text.classList.toggle("waiting", waiting);
  slot.text.textContent = text;
  slot.facts.textContent = "";
}

function showAnswer(slot, { answer, stages }, { firstMs, allMs }) {
  slot.answer = answer;
  showText(slot, "");
  slot.text.append(...wordsOf(answer));
  if (slot === gated && answer.refinement) slot.title.textContent = gateTitle(answer.refinement.gate, answer.refinement.passes);
  const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
  const facts = [
    plural(answer.usage.completion_tokens, "token") + (answer.finish_reason === "length" ? ", cut off" : ""),
    (firstMs ? `first word ${ms(firstMs)}, ` : "") + `all ${ms(allMs)}`,
    ...stages.map(([stage, duration]) => `${stage} ${ms(duration)}`),
  ];
  slot.facts.textContent = facts.join("\u00a0· ");
  if (slot === slots().at(-1)) {
    $("version").textContent = $("version").title = `Model ${answer.model} ${answer.model_version ?? ""}`.trim();
    $("figure").hidden = !answer.attention;
    $("figure").href = answer.attention?.figure ?? "";
  }
  showVerdict();
}

/** A caption's words as elements; those with a map are buttons, what comes before them (a prompt) stays text. */
function wordsOf({ caption: text, attention }) {
  const words = attention?.words ?? text.split(" ");
  const tail = words.join(" ");
  // Where the words are not the caption's own, they follow it.
  const head = text.endsWith(tail) ? text.slice(0, text.length - tail.length) : `${text} — `;
  const nodes = words.flatMap((word, index) => {
    const node = document.createElement(attention ? "button" : "span");
    Object.assign(node, { className: "word", textContent: word });
    if (attention) Object.assign(node, { type: "button", map: attention.maps[index] });
    return [" ", node];
  });
  return [head, ...nodes.slice(1)];
}

function showVerdict() {
  const done = slots().every(({ answer }) => answer);
  if (done && refined()) {
    const kept = commonWords(words(plain), words(gated));
    gated.text.querySelectorAll(".word").forEach((node, index) => node.classList.toggle("changed", !kept.has(index)));
  }
  const said = !picture ? invitation() : done ? verdict() : "";
  // Said again, it would be read out again.
  if ($("verdict").textContent !== said) $("verdict").textContent = said;
}

const invitation = () => `Choose a picture to read its caption${refined() ? " without the RBM and with it" : ""}.`;

function verdict() {
  if (!refined()) return "This model has no RBM.";
  const gate = gated.answer.refinement?.gate;
  if (plain.answer.caption === gated.answer.caption) {
    return gate === 0 ? "Gate 0 leaves the RBM out: both are the model’s own caption." : "At this gate the RBM changes no word.";
  }
  const chance = options.some(({ name, value }) => name === "temperature" && Number(value) > 0);
  return `The RBM changes the caption; not always for the better.${chance ? " Here words are drawn by chance too." : ""}`;
}

const words = (slot) => [...slot.text.querySelectorAll(".word")].map((node) => node.textContent);

/** Indices of the words of `b` in the longest common subsequence with `a`. */
function commonWords(a, b) {
  const length = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const common = new Set();
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      common.add(j);
      [i, j] = [i + 1, j + 1];
    } else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return common;
}

function showError(error) {
  $("error").hidden = !error;
  $("verdict").hidden = $("version").hidden = Boolean(error);
  const wrong = error instanceof ApiError ? error.field : null;
  for (const input of [...options, $("passes")]) input.ariaInvalid = String((input.name || input.id) === wrong);
  if (!error) return;
  $("error-text").textContent = error.message;
  // What the request itself got wrong, a second try gets wrong again.
  $("retry").hidden = [400, 401, 403, 413, 415, 422].includes(error.status);
  if (options.some(({ name }) => name === wrong)) $("options").open = true;
  if (error.status === 401 && $("key-form").hidden) {
    $("key-form").hidden = false;
    $("key").focus();
  }
}

function showHeat(node) {
  document.querySelectorAll(".word.shown").forEach((other) => other.classList.remove("shown"));
  $("heat").hidden = !node;
  if (!node) return;
  node.classList.add("shown");
  $("heat").src = node.map;
}

// ---- The picture

let numPictures = 0;
function take(file) {
  if (!file) return;
  for (const slot of [plain, gated]) {
    stop(slot);
    showText(slot, "Reading the picture …", true);
  }
  picture = { file, number: ++numPictures };
  $("name").textContent = file.name;
  $("stage").classList.remove("empty");
  $("invitation").hidden = true;
  showHeat(null);
  URL.revokeObjectURL($("image").src);
  $("image").src = URL.createObjectURL(file);
  changed(0);
}

function showPicture(seen) {
  $("frame").hidden = !seen;
  $("unseen").hidden = seen;
  $("frame").style.setProperty("--ratio", $("image").naturalWidth / $("image").naturalHeight || 1);
}

/** Two things side by side, as in the demo's own data set. */
function draw() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 384, height: 384 });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#dedede";
  pen.fillRect(0, 0, 384, 384);
  const colours = ["#d62728", "#2ca02c", "#1f50c8", "#f0d228", "#8c3caa"].sort(() => Math.random() - 0.5);
  [108, 276].forEach((x, index) => {
    pen.fillStyle = colours[index];
    pen.beginPath();
    const kind = Math.floor(Math.random() * 3);
    if (kind === 0) pen.arc(x, 192, 60, 0, 2 * Math.PI);
    else if (kind === 1) pen.rect(x - 54, 138, 108, 108);
    else [[x, 126], [x + 57, 225], [x - 57, 225]].forEach((corner) => pen.lineTo(...corner));
    pen.fill();
  });
  // Not toBlob, which waits until the browser has nothing else to do.
  const bytes = Uint8Array.from(atob(canvas.toDataURL("image/png").split(",")[1]), (byte) => byte.charCodeAt(0));
  take(new File([bytes], "drawing.png", { type: "image/png" }));
}

// ---- What the user does

function listen() {
  for (const id of ["file", "camera"]) $(id).addEventListener("change", ({ target }) => take(target.files[0]));
  document.addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files][0]));
  // Anywhere on the page: a picture dropped beside the stage must not replace the page.
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("stage").classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? $("stage").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("stage").classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  $("image").addEventListener("load", () => showPicture(true));
  $("image").addEventListener("error", () => showPicture(false));
  $("sample").addEventListener("click", draw);

  for (const input of [$("gate"), $("passes"), $("explain"), ...options]) input.addEventListener("input", () => changed());
  $("model").addEventListener("change", chooseModel);
  for (const [id, step] of [["fewer", "stepDown"], ["more", "stepUp"]]) {
    $(id).addEventListener("click", () => {
      $("passes")[step]();
      changed();
    });
  }
  $("retry").addEventListener("click", () => (models.length ? changed(0) : loadModels()));
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY_STORE, $("key").value.trim());
    $("key-form").hidden = true;
    showError(null);
    if (models.length) changed(0);
    else loadModels();
  });
  $("copy").addEventListener("click", async () => {
    getSelection().selectAllChildren($("curl"));
    try {
      await navigator.clipboard.writeText($("curl").textContent);
      $("copied").textContent = "Copied.";
    } catch {
      // Browsers give the clipboard only to pages that came by HTTPS or from the same machine.
      $("copied").textContent = "Selected: copy it as any text.";
    }
  });

  const wordAt = ({ target }) => target.closest?.("button.word") ?? null;
  for (const { text } of [plain, gated]) {
    for (const event of ["pointerover", "focusin", "click"]) text.addEventListener(event, (at) => wordAt(at) && showHeat(wordAt(at)));
    // A finger leaves as soon as it has tapped: its word stays shown.
    text.addEventListener("pointerleave", ({ pointerType }) => pointerType === "mouse" && showHeat(null));
    text.addEventListener("focusout", () => showHeat(null));
  }
  document.addEventListener("keydown", ({ key }) => key === "Escape" && showHeat(null));
}

for (const slot of [plain, gated]) showText(slot, "The caption appears here.", true);
$("stage").classList.add("empty");
listen();
loadModels();
