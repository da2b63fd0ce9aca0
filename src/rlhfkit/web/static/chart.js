// A line chart as SVG: axes, a cursor for pointer and keyboard, any number of series.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190;
const EDGE = { top: 10, right: 14, bottom: 24, left: 46 };
const NUM_COLOURS = 6;
let numCharts = 0;

/** A new SVG element with attributes. */
export function drawn(name, attributes = {}) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

/** A number, short enough for an axis. */
export function short(value) {
  const size = Math.abs(value);
  if (size !== 0 && size < 0.001) return Number(value.toPrecision(3)).toExponential().replaceAll("-", "−");
  const text = size >= 10_000
    ? new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 }).format(value)
    : String(Number(value.toPrecision(6)));
  return text.replace("-", "−");
}

/** A number as a readout: four digits, more where it is a whole one. */
export function exact(value) {
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll(",", " ").replace("-", "−");
  const size = Math.abs(value);
  return (size < 0.001 ? value.toExponential(2) : String(Number(value.toPrecision(4)))).replaceAll("-", "−");
}

/** At most `most` points: of each stretch the lowest and the highest, in order; first and last stay. */
export function thinned(points, most) {
  if (points.length <= most) return points;
  const inner = points.slice(1, -1);
  const stretches = Math.max(1, Math.floor((most - 2) / 2));
  const kept = [points[0]];
  for (let number = 0; number < stretches; number += 1) {
    const end = Math.floor((inner.length * (number + 1)) / stretches);
    let low = Math.floor((inner.length * number) / stretches);
    let high = low;
    for (let place = low; place < end; place += 1) {
      if (inner[place][1] < inner[low][1]) low = place;
      if (inner[place][1] > inner[high][1]) high = place;
    }
    kept.push(inner[Math.min(low, high)]);
    if (low !== high) kept.push(inner[Math.max(low, high)]);
  }
  kept.push(points.at(-1));
  return kept;
}

function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number += 1)
    found.push(Number((number * step).toPrecision(12)));
  return found;
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] < points[low][0] - x ? low - 1 : low;
}

/**
 * `title`, `unit`, `xName`: words. `least`, `most`: what the axis shows at least; `floor`: below it nothing is drawn.
 * `onCursor(x)`: the cursor moved, or left (null). `onPick(x)`: Enter or a click.
 */
export class Chart {
  #options;
  #series = [];
  #width = 0;
  #x = (value) => value;
  #y = (value) => value;
  #cursor = null;
  #pending = 0;
  #observer;

  constructor(options) {
    this.#options = options;
    numCharts += 1;
    const make = (name, className, text = "") => {
      const node = document.createElement(name);
      node.className = className;
      node.textContent = text;
      return node;
    };
    this.node = make("figure", "chart");
    const head = make("figcaption", "chart-head");
    const names = make("div", "chart-names");
    names.append(make("h3", "", options.title), make("p", "chart-unit", options.unit));
    this.value = make("p", "chart-value");
    head.append(names, this.value);
    this.legend = make("ul", "legend");
    this.svg = drawn("svg", {
      class: "plot", height: HEIGHT, tabindex: "0", role: "slider", "aria-label": `${options.title}, ${options.unit}`,
      "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0", "aria-valuetext": "",
    });
    const clip = drawn("clipPath", { id: `plot-${numCharts}` });
    this.clipBox = drawn("rect");
    clip.append(this.clipBox);
    const [grid, lines, marks] = ["grid", "lines", "marks"].map((name) => drawn("g", { class: name, "aria-hidden": "true" }));
    lines.setAttribute("clip-path", `url(#plot-${numCharts})`);
    Object.assign(this, { grid, lines, marks });
    this.svg.append(clip, grid, lines, marks);
    this.node.append(head, this.svg, this.legend);
    this.#listen();
    this.#observer = new ResizeObserver(() => this.#later());
    this.#observer.observe(this.node);
  }

  /** Show series [{name, points: [[x, y], …]}], each with x rising. */
  set(series) {
    this.#series = series.filter(({ points }) => points.length > 0);
    this.#later();
  }

  /** Put the cursor at x, or away; without telling anybody. */
  point(x) {
    this.#cursor = x;
    this.#showCursor();
  }

  close() {
    this.#observer.disconnect();
    cancelAnimationFrame(this.#pending);
  }

  #later() {
    if (!this.#pending) this.#pending = requestAnimationFrame(() => {
      this.#pending = 0;
      this.#draw();
    });
  }

  #draw() {
    const width = Math.floor(this.node.clientWidth) - 2 * parseFloat(getComputedStyle(this.node).paddingLeft);
    if (!(width > 80) || !this.#series.length) return;
    this.#width = width;
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#scale();
    this.lines.replaceChildren(...this.#series.flatMap((each, number) => this.#line(each, number)));
    this.#showLegend();
    this.#showCursor();
  }

  #scale() {
    const { least, most, floor } = this.#options;
    const box = { left: EDGE.left, right: this.#width - EDGE.right, top: EDGE.top, bottom: HEIGHT - EDGE.bottom };
    let [x0, x1, y0, y1] = [Infinity, -Infinity, least ?? Infinity, most ?? -Infinity];
    for (const { points } of this.#series) {
      x0 = Math.min(x0, points[0][0]);
      x1 = Math.max(x1, points.at(-1)[0]);
      for (const [, y] of points) {
        y0 = Math.min(y0, y);
        y1 = Math.max(y1, y);
      }
    }
    if (floor !== undefined) y0 = Math.max(floor, Math.min(y0, y1 - 1e-9));
    if (y1 - y0 < 1e-12 * Math.max(1, Math.abs(y1))) {
      const room = Math.abs(y1) / 2 || 1;
      [y0, y1] = [least !== undefined && y0 - room < least ? least : y0 - room, y1 + room];
    }
    if (x1 <= x0) [x0, x1] = [x0 - 0.5, x0 + 0.5];
    const room = (y1 - y0) * 0.06;
    if (least === undefined || y0 < least) y0 -= room;
    if (most === undefined || y1 > most) y1 += room;
    this.#x = (value) => box.left + ((value - x0) / (x1 - x0)) * (box.right - box.left);
    this.#y = (value) => box.bottom - ((value - y0) / (y1 - y0)) * (box.bottom - box.top);
    for (const [key, value] of Object.entries({ x: box.left - 3, y: box.top - 3, width: box.right - box.left + 6, height: box.bottom - box.top + 6 }))
      this.clipBox.setAttribute(key, value);
    const nodes = [];
    for (const y of ticks(y0, y1, 5)) {
      nodes.push(drawn("line", { x1: box.left, x2: box.right, y1: this.#y(y), y2: this.#y(y) }));
      const text = drawn("text", { x: box.left - 7, y: this.#y(y) + 4, "text-anchor": "end" });
      text.textContent = short(y);
      nodes.push(text);
    }
    for (const x of ticks(x0, x1, Math.max(2, Math.floor(this.#width / 90))).filter((value) => Number.isInteger(value))) {
      const text = drawn("text", { x: Math.min(this.#x(x), box.right - 4), y: HEIGHT - 7, "text-anchor": "middle" });
      text.textContent = short(x);
      nodes.push(text);
    }
    nodes.push(drawn("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    this.grid.replaceChildren(...nodes);
  }

  #line({ points }, number) {
    const colour = `s${number % NUM_COLOURS}`;
    const path = points.map(([x, y], place) => `${place ? "L" : "M"}${this.#x(x).toFixed(1)} ${this.#y(y).toFixed(1)}`);
    const nodes = [drawn("path", { class: colour, d: path.join("") })];
    const few = points.length <= 30 ? points : [points.at(-1)];
    for (const [x, y] of few)
      nodes.push(drawn("circle", { class: colour, cx: this.#x(x), cy: this.#y(y), r: points.length <= 30 ? 2 : 2.6 }));
    return nodes;
  }

  #showLegend() {
    const isNeeded = this.#series.length > 1;
    this.legend.hidden = !isNeeded;
    if (!isNeeded) return;
    while (this.legend.children.length > this.#series.length) this.legend.lastChild.remove();
    this.#series.forEach(({ name }, number) => {
      let item = this.legend.children[number];
      if (!item) {
        item = document.createElement("li");
        item.append(document.createElement("i"), document.createElement("span"), document.createElement("b"));
        this.legend.append(item);
      }
      item.children[0].className = `s${number % NUM_COLOURS}`;
      item.children[1].textContent = name;
    });
  }

  #showCursor() {
    if (!this.#series.length || !this.#width) return;
    const last = Math.max(...this.#series.map(({ points }) => points.at(-1)[0]));
    const x = this.#cursor ?? last;
    const found = this.#series.map(({ name, points }) => ({ name, point: points[nearest(points, x)] }));
    this.marks.replaceChildren();
    if (this.#cursor !== null) {
      const at = this.#x(found[0].point[0]);
      this.marks.append(drawn("line", { x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
      found.forEach(({ point }, number) => this.marks.append(
        drawn("circle", { class: `s${number % NUM_COLOURS}`, cx: this.#x(point[0]), cy: Math.min(this.#y(point[1]), HEIGHT - EDGE.bottom), r: 4 }),
      ));
    }
    const isOne = found.length === 1;
    const at = `${this.#options.xName} ${exact(found[0].point[0])}`;
    this.value.replaceChildren();
    const big = document.createElement("b");
    big.textContent = isOne ? exact(found[0].point[1]) : "";
    const small = document.createElement("span");
    small.textContent = at;
    this.value.append(big, small);
    if (!isOne) found.forEach(({ point }, number) => {
      const item = this.legend.children[number];
      if (item) item.children[2].textContent = exact(point[1]);
    });
    const spoken = isOne ? exact(found[0].point[1]) : found.map(({ name, point }) => `${name} ${exact(point[1])}`).join(", ");
    for (const [key, value] of Object.entries({
      "aria-valuemin": this.#series[0].points[0][0], "aria-valuemax": last, "aria-valuenow": found[0].point[0],
      "aria-valuetext": `${at}: ${spoken}`,
    })) this.svg.setAttribute(key, value);
  }

  #move(x) {
    this.point(x);
    this.#options.onCursor?.(x);
  }

  #listen() {
    const at = (event) => {
      const { points } = this.#series[0];
      const place = event.clientX - this.svg.getBoundingClientRect().left;
      const [first, last] = [points[0][0], points.at(-1)[0]];
      const share = (place - this.#x(first)) / (this.#x(last) - this.#x(first) || 1);
      return points[nearest(points, first + Math.min(1, Math.max(0, share)) * (last - first))][0];
    };
    this.svg.addEventListener("pointermove", (event) => this.#series.length && this.#move(at(event)));
    this.svg.addEventListener("pointerleave", () => this.#move(null));
    this.svg.addEventListener("blur", () => this.#move(null));
    this.svg.addEventListener("click", (event) => this.#series.length && this.#options.onPick?.(at(event)));
    this.svg.addEventListener("keydown", (event) => {
      if (!this.#series.length || event.ctrlKey || event.metaKey || event.altKey) return;
      const { points } = this.#series[0];
      const now = this.#cursor === null ? points.length - 1 : nearest(points, this.#cursor);
      const far = Math.max(1, Math.round(points.length / 10));
      const place = {
        ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, PageDown: now - far, PageUp: now + far,
        Home: 0, End: points.length - 1,
      }[event.key];
      if (place !== undefined) {
        event.preventDefault();
        this.#move(points[Math.min(points.length - 1, Math.max(0, place))][0]);
      } else if (event.key === "Enter") this.#options.onPick?.(points[now][0]);
      else if (event.key === "Escape") this.#move(null);
    });
  }
}
