"use strict";
(() => {
  const PER_PAGE = 20;
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  let page = 0;

  // Everything that a model or a dataset wrote goes through textContent: it is never read as HTML.
  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  data.forEach((benchmark, i) => {
    const option = element("option", "", `${benchmark.name} (${benchmark.items.length})`);
    option.value = i;
    at("benchmark").append(option);
  });

  function chosen() {
    const outcome = at("outcome").value;
    const words = at("find").value.toLowerCase();
    return data[Number(at("benchmark").value)].items.filter((item) => {
      if (outcome === "!right" ? item.outcome === "right" : outcome && item.outcome !== outcome) return false;
      return !words || [item.key, item.question, item.target, ...item.texts].join("\n").toLowerCase().includes(words);
    });
  }

  function line(list, name, text, style) {
    const row = element("div");
    row.append(element("dt", "", name), element("dd", style, text));
    list.append(row);
  }

  function card(item) {
    const article = element("article", item.outcome.replace(" ", "-"));
    const head = element("h3");
    head.append(element("span", "outcome", item.outcome), element("span", "key", item.key));
    const scores = Object.entries(item.scores).map(([name, score]) => `${name} ${score === null ? "–" : Number(score.toFixed(3))}`);
    head.append(element("span", "dim", scores.join(", ")));
    const categories = Object.entries(item.categories).map(([name, value]) => `${name}: ${value}`);
    if (categories.length) head.append(element("span", "dim", categories.join(" · ")));
    article.append(head);
    const body = element("div", "body");
    if (item.pictures.length || item.note) {
      const pictures = element("div", "pictures");
      for (const [source, caption] of item.pictures) {
        const figure = element("figure");
        const image = element("img");
        image.src = source;
        image.alt = caption;
        figure.append(image);
        if (caption) figure.append(element("figcaption", "", caption));
        pictures.append(figure);
      }
      if (item.note) pictures.append(element("span", "dim", item.note));
      body.append(pictures);
    }
    const list = element("dl");
    line(list, "question", item.question, "text");
    line(list, "target", item.target, "text");
    item.texts.forEach((text, i) => {
      const cut = item.finish[i] === "length" ? ", cut off" : "";
      line(list, `answer${item.texts.length > 1 ? ` ${i + 1}` : ""}${cut}`, text === "" ? "(empty)" : text, "text answer");
    });
    if (item.error) line(list, "no answer", item.error, "text");
    body.append(list);
    article.append(body);
    return article;
  }

  function show() {
    const items = chosen();
    const pages = Math.max(1, Math.ceil(items.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    at("list").replaceChildren(...items.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card));
    at("count").textContent = `${items.length} shown`;
    at("place").textContent = `${page + 1} of ${pages}`;
    at("before").disabled = page === 0;
    at("after").disabled = page === pages - 1;
  }

  const turn = (to) => { page = to; show(); };
  for (const id of ["benchmark", "outcome", "find"]) at(id).addEventListener("input", () => turn(0));
  at("before").addEventListener("click", () => turn(page - 1));
  at("after").addEventListener("click", () => turn(page + 1));
  show();
})();
