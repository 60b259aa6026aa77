"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const places = new WeakMap(); // token element -> place in its row

  function placeOf(element) {
    if (!places.has(element)) {
      const text = element.closest(".text");
      let place = Number(text.dataset.start);
      for (const token of text.querySelectorAll("i, a.v")) {
        places.set(token, place);
        place += Number(token.dataset.n || 1);
      }
    }
    return places.get(element);
  }

  function describe(row, place, count) {
    const { ids, labels, kinds, t, h, w, samples } = data.rows[row];
    const name = (id) => `${data.text[id] ?? ""} (${id})`;
    const owner = samples.find(([, start, stop]) => place >= start && place < stop);
    const lines = [];
    lines.push(
      count > 1 ? `places ${place} to ${place + count - 1} of row ${row}` : `place ${place} of row ${row}`,
      owner ? `sample ${owner[0]}, token ${place - owner[1]} of ${owner[2] - owner[1]}` : "padding",
      count > 1
        ? `position t ${t[place]}, h ${h[place]} to ${Math.max(...h.slice(place, place + count))}, ` +
          `w ${w[place]} to ${Math.max(...w.slice(place, place + count))}`
        : `position t ${t[place]}, h ${h[place]}, w ${w[place]}`,
    );
    if (count === 1) {
      lines.push(labels[place] < 0 ? "label: none" : `label: predicts ${name(labels[place])}`);
      lines.push(["masked: not scored", "supervised: predicted by the token before", "visual", "padding"][kinds[place]]);
    }
    return [`${name(ids[place])}`, lines.join("\n")];
  }

  function show(event, row, place, count = 1) {
    const [head, rest] = describe(row, place, count);
    const title = document.createElement("b");
    title.textContent = head;
    tip.replaceChildren(title, `\n${rest}`);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const below = event.clientY + 18 + box.height < innerHeight;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 8))}px`;
    tip.style.top = `${below ? event.clientY + 18 : Math.max(4, event.clientY - box.height - 12)}px`;
  }

  function hide() {
    tip.hidden = true;
    for (const lit of document.querySelectorAll(".lit")) lit.classList.remove("lit");
    for (const mark of document.querySelectorAll(".cell, .cursor")) mark.style.display = "none";
  }

  function overPicture(event, picture) {
    const holder = picture.closest("[data-columns]");
    const [columns, rows] = [Number(holder.dataset.columns), Number(holder.dataset.rows)];
    const box = picture.getBoundingClientRect();
    const limit = (value, most) => Math.max(0, Math.min(most - 1, Math.floor(value * most)));
    const column = limit((event.clientX - box.left) / box.width, columns);
    const row = limit((event.clientY - box.top) / box.height, rows);
    const cell = picture.querySelector(".cell");
    cell.style.cssText =
      `display:block;left:${(100 * column) / columns}%;top:${(100 * row) / rows}%;` +
      `width:${100 / columns}%;height:${100 / rows}%`;
    show(event, Number(holder.dataset.row), Number(holder.dataset.start) + row * columns + column);
  }

  function overPlot(event, map) {
    const plot = map.querySelector(".plot");
    const box = plot.getBoundingClientRect();
    const n = Number(map.dataset.n);
    const share = Math.max(0, Math.min(0.999999, (event.clientX - box.left) / box.width));
    const cursor = map.querySelector(".cursor");
    cursor.style.cssText = `display:block;left:${100 * share}%`;
    show(event, Number(map.dataset.row), Math.floor(share * n));
  }

  function light(chip, row) {
    const medium = document.getElementById(chip.hash.slice(1));
    if (!medium) return;
    medium.classList.add("lit");
    const [first, count] = [placeOf(chip), Number(chip.dataset.n)];
    for (const pair of medium.querySelectorAll(".pair")) {
      const start = Number(pair.dataset.start);
      if (start >= first && start < first + count) pair.classList.add("lit");
    }
  }

  document.addEventListener("pointermove", (event) => {
    hide();
    const target = event.target instanceof Element ? event.target : null;
    const token = target?.closest(".text i, .text a.v");
    const picture = target?.closest("[data-columns] .pic, .pic[data-columns]");
    const map = target?.closest(".map");
    if (token) {
      const row = Number(token.closest(".text").dataset.row);
      if (token.matches("a")) light(token, row);
      show(event, row, placeOf(token), Number(token.dataset.n || 1));
    } else if (picture) {
      overPicture(event, picture);
    } else if (map && data.rows[Number(map.dataset.row)].ids.length) {
      overPlot(event, map);
    }
  });
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("pointerleave", hide);
})();
