// Draws the token maps. Reads one JSON block, keeps no state outside the controls, builds text with textContent only.
"use strict";
(() => {
  const block = document.getElementById("token-map-data");
  if (!block) return;
  const data = JSON.parse(block.textContent);
  const byId = (id) => document.getElementById(id);
  const root = byId("maps"), runSelect = byId("map-run"), promptSelect = byId("map-prompt"), slider = byId("map-slider");
  const large = byId("map-large"), ramp = byId("map-ramp"), strength = byId("map-strength"), play = byId("map-play");
  const boxes = [...document.querySelectorAll(".map-criterion")];
  const colors = Object.fromEntries(data.criteria.map((item) => [item.name, item.color]));
  const views = [
    { key: "image", label: "Image", about: "as it was sampled" },
    { key: "chosen", label: "Chosen tokens", about: "what each criterion selected" },
    ...data.layers,
  ];
  const DIM = 0.62, TINT = 0.42, HEAT_MIX = 1;
  let view = "chosen", timer = 0;

  const option = (text, value) => {
    const element = document.createElement("option");
    element.textContent = text;
    element.value = value;
    return element;
  };
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const bit = (packed, index) => (packed[index >> 3] >> (7 - (index & 7))) & 1;
  const format = (value) => {
    const size = Math.abs(value);
    return (size !== 0 && size < 0.01 ? value.toExponential(1) : value.toFixed(size < 10 ? 3 : 1)).replace(/-/g, "\u2212");
  };

  const images = new Map();
  const picture = (uri) => {
    if (!images.has(uri)) {
      const image = new Image();
      image.addEventListener("load", draw);
      image.src = uri;
      images.set(uri, image);
    }
    return images.get(uri);
  };
  const decoded = new WeakMap();
  const decode = (frame) => {
    if (!decoded.has(frame)) {
      const each = (table) => Object.fromEntries(Object.entries(table).map(([key, text]) => [key, bytes(text)]));
      decoded.set(frame, { maps: each(frame.maps), subsets: each(frame.subsets), selected: bytes(frame.selected) });
    }
    return decoded.get(frame);
  };

  const run = () => data.runs[runSelect.value];
  const frame = () => run().prompts[promptSelect.value].frames[slider.value];
  const shown = (subsets) => boxes.filter((box) => box.checked && box.value in subsets).map((box) => box.value);

  function drawImage(context, size, now) {
    const image = picture(now.image);
    context.clearRect(0, 0, size, size);
    if (!image.complete || !image.naturalWidth) return;
    context.imageSmoothingEnabled = image.naturalWidth >= size;
    context.drawImage(image, 0, 0, size, size);
  }

  function eachCell(size, visit) {
    const [rows, columns] = run().grid;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const left = Math.round((column * size) / columns), top = Math.round((row * size) / rows);
        const width = Math.round(((column + 1) * size) / columns) - left;
        const height = Math.round(((row + 1) * size) / rows) - top;
        visit(row * columns + column, left, top, width, height);
      }
    }
  }

  function drawChosen(context, size, now, amount) {
    const { subsets, selected } = decode(now);
    const names = shown(subsets);
    eachCell(size, (index, left, top, width, height) => {
      if (!bit(selected, index)) {
        context.globalAlpha = DIM * amount;
        context.fillStyle = "#101114";
        context.fillRect(left, top, width, height);
      }
      names.filter((name) => bit(subsets[name], index)).forEach((name, order) => {
        const line = Math.max(1, width / 11), inset = line / 2 + order * line;
        context.globalAlpha = TINT * amount;
        context.fillStyle = colors[name];
        context.fillRect(left, top, width, height);
        context.globalAlpha = Math.min(1, 0.25 + amount);
        context.strokeStyle = colors[name];
        context.lineWidth = line;
        context.strokeRect(left + inset, top + inset, width - 2 * inset, height - 2 * inset);
      });
    });
    context.globalAlpha = 1;
  }

  function drawHeat(context, size, now, key, palette, amount) {
    const values = decode(now).maps[key];
    if (!values) return;
    context.globalAlpha = amount * HEAT_MIX;
    eachCell(size, (index, left, top, width, height) => {
      context.fillStyle = palette[Math.round((values[index] / 255) * (palette.length - 1))];
      context.fillRect(left, top, width, height);
    });
    context.globalAlpha = 1;
  }

  function drawView(canvas, key, now, amount) {
    const context = canvas.getContext("2d"), size = canvas.width;
    drawImage(context, size, now);
    if (key === "chosen") drawChosen(context, size, now, amount);
    else if (key !== "image") drawHeat(context, size, now, key, views.find((item) => item.key === key).palette, amount);
  }

  function drawScale(key) {
    const range = run().ranges[key], layer = data.layers.find((item) => item.key === key);
    byId("map-scale").hidden = !range;
    if (!range) return;
    const context = ramp.getContext("2d");
    layer.palette.forEach((color, index) => {
      context.fillStyle = color;
      context.fillRect((index * ramp.width) / layer.palette.length, 0, ramp.width / layer.palette.length + 1, ramp.height);
    });
    byId("map-low").textContent = format(range[0]);
    byId("map-high").textContent = format(range[1]);
  }

  function words(now) {
    const { subsets, selected } = decode(now), [rows, columns] = run().grid, tokens = rows * columns;
    const count = (packed) => Array.from({ length: tokens }, (_, index) => bit(packed, index)).reduce((a, b) => a + b, 0);
    boxes.forEach((box) => {
      const label = box.closest("label");
      label.classList.toggle("absent", !(box.value in subsets));
      label.querySelector(".count").textContent = box.value in subsets ? `${count(subsets[box.value])} of ${tokens}` : "";
    });
    const parts = [`Step ${run().steps[slider.value]}: ${count(selected)} of ${tokens} tokens are trained on`];
    if (now.reward !== null) parts.push(`reward ${format(now.reward)}`);
    if (now.advantage !== null) parts.push(`advantage ${format(now.advantage)}`);
    return `${parts.join(", ")}.`;
  }

  function draw() {
    const now = frame(), current = views.find((item) => item.key === view);
    byId("map-step").textContent = `${run().steps[slider.value]} (${Number(slider.value) + 1} of ${run().steps.length})`;
    slider.setAttribute("aria-valuetext", `step ${run().steps[slider.value]}`);
    byId("map-title").textContent = current.label;
    byId("map-about").textContent = current.about;
    if (!now) {
      byId("map-words").textContent = "This prompt was not tracked at this step.";
      large.getContext("2d").clearRect(0, 0, large.width, large.height);
      return;
    }
    drawView(large, view, now, strength.value / 100);
    document.querySelectorAll(".tile").forEach((tile) => {
      tile.setAttribute("aria-pressed", String(tile.dataset.view === view));
      drawView(tile.querySelector("canvas"), tile.dataset.view, now, tile.dataset.view === "chosen" ? 0.8 : 1);
    });
    drawScale(view);
    byId("map-words").textContent = words(now);
    large.setAttribute("aria-label", `${current.label}: ${run().prompts[promptSelect.value].text}`);
  }

  function chooseRun() {
    const earlier = promptSelect.value || "0", step = slider.value;
    promptSelect.replaceChildren(...run().prompts.map((prompt, index) => option(prompt.text, String(index))));
    promptSelect.value = run().prompts[earlier] ? earlier : "0";
    slider.max = String(run().steps.length - 1);
    slider.value = step;
    const layers = views.filter((item) => !item.palette || item.key in run().ranges);
    if (!layers.some((item) => item.key === view)) view = "chosen";
    byId("map-tiles").replaceChildren(...layers.map((item) => {
      const tile = document.createElement("button"), canvas = document.createElement("canvas");
      tile.type = "button";
      tile.className = "tile";
      tile.dataset.view = item.key;
      canvas.width = canvas.height = 192;
      canvas.setAttribute("aria-hidden", "true");
      tile.append(canvas, item.label);
      tile.addEventListener("click", () => { view = item.key; draw(); });
      return tile;
    }));
    draw();
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.setAttribute("aria-pressed", "false");
    play.textContent = "Play";
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = "0";
    play.setAttribute("aria-pressed", "true");
    play.textContent = "Pause";
    draw();
    timer = setInterval(() => {
      if (slider.value === slider.max) return stop();
      slider.value = String(Number(slider.value) + 1);
      draw();
    }, 700);
  });

  large.addEventListener("pointermove", (event) => {
    const now = frame();
    if (!now) return;
    const area = large.getBoundingClientRect(), [rows, columns] = run().grid;
    const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - area.top) / area.height) * rows)));
    const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - area.left) / area.width) * columns)));
    const { maps, subsets } = decode(now), index = row * columns + column;
    const parts = [`token ${index} (row ${row}, column ${column})`];
    data.layers.forEach(({ key, label }) => {
      const range = run().ranges[key];
      if (maps[key] && range) parts.push(`${label.toLowerCase()} ${format(range[0] + (maps[key][index] / 255) * (range[1] - range[0]))}`);
    });
    Object.keys(subsets).filter((name) => bit(subsets[name], index)).forEach((name) => parts.push(name));
    byId("map-readout").textContent = parts.join(" · ");
  });
  large.addEventListener("pointerleave", () => { byId("map-readout").textContent = ""; });

  runSelect.replaceChildren(...data.runs.map((item, index) => option(item.label, String(index))));
  runSelect.addEventListener("change", chooseRun);
  promptSelect.addEventListener("change", draw);
  slider.addEventListener("input", () => { if (timer) stop(); draw(); });
  strength.addEventListener("input", draw);
  boxes.forEach((box) => box.addEventListener("change", draw));
  root.hidden = false;
  slider.max = String(data.runs[0].steps.length - 1);
  slider.value = slider.max;
  chooseRun();
})();
