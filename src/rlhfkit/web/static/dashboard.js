// The dashboard: runs, their curves while they train, samples, labels. It asks again every few seconds, for news only.
import { Chart, exact, thinned } from "./chart.js";
import { ClusterTables } from "./cluster.js";
import { asTurns, element } from "./show.js";
import { showQueue, showTrust } from "./trust.js";

const NEWS_MS = 2000;
const RUNS_MS = 4000;
const LABELS_MS = 5000;
const LONGEST_WAIT_MS = 15_000;
const MOST_POINTS = 3000;
const PAGE_TITLE = document.title;
const $ = (id) => document.getElementById(id);

// ── words ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const language = document.documentElement.dataset.language;
const words = (await (await fetch("/static/dashboard_texts.json")).json())[language];
const ago = new Intl.RelativeTimeFormat(language, { numeric: "auto" });

function word(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

const stageName = (stage) => words[`stage_${stage}`] ?? stage;

function since(seconds) {
  for (const [unit, size] of [["day", 86_400], ["hour", 3600], ["minute", 60]])
    if (seconds >= size) return ago.format(-Math.floor(seconds / size), unit);
  return ago.format(-Math.floor(seconds), "second");
}

$("language").addEventListener("change", (event) => {
  document.cookie = `rlhfkit_language=${event.target.value}; Path=/; SameSite=Strict; Max-Age=31536000`;
  location.reload();
});

// ── asking the server ───────────────────────────────────────────────────────────────────────────────────────────────

class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    Object.assign(this, { status, code });
  }
}

async function ask(what, values = {}) {
  const response = await fetch(`/api/dashboard/${what}?${new URLSearchParams(values)}`, {
    headers: { "X-Language": language }, cache: "no-store", signal: AbortSignal.timeout(30_000),
  });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, body.error?.code, body.error?.message ?? response.statusText);
  return body;
}

const troubles = new Map(); // who asks → what went wrong

function showTroubles() {
  const all = [...troubles.values()];
  const isOffline = all.some((error) => !(error instanceof Refused));
  const told = all.filter((error) => error instanceof Refused).map((error) => error.message);
  const notice = [...new Set(told)].join(" ");
  if ($("notice").textContent !== notice) $("notice").textContent = notice;
  $("notice").hidden = !notice;
  $("status").hidden = false;
  $("status").className = isOffline ? "status offline" : "status";
  const text = word(isOffline ? "offline" : "live");
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** Calls `work` again and again, less often while it fails, never while the page is hidden. */
class Repeated {
  #timer = 0;
  #wait;
  #isAtWork = false;
  #isStopped = false;

  constructor(every, work) {
    Object.assign(this, { every, work });
    this.#wait = every;
    document.addEventListener("visibilitychange", this.#seen);
    this.now();
  }

  #seen = () => {
    if (document.hidden) clearTimeout(this.#timer);
    else this.now();
  };

  async now() {
    clearTimeout(this.#timer);
    if (this.#isAtWork || this.#isStopped || document.hidden) return;
    this.#isAtWork = true;
    try {
      await this.work(() => this.#isStopped);
      troubles.delete(this);
      this.#wait = this.every;
    } catch (error) {
      if (!this.#isStopped) troubles.set(this, error);
      if (!(error instanceof Refused) && !["TypeError", "TimeoutError", "AbortError"].includes(error.name)) console.error(error);
      this.#wait = Math.min(LONGEST_WAIT_MS, this.#wait * 1.5);
    }
    this.#isAtWork = false;
    if (this.#isStopped) return;
    showTroubles();
    if (!document.hidden) this.#timer = setTimeout(() => this.now(), this.#wait);
  }

  stop() {
    this.#isStopped = true;
    clearTimeout(this.#timer);
    troubles.delete(this);
    document.removeEventListener("visibilitychange", this.#seen);
  }
}

// ── curves of one run, read on from where we stopped ────────────────────────────────────────────────────────────────

class Feed {
  constructor(run, all) {
    Object.assign(this, { run, all });
    this.forget();
  }

  forget() {
    this.mark = { offset: 0, digest: "" };
    this.stages = new Map(); // stage → seed → metric → points
    this.numDamaged = 0;
  }

  /** Gets what is new, in parts; `onPart` after each that brought something. */
  async pull(isStopped, onPart) {
    for (let hasMore = true; hasMore && !isStopped(); ) {
      const news = await ask("metrics", { run: this.run, ...this.mark, all: this.all });
      const hadSome = this.stages.size > 0;
      if (news.is_new) this.forget();
      this.mark = news.mark;
      this.numDamaged += news.num_damaged;
      const hasNews = Object.keys(news.curves).length > 0;
      for (const [stage, seeds] of Object.entries(news.curves))
        for (const [seed, curves] of Object.entries(seeds)) this.#add(stage, seed, curves);
      hasMore = news.has_more;
      if (hasNews || (news.is_new && hadSome)) onPart();
    }
  }

  #add(stage, seed, curves) {
    if (!this.stages.has(stage)) this.stages.set(stage, new Map());
    const seeds = this.stages.get(stage);
    if (!seeds.has(seed)) seeds.set(seed, new Map());
    const metrics = seeds.get(seed);
    for (const [name, points] of Object.entries(curves)) {
      const kept = metrics.get(name) ?? [];
      while (kept.length && kept.at(-1)[0] >= points[0][0]) kept.pop(); // done again after a restart: the later one counts
      for (const point of points) kept.push(point);
      metrics.set(name, kept.length > MOST_POINTS ? thinned(kept, MOST_POINTS / 2) : kept);
    }
  }
}

const chart = (key, name, limits = {}, unit = `${name}_unit`) => ({ keys: [key], name, unit, ...limits });
const KINDS = { validation: "validation", evaluation: "held_out" };
const alsoHeldOut = (key, heldOut, name, limits) => ({ ...chart(key, name, limits), keys: [key, `evaluation/${heldOut}`] });
const PPO = [
  alsoHeldOut("score/mean", "score", "score"), chart("evaluation/judge", "judge"),
  alsoHeldOut("ref_kl/sequence", "ref_kl", "ref_kl", { least: 0 }), chart("ppo/entropy", "entropy"),
  alsoHeldOut("response_tokens/mean", "response_tokens", "length"), chart("evaluation/distinct_2", "distinct_2", { least: 0 }),
  alsoHeldOut("eos_rate", "eos_rate", "eos", { least: 0, most: 1 }),
  chart("ppo/explained_variance", "explained", { floor: -1, most: 1 }), chart("ppo/clip_fraction", "clip", { least: 0 }),
  chart("ppo/approx_kl", "approx_kl"), chart("kl_coef", "kl_coef", { least: 0 }),
  chart("entropy_coef", "entropy_coef", { least: 0 }),
  chart("score/disagreement", "disagreement", { least: 0 }),
];
/** What is known of the curves of a constraint, whatever its name is. */
const CONSTRAINT = {
  mean: { text: "constraint", unit: "constraint_unit" },
  multiplier: { text: "multiplier", unit: "multiplier_unit", least: 0 },
};
const CONTROL = [
  chart("episode_return/mean", "return"), chart("episode_steps/mean", "episode_length", { least: 0 }),
  chart("ppo/entropy", "entropy", {}, "entropy_control_unit"), chart("ppo/explained_variance", "explained", { floor: -1, most: 1 }),
  chart("ppo/clip_fraction", "clip", { least: 0 }), chart("ppo/approx_kl", "approx_kl"),
];
const SUPERVISED = [
  { keys: ["loss", "validation/loss"], name: "loss", unit: "loss_unit" },
  { keys: ["accuracy", "validation/accuracy"], name: "accuracy", unit: "accuracy_unit", most: 1 },
];

/** The curves of a run, or of all its rounds together. */
class CurvesView {
  #feeds;
  #names;
  #charts = new Map();
  #stage = null; // chosen by hand; otherwise the newest
  #shown = null;
  #repeated;

  constructor(runs, names, isRunning) {
    this.#names = names;
    this.runs = runs;
    this.all = $("all-metrics").checked;
    this.#feeds = runs.map((run) => new Feed(run, this.all));
    this.#repeated = new Repeated(NEWS_MS, async (isStopped) => {
      for (const feed of this.#feeds) await feed.pull(isStopped, () => isStopped() || this.#show());
      if (!isStopped()) this.#show();
    });
    this.setRunning(isRunning);
  }

  setRunning(isRunning) {
    this.#repeated.every = isRunning ? NEWS_MS : 4 * NEWS_MS;
  }

  close() {
    this.#repeated.stop();
    for (const { shown } of this.#charts.values()) shown.close();
    $("charts").replaceChildren();
    $("stage-choice").replaceChildren();
    delete $("stage-choice").dataset.stages;
  }

  #stages() {
    return [...new Set(this.#feeds.flatMap((feed) => [...feed.stages.keys()]))];
  }

  #show() {
    const stages = this.#stages();
    $("curves-empty").hidden = stages.length > 0;
    const stage = stages.includes(this.#stage) ? this.#stage : stages.at(-1);
    this.#showChoice(stages, stage);
    if (stage !== this.#shown) {
      for (const { shown } of this.#charts.values()) shown.close();
      this.#charts.clear();
      $("charts").replaceChildren();
      this.#shown = stage;
    }
    if (stage !== undefined) this.#showCharts(stage);
    const numDamaged = this.#feeds.reduce((sum, feed) => sum + feed.numDamaged, 0);
    $("curves-note").hidden = !numDamaged;
    $("curves-note").textContent = word("damaged_lines", { n: numDamaged });
  }

  #showChoice(stages, current) {
    const box = $("stage-choice");
    if (box.dataset.stages !== stages.join()) {
      box.dataset.stages = stages.join();
      box.replaceChildren(...stages.map((stage) => {
        const button = element("button", "choice-button", stageName(stage));
        button.type = "button";
        button.dataset.stage = stage;
        button.addEventListener("click", () => {
          this.#stage = stage;
          this.#show();
        });
        return button;
      }));
    }
    box.hidden = stages.length < 2;
    for (const button of box.children) button.setAttribute("aria-pressed", button.dataset.stage === current);
  }

  #showCharts(stage) {
    const known = stage === "control" ? CONTROL : stage === "ppo" ? PPO : SUPERVISED;
    const wanted = [...known];
    const others = new Set(this.#feeds.flatMap((feed) => [...(feed.stages.get(stage)?.values() ?? [])].flatMap((metrics) => [...metrics.keys()])));
    for (const key of [...others].sort()) {
      const [kind, name, what] = key.split("/");
      if (kind === "constraint" && what in CONSTRAINT) wanted.push({ keys: [key], name: key, n: name, ...CONSTRAINT[what] });
    }
    if (this.all) {
      const named = new Set(wanted.flatMap(({ keys }) => keys));
      for (const key of [...others].sort()) if (!named.has(key)) wanted.push({ keys: [key], name: key, unit: "" });
    }
    for (const each of wanted) {
      const series = this.#series(stage, each.keys);
      if (!series.length) continue;
      const isKnown = this.#charts.has(each.name);
      if (!isKnown) this.#charts.set(each.name, { shown: this.#newChart(stage, each) });
      const { shown } = this.#charts.get(each.name);
      if (!isKnown) this.#place(shown.node, wanted.indexOf(each));
      shown.set(series);
    }
  }

  #place(node, rank) {
    node.dataset.rank = rank;
    const after = [...$("charts").children].find((other) => Number(other.dataset.rank) > rank);
    $("charts").insertBefore(node, after ?? null);
  }

  #newChart(stage, { name, text, n, unit, least, most, floor }) {
    return new Chart({
      title: word(text ?? name, { n }), unit: unit && word(unit), least, most, floor,
      xName: word(stage === "control" ? "env_steps" : "iteration"),
      onCursor: (x) => {
        for (const { shown } of this.#charts.values()) shown.point(x);
      },
      onPick: (x) => stage === "ppo" && this.onPick?.(x),
    });
  }

  #series(stage, keys) {
    const series = [];
    this.#feeds.forEach((feed, number) => {
      for (const [seed, metrics] of feed.stages.get(stage) ?? [])
        for (const key of keys) {
          const points = metrics.get(key);
          if (!points) continue;
          const name = [
            this.#feeds.length > 1 ? this.#names[number] : "", seed && word("seed", { n: seed }),
            keys.filter((other) => metrics.has(other)).length > 1 ? word(KINDS[key.split("/")[0]] ?? "training") : "",
          ].filter(Boolean).join(", ");
          series.push({ name, points });
        }
    });
    return series;
  }
}

// ── samples by iteration ────────────────────────────────────────────────────────────────────────────────────────────

class SamplesView {
  #run;
  #mark = { offset: 0, digest: "" };
  #iterations = [];
  #place = 0;
  #follows = true;
  #asked = "";
  #repeated;

  constructor(run, isRunning) {
    this.#run = run;
    $("samples").hidden = true;
    $("sample-list").replaceChildren();
    $("sample-range").oninput = () => this.go(Number($("sample-range").value));
    $("sample-back").onclick = () => this.go(this.#place - 1);
    $("sample-on").onclick = () => this.go(this.#place + 1);
    this.#repeated = new Repeated(isRunning ? NEWS_MS : 5 * NEWS_MS, (isStopped) => this.#pull(isStopped));
  }

  close() {
    this.#repeated.stop();
  }

  /** Shows the samples of the iteration at a place in the list. */
  go(place) {
    this.#place = Math.min(this.#iterations.length - 1, Math.max(0, place));
    this.#follows = this.#place === this.#iterations.length - 1;
    this.#show().catch(() => {}); // the next round tells of it
  }

  /** Shows the samples of an iteration by its number, or of the last one before it. */
  goTo(iteration) {
    const place = this.#iterations.findLastIndex(([, number]) => number <= iteration);
    if (place < 0) return;
    this.go(place);
    $("samples").scrollIntoView({ block: "start" });
  }

  async #pull(isStopped) {
    for (let hasMore = true; hasMore && !isStopped(); ) {
      const news = await ask("samples", { run: this.#run, ...this.#mark });
      if (isStopped()) return;
      if (news.is_new) this.#iterations = [];
      this.#mark = news.mark;
      for (const each of news.iterations) {
        const last = this.#iterations.at(-1);
        if (last?.[0] === each[0] && last[1] === each[1]) this.#asked = ""; // more of the same: it is read again
        else this.#iterations.push(each);
      }
      hasMore = news.has_more;
    }
    $("samples").hidden = this.#iterations.length === 0;
    if (!this.#iterations.length) return;
    if (this.#follows || this.#place >= this.#iterations.length) this.#place = this.#iterations.length - 1;
    await this.#show();
  }

  async #show() {
    const [stage, iteration, offset] = this.#iterations[this.#place];
    const range = $("sample-range");
    range.max = this.#iterations.length - 1;
    range.value = this.#place;
    range.setAttribute("aria-valuetext", word("sample_place", { n: iteration }));
    $("sample-place").textContent = word("sample_place", { n: iteration });
    $("sample-back").disabled = this.#place === 0;
    $("sample-on").disabled = this.#place === this.#iterations.length - 1;
    const asked = `${stage}/${iteration}/${offset}`;
    if (this.#asked === asked) return;
    this.#asked = asked;
    try {
      const { samples } = await ask("sample", { run: this.#run, stage, iteration, offset });
      if (this.#asked !== asked) return;
      $("sample-list").replaceChildren(...samples.map(sampleNode));
      $("samples-note").hidden = samples.length > 0;
      $("samples-note").textContent = word("no_samples");
    } catch (error) {
      this.#asked = "";
      throw error;
    }
  }
}

function sampleNode(sample) {
  const node = element("article", "sample");
  const text = (name) => {
    const box = element("div", `said ${name}`);
    const said = (name === "prompt" && asTurns(sample.turns, words)) || sample[name];
    const content = element("p", said ? "" : "empty", said || word("nothing"));
    content.dir = "auto";
    box.append(element("h3", "", word(name)), content);
    return box;
  };
  const facts = element("p", "facts");
  const finish = sample.finish_reason;
  for (const fact of [
    typeof sample.score === "number" && `${word("sample_score")} ${exact(sample.score)}`,
    typeof sample.ref_kl === "number" && `${word("sample_ref_kl")} ${exact(sample.ref_kl)}`,
    finish && (words[`finish_${finish}`] ?? String(finish)),
  ]) if (fact) facts.append(element("span", "fact", fact));
  node.append(text("prompt"), text("response"), facts);
  return node;
}

// ── the list of runs ────────────────────────────────────────────────────────────────────────────────────────────────

function fraction(run) {
  if (run.state === "finished") return 1;
  const within = run.num_planned ? Math.min(1, (run.num_done ?? 0) / run.num_planned) : 0;
  return (run.finished_stages.length + within) / Math.max(1, run.stages.length);
}

function progressText(run) {
  if (run.state === "finished" || !run.stage) return "";
  if (run.num_planned && run.num_done !== null) return word("of", { done: exact(run.num_done), planned: exact(run.num_planned) });
  return run.num_done === null ? "" : word("so_far", { done: exact(run.num_done) });
}

function showPill(node, run) {
  const class_ = `pill ${run.state}`;
  if (node.className !== class_) node.className = class_;
  node.textContent = word(`state_${run.state}`);
  node.title = ["quiet", "stopped"].includes(run.state) ? word(`${run.state}_help`) : "";
}

const address = (run) => `#/run/${encodeURIComponent(run.id)}`;

/** What a run and a study have in common in the list. */
class ListItem {
  constructor() {
    this.node = element("li");
    this.link = element("a", "run");
    this.name = element("span", "run-name");
    this.title = element("bdi", "run-title");
    this.path = element("span", "run-path");
    this.name.append(this.title, this.path);
    this.pill = element("span");
    this.stage = element("span", "run-stage");
    this.age = element("span", "run-age muted");
    this.bar = element("progress");
    this.bar.max = 1;
    this.note = element("span", "run-note");
    this.link.append(this.name, this.pill, this.stage, this.bar, this.age, this.note);
    this.node.append(this.link);
  }
}

class RunItem extends ListItem {
  constructor(run) {
    super();
    this.update(run);
  }

  update(run) {
    this.link.href = address(run);
    this.node.className = run.parent === null ? "" : "is-round";
    this.title.textContent = run.parent === null ? run.name : roundName(run);
    this.path.textContent = run.parent === null && run.id !== "." && run.id !== run.name ? run.id : "";
    showPill(this.pill, run);
    this.stage.textContent = [run.stage && stageName(run.stage), progressText(run)].filter(Boolean).join(" · ");
    this.bar.value = fraction(run);
    this.bar.setAttribute("aria-label", `${word("progress")}: ${run.name}`);
    this.age.textContent = since(run.age_seconds);
    this.note.textContent = run.problem || (run.stopped ? word("stopped", { reason: run.stopped }) : "");
    this.note.hidden = !this.note.textContent;
  }
}

class StudyItem extends ListItem {
  constructor(study) {
    super();
    this.best = element("span", "study-best");
    this.note.before(this.best);
    this.update(study);
  }

  update(study) {
    if (study.num_planned) this.link.href = `/dashboard/study?${new URLSearchParams({ id: study.id })}`;
    else this.link.removeAttribute("href"); // there is no page yet
    this.title.textContent = study.name;
    this.path.textContent = study.id !== "." && study.id !== study.name ? study.id : "";
    showPill(this.pill, study);
    this.pill.title = study.state === "stopped" ? word("study_stopped_help") : this.pill.title;
    const done = word("trials_of", { done: exact(study.num_done), planned: exact(study.num_planned) });
    this.stage.textContent = [word(`phase_${study.phase}`), study.num_planned && study.state !== "finished" && done].filter(Boolean).join(" · ");
    this.bar.value = study.state === "finished" ? 1 : study.num_done / Math.max(1, study.num_planned);
    this.bar.setAttribute("aria-label", `${word("progress")}: ${study.name}`);
    this.age.textContent = since(study.age_seconds);
    this.best.textContent = bestText(study);
    this.best.hidden = !this.best.textContent;
    this.note.textContent = study.problem;
    this.note.hidden = !study.problem;
  }
}

function bestText({ best, metric, is_gain }) {
  if (!best) return "";
  const who = best.number === 0 ? word("the_default") : word("trial", { n: best.number });
  const at = best.kl === null ? "" : word("at_kl", { kl: short(best.kl) });
  const found = word("best_so_far", { who, score: short(best.score), metric: word(`metric_${metric}`), at });
  return is_gain === null ? found : `${found} · ${word(is_gain ? "study_gain" : "study_no_gain")}`;
}

const short = (value) => exact(Number(value.toPrecision(3)));

/** Shows each of `entries` as an item of a list, in their order; items that stay keep their nodes, and the focus. */
function keepList(list, items, entries, Item) {
  for (const [id, item] of items) if (!entries.some((entry) => entry.id === id)) {
    item.node.remove();
    items.delete(id);
  }
  for (const entry of entries) {
    if (items.has(entry.id)) items.get(entry.id).update(entry);
    else items.set(entry.id, new Item(entry));
  }
  const order = entries.map(({ id }) => items.get(id).node);
  if (order.every((node, place) => list.children[place] === node)) return;
  const focused = document.activeElement;
  list.replaceChildren(...order);
  if (list.contains(focused)) focused.focus(); // to move a node is to lose it
}

const roundName = (run) => word("round", { n: run.id.split("round-").at(-1) });

class ListView {
  #items = new Map();
  #studies = new Map();
  #labels;
  #runs;

  constructor() {
    $("runs").replaceChildren();
    $("studies").replaceChildren();
    this.#runs = new Repeated(RUNS_MS, async (isStopped) => {
      const { runs, studies, problem } = await ask("runs");
      if (!isStopped()) this.#show(runs, studies, problem);
    });
    this.#labels = new Repeated(LABELS_MS, async (isStopped) => {
      const news = await ask("labels");
      if (!isStopped()) showLabels(news);
    });
  }

  close() {
    this.#runs.stop();
    this.#labels.stop();
  }

  #show(runs, studies, problem) {
    const numRunning = runs.filter(({ state, parent }) => state === "running" && parent === null).length;
    const numRuns = runs.filter(({ parent }) => parent === null).length;
    $("runs-summary").textContent = numRuns ? word("runs_summary", { running: numRunning, n: numRuns }) : "";
    $("runs-empty").hidden = runs.length + studies.length > 0 && !problem;
    $("runs-empty").textContent = problem || word("no_runs");
    $("studies-view").hidden = studies.length === 0;
    keepList($("studies"), this.#studies, studies, StudyItem);
    keepList($("runs"), this.#items, runs, RunItem);
  }
}

function showLabels(news) {
  $("labels").hidden = !news.has_store;
  if (!news.has_store) return;
  if (news.problem) {
    $("queue").replaceChildren(element("p", "problem", news.problem));
    return;
  }
  showQueue($("queue"), news.queue, word);
  if (news.is_withheld) $("agreement").replaceChildren(element("p", "muted", word("withheld")));
  else showTrust($("agreement"), news.report, word);
}

// ── one run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

class RunView {
  #id;
  #curves = null;
  #samples = null;
  #runs;
  #trust;
  #cluster;

  constructor(id) {
    this.#id = id;
    $("run-heading").textContent = id;
    for (const name of ["run-progress", "rounds", "run-problem", "samples", "trust", "cluster"]) $(name).hidden = true;
    for (const name of ["run-purpose", "run-age", "run-state"]) $(name).textContent = "";
    $("run-state").className = "";
    $("stages").replaceChildren();
    $("curves-empty").hidden = false;
    $("all-metrics").onchange = () => this.#restartCurves();
    this.#runs = new Repeated(NEWS_MS, async (isStopped) => {
      const { runs } = await ask("runs");
      if (!isStopped()) this.#show(runs);
    });
    this.#trust = new Repeated(4 * LABELS_MS, async (isStopped) => {
      const { report, is_withheld } = await ask("trust", { run: id });
      if (isStopped()) return;
      $("trust").hidden = !report && !is_withheld;
      if (is_withheld) $("run-agreement").replaceChildren(element("p", "muted", word("withheld")));
      else if (report) showTrust($("run-agreement"), report, word);
    });
    const tables = new ClusterTables($("cluster-tables"), word, since);
    this.#cluster = new Repeated(NEWS_MS, async (isStopped) => {
      const { table } = await ask("cluster", { run: id });
      if (isStopped()) return;
      $("cluster").hidden = !table;
      if (table) tables.show(table);
    });
  }

  close() {
    this.#runs.stop();
    this.#trust.stop();
    this.#cluster.stop();
    this.#curves?.close();
    this.#samples?.close();
  }

  #restartCurves() {
    const { runs, names } = this.members;
    this.#curves?.close();
    this.#curves = new CurvesView(runs, names, this.isRunning);
    this.#curves.onPick = (x) => this.#samples?.goTo(x);
  }

  #show(runs) {
    const run = runs.find(({ id }) => id === this.#id);
    if (!run) {
      if (!this.members) throw new Refused(404, "run_gone", word("gone"));
      return; // the curves' own question says so
    }
    const rounds = runs.filter(({ parent }) => parent === this.#id);
    this.isRunning = run.state === "running";
    const members = {
      runs: [run.id, ...rounds.map(({ id }) => id)], names: [word("whole"), ...rounds.map(roundName)],
    };
    const isOther = this.members?.runs.join("\n") !== members.runs.join("\n");
    this.members = members;
    if (isOther) this.#restartCurves();
    this.#curves.setRunning(this.isRunning);
    this.#samples ??= new SamplesView(run.id, this.isRunning);
    this.#showHead(run, runs.find(({ id }) => id === run.parent));
    this.#showStages(run);
    this.#showRounds(run, rounds);
  }

  #showHead(run, parent) {
    $("run-heading").textContent = parent ? `${parent.name}, ${roundName(run)}` : run.name;
    document.title = `${$("run-heading").textContent} · ${PAGE_TITLE}`;
    showPill($("run-state"), run);
    $("run-age").textContent = since(run.age_seconds);
    $("run-purpose").textContent = run.purpose;
    const problem = run.problem || (run.stopped ? word("stopped", { reason: run.stopped }) : "");
    $("run-problem").textContent = problem;
    $("run-problem").hidden = !problem;
    const isCounting = run.state !== "finished" && run.num_done !== null;
    $("run-progress").hidden = !isCounting;
    $("run-bar").max = run.num_planned || 1;
    $("run-bar").hidden = !run.num_planned;
    $("run-bar").value = run.num_done ?? 0;
    $("run-count").textContent = progressText(run);
  }

  #showStages(run) {
    const news = JSON.stringify([run.stages, run.finished_stages, run.stage]);
    if ($("stages").dataset.shown === news && $("stages").children.length) return;
    $("stages").dataset.shown = news;
    $("stages").replaceChildren(...run.stages.map((stage) => {
      const isDone = run.finished_stages.includes(stage);
      const item = element("li", isDone ? "is-done" : stage === run.stage ? "is-now" : "", stageName(stage));
      if (stage === run.stage) item.setAttribute("aria-current", "step");
      if (isDone) item.append(element("span", "visually-hidden", ` (${word("stage_done")})`));
      return item;
    }));
  }

  #showRounds(run, rounds) {
    const news = JSON.stringify([run.parent, rounds.map(({ id, state }) => [id, state])]);
    $("rounds").hidden = rounds.length === 0 && run.parent === null;
    if ($("rounds").dataset.shown === news) return;
    $("rounds").dataset.shown = news;
    const link = (to, text, state) => {
      const node = element("a", "round-link", text);
      node.href = to;
      if (state) node.append(" ", element("span", `dot ${state}`), element("span", "visually-hidden", word(`state_${state}`)));
      return node;
    };
    if (run.parent !== null) $("rounds").replaceChildren(link(address({ id: run.parent }), word("whole")));
    else $("rounds").replaceChildren(...rounds.map((each) => link(address(each), roundName(each), each.state)));
  }
}

// ── which view ──────────────────────────────────────────────────────────────────────────────────────────────────────

let view = null;

function route({ isFirst = false } = {}) {
  view?.close();
  troubles.clear();
  showTroubles();
  const match = /^#\/run\/(.+)$/.exec(location.hash);
  let id = null;
  try {
    id = match && decodeURIComponent(match[1]);
  } catch {
    id = match[1]; // not one of our addresses; the server says so
  }
  $("list-view").hidden = id !== null;
  $("run-view").hidden = id === null;
  document.title = PAGE_TITLE;
  view = id === null ? new ListView() : new RunView(id);
  if (isFirst) return;
  scrollTo(0, 0);
  $(id === null ? "list-heading" : "run-heading").focus({ preventScroll: true });
}

addEventListener("hashchange", () => route());
route({ isFirst: true });
