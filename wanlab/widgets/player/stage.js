/** Where the clips are drawn: a pane a clip, or one for wipe and difference; all show the same part of the picture. */
const PANE_GAP = 12;
const NARROW_CAPTION = 200;
const WIDE_CAPTION = 300;
const HIGHEST = 560; // of all rows of panes, so that the controls stay in sight
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
    this.captions = this.clips.map((clip, index) => new Caption(clip, index, this.clips[0]));
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
    const [wide, high] = ["width", "height"].map((side) => Math.max(...this.clips.map((clip) => clip[side])));
    const { columns, column, scale } = arrange(this.clips.length, wide, high, width);
    const cell = Math.max(Math.ceil(wide * scale), Math.min(WIDE_CAPTION, column));
    this.panes.forEach((pane, index) => resize(pane, this.clips[index], scale));
    const [first] = this.clips;
    const alone = fit(first.width, first.height, width, HIGHEST, SMALL_CLIP.alone);
    resize(this.single, first, alone);
    const half = Math.floor((Math.min(Math.max(first.width * alone, 2 * NARROW_CAPTION), width) - PANE_GAP) / 2);
    this.columns = { side: [columns, cell], wipe: [2, half], difference: [2, half] };
    this.scales = { side: scale, wipe: alone, difference: alone };
    const used = Math.max(columns * (cell + PANE_GAP) - PANE_GAP, first.width * alone);
    this.element.parentElement.style.setProperty("--wl-used", `${Math.ceil(used)}px`);
    this.paint();
    this.onView();
  }

  /** How large a pixel of a clip is on the screen, in screen pixels; the player's copy may have fewer than the clip. */
  get shownScale() {
    const shown = (this.scales?.[this.state.mode] ?? 1) * this.view.zoom * (window.devicePixelRatio || 1);
    return Math.min(shown, this.source.facts.scale);
  }

  paint() {
    const { mode, other } = this.state;
    if (this.source.frame < 0 || !this.columns) return;
    const [columns, cell] = this.columns[mode];
    this.grid.style.gridTemplateColumns = `repeat(${columns}, ${cell}px)`;
    this.grid.classList.toggle("wl-narrow", cell < WIDE_CAPTION);
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
  constructor(clip, index, first) {
    this.clip = clip;
    this.index = index;
    this.first = first;
    this.hasSameSize = clip.width === first.width && clip.height === first.height;
    this.element = element("figcaption", "wl-caption");
    this.label = element("div", "wl-label");
    this.label.title = clip.label;
    this.label.append(dot(index), element("span", "", ellipsis(clip.label, 160)));
    this.measures = element("div", "wl-measures");
    this.pixel = element("div", "wl-pixel");
    this.element.append(this.label, this.measures, this.pixel);
  }

  /** The measures of a frame; one that is not on the screen is named. */
  show(frame, isNamed) {
    const { numFrames, distances } = this.clip;
    const own = this.index === 0 ? ["reference"] : distances ? distanceTexts(distances, frame) : [this.#why()];
    if (frame >= numFrames && numFrames > 1) own.push("ended, its last frame is held");
    if (isNamed && distances) own[0] = `frame ${frame + 1}: ${own[0]}`;
    this.measures.replaceChildren(...own.map((text) => element("span", "", text)));
  }

  /** Why there is no distance. */
  #why() {
    const { width, height, numFrames } = this.clip;
    return `${this.hasSameSize ? `${numFrames} frames` : `${width} × ${height}`}, not comparable`;
  }

  /** values, first: [r, g, b]; null without a cursor. */
  showPixel(values, first, isExact) {
    if (!values) return void (this.pixel.textContent = "\u00a0");
    const swatch = element("span", "wl-swatch");
    swatch.style.background = `rgb(${values.join(" ")})`;
    const words = [`${isExact ? "RGB" : "RGB ≈"} ${values.join(" ")}`];
    if (this.index && this.hasSameSize) {
      words.push(`Δ ${values.map((value, channel) => signed(value - first[channel])).join(" ")}`);
    }
    this.pixel.replaceChildren(swatch, words.join("  "));
  }
}

function distanceTexts({ psnr, mean, max }, frame) {
  if (psnr[frame] === null) return ["equal to the first"];
  return [`PSNR ${psnr[frame].toFixed(1)} dB`, `mean difference ${mean[frame].toFixed(2)}, largest ${max[frame]}`];
}

function signed(value) {
  return value > 0 ? `+${value}` : value < 0 ? `−${-value}` : "0";
}

/** The number of columns that shows the clips largest, in as few rows as that takes. */
function arrange(count, wide, high, width) {
  let best = null;
  for (let columns = count; columns >= 1; columns--) {
    const column = Math.floor((width - (columns - 1) * PANE_GAP) / columns);
    if (column < NARROW_CAPTION && columns > 1) continue;
    const scale = fit(wide, high, column, HIGHEST / Math.ceil(count / columns), SMALL_CLIP.side);
    if (!best || scale > best.scale) best = { columns, column, scale };
  }
  return best;
}

/** How many times larger a picture is shown, in CSS pixels: whole screen pixels when enlarged, never past its room. */
function fit(width, height, wide, high, small) {
  const ratio = window.devicePixelRatio || 1;
  const most = Math.min(wide / width, high / height, Math.max(small / Math.max(width, height), 1));
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
