// The label queue, and how far the labels can be trusted, as DOM nodes.
import { drawn } from "./chart.js";
import { element } from "./show.js";

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const plain = (value) => value.toFixed(3).replace("-", "−");

/** Shows how many pairs are finished, before somebody, waiting, in all and by round. */
export function showQueue(box, queue, word) {
  const facts = element("dl", "summary queue");
  for (const [name, value] of [
    ["queue_pairs", queue.num_pairs], ["queue_finished", queue.num_finished],
    ["queue_leased", queue.num_leased], ["queue_waiting", queue.num_waiting],
  ]) {
    const fact = element("div");
    fact.append(element("dt", "", word(name)), element("dd", "", String(value)));
    facts.append(fact);
  }
  const rounds = element("ul", "round-bars");
  for (const each of queue.rounds) {
    const item = element("li");
    const bar = element("progress");
    bar.max = Math.max(1, each.num_pairs);
    bar.value = each.num_finished;
    bar.setAttribute("aria-label", word("round", { n: each.round }));
    item.append(
      element("span", "", word("round", { n: each.round })), bar,
      element("span", "number", word("round_done", { done: each.num_finished, planned: each.num_pairs })),
    );
    rounds.append(item);
  }
  box.replaceChildren(facts, rounds);
}

/** Shows an agreement report; figures with their interval, what they come from, or why there is none. */
export function showTrust(box, report, word) {
  if (!report.num_votes) {
    box.replaceChildren(element("p", "muted", word("no_votes")));
    return;
  }
  const summary = word("votes_summary", {
    votes: report.num_votes, pairs: report.num_labelled_pairs, preferences: report.num_preferences,
    ties: report.num_ties, both_bad: report.num_both_bad, skips: total(report.skips),
  });
  const parts = [element("p", "muted", summary), people(report, word), element("h3", "", word("agreement")), figures(report, word)];
  if (report.rounds.length > 1) parts.push(element("h3", "", word("by_round")), rounds(report, word));
  box.replaceChildren(...parts.filter(Boolean));
}

const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

function figures(report, word) {
  const rows = [
    ["agreement_without_ties", report.agreement_without_ties, percent, 0.5],
    ["agreement_with_ties", report.agreement, percent],
    ["agreement_half", report.agreement_half, percent],
    ["alpha", report.alpha, plain, 0], ["alpha_degrees", report.alpha_degrees, plain, 0], ["ac1", report.ac1, plain, 0],
    ["ceiling_one", report.ceiling.one, percent, 0.5], ["ceiling_majority", report.ceiling.majority, percent, 0.5],
    ["left", report.left, percent, 0.5], ["longer", report.longer, percent, 0.5],
    ["always_longer", report.always_longer, percent, 0.5],
  ].map(([name, ...rest]) => [word(name), ...rest]);
  for (const [degree, figure] of Object.entries(report.by_degree))
    if (figure.n) rows.push([word("degree_n", { n: degree }), figure, percent, 0.5]);
  const { body, node } = table([word("figure"), word("value"), word("interval"), "n"], word("agreement"), [1, 3]);
  for (const [name, figure, format, fair] of rows) {
    const row = element("tr");
    row.append(heading(name), ...cells(figure, format, fair, word));
    body.append(row);
  }
  return node;
}

function cells(figure, format, fair, word) {
  if (figure.value === null) {
    const cell = element("td", "undefined");
    cell.colSpan = 2;
    cell.append(`${word("undefined")} `, reason(figure.reason));
    return [cell, count(figure)];
  }
  const interval = element("td", "interval");
  if (figure.low !== null && figure.high !== null) {
    const [low, high] = [format(figure.low), format(figure.high)];
    interval.append(whisker(figure, fair, word("bar_low", { low, high })), element("span", "number", `${low} – ${high}`));
  } else if (figure.reason) interval.append(reason(figure.reason));
  return [element("td", "number strong", format(figure.value)), interval, count(figure)];
}

function reason(text) {
  const node = element("span", "", text);
  node.lang = "en";
  return node;
}

function count(figure) {
  const cell = element("td", "number");
  cell.append(String(figure.n), " ");
  const unit = element("span", "unit", figure.unit);
  unit.lang = "en";
  cell.append(unit);
  return cell;
}

/** An interval as a line with a dot, and a mark at what chance gives: half of 0 to 1, or the middle of -1 to 1. */
function whisker(figure, fair, label) {
  const at = (value) => 4 + 92 * Math.min(1, Math.max(0, fair === 0 ? (value + 1) / 2 : value));
  const svg = drawn("svg", { class: "whisker", viewBox: "0 0 100 14", width: 100, height: 14, role: "img", "aria-label": label });
  svg.append(drawn("line", { class: "track", x1: 4, x2: 96, y1: 7, y2: 7 }));
  if (fair !== undefined) svg.append(drawn("line", { class: "fair", x1: at(fair), x2: at(fair), y1: 2, y2: 12 }));
  svg.append(drawn("line", { class: "span", x1: at(figure.low), x2: at(figure.high), y1: 7, y2: 7 }));
  svg.append(drawn("circle", { cx: at(figure.value), cy: 7, r: 3.4 }));
  return svg;
}

function people(report, word) {
  if (!report.annotators.length) return null;
  const columns = ["person", "votes", "skips", "speed", "with_majority", "left_short"].map(word);
  const { body, node } = table(columns, word("people"));
  const flaggedFirst = [...report.annotators].sort((one, other) => other.alarms.length - one.alarms.length);
  for (const person of flaggedFirst) {
    const row = element("tr", person.alarms.length ? "flagged" : "");
    const seconds = person.median_active_seconds;
    row.append(
      personCell(person, word), element("td", "number", String(person.num_votes)), element("td", "number", String(person.num_skips)),
      element("td", "number", seconds === null ? "–" : word("seconds", { n: Number(seconds.toFixed(1)) })),
      short(person.with_majority, word), short(person.left, word),
    );
    body.append(row);
    if (person.alarms.length) body.append(alarmsRow(person, columns.length));
  }
  const box = element("div");
  box.append(element("h3", "", word("people")), node);
  return box;
}

function personCell(person, word) {
  const cell = heading("");
  cell.append(element("bdi", "", person.name));
  if (!person.alarms.length) return cell;
  cell.append(" ", element("span", "pill bad", word("careless")));
  return cell;
}

function alarmsRow(person, numColumns) {
  const row = element("tr", "flagged why");
  const cell = element("td");
  cell.colSpan = numColumns;
  const list = element("ul", "alarms");
  for (const alarm of person.alarms) {
    const item = element("li", "", alarm);
    item.lang = "en";
    list.append(item);
  }
  cell.append(list);
  row.append(cell);
  return row;
}

function short(figure, word) {
  const cell = element("td", "number");
  if (figure.value === null) {
    cell.append(element("span", "undefined", "–"), element("span", "visually-hidden", `${word("undefined")} ${figure.reason}`));
    cell.title = `${word("undefined")} ${figure.reason}`;
  } else cell.append(percent(figure.value), " ", element("span", "unit", `n ${figure.n}`));
  return cell;
}

function rounds(report, word) {
  const { body, node } = table([word("rounds"), word("votes"), word("agreement_without_ties"), word("alpha")], word("by_round"));
  for (const each of report.rounds) {
    const row = element("tr");
    row.append(
      heading(word("round", { n: each.round })), element("td", "number", String(each.num_votes)),
      short(each.agreement, word), each.alpha.value === null ? short(each.alpha, word) : element("td", "number", plain(each.alpha.value)),
    );
    body.append(row);
  }
  return node;
}

/** The head of a row. */
export function heading(text) {
  const cell = element("th", "", text);
  cell.scope = "row";
  return cell;
}

/** A table in a box that scrolls, and its body. */
export function table(columns, label, numeric = columns.keys()) {
  const node = element("div", "table-box");
  node.tabIndex = 0; // on a phone it scrolls, for which the keyboard needs a place to stand
  node.setAttribute("role", "region");
  node.setAttribute("aria-label", label);
  const grid = element("table");
  const head = element("tr");
  const isNumeric = new Set(numeric);
  columns.forEach((name, place) => {
    const cell = element("th", place && isNumeric.has(place) ? "number" : "", name);
    cell.scope = "col";
    head.append(cell);
  });
  const [top, body] = [element("thead"), element("tbody")];
  top.append(head);
  grid.append(top, body);
  node.append(grid);
  return { node, body };
}
