// Text of models and of projects as DOM nodes. Everything becomes a text node, so that no markup in it is ever live.

/** A new element with a class and a text. */
export function element(name, className = "", text = "") {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** Shows an answer, a prompt or a conversation (a list of turns) inside `box`, in full. */
export function showContent(box, content, t, { numSame = 0 } = {}) {
  box.replaceChildren();
  if (!Array.isArray(content)) {
    appendText(box, content, t);
    return;
  }
  content.forEach((turn, place) => {
    if (numSame > 0 && place === numSame) box.append(element("p", "differ", t("differ_from_here")));
    box.append(turnNode(turn, t, place < numSame));
  });
}

/** How many turns at the start two conversations have in common. */
export function numSameTurns(left, right) {
  if (!Array.isArray(left) || !Array.isArray(right)) return 0;
  let place = 0;
  while (
    place < Math.min(left.length, right.length) &&
    left[place].role === right[place].role &&
    left[place].content === right[place].content
  ) place += 1;
  return place;
}

function turnNode(turn, t, isSame) {
  const known = ["system", "user", "assistant"].includes(turn.role);
  const node = element("div", `turn ${known ? turn.role : "other"}${isSame ? " same" : ""}`);
  const role = element("h3", "role", known ? t(`role_${turn.role}`) : turn.role);
  if (known) role.dataset.t = `role_${turn.role}`;
  node.append(role);
  appendText(node, turn.content, t);
  return node;
}

const FENCE = /^ {0,3}(`{3,}|~{3,})([^\n`]*)$/;

/** Paragraphs, each with its own writing direction, and fenced code in a monospaced block. */
function appendText(box, text, t) {
  if (!text.trim()) {
    const empty = element("p", "empty", t("empty_text"));
    empty.dataset.t = "empty_text";
    box.append(empty);
    return;
  }
  let prose = [];
  let code = null;
  let fence = "";
  const endProse = () => {
    appendParagraphs(box, prose.join("\n"));
    prose = [];
  };
  for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
    const found = FENCE.exec(line);
    if (code === null && found) {
      endProse();
      fence = found[1];
      code = [];
      if (found[2].trim()) box.append(element("p", "code-language", found[2].trim()));
    } else if (code !== null && found && found[1].startsWith(fence) && !found[2].trim()) {
      appendCode(box, code.join("\n"), t);
      code = null;
    } else {
      (code ?? prose).push(line);
    }
  }
  if (code !== null) appendCode(box, code.join("\n"), t);
  endProse();
}

function appendParagraphs(box, text) {
  if (!text.trim()) return;
  for (const paragraph of text.split(/\n[ \t]*\n/)) {
    if (!paragraph.trim()) continue;
    const node = element("p", "", paragraph.replace(/^\n+|\s+$/g, ""));
    node.dir = "auto";
    box.append(node);
  }
}

function appendCode(box, text, t) {
  const block = element("pre");
  block.tabIndex = 0;
  block.setAttribute("role", "group");
  block.setAttribute("aria-label", t("code_block"));
  block.append(element("code", "", text));
  box.append(block);
}

/** Shows guidelines: headings, lists, paragraphs, code, bold; everything else stays as it was written. */
export function showGuidelines(box, markdown, t) {
  box.replaceChildren();
  let list = null;
  let paragraph = [];
  let code = null;
  const endParagraph = () => {
    if (paragraph.length) {
      const node = element("p");
      node.dir = "auto";
      appendInline(node, paragraph.join("\n"));
      box.append(node);
    }
    paragraph = [];
  };
  for (const line of markdown.replaceAll("\r\n", "\n").split("\n")) {
    const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
    const item = /^\s*(?:([-*+])|\d+[.)])\s+(.*)$/.exec(line);
    if (/^\s*```/.test(line)) {
      endParagraph();
      list = null;
      if (code === null) code = [];
      else {
        appendCode(box, code.join("\n"), t);
        code = null;
      }
    } else if (code !== null) {
      code.push(line);
    } else if (heading) {
      endParagraph();
      list = null;
      const node = element(heading[1].length === 1 ? "h3" : "h4");
      node.dir = "auto";
      appendInline(node, heading[2]);
      box.append(node);
    } else if (item) {
      endParagraph();
      const name = item[1] ? "UL" : "OL";
      if (list?.tagName !== name) {
        list = element(name);
        box.append(list);
      }
      const node = element("li");
      node.dir = "auto";
      appendInline(node, item[2]);
      list.append(node);
    } else if (!line.trim()) {
      endParagraph();
    } else if (list && /^\s/.test(line)) {
      appendInline(list.lastElementChild, ` ${line.trim()}`);
    } else {
      list = null;
      paragraph.push(line);
    }
  }
  if (code !== null) appendCode(box, code.join("\n"), t);
  endParagraph();
}

function appendInline(node, text) {
  for (const part of text.split(/(\*\*[^*\n]+\*\*|\*[^*\s][^*\n]*\*|`[^`\n]+`)/)) {
    if (/^\*\*[^*]+\*\*$/.test(part)) node.append(element("strong", "", part.slice(2, -2)));
    else if (/^\*[^*]+\*$/.test(part)) node.append(element("em", "", part.slice(1, -1)));
    else if (/^`[^`]+`$/.test(part)) node.append(element("code", "", part.slice(1, -1)));
    else if (part) node.append(document.createTextNode(part));
  }
}

/** A conversation (JSON in a text) as one text, without the marks that a model's template puts around its turns. */
export function asTurns(json, words) {
  const turns = json ? JSON.parse(json) : [];
  return turns.map(({ role, content }) => `${words[`role_${role}`] ?? role}: ${content}`).join("\n\n");
}
