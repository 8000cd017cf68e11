/** Ticked runs side by side: one clock for all their players. */
const TICKED = new Set();
const RATES = [0.1, 0.25, 0.5, 1, 2];

/** Keeps videos at the same frame. Shorter ones hold their last frame until the longest ends. */
class Clock {
  constructor(players, onChange) {
    this.players = players; // [{video, fps, frames}]
    this.onChange = onChange;
    this.playing = false;
    this.loop = true;
    this.rate = 1;
    this.fps = players.find((p) => p.fps > 0)?.fps ?? 16;
    this.lead = players[0];
    for (const player of players) {
      Object.assign(player.video, { loop: false, muted: true });
      player.video.addEventListener("loadedmetadata", () => this.#measure());
      player.video.addEventListener("ended", () => player === this.lead && this.#ended());
    }
    this.#measure();
    this.request = requestAnimationFrame(() => this.#tick());
  }

  #measure() {
    const length = (player) => player.video.duration || player.frames / (player.fps || this.fps) || 0;
    this.lead = this.players.reduce((a, b) => (length(b) > length(a) ? b : a));
    this.duration = length(this.lead);
    this.last = Math.max(Math.round(this.duration * this.fps) - 1, 0);
    this.onChange();
  }

  get frame() {
    return Math.min(Math.floor(this.lead.video.currentTime * this.fps + 0.01), this.last);
  }

  /** Show one frame on all, in its middle, where no rounding reaches the next. */
  seek(frame) {
    const time = (Math.min(Math.max(frame, 0), this.last) + 0.5) / this.fps;
    const moves = this.players.map(({ video }) => seekTo(video, Math.min(time, (video.duration || time) - 0.4 / this.fps)));
    this.onChange();
    return Promise.all(moves);
  }

  async play() {
    if (this.playing) return;
    this.playing = true;
    this.onChange();
    await this.seek(this.frame >= this.last ? 0 : this.frame);
    await this.#start();
  }

  async #start() {
    if (!this.playing) return;
    for (const { video } of this.players) video.playbackRate = this.rate;
    await Promise.allSettled(this.players.map(({ video }) => video.play()));
  }

  pause() {
    this.playing = false;
    for (const { video } of this.players) video.pause();
    return this.seek(this.frame);
  }

  async #ended() {
    if (!this.playing) return;
    if (!this.loop) {
      this.pause();
      return;
    }
    await this.seek(0);
    await this.#start();
  }

  setRate(rate) {
    this.rate = rate;
    for (const { video } of this.players) video.playbackRate = rate;
  }

  /** Players that run ahead or behind are slowed or hurried; those far off are put where they belong. */
  #tick() {
    const now = this.lead.video.currentTime;
    if (this.playing && !this.lead.video.paused && !this.lead.video.seeking) {
      for (const { video } of this.players) {
        if (video === this.lead.video || video.seeking || now >= video.duration) continue;
        const behind = now - video.currentTime;
        if (Math.abs(behind) > 0.25) video.currentTime = now;
        else video.playbackRate = this.rate * (Math.abs(behind) > 0.2 / this.fps ? 1 + Math.min(Math.max(behind * 4, -0.5), 0.5) : 1);
        if (video.paused && !video.ended) video.play().catch(() => {});
      }
      this.onChange();
    }
    this.request = requestAnimationFrame(() => this.#tick());
  }

  close() {
    this.playing = false;
    cancelAnimationFrame(this.request);
    for (const { video } of this.players) {
      video.pause();
      video.removeAttribute("src");
      video.load();
    }
  }
}

/** Resolves when the video shows that time, or after a second where it cannot. */
function seekTo(video, time) {
  video.currentTime = Math.max(time, 0);
  if (video.readyState === 0) return Promise.resolve();
  return new Promise((resolve) => {
    video.addEventListener("seeked", resolve, { once: true });
    setTimeout(resolve, 1000);
  });
}

function startTicks() {
  const compare = element("button", { type: "button", class: "main", onclick: openPlayers }, "Compare");
  const clear = element("button", { type: "button", onclick: () => [...TICKED].forEach((index) => tick(index, false)) }, "Clear");
  const text = element("span", { "aria-live": "polite" });
  const dock = element("div", { id: "dock", hidden: true }, text, compare, clear);
  document.body.append(dock);
  const boxes = ROWS.map(() => []);

  function tick(index, is) {
    if (is && TICKED.size < MOST_TICKED) TICKED.add(index);
    else if (!is) TICKED.delete(index);
    for (const box of boxes[index]) box.checked = TICKED.has(index);
    for (const part of partsOf(index)) if (part.matches("tr, article")) part.classList.toggle("ticked", TICKED.has(index));
    dock.hidden = TICKED.size === 0;
    text.textContent = `${TICKED.size} ticked${TICKED.size === MOST_TICKED ? ", the most" : ""}`;
  }

  ROWS.forEach((row, index) => {
    const card = document.querySelector(`article[data-row="${index}"]`);
    if (!card.querySelector(":scope > video, :scope > img")) return;
    for (const part of partsOf(index)) {
      const place = part.querySelector(".tick");
      if (!place) continue;
      const box = element("input", { type: "checkbox", "aria-label": `Compare run ${index + 1}`, title: "Compare" });
      box.addEventListener("change", () => tick(index, box.checked));
      boxes[index].push(box);
      place.append(box);
    }
  });
  const ticks = [...table.rows].map((line) => line.cells[0]);
  if (boxes.some((made) => made.length)) for (const cell of ticks) if (!cell.firstChild) cell.append("\u200b");
}

function openPlayers() {
  const figures = [];
  const players = [];
  for (const index of [...TICKED].sort((a, b) => a - b)) {
    const shown = document.querySelector(`article[data-row="${index}"] > :is(video, img)`);
    const copy = element(shown.localName, { src: shown.getAttribute("src"), class: shown.className });
    if (shown.localName === "video") {
      shown.pause();
      Object.assign(copy, { muted: true, playsInline: true, preload: "auto" });
      players.push({ video: copy, fps: ROWS[index].fps, frames: ROWS[index].frames });
    }
    figures.push(element("figure", {}, copy, element("figcaption", {}, `#${index + 1} ${ROWS[index].label}`)));
  }
  const columns = figures.length <= 3 ? figures.length : figures.length === 4 ? 2 : Math.ceil(figures.length / 2);
  const grid = element("div", { class: "players" }, ...figures);
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  grid.style.setProperty("--room", figures.length > columns ? "34vh" : "70vh");
  const dialog = element("dialog", { "aria-label": "Side by side" }, grid);
  const clock = players.length ? transport(dialog, players) : null;
  const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
  (dialog.querySelector(".transport") ?? dialog).append(close);
  dialog.addEventListener("close", () => {
    clock?.close();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  dialog.focus();
}

/** Buttons, the bar and keys of a clock. */
function transport(dialog, players) {
  let clock = null;
  const act = (text, title, onclick) => element("button", { type: "button", title, "aria-label": title, onclick }, text);
  const step = (by) => {
    if (clock.playing) clock.pause().then(() => clock.seek(clock.frame + by));
    else clock.seek(clock.frame + by);
  };
  const toggle = act("▶", "Play", () => (clock.playing ? clock.pause() : clock.play()));
  const bar = element("input", { type: "range", min: "0", value: "0", step: "1", "aria-label": "Frame" });
  bar.addEventListener("input", () => {
    const frame = Number(bar.value);
    if (clock.playing) clock.pause().then(() => clock.seek(frame));
    else clock.seek(frame);
  });
  const frame = element("span", { class: "frame" });
  const loop = element("input", { type: "checkbox", checked: true, onchange: () => (clock.loop = loop.checked) });
  const rate = choice("Speed", RATES.map((value) => [String(value), `${value}×`]), "1", (value) => clock.setRate(Number(value)));
  const show = () => {
    if (!clock) return;
    toggle.textContent = clock.playing ? "❚❚" : "▶";
    toggle.title = clock.playing ? "Pause" : "Play";
    toggle.setAttribute("aria-label", toggle.title);
    bar.max = String(clock.last);
    bar.value = String(clock.frame);
    frame.textContent = `frame ${clock.frame + 1} / ${clock.last + 1}`;
  };
  clock = new Clock(players, show);
  const back = act("◀❙", "One frame back", () => step(-1));
  const on = act("❙▶", "One frame on", () => step(1));
  dialog.append(element("div", { class: "transport tools" }, toggle, back, on, bar, frame, element("label", {}, loop, "Repeat"), rate));
  const keys = { " ": () => toggle.click(), ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => clock.seek(0), End: () => clock.seek(clock.last) };
  dialog.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.target.matches("input, select, button")) return;
    event.preventDefault();
    keys[event.key]();
  });
  dialog.clock = clock;
  clock.play();
  return clock;
}
