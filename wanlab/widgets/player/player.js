/** What each comparison shows, by its key: it may arrive before a view is there, and serves all of its views. */
const MEDIA = new Map();

function listen(model) {
  const key = model.get("key");
  if (MEDIA.has(key)) return MEDIA.get(key);
  const media = { facts: null, bytes: null, waiting: new Set() };
  MEDIA.set(key, media);
  return media;
}

function initialize({ model }) {
  const media = listen(model);
  const take = (message, buffers) => {
    if (message.type !== "media" || media.facts) return;
    Object.assign(media, { facts: message, bytes: buffers[0] });
    media.waiting.forEach((show) => show());
    media.waiting.clear();
  };
  model.on("msg:custom", take);
  return () => {
    model.off("msg:custom", take);
    MEDIA.delete(model.get("key"));
  };
}

function render({ model, el }) {
  const media = listen(model);
  const root = element("div", "wl-player", "The player starts when the kernel is free.");
  root.dataset.ready = "false";
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's own keys would scroll and delete cells
  el.append(root);
  let close = () => {};
  const show = () => (close = fill(root, model, media));
  if (media.facts) show();
  else {
    media.waiting.add(show);
    model.send({ type: "ready" });
  }
  return () => {
    media.waiting.delete(show);
    close();
  };
}

/** While this rule is in the page, so is a player: the plain video that the notebook keeps is hidden. */
function standIn(key) {
  const name = `.wanlab-static-${key}`;
  return element("style", "", `${name}, .jp-OutputArea-child:has(${name}) { display: none !important; }`);
}

function fill(root, model, { facts, bytes }) {
  const state = { mode: "side", other: 1, gain: 4, divider: 0.5 };
  let hover = null;
  const error = element("div", "wl-error");
  error.hidden = true;

  const source = new Source({
    facts,
    bytes,
    onFrame: () => {
      if (root.dataset.ready !== "true") root.append(standIn(model.get("key")));
      Object.assign(root.dataset, { ready: "true", frame: source.frame });
      refresh();
    },
    onState: (problem) => {
      if (problem) Object.assign(error, { hidden: false, textContent: problem });
      transport.show();
      if (!source.playing) ask();
    },
  });
  const onHover = (place) => {
    hover = place;
    readPixel();
    ask();
  };
  const onView = () => viewBar.showZoom(stage.view.zoom, stage.shownScale);
  const stage = new Stage({ source, state, onHover, onView });
  const onMode = () => {
    const { clips } = facts;
    if (state.mode === "difference" && !clips[state.other].difference) {
      state.other = clips.findIndex((clip) => clip.difference);
    }
    root.dataset.mode = state.mode;
    viewBar.show();
    stage.paint();
    onView();
  };
  const viewBar = new ViewBar({ facts, state, onMode, onZoom: (zoom) => stage.setZoom(zoom) });
  const step = (by) => {
    if (source.playing) source.pause();
    source.seek((source.wanted ?? source.frame) + by);
  };
  const seek = (frame) => {
    if (source.playing) source.pause();
    source.seek(frame);
  };
  let looked = null; // a frame under the cursor, on the timeline
  const onLook = (frame) => {
    looked = frame;
    showMeasures();
  };
  const timeline = new Timeline({ facts, onSeek: seek, onLook });
  const transport = new Transport({ source, step });

  /** From the picture at once; the kernel's own values replace them when it answers. */
  function readPixel() {
    const [first] = facts.clips;
    const values = hover && facts.clips.map((clip) => source.pixel(clip, ...hover));
    stage.captions.forEach((caption, index) => caption.showPixel(values?.[index], values?.[0], false));
    viewBar.showPlace(hover && [Math.floor(hover[0] * first.width), Math.floor(hover[1] * first.height)]);
  }

  let asked = null;
  const view = Math.random().toString(36).slice(2);
  const question = () => ({ type: "pixel", view, frame: source.frame, x: hover[0], y: hover[1] });
  /** One question at a time; an answer to an older one asks the next. */
  function ask() {
    if (!hover || source.playing || asked) return;
    asked = question();
    model.send(asked);
  }

  const answered = (message) => {
    if (message.type !== "pixel" || message.view !== view || !asked) return;
    const isCurrent = hover && ["frame", "x", "y"].every((name) => message[name] === question()[name]);
    asked = null;
    if (!isCurrent) return ask();
    stage.captions.forEach((caption, index) => caption.showPixel(message.values[index], message.values[0], true));
  };
  model.on("msg:custom", answered);

  function showMeasures() {
    const frame = looked ?? source.frame;
    stage.captions.forEach((caption) => caption.show(frame, frame !== source.frame));
  }

  function refresh() {
    stage.paint();
    showMeasures();
    timeline.show(source.frame);
    transport.show();
    if (hover) {
      readPixel();
      ask();
    }
  }

  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "Comparison of clips");
  root.replaceChildren(viewBar.element, error, stage.element);
  if (source.isVideo) root.append(source.element);
  if (facts.numFrames > 1) root.append(timeline.element, transport.element);
  root.addEventListener("keydown", (event) => onKey(event, transport, step));
  readPixel();
  onMode();
  return () => {
    model.off("msg:custom", answered);
    stage.close();
    source.close();
  };
}

function onKey(event, transport, step) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  const keys = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    Home: () => step(-Infinity),
    End: () => step(Infinity),
    " ": () => transport.playOrPause(),
  };
  if (!(event.key in keys) || (event.key === " " && event.target.closest("button"))) return;
  event.preventDefault();
  event.stopPropagation();
  keys[event.key]();
}

export default { initialize, render };
