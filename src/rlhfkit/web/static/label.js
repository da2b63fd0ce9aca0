// The labelling page: shows a pair, takes an answer by one key, and makes sure that the answer arrives.
import { Kept, Outbox, Refused } from "./outbox.js";
import { element, numSameTurns, showContent, showGuidelines } from "./show.js";

const IDLE_MS = 120_000; // without a key, a touch or a scroll for so long, nobody is reading
const BLIND_MS = 200; // nobody has read a pair that has just come up: a key so early is a slip
const POLL_MS = 20_000;
const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 47.5rem)");
const wide = matchMedia("(min-width: 68rem)");

// ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const texts = await (await fetch("/static/texts.json")).json();
let language = document.documentElement.dataset.language;

function t(key, values = {}) {
  const ofLanguage = texts[language];
  const text = (values.n === 1 && ofLanguage[`${key}_one`]) || ofLanguage[key] || key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

function setLanguage(code) {
  language = code;
  document.cookie = `rlhfkit_language=${code}; Path=/; SameSite=Strict; Max-Age=31536000`;
  document.documentElement.lang = code === "zh" ? "zh-Hans" : code;
  document.title = document.title.replace(/^[^·]*/, `${t("page_title")} `).trim();
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  for (const node of document.querySelectorAll("pre[aria-label]")) node.setAttribute("aria-label", t("code_block"));
  nameSides();
  showProgress();
  showStatus();
  if (state === "end") showEnd();
  if (state === "waiting") showWaiting();
}

let clearing = 0;
function say(text) {
  // A screen reader reads a change, so the same words twice need a gap between them.
  const box = $("announce");
  box.textContent = "";
  clearTimeout(clearing);
  clearing = setTimeout(() => (box.textContent = text), 60);
}

let hiding = 0;
/** Says it, and shows it for a while. */
function notify(text) {
  say(text);
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => ($("toast").hidden = true), 7000);
}

// ── time in which somebody reads ────────────────────────────────────────────────────────────────────────────────────

class ActiveClock {
  constructor() {
    this.onReturn = () => {};
    this.restart(0);
    for (const kind of ["keydown", "pointerdown", "pointermove", "wheel", "touchmove", "scroll"])
      addEventListener(kind, () => this.touch(), { capture: true, passive: true });
    document.addEventListener("visibilitychange", () => {
      this.#count(document.hidden); // what ends now was in view, if now it is not
      this.lastInput = performance.now();
    });
  }

  restart(seconds) {
    this.ms = seconds * 1000;
    this.counted = this.lastInput = performance.now();
  }

  touch() {
    this.#count(!document.hidden);
    const hasReturned = performance.now() - this.lastInput > IDLE_MS;
    this.lastInput = performance.now();
    if (hasReturned) this.onReturn();
  }

  #count(wasVisible) {
    const now = performance.now();
    if (wasVisible) this.ms += Math.max(0, Math.min(now, this.lastInput + IDLE_MS) - this.counted);
    this.counted = now;
  }

  get seconds() {
    this.#count(!document.hidden);
    return this.ms / 1000;
  }

  get isActive() {
    return !document.hidden && performance.now() - this.lastInput < IDLE_MS;
  }
}

// ── what the page knows ─────────────────────────────────────────────────────────────────────────────────────────────

const clock = new ActiveClock();
const layout = new Kept("rlhfkit.layout", "side");
const guidelinesOpen = new Kept("rlhfkit.guidelines", null);
const singleKeys = new Kept("rlhfkit.keys", true);
let state = "loading";
let outbox = null;
let drafts = null; // pair id → comment, flags, time spent; survives a reload
let task = null; // the pair in view
let previous = null; // the pair before it, for an undo without a network
let progress = null;
let guidelines = { version: 0, text: "" };
let isBusy = false;
let isOffline = false;
let shownAt = 0;
let retryAfter = 1000;
let retryTimer = 0;
let pollTimer = 0;
let beatTimer = 0;

async function call(path, body, { keepalive = false } = {}) {
  const response = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: { "Content-Type": "application/json", "X-Rlhfkit": "1", "X-Language": language },
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
    cache: "no-store",
    redirect: "error",
    keepalive,
    signal: keepalive ? undefined : AbortSignal.timeout(15_000),
  });
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    if (response.ok) throw new TypeError("cut off");
  }
  if (!response.ok) throw new Refused(response.status, answer.error?.code, answer.error?.message ?? t("error_internal"));
  return answer;
}

const newId = () => crypto.randomUUID?.() ?? `${1e7}-${1e3}-${4e3}-${8e3}-${1e11}`.replace(/[018]/g, (digit) =>
  (Number(digit) ^ (crypto.getRandomValues(new Uint8Array(1))[0] & (15 >> (Number(digit) / 4)))).toString(16));

// ── states of the page ──────────────────────────────────────────────────────────────────────────────────────────────

function show(name) {
  state = name;
  for (const node of document.querySelectorAll(".state")) node.hidden = node.id !== `state-${name}`;
  const hasName = !["loading", "start", "token"].includes(name);
  $("guidelines-button").hidden = !hasName;
  $("layout-button").hidden = name !== "pair" || narrow.matches;
  $("progress").hidden = !hasName || !progress;
  if (!hasName) $("guidelines").hidden = true;
  clearTimeout(pollTimer);
}

function showStatus(text = null) {
  const box = $("status");
  const waiting = outbox?.size ?? 0;
  if (isOffline) text = waiting ? t("status_offline", { n: waiting }) : t("status_offline_none");
  else if (isBusy && waiting) text = t("status_saving");
  else if (progress?.num_voted || progress?.num_skipped) text = t("status_saved");
  box.hidden = !text || ["start", "token"].includes(state);
  box.textContent = text ?? "";
  box.className = `status${isOffline ? " offline" : isBusy && waiting ? " saving" : ""}`;
}

function showProgress() {
  if (!progress) return;
  const done = progress.num_voted + progress.num_skipped;
  const parts = [t("done_count", { n: done }), t("left_count", { n: progress.num_left })];
  if (done) parts.push(t("own_speed", { n: Math.max(1, Math.round(progress.active_seconds / done)) }));
  $("progress-text").textContent = parts.join(" · ");
  $("progress-text").title = t("own_speed_help");
  $("progress-bar").max = Math.max(1, done + progress.num_left);
  $("progress-bar").value = done;
  $("pair-heading").textContent = t("pair_heading", { n: done + 1 });
}

function duration(seconds) {
  if (seconds < 90) return t("seconds_value", { n: Math.round(seconds) });
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return t("minutes_value", { n: minutes });
  return t("hours_value", { h: Math.floor(minutes / 60), n: minutes % 60 });
}

function showEnd() {
  const done = progress.num_voted + progress.num_skipped;
  const kind = progress.num_left > 0 ? "end_rest" : done ? "end" : "end_none";
  $("end-heading").textContent = t(`${kind}_heading`);
  $("end-text").textContent = t(`${kind}_text`);
  $("end-summary").hidden = !done;
  $("end-voted").textContent = progress.num_voted;
  $("end-skipped").textContent = progress.num_skipped;
  $("end-time").textContent = duration(progress.active_seconds);
  $("end-speed").textContent = done ? duration(progress.active_seconds / done) : "–";
  for (const button of document.querySelectorAll("#state-end .undo")) button.hidden = !done;
}

function showWaiting() {
  const kind = outbox?.size ? "wait" : "wait_load";
  $("waiting-heading").textContent = t(`${kind}_heading`);
  $("waiting-text").textContent = t(`${kind}_text`);
  for (const button of document.querySelectorAll("#state-waiting .undo")) button.hidden = !previous;
}

const isStacked = () => narrow.matches || layout.value === "stacked";
const sideName = (side) => (isStacked() ? { left: "top", right: "bottom" }[side] : side);

function nameSides() {
  const stacked = isStacked();
  document.body.classList.toggle("stacked", stacked);
  $("layout-text").textContent = t(stacked ? "layout_side" : "layout_stacked");
  $("layout-button").hidden = state !== "pair" || narrow.matches;
  const kind = Array.isArray(task?.left) ? "conversation" : "answer";
  for (const side of ["left", "right"]) {
    $(`${side}-heading`).textContent = t(`${kind}_${sideName(side)}`);
    document.querySelector(`.answer.${side} .flags`).setAttribute("aria-label", t(`flags_${sideName(side)}`));
    document.querySelector(`.end-${side}`).textContent = t(`scale_${sideName(side)}`);
  }
  for (const button of document.querySelectorAll(".degree[data-side]"))
    button.setAttribute("aria-label", t(`${sideName(button.dataset.side)}_${button.dataset.degree}`));
}

// ── the pair in view ────────────────────────────────────────────────────────────────────────────────────────────────

function newDraft() {
  return { comment: "", flags_left: [], flags_right: [], active: 0, since: Date.now(), earlier: null };
}

function draftOf(pairId) {
  return drafts.value[pairId] ?? newDraft();
}

function keepDraft(changes = {}) {
  if (!task) return;
  const entries = Object.entries(drafts.value).filter(([id]) => id !== task.pair_id).slice(-30);
  const draft = { ...draftOf(task.pair_id), ...changes, active: clock.seconds };
  drafts.value = Object.fromEntries([...entries, [task.pair_id, draft]]);
}

function dropDraft(pairId) {
  drafts.value = Object.fromEntries(Object.entries(drafts.value).filter(([id]) => id !== pairId));
}

function showTask(next, { focus = true } = {}) {
  const isSame = state === "pair" && task?.pair_id === next.pair_id && !isBusy;
  task = next;
  if (isSame) return;
  show("pair");
  const draft = draftOf(task.pair_id);
  $("prompt").hidden = !task.prompt.length;
  showContent($("prompt-text"), task.prompt, t);
  const numSame = numSameTurns(task.left, task.right);
  showContent($("left-text"), task.left, t, { numSame });
  showContent($("right-text"), task.right, t, { numSame });
  $("comment").value = draft.comment;
  openComment(Boolean(draft.comment), { focus: false });
  for (const button of document.querySelectorAll(".flag"))
    button.setAttribute("aria-pressed", draft[`flags_${button.dataset.side}`].includes(button.dataset.flag));
  markEarlier(draft.earlier);
  nameSides();
  showProgress();
  clock.restart(draft.active);
  shownAt = performance.now();
  keepDraft();
  if (focus) {
    scrollTo({ top: 0, behavior: "instant" });
    $("pair-heading").focus({ preventScroll: true });
  }
}

function markEarlier(choice) {
  const button = choice && buttonOf(choice);
  for (const other of document.querySelectorAll("#dock [aria-pressed]")) {
    other.setAttribute("aria-pressed", other === button);
    other.title = other === button ? t("said_earlier") : "";
  }
}

function buttonOf({ choice, side, degree }) {
  if (choice === "tie") return $("tie");
  if (choice === "both_bad") return $("both-bad");
  if (choice === "skip") return $("skip");
  return document.querySelector(`.degree[data-side="${side}"][data-degree="${degree}"]`);
}

function toggleFlag(side, flag) {
  const button = document.querySelector(`.flag[data-side="${side}"][data-flag="${flag}"]`);
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", isOn);
  keepDraft({ [`flags_${side}`]: flagsOf(side) });
  const where = t(`side_${sideName(side)}`);
  say(`${where}: ${t(isOn ? "flag_on" : "flag_off", { flag: t(`flag_${flag}`) })}`);
}

const flagsOf = (side) =>
  [...document.querySelectorAll(`.flag[data-side="${side}"][aria-pressed="true"]`)].map((button) => button.dataset.flag);

function openComment(isOpen, { focus = true } = {}) {
  $("comment-box").hidden = !isOpen;
  $("comment-button").setAttribute("aria-expanded", isOpen);
  if (isOpen && focus) $("comment").focus();
}

// ── answering ───────────────────────────────────────────────────────────────────────────────────────────────────────

function vote(choice) {
  if (state !== "pair" || isBusy || performance.now() - shownAt < BLIND_MS) return;
  keepDraft({ comment: $("comment").value, earlier: { ...choice } });
  const draft = draftOf(task.pair_id);
  const comment = $("comment").value.trim();
  outbox.add("/api/vote", {
    id: newId(),
    pair_id: task.pair_id,
    ...choice,
    flags_left: flagsOf("left"),
    flags_right: flagsOf("right"),
    comment: comment.toWellFormed?.() ?? comment,
    active_seconds: clock.seconds,
    wall_seconds: Math.max(0, (Date.now() - draft.since) / 1000),
    guidelines_version: guidelines.version,
    language,
  });
  buttonOf(choice)?.classList.add("pressed");
  previous = task;
  setBusy(true);
  void proceed("vote");
}

function undo() {
  if (isBusy || !outbox || !["pair", "end", "waiting"].includes(state)) return;
  if (state === "waiting" && !previous) return;
  keepDraft({ comment: $("comment").value });
  outbox.add("/api/undo", { id: newId() });
  if (isOffline && previous) {
    setBusy(true);
    showTask(previous);
    previous = null;
    setBusy(false);
    say(t("said_undone"));
    showStatus();
    return;
  }
  setBusy(true);
  void proceed("undo");
}

function setBusy(value) {
  isBusy = value;
  document.body.classList.toggle("busy", value);
  if (!value) for (const button of document.querySelectorAll(".pressed")) button.classList.remove("pressed");
  showStatus();
}

let newestTurn = 0;
/** Sends what waits, then shows what comes next; without a network, says so and tries again later. */
async function proceed(reason) {
  clearTimeout(retryTimer);
  const turn = ++newestTurn; // a reply that was overtaken by a newer request shows a pair of the past
  const hadItems = outbox.size > 0;
  try {
    const { last, refused } = await outbox.flush();
    for (const { item, error } of refused) showLost(item, error);
    if (turn !== newestTurn) return;
    const answer = last ?? (await call("/api/task", {}));
    if (turn !== newestTurn) return;
    const wasOffline = isOffline;
    isOffline = false;
    retryAfter = 1000;
    apply(answer, reason);
    if (wasOffline && hadItems) notify(t("said_online"));
  } catch (error) {
    if (turn === newestTurn) failed(error, reason);
  }
}

function apply(answer, reason) {
  const before = task?.pair_id;
  progress = answer.progress;
  if (answer.guidelines_version !== guidelines.version) void loadGuidelines();
  if (answer.taken_back) restoreDraft(answer.taken_back);
  else if (reason === "vote" && previous) dropDraft(previous.pair_id);
  if (answer.task) {
    if (isBusy || state !== "pair" || answer.task.pair_id !== before) showTask(answer.task);
    else task = answer.task;
  } else {
    task = null;
    show("end");
    showEnd();
    pollTimer = setTimeout(() => void proceed("poll"), POLL_MS);
    if (reason !== "poll") $("end-heading").focus({ preventScroll: true });
  }
  $("progress").hidden = false;
  showProgress();
  setBusy(false);
  beat();
  const number = progress.num_voted + progress.num_skipped + 1;
  if (reason === "vote") say(answer.task ? t("said_next", { n: number }) : t("said_end"));
  if (reason === "undo" && answer.taken_back) say(t("said_undone"));
  if (reason === "undo" && !answer.taken_back) notify(t("said_nothing_to_undo"));
  if (reason === "beat" && before && answer.task && answer.task.pair_id !== before) notify(t("said_replaced"));
}

function restoreDraft(taken) {
  const entries = Object.entries(drafts.value).filter(([id]) => id !== taken.pair_id);
  const draft = {
    ...newDraft(),
    comment: taken.comment,
    flags_left: taken.flags_left,
    flags_right: taken.flags_right,
    earlier: { choice: taken.choice, side: taken.side, degree: taken.degree },
  };
  drafts.value = Object.fromEntries([...entries, [taken.pair_id, draft]]);
}

function failed(error, reason) {
  if (error instanceof Refused && error.status === 401) {
    setBusy(false);
    void start();
    return;
  }
  if (error instanceof Refused && !error.isPassing) {
    showLost(null, error);
  }
  const wasOffline = isOffline;
  isOffline = true;
  setBusy(false);
  if (reason === "vote" || (reason === "undo" && !previous) || state !== "pair") {
    show("waiting");
    showWaiting();
  } else if (reason === "undo") {
    showTask(previous);
    previous = null;
  }
  if (reason === "vote" && !wasOffline) say(t("said_offline"));
  if (reason === "vote") task = null;
  showStatus();
  retryTimer = setTimeout(() => void proceed("retry"), retryAfter);
  retryAfter = Math.min(15_000, retryAfter * 2);
}

function retryNow() {
  if (!isOffline || !outbox) return;
  retryAfter = 1000;
  void proceed("retry");
}

function showLost(item, error) {
  $("lost-text").textContent = error.message;
  $("lost").hidden = false;
}

// ── the lease of the pair ───────────────────────────────────────────────────────────────────────────────────────────

function beat() {
  clearTimeout(beatTimer);
  if (!task) return;
  const seconds = Math.min(60, Math.max(2, task.lease_seconds / 4));
  beatTimer = setTimeout(() => void beatNow(), seconds * 1000);
}

async function beatNow() {
  const pairId = task?.pair_id;
  if (!pairId || isBusy || isOffline) return;
  if (!clock.isActive) return beat(); // nobody is there; when somebody is again, the next beat says so
  keepDraft();
  try {
    const { held } = await call("/api/heartbeat", { pair_id: pairId });
    if (!held && task?.pair_id === pairId && !isBusy) return void proceed("beat");
  } catch (error) {
    if (error instanceof Refused && error.status === 401) return void start();
  }
  beat();
}

// ── guidelines, language, layout, keys ──────────────────────────────────────────────────────────────────────────────

async function loadGuidelines() {
  try {
    const before = guidelines.version;
    guidelines = await call("/api/guidelines");
    if (guidelines.text.trim()) showGuidelines($("guidelines-text"), guidelines.text, t);
    else {
      const none = element("p", "muted", t("guidelines_none"));
      none.dataset.t = "guidelines_none";
      $("guidelines-text").replaceChildren(none);
    }
    if (before && before !== guidelines.version) notify(t("guidelines_changed"));
    const isNew = before !== 0 && before !== guidelines.version;
    openGuidelines(isNew || (guidelinesOpen.value ?? (wide.matches && Boolean(guidelines.text.trim()))), { keep: false });
  } catch {
    // They come with the next answer of the server.
  }
}

function openGuidelines(isOpen, { keep = true, focus = false } = {}) {
  $("guidelines").hidden = !isOpen;
  $("work").classList.toggle("with-guidelines", isOpen);
  $("guidelines-button").setAttribute("aria-expanded", isOpen);
  if (keep) guidelinesOpen.value = isOpen;
  if (focus && isOpen) {
    $("guidelines-heading").focus({ preventScroll: wide.matches });
    if (!wide.matches) scrollTo({ top: 0, behavior: "instant" });
  }
}

function toggleGuidelines() {
  if ($("guidelines-button").hidden) return;
  const isOpen = $("guidelines").hidden;
  openGuidelines(isOpen, { focus: true });
  if (!isOpen) $("guidelines-button").focus({ preventScroll: true });
}

function toggleLayout() {
  if (narrow.matches || state !== "pair") return;
  layout.value = isStacked() ? "side" : "stacked";
  nameSides();
  say(t(`said_layout_${layout.value}`));
}

function keyOf(event) {
  if (event.key === "?") return "?";
  if (/^[0-9]$/.test(event.key)) return event.key;
  if (!event.shiftKey && /^(Digit|Numpad)[0-9]$/.test(event.code)) return event.code.at(-1);
  if (/^[a-z]$/i.test(event.key)) return event.key.toLowerCase();
  // Other scripts: the key that stands where the Latin letter is.
  return /^Key[A-Z]$/.test(event.code) ? event.code.at(-1).toLowerCase() : event.key;
}

const KEYS = {
  1: () => vote({ choice: "preference", side: "left", degree: 4 }),
  2: () => vote({ choice: "preference", side: "left", degree: 3 }),
  3: () => vote({ choice: "preference", side: "left", degree: 2 }),
  4: () => vote({ choice: "preference", side: "left", degree: 1 }),
  5: () => vote({ choice: "tie" }),
  0: () => vote({ choice: "tie" }),
  6: () => vote({ choice: "preference", side: "right", degree: 1 }),
  7: () => vote({ choice: "preference", side: "right", degree: 2 }),
  8: () => vote({ choice: "preference", side: "right", degree: 3 }),
  9: () => vote({ choice: "preference", side: "right", degree: 4 }),
  b: () => vote({ choice: "both_bad" }),
  s: () => openSkip(),
  z: undo,
  u: undo,
  q: () => state === "pair" && toggleFlag("left", "unsafe"),
  w: () => state === "pair" && toggleFlag("left", "wrong"),
  e: () => state === "pair" && toggleFlag("left", "off_topic"),
  i: () => state === "pair" && toggleFlag("right", "unsafe"),
  o: () => state === "pair" && toggleFlag("right", "wrong"),
  p: () => state === "pair" && toggleFlag("right", "off_topic"),
  c: () => state === "pair" && openComment(true),
  g: toggleGuidelines,
  v: toggleLayout,
  "?": () => $("help-dialog").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat || event.defaultPrevented) return;
  const key = keyOf(event);
  const dialog = document.querySelector("dialog[open]");
  if (dialog) {
    const choice = singleKeys.value && dialog.querySelectorAll(".choice")[Number(key) - 1];
    if (choice) {
      event.preventDefault();
      choice.click();
    }
    return;
  }
  if (event.target.closest?.("input, textarea, select")) {
    if (event.key === "Escape" && event.target.id === "comment") {
      openComment(Boolean($("comment").value.trim()), { focus: false });
      $("pair-heading").focus({ preventScroll: true });
    }
    return;
  }
  if (!singleKeys.value || !Object.hasOwn(KEYS, key)) return;
  event.preventDefault(); // the letter that opens the comment shall not stand in it
  KEYS[key]();
}

function openSkip() {
  if (state === "pair" && !isBusy && performance.now() - shownAt >= BLIND_MS) $("skip-dialog").showModal();
}

// ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────

async function start() {
  clearTimeout(retryTimer);
  try {
    const session = await call("/api/session");
    isOffline = false;
    if (session.name === null) {
      task = null;
      outbox = null;
      $("person").hidden = true;
      show(session.may_give_name ? "start" : "token");
      showStatus();
      if (session.may_give_name) $("start-name").focus();
      return;
    }
    $("person").hidden = false;
    $("person-name").textContent = session.name;
    $("person-name").title = t("signed_in_as", { name: session.name });
    // Kept apart by project and by person: nobody's answer is ever sent as somebody else's.
    const key = `${session.project}.${session.name}`;
    outbox = new Outbox(`rlhfkit.outbox.${key}`, call);
    drafts = new Kept(`rlhfkit.drafts.${key}`, {});
    previous = null;
    await loadGuidelines();
    await proceed("start");
  } catch {
    isOffline = true;
    show("waiting");
    showWaiting();
    showStatus();
    retryTimer = setTimeout(() => void start(), retryAfter);
    retryAfter = Math.min(15_000, retryAfter * 2);
  }
}

function leave() {
  if (!task) return;
  keepDraft({ comment: $("comment").value });
  // Like sendBeacon, but with the header that keeps other sites out.
  void call("/api/release", { pair_id: task.pair_id }, { keepalive: true }).catch(() => {});
}

$("start-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("start-error").textContent = "";
  try {
    await call("/api/session", { name: $("start-name").value });
    await start();
  } catch (error) {
    $("start-error").textContent = error instanceof Refused ? error.message : t("wait_load_heading");
  }
});
$("sign-out").addEventListener("click", async () => {
  leave();
  task = null;
  clearTimeout(retryTimer);
  try {
    await call("/api/sign-out", {});
  } finally {
    location.reload();
  }
});
for (const button of document.querySelectorAll(".degree[data-side]"))
  button.addEventListener("click", () =>
    vote({ choice: "preference", side: button.dataset.side, degree: Number(button.dataset.degree) }));
for (const button of document.querySelectorAll(".flag"))
  button.addEventListener("click", () => toggleFlag(button.dataset.side, button.dataset.flag));
for (const button of document.querySelectorAll(".choice"))
  button.addEventListener("click", () => {
    $("skip-dialog").close();
    vote({ choice: "skip", skip_reason: button.dataset.reason });
  });
for (const button of document.querySelectorAll(".undo")) button.addEventListener("click", undo);
for (const button of document.querySelectorAll("[data-close]"))
  button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog"))
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
$("tie").addEventListener("click", KEYS[5]);
$("both-bad").addEventListener("click", KEYS.b);
$("skip").addEventListener("click", openSkip);
$("comment-button").addEventListener("click", () => openComment($("comment-box").hidden));
$("comment").addEventListener("input", () => keepDraft({ comment: $("comment").value }));
$("guidelines-button").addEventListener("click", toggleGuidelines);
$("guidelines-close").addEventListener("click", toggleGuidelines);
$("layout-button").addEventListener("click", toggleLayout);
$("help-button").addEventListener("click", KEYS["?"]);
$("language").addEventListener("change", (event) => {
  setLanguage(event.target.value);
  event.target.blur(); // the next key is an answer again
});
$("single-keys").addEventListener("change", (event) => (singleKeys.value = event.target.checked));
$("retry").addEventListener("click", () => (outbox ? retryNow() : void start()));
$("look-again").addEventListener("click", () => void proceed("poll"));
$("lost-dismiss").addEventListener("click", () => ($("lost").hidden = true));
document.addEventListener("keydown", onKey);
narrow.addEventListener("change", nameSides);
clock.onReturn = () => void beatNow();
addEventListener("online", retryNow);
addEventListener("pagehide", leave);
addEventListener("pageshow", (event) => event.persisted && void start());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) keepDraft({ comment: $("comment").value });
  else if (isOffline) retryNow();
  else void beatNow();
});
$("single-keys").checked = singleKeys.value;
nameSides();
void start();
