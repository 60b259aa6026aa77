// Text of a model -> elements. Everything goes in as text nodes: markup in an answer is shown, never run.

const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)/;

function inline(parent, text) {
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) { parent.append(rest); return; }
    parent.append(rest.slice(0, found.index));
    const [whole, code, bold] = found;
    const element = document.createElement(code ? "code" : bold ? "strong" : "em");
    element.textContent = whole.slice(bold ? 2 : 1, bold ? -2 : -1);
    parent.append(element);
    rest = rest.slice(found.index + whole.length);
  }
}

function add(parent, name, text) {
  const element = parent.appendChild(document.createElement(name));
  inline(element, text);
  return element;
}

function blocks(parent, text) {
  const lines = text.split("\n");
  for (let i = 0; i < lines.length; ) {
    const fence = /^\s*```(\S*)/.exec(lines[i]);
    if (fence) {
      const code = [];
      for (i++; i < lines.length && !/^\s*```\s*$/.test(lines[i]); i++) code.push(lines[i]);
      i++;
      const pre = parent.appendChild(document.createElement("pre"));
      pre.appendChild(document.createElement("code")).textContent = code.join("\n");
      continue;
    }
    const heading = /^#{1,6}\s+(.*)/.exec(lines[i]);
    if (heading) { add(parent, "h3", heading[1]); i++; continue; }
    const mark = /^\s*([-*+]|\d+[.)])\s+/;
    if (mark.test(lines[i])) {
      const ordered = /^\s*\d/.test(lines[i]);
      const list = parent.appendChild(document.createElement(ordered ? "ol" : "ul"));
      if (ordered) list.start = parseInt(lines[i], 10);
      for (; i < lines.length && mark.test(lines[i]) && /^\s*\d/.test(lines[i]) === ordered; i++)
        add(list, "li", lines[i].replace(mark, ""));
      continue;
    }
    if (!lines[i].trim()) { i++; continue; }
    const paragraph = [];
    for (; i < lines.length && lines[i].trim() && !/^\s*```/.test(lines[i]) && !(paragraph.length && mark.test(lines[i])); i++)
      paragraph.push(lines[i]);
    add(parent, "p", paragraph.join("\n"));
  }
}

/** Replace what an element holds by a text, its reasoning folded away. */
export function render(element, text) {
  const made = document.createDocumentFragment();
  const end = text.indexOf("</think>");
  if (end >= 0) {
    const fold = made.appendChild(document.createElement("details"));
    fold.appendChild(document.createElement("summary")).textContent = "Reasoning";
    blocks(fold, text.slice(0, end).replace(/^\s*<think>/, ""));
    text = text.slice(end + 8);
  }
  blocks(made, text);
  const open = element.querySelector("details")?.open;
  element.replaceChildren(made);
  if (open) element.querySelector("details").open = true;
}
