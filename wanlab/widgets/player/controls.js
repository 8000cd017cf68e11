/** Elements and buttons. Text from outside goes through textContent alone: labels hold prompts. */
const ICONS = {
  first: "M6 5h2v14H6zM19 5v14L9 12z",
  previous: "M15.5 5v14L6 12z M17 5h2v14h-2z",
  play: "M7 4.5v15l12.5-7.5z",
  pause: "M6.5 5h4v14h-4zM13.5 5h4v14h-4z",
  next: "M8.5 5v14l9.5-7z M5 5h2v14H5z",
  last: "M16 5h2v14h-2zM5 5v14l10-7z",
  loop: "M7 7h9v3l4.5-4L16 2v3H5v6h2zM17 17H8v-3l-4.5 4L8 22v-3h11v-6h-2z",
  minus: "M5 11h14v2H5z",
  plus: "M11 5h2v6h6v2h-6v6h-2v-6H5v-2h6z",
};
const SPEEDS = [0.1, 0.25, 0.5, 1, 2];
const GAINS = [1, 2, 4, 8, 16];
const MODES = {
  side: ["Side by side", "All clips, each in its own picture"],
  wipe: ["Wipe", "The first clip on the left of a divider, the other on its right"],
  difference: ["Difference", "Absolute difference to the first clip, per colour; black is equal"],
};
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

/** At most `most` characters; a cut text ends in "…". */
function ellipsis(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1).trimEnd()}…`;
}

function vector(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

function colour(index) {
  return `var(--wl-clip-${index % 6})`;
}

function dot(index) {
  const made = element("span", "wl-dot");
  made.style.background = colour(index);
  return made;
}

function button(name, title, onClick) {
  const made = element("button", "wl-button");
  made.type = "button";
  const svg = vector("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" });
  const path = vector("path", { d: ICONS[name] });
  svg.append(path);
  made.append(svg);
  made.rename = (icon, text) => {
    path.setAttribute("d", ICONS[icon]);
    made.title = text;
    made.setAttribute("aria-label", text);
  };
  made.rename(name, title);
  made.addEventListener("click", onClick);
  return made;
}

/** options: [value, text] pairs; onChange gets the value as it was given. */
function choice(title, options, chosen, onChange) {
  const made = element("select", "wl-select");
  made.title = title;
  made.setAttribute("aria-label", title);
  options.forEach(([value, text], index) => {
    const option = element("option", "", text);
    option.value = String(index);
    option.selected = value === chosen;
    made.append(option);
  });
  made.addEventListener("change", () => onChange(options[Number(made.value)][0]));
  return made;
}

/** Follow a pointer from pressing to letting go, outside of the element too. */
function drag(target, { start = () => {}, move }) {
  let pointer = null;
  target.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointer = event.pointerId;
    target.setPointerCapture(pointer);
    start(event);
  });
  target.addEventListener("pointermove", (event) => event.pointerId === pointer && move(event));
  for (const name of ["pointerup", "pointercancel"]) target.addEventListener(name, () => (pointer = null));
}

/** The row above the pictures: how they are compared, with which clip, how much is shown. */
class ViewBar {
  constructor({ facts, state, onMode, onZoom }) {
    this.state = state;
    this.clips = facts.clips;
    this.element = element("div", "wl-row wl-viewbar");
    this.modes = Object.fromEntries(Object.entries(MODES).map(([mode, texts]) => [mode, this.#mode(mode, texts, onMode)]));
    const group = element("div", "wl-segments");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "How the clips are compared");
    group.append(...Object.values(this.modes));
    const others = this.clips.slice(1).map((clip, index) => [index + 1, `with ${ellipsis(clip.label, 36)}`]);
    this.other = choice("The clip that is compared with the first", others, state.other, (index) => {
      state.other = index;
      onMode();
    });
    this.gain = choice("How much the difference is amplified", GAINS.map((gain) => [gain, `gain ×${gain}`]), state.gain, (gain) => {
      state.gain = gain;
      onMode();
    });
    this.zoomText = element("button", "wl-button wl-zoom-text");
    this.zoomText.type = "button";
    this.zoomText.title = "Show the whole picture";
    this.zoomText.addEventListener("click", () => onZoom(1));
    const step = (towards) => onZoom(towards(this.zoom));
    this.smaller = button("minus", "Zoom out", () => step((zoom) => ZOOMS.findLast((level) => level < zoom - 0.01) ?? 1));
    this.larger = button("plus", "Zoom in (Ctrl + wheel; drag to move)", () =>
      step((zoom) => ZOOMS.find((level) => level > zoom + 0.01) ?? MOST_ZOOM),
    );
    const zoom = element("div", "wl-group");
    zoom.append(this.smaller, this.zoomText, this.larger);
    this.note = element("span", "wl-note");
    this.note.title = "The pictures are shown smaller than they are; pixel values are those of the clips themselves";
    this.place = element("span", "wl-place");
    const right = element("div", "wl-right");
    right.append(this.place, this.note, zoom);
    this.element.append(group, this.other, this.gain, right);
    this.showZoom(1, 1);
  }

  #mode(mode, [text, title], onMode) {
    const made = element("button", "wl-segment", text);
    made.title = title;
    made.type = "button";
    made.addEventListener("click", () => {
      this.state.mode = mode;
      onMode();
    });
    return made;
  }

  show() {
    const { mode, other } = this.state;
    const comparable = this.clips.map((clip) => clip.difference !== null);
    Object.entries(this.modes).forEach(([name, made]) => made.setAttribute("aria-pressed", String(name === mode)));
    this.modes.difference.disabled = !comparable.includes(true);
    if (!comparable.includes(true)) this.modes.difference.title = "No clip has the size and length of the first";
    this.other.hidden = mode === "side" || this.clips.length === 2;
    this.other.value = String(other - 1);
    this.other.title = `with ${this.clips[other].label}`;
    [...this.other.options].forEach((option, index) => (option.disabled = mode === "difference" && !comparable[index + 1]));
    this.gain.hidden = mode !== "difference";
  }

  showZoom(zoom, scale) {
    this.zoom = zoom;
    this.note.textContent = scale < 0.995 ? `at ${Math.round(scale * 100)} % of its size` : "";
    this.zoomText.textContent = `${Number(zoom.toFixed(1))}×`;
    this.zoomText.setAttribute("aria-label", `Zoom ${zoom.toFixed(1)}, show the whole picture`);
    this.smaller.disabled = this.zoomText.disabled = zoom <= 1;
    this.larger.disabled = zoom >= MOST_ZOOM;
  }

  /** [column, row] of the first clip, or null. */
  showPlace(place) {
    this.place.textContent = place ? `x ${place[0]}, y ${place[1]}` : "";
  }
}

/** The row below the timeline. */
class Transport {
  constructor({ source, step }) {
    this.source = source;
    this.element = element("div", "wl-row wl-transport");
    this.toggle = button("play", "Play (space)", () => this.playOrPause());
    this.frame = element("span", "wl-frame");
    this.loop = button("loop", "Repeat", () => {
      source.setLoop(!source.loop);
      this.show();
    });
    const speed = choice("Speed", SPEEDS.map((value) => [value, `${value}×`]), 1, (value) => source.setSpeed(value));
    const steps = element("div", "wl-group");
    steps.append(
      button("first", "First frame (home)", () => step(-Infinity)),
      button("previous", "One frame back (left arrow)", () => step(-1)),
      this.toggle,
      button("next", "One frame on (right arrow)", () => step(1)),
      button("last", "Last frame (end)", () => step(Infinity)),
    );
    this.element.append(steps, this.frame, element("span", "wl-space"), this.loop, speed);
  }

  playOrPause() {
    if (this.source.playing) this.source.pause();
    else this.source.play();
  }

  show() {
    this.toggle.rename(...(this.source.playing ? ["pause", "Pause (space)"] : ["play", "Play (space)"]));
    this.loop.setAttribute("aria-pressed", String(this.source.loop));
    this.frame.textContent = `${this.source.frame + 1} / ${this.source.last + 1}`;
  }
}
