/** Where the clips are drawn: a pane a clip, or one for wipe and difference; all show the same part of the picture. */
const PANE_GAP = 12;
const NARROWEST_PANE = 260;
const HIGHEST_PANE = 560;
const SMALL_CLIP = { side: 384, alone: 512 }; // CSS pixels that a small clip is enlarged to, beside others and alone
const MOST_ZOOM = 8;

class Stage {
  constructor({ source, state, onHover, onView }) {
    this.source = source;
    this.state = state;
    this.onHover = onHover;
    this.onView = onView;
    this.clips = source.facts.clips;
    this.view = { zoom: 1, x: 0.5, y: 0.5 };
    this.panes = this.clips.map((clip, index) => this.#pane(String(index), clip));
    this.single = this.#pane("single", this.clips[0]);
    this.divider = this.#divider();
    this.single.box.append(this.divider);
    this.captions = this.clips.map((clip, index) => new Caption(clip, index, this.clips.length));
    this.figures = this.panes.map(({ box }, index) => {
      const figure = element("figure", "wl-figure");
      figure.append(box, this.captions[index].element);
      return figure;
    });
    this.grid = element("div", "wl-grid");
    this.grid.append(...this.figures);
    this.element = element("div", "wl-stage");
    this.element.append(this.single.box, this.grid);
    this.watcher = new ResizeObserver(() => this.layout());
    this.watcher.observe(this.element);
  }

  #pane(index, clip) {
    const box = element("div", "wl-pane");
    const canvas = element("canvas", "wl-canvas");
    canvas.dataset.index = index;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", clip.label);
    box.append(canvas);
    const pane = { box, canvas, ink: canvas.getContext("2d", { willReadFrequently: true }) };
    this.#followPointer(pane);
    return pane;
  }

  #divider() {
    const divider = element("div", "wl-divider");
    divider.tabIndex = 0;
    Object.entries({
      role: "slider",
      "aria-label": "Divider between the two clips",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      title: "Drag, or use the left and right arrow keys",
    }).forEach(([name, value]) => divider.setAttribute(name, value));
    divider.append(element("span", "wl-grip"));
    const move = (event) => {
      const box = this.single.canvas.getBoundingClientRect();
      this.setDivider((event.clientX - box.left) / box.width);
    };
    drag(divider, { move });
    divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      this.setDivider(this.state.divider + step);
    });
    return divider;
  }

  setDivider(value) {
    this.state.divider = Math.min(Math.max(value, 0), 1);
    this.paint();
  }

  #followPointer(pane) {
    const { canvas } = pane;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointermove", (event) => this.onHover(this.#inPicture(...place(event))));
    canvas.addEventListener("pointerleave", () => this.onHover(null));
    canvas.addEventListener("dblclick", () => this.setZoom(1));
    canvas.addEventListener(
      "wheel",
      (event) => {
        const focused = this.element.closest(".wl-player")?.contains(document.activeElement);
        const zoom = clamp(this.view.zoom * Math.exp(-event.deltaY * 0.002), 1, MOST_ZOOM);
        if (!(event.ctrlKey || event.metaKey || focused) || zoom === this.view.zoom) return; // the page scrolls
        event.preventDefault();
        event.stopPropagation();
        this.setZoom(zoom, ...place(event));
      },
      { passive: false },
    );
    let before = null;
    drag(canvas, {
      start: (event) => (before = place(event)),
      move: (event) => {
        const [x, y] = place(event);
        this.#moveTo(this.view.x - (x - before[0]) / this.view.zoom, this.view.y - (y - before[1]) / this.view.zoom);
        before = [x, y];
      },
    });
  }

  /** From 0 to 1 in a pane to 0 to 1 in the whole picture. */
  #inPicture(x, y) {
    const { zoom } = this.view;
    return [
      clamp(this.view.x + (x - 0.5) / zoom, 0, 1 - 1e-9),
      clamp(this.view.y + (y - 0.5) / zoom, 0, 1 - 1e-9),
    ];
  }

  /** Zoom so that the picture stays where it is under (x, y), from 0 to 1 in a pane. */
  setZoom(zoom, x = 0.5, y = 0.5) {
    const [u, v] = this.#inPicture(x, y);
    this.view.zoom = clamp(zoom, 1, MOST_ZOOM);
    this.#moveTo(u - (x - 0.5) / this.view.zoom, v - (y - 0.5) / this.view.zoom);
  }

  #moveTo(x, y) {
    const half = 0.5 / this.view.zoom;
    Object.assign(this.view, { x: clamp(x, half, 1 - half), y: clamp(y, half, 1 - half) });
    this.paint();
    this.onView();
  }

  /** Sizes of the panes: as many in a row as fit, small clips enlarged by whole screen pixels. */
  layout() {
    const width = this.element.clientWidth;
    if (!width) return;
    const count = this.clips.length;
    const most = clamp(Math.floor((width + PANE_GAP) / (NARROWEST_PANE + PANE_GAP)), 1, count);
    const columns = Math.ceil(count / Math.ceil(count / most));
    const column = Math.floor((width - (columns - 1) * PANE_GAP) / columns);
    const [wide, high] = ["width", "height"].map((side) => Math.max(...this.clips.map((clip) => clip[side])));
    const scale = fit(wide, high, column, SMALL_CLIP.side);
    const cell = Math.max(Math.ceil(wide * scale), Math.min(NARROWEST_PANE, column));
    this.grid.style.gridTemplateColumns = `repeat(${columns}, ${cell}px)`;
    this.panes.forEach((pane, index) => resize(pane, this.clips[index], scale));
    const [first] = this.clips;
    resize(this.single, first, fit(first.width, first.height, width, SMALL_CLIP.alone));
    this.paint();
  }

  paint() {
    const { mode, other } = this.state;
    if (this.source.frame < 0) return;
    const isSide = mode === "side";
    this.single.box.hidden = isSide;
    this.divider.hidden = mode !== "wipe";
    this.figures.forEach((figure, index) => (figure.hidden = !isSide && index !== 0 && index !== other));
    this.panes.forEach((pane, index) => {
      pane.box.hidden = !isSide;
      if (isSide) this.#draw(pane, this.clips[index], this.clips[index].cell);
    });
    if (mode === "wipe") this.#drawWipe();
    if (mode === "difference") this.#drawDifference();
    for (const canvas of this.element.querySelectorAll("canvas")) canvas.dataset.frame = this.source.frame;
    this.element.classList.toggle("wl-pannable", this.view.zoom > 1);
  }

  #draw({ canvas, ink }, clip, [left, top, width, height]) {
    const { zoom, x, y } = this.view;
    ink.imageSmoothingEnabled = canvas.width * zoom < clip.width; // magnified pixels stay squares
    ink.imageSmoothingQuality = "high";
    const [w, h] = [width / zoom, height / zoom];
    ink.drawImage(
      this.source.sheet,
      ...[left + x * width - w / 2, top + y * height - h / 2, w, h],
      ...[0, 0, canvas.width, canvas.height],
    );
  }

  #drawWipe() {
    const { canvas, ink } = this.single;
    const { divider, other } = this.state;
    this.#draw(this.single, this.clips[0], this.clips[0].cell);
    ink.save();
    ink.beginPath();
    ink.rect(Math.round(divider * canvas.width), 0, canvas.width, canvas.height);
    ink.clip();
    this.#draw(this.single, this.clips[other], this.clips[other].cell);
    ink.restore();
    this.divider.style.left = `${divider * 100}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(divider * 100));
  }

  /** |first - other| times the gain, in colour. The kernel stores 255 sqrt(d / 255), so that small ones stay exact. */
  #drawDifference() {
    const { canvas, ink } = this.single;
    const clip = this.clips[this.state.other];
    this.#draw(this.single, clip, clip.difference);
    const levels = Uint8ClampedArray.from({ length: 256 }, (_, v) => (Math.round((v * v) / 255) * this.state.gain));
    const picture = ink.getImageData(0, 0, canvas.width, canvas.height);
    const { data } = picture;
    for (let i = 0; i < data.length; i += 4) {
      data[i] = levels[data[i]];
      data[i + 1] = levels[data[i + 1]];
      data[i + 2] = levels[data[i + 2]];
    }
    ink.putImageData(picture, 0, 0);
  }

  close() {
    this.watcher.disconnect();
  }
}

/** What stands under a pane: what the clip is, how far it is from the first at this frame, the pixel under the cursor. */
class Caption {
  constructor(clip, index, count) {
    this.clip = clip;
    this.index = index;
    this.element = element("figcaption", "wl-caption");
    this.label = element("div", "wl-label");
    this.label.title = clip.label;
    const text = element("span", "wl-label-text", clip.label);
    this.label.append(dot(index), text);
    this.measures = element("div", "wl-measures");
    this.pixel = element("div", "wl-pixel");
    this.element.append(this.label, this.measures, this.pixel);
  }

  show(frame) {
    const { numFrames, distances } = this.clip;
    const held = frame >= numFrames && numFrames > 1 ? `ended at ${numFrames}, last frame held` : "";
    const own = this.index === 0 ? "reference" : distances ? distanceText(distances, frame) : "another size or length";
    this.measures.textContent = [own, held].filter(Boolean).join(" · ");
  }

  /** values, first: [r, g, b]; null without a cursor. */
  showPixel(values, first, isExact) {
    if (!values) return void (this.pixel.textContent = "\u00a0");
    const swatch = element("span", "wl-swatch");
    swatch.style.background = `rgb(${values.join(" ")})`;
    const words = [`${isExact ? "RGB" : "RGB ≈"} ${values.join(" ")}`];
    if (this.index) words.push(`Δ ${values.map((value, channel) => signed(value - first[channel])).join(" ")}`);
    this.pixel.replaceChildren(swatch, words.join("  "));
  }
}

function distanceText({ psnr, mean, max }, frame) {
  if (psnr[frame] === null) return "equal to the first at this frame";
  return `PSNR ${psnr[frame].toFixed(1)} dB · mean difference ${mean[frame].toFixed(2)}, largest ${max[frame]}`;
}

function signed(value) {
  return value > 0 ? `+${value}` : value < 0 ? `−${-value}` : "0";
}

/** How many times larger a picture is shown, in CSS pixels: whole screen pixels when enlarged, never past its room. */
function fit(width, height, room, small) {
  const ratio = window.devicePixelRatio || 1;
  const most = Math.min(room / width, HIGHEST_PANE / height, Math.max(small / Math.max(width, height), 1));
  return most * ratio >= 1 ? Math.floor(most * ratio) / ratio : most;
}

function resize({ canvas, box }, clip, scale) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [clip.width * scale, clip.height * scale];
  box.style.width = canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const inside = { width: Math.max(1, Math.round(width * ratio)), height: Math.max(1, Math.round(height * ratio)) };
  if (canvas.width !== inside.width || canvas.height !== inside.height) Object.assign(canvas, inside);
}
