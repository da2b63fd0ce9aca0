// What must not be lost: answers on their way to the server, drafts, settings; all in this browser's localStorage.

/** A value kept under `key`; in memory only, where the browser keeps nothing. */
export class Kept {
  constructor(key, fallback) {
    this.key = key;
    this.fallback = fallback;
    this.inMemory = undefined;
  }

  get value() {
    if (this.inMemory !== undefined) return this.inMemory;
    try {
      const text = localStorage.getItem(this.key);
      return text === null ? this.fallback : JSON.parse(text);
    } catch {
      return this.fallback;
    }
  }

  set value(value) {
    try {
      localStorage.setItem(this.key, JSON.stringify(value));
      this.inMemory = undefined;
    } catch {
      this.inMemory = value;
    }
  }
}

/** A refusal by the server, with its status and its words. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether the same request may succeed later. */
  get isPassing() {
    return this.status >= 500 || this.status === 408 || this.status === 429;
  }
}

/** Answers in the order in which they were given; each stays until the server has said that it has it. */
export class Outbox {
  constructor(key, send) {
    this.kept = new Kept(key, []);
    this.send = send;
    this.flushing = null;
  }

  get items() {
    return this.kept.value;
  }

  get size() {
    return this.items.length;
  }

  add(path, body) {
    this.kept.value = [...this.items, { path, body }];
  }

  #remove(id) {
    this.kept.value = this.items.filter((item) => item.body.id !== id);
  }

  /**
   * Sends everything in order. Gives {last, refused}: the server's answer to the last one, and what it refused for ever
   * (taken out, with the reason). Raises what the network raises, or a passing refusal; then the rest stays here.
   */
  flush() {
    this.flushing ??= this.#flush().finally(() => {
      this.flushing = null;
    });
    return this.flushing;
  }

  async #flush() {
    let last = null;
    const refused = [];
    for (let item = this.items[0]; item; item = this.items[0]) {
      try {
        last = await this.send(item.path, item.body);
      } catch (error) {
        const isForEver = error instanceof Refused && !error.isPassing && error.status !== 401;
        if (!isForEver) throw error;
        refused.push({ item, error });
        last = null;
      }
      this.#remove(item.body.id);
    }
    return { last, refused };
  }
}
