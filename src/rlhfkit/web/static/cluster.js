// Who works on a run on a cluster: a table for each kind of worker, the queue, and what was lost.
import { exact } from "./chart.js";
import { element } from "./show.js";
import { heading, table } from "./trust.js";

const MOST_ROWS = 200;
const MOST_EVENTS = 20;
const STATE_CLASS = { working: "running", idle: "finished", slow: "quiet", starting: "quiet", lost: "bad", refused: "bad" };
const KINDS = { samplers: "tokens_per_second", reward_workers: "responses_per_second" };

/** The tables stay where they are while their rows change, so that neither the focus nor the place in them is lost. */
export class ClusterTables {
  #word;
  #since;
  #parts = new Map(); // kind → its nodes

  constructor(node, word, since) {
    this.#word = word;
    this.#since = since;
    this.summary = element("p", "cluster-summary");
    node.replaceChildren(this.summary);
    for (const [kind, unit] of Object.entries(KINDS)) this.#parts.set(kind, this.#newPart(node, kind, unit));
    this.#parts.set("events", this.#newEvents(node));
  }

  show(news) {
    const word = this.#word;
    this.summary.replaceChildren(this.#pill(`cluster_${news.state}`, { running: "running", done: "finished", failed: "bad" }[news.state] ?? "quiet"));
    const facts = [
      word("cluster_trainers", { n: exact(news.num_trainers ?? 0), restarts: exact(news.trainer_restarts ?? 0) }),
      news.iteration !== null && word("sample_place", { n: exact(news.iteration) }),
      word("cluster_written", { ago: this.#since(news.age_seconds) }),
    ];
    for (const fact of facts) if (fact) this.summary.append(element("span", "fact", fact));
    for (const kind of Object.keys(KINDS)) this.#showWorkers(this.#parts.get(kind), news[kind]);
    this.#showEvents(this.#parts.get("events"), news.events);
  }

  #newPart(node, kind, unit) {
    const word = this.#word;
    const columns = ["worker", "worker_state", "host", "process", "worker_iteration", unit, "chunks", "restarts", "faults"];
    const { node: grid, body } = table(columns.map(word), word(kind), [3, 4, 5, 6, 7, 8]);
    const part = { box: element("div", "cluster-part"), body, queue: element("p", "hint") };
    part.box.append(element("h3", "", word(kind)), grid, part.queue);
    node.append(part.box);
    return part;
  }

  #newEvents(node) {
    const { node: grid, body } = table(["event_time", "event_who", "event_what", "event_cost", "event_why"].map(this.#word), this.#word("events"), [3]);
    const part = { box: element("div", "cluster-part"), body };
    part.box.append(element("h3", "", this.#word("events")), grid);
    node.append(part.box);
    return part;
  }

  #showWorkers({ box, body, queue }, workers) {
    const word = this.#word;
    box.hidden = workers.rows.length === 0;
    body.replaceChildren(...workers.rows.slice(0, MOST_ROWS).map((row) => this.#workerRow(row)));
    const more = Math.max(0, workers.rows.length - MOST_ROWS) + workers.num_left_out;
    queue.textContent = [
      word("queue_chunks", { open: exact(workers.open_chunks ?? 0), waiting: exact(workers.waiting_chunks ?? 0) }),
      workers.median_chunk_seconds !== null && word("chunk_seconds", { n: exact(workers.median_chunk_seconds) }),
      workers.dropped_answers > 0 && word("dropped_answers", { n: exact(workers.dropped_answers) }),
      more > 0 && word("more_workers", { n: exact(more) }),
    ].filter(Boolean).join(" · ");
  }

  #workerRow(row) {
    const name = heading("");
    name.append(element("bdi", "", row.name));
    const state = element("td");
    state.append(this.#pill(row.state ? `worker_${row.state}` : "worker_unknown", STATE_CLASS[row.state] ?? "quiet"));
    const host = element("td", "host");
    host.append(element("bdi", "", row.host || "–"));
    const numbers = [row.pid, row.iteration, row.per_second, row.chunks, row.restarts, row.faults];
    const node = element("tr");
    node.append(name, state, host, ...numbers.map((number, place) => {
      const shown = number === null ? "–" : place === 0 ? String(number) : exact(number);
      return element("td", "number", shown);
    }));
    return node;
  }

  #showEvents({ box, body }, events) {
    box.hidden = events.length === 0;
    const key = JSON.stringify(events.slice(-MOST_EVENTS));
    if (body.dataset.shown === key) return;
    body.dataset.shown = key;
    body.replaceChildren(...events.slice(-MOST_EVENTS).reverse().map((event) => {
      const time = heading(new Date(1000 * event.time).toLocaleTimeString(document.documentElement.lang || undefined));
      const who = element("td");
      who.append(element("bdi", "", event.who));
      const known = ["joined", "left", "lost", "wrong", "refused", "overtaken", "asked"].includes(event.what);
      const cost = event.lost_seconds === null ? "" : this.#word("seconds", { n: exact(event.lost_seconds) });
      const why = element("td", "why-text", event.why);
      why.lang = "en";
      why.dir = "auto";
      const node = element("tr");
      node.append(time, who, element("td", "", known ? this.#word(`event_${event.what}`) : event.what), element("td", "number", cost), why);
      return node;
    }));
  }

  #pill(text, className) {
    return element("span", `pill ${className}`, this.#word(text));
  }
}
