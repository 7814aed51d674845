// The viewer: pictures on canvases, window and level on real values, heat over them.

import { isTyping } from "./common.js";

const FULL_SCALE = 65535;
const LONG_SIDE = 2048;
const stage = document.getElementById("stage");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const button = (id) => document.getElementById(id);

const heat = { on: true, opacity: 0.55 };
let active = 0;
let sideBySide = stage.children.length === 2;

async function fetched(address) {
  const answer = await fetch(address);
  if (!answer.ok) {
    const words = await answer.json().catch(() => ({}));
    throw new Error(words.error ?? answer.statusText);
  }
  return answer;
}
function surface(columns, rows) {
  return Object.assign(document.createElement("canvas"), { width: columns, height: rows });
}

class Viewport {
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.readout = figure.querySelector(".readout");
    this.problem = figure.querySelector(".problem");
    this.frame = Number(figure.dataset.frame);
    this.judgedFrame = this.frame;
    this.loading = null;
    this.source = null;
    this.heatPicture = null;
    this.scheduled = false;
    this.resetView();
    new ResizeObserver(() => this.draw()).observe(figure);
    this.listen();
  }

  resetView() {
    this.zoom = 1;
    this.shiftX = 0;
    this.shiftY = 0;
  }

  reset() {
    this.resetView();
    if (this.source) Object.assign(this, { low: this.source.low, high: this.source.high, inverted: false });
    this.changed();
  }

  load() {
    this.loading ??= this.loadPixels().then(() => this.loadHeat());
    return this.loading;
  }

  async loadPixels() {
    this.figure.dataset.ready = "";
    const wanted = this.frame;
    try {
      const answer = await fetched(`${this.figure.dataset.source}${wanted}/pixels?long_side=${LONG_SIDE}`);
      const number = (name) => Number(answer.headers.get(name));
      const [rows, columns] = [number("X-Rows"), number("X-Columns")];
      const source = { rows, columns, frames: number("X-Frame-Count"), low: 0, high: 1, colour: false };
      if (answer.headers.get("X-Colour") === "1") {
        const picture = surface(columns, rows);
        const context = picture.getContext("2d", { willReadFrequently: true });
        context.drawImage(await createImageBitmap(await answer.blob()), 0, 0);
        Object.assign(source, { colour: true, values: context.getImageData(0, 0, columns, rows).data });
      } else {
        source.values = new Uint16Array(await answer.arrayBuffer());
        source.low = number("X-Window-Low");
        source.high = number("X-Window-High");
        if (answer.headers.has("X-Value-Low")) source.range = [number("X-Value-Low"), number("X-Value-High")];
      }
      if (wanted !== this.frame) return;
      const first = this.source === null;
      this.source = source;
      this.base = surface(columns, rows);
      this.pixels = this.base.getContext("2d").createImageData(columns, rows);
      this.problem.hidden = true;
      // Frames of one image keep the window and the place that were set.
      if (first) this.reset();
      else this.changed();
    } catch (error) {
      this.problem.textContent = `The picture cannot be shown: ${error.message}`;
      this.problem.hidden = false;
    }
    this.figure.dataset.ready = "pixels";
  }

  async loadHeat() {
    const address = this.figure.dataset.heat;
    this.heatPicture = null;
    if (address && this.frame === this.judgedFrame) {
      try {
        this.heatPicture = await createImageBitmap(await (await fetched(address)).blob());
      } catch {
        this.figure.querySelector(".explained").textContent = "heat map cannot be shown";
      }
    }
    this.draw();
    this.figure.dataset.ready = "all";
  }

  showFrame(by) {
    const wanted = clamp(this.frame + by, 0, (this.source?.frames ?? 1) - 1);
    if (wanted === this.frame) return;
    this.frame = wanted;
    this.loading = null;
    this.load();
  }

  // Values to grey levels through one table: black at `low`, white at `high`.
  paint() {
    const { values, colour } = this.source;
    const top = colour ? 255 : FULL_SCALE;
    const table = new Uint8ClampedArray(top + 1);
    const width = Math.max(1e-6, this.high - this.low);
    for (let value = 0; value <= top; value += 1) {
      const level = 255 * ((value / top - this.low) / width);
      table[value] = this.inverted ? 255 - clamp(level, 0, 255) : level;
    }
    const target = this.pixels.data;
    if (colour) {
      for (let at = 0; at < target.length; at += 4) {
        target[at] = table[values[at]];
        target[at + 1] = table[values[at + 1]];
        target[at + 2] = table[values[at + 2]];
        target[at + 3] = 255;
      }
    } else {
      const words = new Uint32Array(target.buffer);
      for (let at = 0; at < words.length; at += 1) words[at] = 0xff000000 | (table[values[at]] * 0x10101);
    }
    this.base.getContext("2d").putImageData(this.pixels, 0, 0);
  }

  changed() {
    this.stale = true;
    this.draw();
  }

  draw() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.drawNow();
    });
  }

  drawNow() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!this.source || !clientWidth || !clientHeight) return;
    if (this.stale) this.paint();
    this.stale = false;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const place = this.place(width, height, ratio);
    this.context.clearRect(0, 0, width, height);
    this.context.imageSmoothingEnabled = place.scale < 4;
    this.context.imageSmoothingQuality = "high";
    this.context.drawImage(this.base, ...place.box);
    if (heat.on && this.heatPicture) {
      this.context.imageSmoothingEnabled = true;
      this.context.globalAlpha = heat.opacity;
      this.context.drawImage(this.heatPicture, ...place.box);
      this.context.globalAlpha = 1;
    }
    this.say(place.scale / ratio);
  }

  place(width, height, ratio) {
    const scale = Math.min(width / this.source.columns, height / this.source.rows) * this.zoom;
    const [across, down] = [this.source.columns * scale, this.source.rows * scale];
    const left = (width - across) / 2 + this.shiftX * ratio;
    const top = (height - down) / 2 + this.shiftY * ratio;
    return { scale, box: [left, top, across, down] };
  }

  say(scale) {
    const { range, frames } = this.source;
    let [width, level] = [this.high - this.low, (this.high + this.low) / 2];
    let text = `W ${(100 * width).toFixed(0)} % L ${(100 * level).toFixed(0)} %`;
    if (range) {
      width = Math.abs(width * (range[1] - range[0]));
      level = range[0] + level * (range[1] - range[0]);
      text = `W ${width.toFixed(0)} L ${level.toFixed(0)}`;
    }
    const frame = frames > 1 ? ` · frame ${this.frame + 1} of ${frames}` : "";
    this.readout.textContent = `${text} · ${(100 * scale).toFixed(0)} %${frame}`;
  }

  // Shares of the window's own width, so that a step feels the same at every width.
  window(wider, brighter) {
    if (!this.source) return;
    const width = this.high - this.low;
    const middle = (this.high + this.low) / 2 - brighter * width;
    const half = clamp(width * Math.exp(wider), 2 / FULL_SCALE, 4) / 2;
    this.low = middle - half;
    this.high = middle + half;
    this.changed();
  }

  zoomBy(factor, x = 0, y = 0) {
    const zoom = clamp(this.zoom * factor, 0.2, 40);
    const share = zoom / this.zoom;
    this.shiftX = x - (x - this.shiftX) * share;
    this.shiftY = y - (y - this.shiftY) * share;
    this.zoom = zoom;
    this.draw();
  }

  listen() {
    this.figure.addEventListener("pointerdown", (event) => {
      activate(views.indexOf(this));
      this.figure.setPointerCapture(event.pointerId);
      this.dragged = event.button !== 0 || event.shiftKey ? "place" : "window";
    });
    this.figure.addEventListener("pointermove", (event) => {
      if (!this.figure.hasPointerCapture(event.pointerId)) return;
      if (this.dragged === "place") {
        this.shiftX += event.movementX;
        this.shiftY += event.movementY;
        this.draw();
      } else {
        this.window(event.movementX / 200, -event.movementY / 400);
      }
    });
    this.figure.addEventListener("contextmenu", (event) => event.preventDefault());
    this.figure.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = this.canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
      this.zoomBy(Math.exp(-event.deltaY / 500), x, y);
    }, { passive: false });
  }
}

const views = [...stage.children].map((figure) => new Viewport(figure));

function shown() {
  if (!sideBySide || views.length < 2) return [active];
  const first = Math.min(active - (active % 2), views.length - 2);
  return [first, first + 1];
}
function activate(place) {
  active = clamp(place, 0, views.length - 1);
  const visible = shown();
  stage.classList.toggle("two", visible.length === 2);
  views.forEach((view, number) => {
    view.figure.hidden = !visible.includes(number);
    view.figure.classList.toggle("active", number === active && views.length > 1);
    if (visible.includes(number)) view.load();
  });
  button("side")?.setAttribute("aria-pressed", String(visible.length === 2));
  showPanel();
}
function showPanel() {
  const name = views[active]?.figure.dataset.image;
  for (const panel of document.querySelectorAll(".image-panel")) panel.hidden = panel.dataset.image !== name;
}
function drawAll() {
  views.forEach((view) => view.draw());
}
function setHeat(on, opacity) {
  heat.on = on;
  heat.opacity = clamp(opacity, 0, 1);
  button("heat").setAttribute("aria-pressed", String(on));
  button("opacity").value = String(Math.round(100 * heat.opacity));
  drawAll();
}
function invert() {
  const view = views[active];
  if (!view?.source) return;
  view.inverted = !view.inverted;
  button("invert").setAttribute("aria-pressed", String(view.inverted));
  view.changed();
}

const here = (act) => () => views[active] && act(views[active]);
const actions = {
  h: () => setHeat(!heat.on, heat.opacity),
  o: () => setHeat(true, heat.opacity + 0.1),
  O: () => setHeat(true, heat.opacity - 0.1),
  i: invert,
  r: here((view) => { view.reset(); button("invert").setAttribute("aria-pressed", "false"); }),
  "+": here((view) => view.zoomBy(1.25)), "=": here((view) => view.zoomBy(1.25)), "-": here((view) => view.zoomBy(0.8)),
  "[": here((view) => view.window(-0.15, 0)), "]": here((view) => view.window(0.15, 0)),
  ",": here((view) => view.window(0, -0.05)), ".": here((view) => view.window(0, 0.05)),
  ArrowLeft: () => activate(active - 1), ArrowRight: () => activate(active + 1),
  PageUp: here((view) => view.showFrame(-1)), PageDown: here((view) => view.showFrame(1)),
  s: () => { sideBySide = !sideBySide; activate(active); },
  Escape: () => location.assign(sessionStorage.getItem("worklist") ?? "/"),
};
const buttons = {
  heat: "h", narrower: "[", wider: "]", darker: ",", brighter: ".", invert: "i", "zoom-in": "+", "zoom-out": "-",
  reset: "r", side: "s",
};
for (const [id, key] of Object.entries(buttons)) button(id)?.addEventListener("click", actions[key]);
button("opacity").addEventListener("input", (event) => setHeat(true, event.target.value / 100));
document.addEventListener("click", (event) => {
  if (!event.target.closest?.("a.back")) return;
  event.preventDefault();
  actions.Escape();
});
document.addEventListener("keydown", (event) => {
  const sliding = event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow");
  if (isTyping(event) || sliding || !actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});

// New pictures and heat maps come in while the page is open.
document.addEventListener("refreshed", (event) => {
  for (const fresh of event.detail.querySelectorAll("#stage > figure")) {
    const view = views.find((each) => each.figure.dataset.image === fresh.dataset.image);
    if (!view) {
      views.push(new Viewport(stage.appendChild(document.adoptNode(fresh))));
      activate(active);
    } else if (view.figure.dataset.heat !== fresh.dataset.heat) {
      view.figure.dataset.heat = fresh.dataset.heat;
      view.figure.querySelector(".explained").textContent = fresh.querySelector(".explained").textContent;
      view.loadHeat();
    }
  }
  showPanel();
});
activate(0);
