// Sorting of tables, choice of variants and task, values under the pointer. The page is whole without it.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // --- sorting: a button in each column head; numbers by their first number, the rest by name
  const key = (cell) => {
    const text = cell.textContent.trim();
    const number = parseFloat(text.replace(/\u2212/g, "-").replace(/[\u202f,]/g, "").replace(/^[^\d+-]*(?=[\d+-])/, ""));
    return cell.classList.contains("num") ? (Number.isNaN(number) ? -Infinity : number) : text;
  };
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      if (!head.textContent.trim() || head.querySelector(".axis-label")) return;
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending" || !head.classList.contains("num");
        const up = head.getAttribute("aria-sort") === "ascending" ? false : down;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
        rows.sort((a, b) => (up ? 1 : -1) * order(a[0], b[0]));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // --- which variants, which task
  const variants = [...new Set(all("[data-variant]").map((element) => element.dataset.variant))];
  const tasks = [...new Set(all("[data-task]").map((element) => element.dataset.task))];
  const plots = all("svg.chart[data-plot]").map((svg) => ({ svg, plot: JSON.parse(svg.dataset.plot) }));
  const hidden = new Set();
  let task = "";
  const summary = make("summary");
  function show() {
    for (const element of all("[data-variant], [data-task]")) {
      const { variant, task: own } = element.dataset;
      element.hidden = hidden.has(variant) || (task !== "" && own !== undefined && own !== task);
    }
    for (const { svg, plot } of plots) {
      plot.series.forEach((series, index) => {
        for (const part of all(`[id$="-series-${index}"]`, svg)) part.style.display = hidden.has(series.label) ? "none" : "";
      });
    }
    const shown = variants.length - hidden.size;
    summary.textContent = `Shown: ${shown === variants.length ? "all" : shown} of ${variants.length} variants, ${task ? task.replace(/_/g, " ") : "all tasks"}`;
  }
  if (variants.length > 1 || tasks.length > 1) {
    const boxes = variants.map((variant) => {
      const box = make("input", { type: "checkbox", checked: true, value: variant });
      box.addEventListener("change", () => {
        if (box.checked) hidden.delete(variant);
        else hidden.add(variant);
        show();
      });
      return box;
    });
    const each = (checked) => {
      for (const box of boxes) if (box.checked !== checked) box.click();
    };
    const select = make("select", { id: "filter-task" }, make("option", { value: "", textContent: "all tasks" }));
    select.append(...tasks.map((name) => make("option", { value: name, textContent: name.replace(/_/g, " ") })));
    select.addEventListener("change", () => {
      task = select.value;
      show();
    });
    const field = make("fieldset", {}, make("legend", { textContent: "Variants" }));
    field.append(...boxes.map((box) => make("label", {}, box, ` ${box.value}`)));
    const button = (textContent, checked) => {
      const element = make("button", { type: "button", textContent });
      element.addEventListener("click", () => each(checked));
      return element;
    };
    field.append(button("All", true), button("None", false));
    const panel = make("details", { id: "filters", className: "filters" }, summary, field);
    if (tasks.length > 1) panel.append(make("label", { className: "task" }, "Task ", select));
    document.querySelector("main").prepend(panel);
    show();
  }

  // --- values of a curve: the pointer or the arrow keys move a line, a box beside it tells
  const tip = make("div", { className: "tip", hidden: true });
  tip.setAttribute("role", "status");
  document.body.append(tip);
  const format = (value) => (value === null ? "\u2013" : Number(value.toPrecision(4)).toString().replace("-", "\u2212"));
  for (const { svg, plot } of plots) {
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    for (const [name, value] of [["y1", plot.box[1]], ["y2", plot.box[3]], ["class", "cursor"]]) line.setAttribute(name, value);
    svg.append(line);
    const [left, , right] = plot.box, [low, high] = plot.range;
    const place = (x) => left + ((x - low) / (high - low || 1)) * (right - left);
    let at = -1;
    const tell = (index) => {
      at = Math.min(Math.max(index, 0), plot.x.length - 1);
      const x = place(plot.x[at]);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      line.style.display = "block";
      const rows = plot.series.map((series) => [series.label, series.y[at]]).filter(([label]) => !hidden.has(label));
      tip.replaceChildren(make("b", { textContent: `step ${plot.x[at]}` }), ...rows.map(([label, y]) => make("span", { textContent: `${label} ${format(y)}` })));
      tip.hidden = false;
      const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
      const wanted = frame.left + x * scale + 12;
      tip.style.left = `${Math.max(4, Math.min(wanted, window.innerWidth - tip.offsetWidth - 8)) + window.scrollX}px`;
      tip.style.top = `${frame.top + window.scrollY + 8}px`;
    };
    const leave = () => {
      tip.hidden = true;
      line.style.display = "none";
    };
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("pointermove", (event) => {
      const frame = svg.getBoundingClientRect();
      const x = ((event.clientX - frame.left) / frame.width) * svg.viewBox.baseVal.width;
      const wanted = low + ((x - left) / (right - left)) * (high - low);
      const distances = plot.x.map((value) => Math.abs(value - wanted));
      tell(distances.indexOf(Math.min(...distances)));
    });
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", leave);
    svg.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: plot.x.length - 1 };
      if (event.key === "Escape") leave();
      if (!(event.key in moves)) return;
      event.preventDefault();
      tell(moves[event.key]);
    });
  }
})();
