/** The table of runs: filter, sort, pages and ticks are done here, so that they need no kernel; texts are never HTML. */
const PAGE = 50;
const LIVE_PICTURES = 60;
const LONG = 20; // characters of a value that may be broken anywhere
const MOST_CHOICES = 40; // of a drop-down; a setting with more is found by the text
const STATUS_WORDS = { ok: "ok", oom: "out of memory" };

/** What each browser shows, by its key: messages may arrive before a view is there, and serve all of its views. */
const STORES = new Map();

function storeOf(model) {
  const key = model.get("key");
  if (!STORES.has(key)) {
    STORES.set(key, { rows: new Map(), order: [], settings: [], metrics: [], known: false, pictures: new Map(), views: new Set() });
  }
  return STORES.get(key);
}

function initialize({ model }) {
  const store = storeOf(model);
  const take = (message, buffers) => {
    if (message.type === "rows") takeRows(store, message);
    else if (message.type === "pictures") takePictures(store, message, buffers);
    else return;
    store.views.forEach((view) => view(message.type));
  };
  model.on("msg:custom", take);
  return () => {
    model.off("msg:custom", take);
    store.pictures.forEach((address) => URL.revokeObjectURL(address));
    STORES.delete(model.get("key"));
  };
}

function takeRows(store, message) {
  if (message.whole) store.rows.clear();
  message.rows.forEach((row) => store.rows.set(row.id, prepared(row)));
  Object.assign(store, { order: message.order, settings: message.settings, metrics: message.metrics, known: true });
  const here = new Set(message.order);
  [...store.rows.keys()].filter((id) => !here.has(id)).forEach((id) => store.rows.delete(id));
}

function prepared(row) {
  const words = Object.entries(row.settings).map(([name, value]) => `${name}=${shown(value)} ${name} ${shown(value)}`);
  const text = [row.id, row.name, row.status, row.error, ...words].join(" ").toLowerCase();
  return { ...row, text, signature: JSON.stringify(row) };
}

function takePictures(store, message, buffers) {
  message.ids.forEach((id, i) => {
    if (store.pictures.has(id)) URL.revokeObjectURL(store.pictures.get(id));
    store.pictures.delete(id);
    store.pictures.set(id, URL.createObjectURL(new Blob([buffers[i]], { type: "image/jpeg" })));
  });
  while (store.pictures.size > LIVE_PICTURES) {
    const [oldest] = store.pictures.keys();
    URL.revokeObjectURL(store.pictures.get(oldest));
    store.pictures.delete(oldest);
  }
}

/** A value in words: "magcache, threshold 0.1" for a method with options, 1010 for a mask, numbers as they are. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  if (Array.isArray(value)) {
    return value.length && value.every((v) => typeof v === "boolean")
      ? value.map(Number).join("")
      : value.map(shown).join(", ");
  }
  if (typeof value !== "object") return String(value);
  const { method, ...rest } = value;
  const words = Object.entries(rest).map(([name, part]) => `${name} ${shown(part)}`);
  return [method, ...words].filter((word) => word !== undefined).join(", ");
}

function number(value) {
  if (typeof value !== "number" || !Number.isFinite(value)) return shown(value);
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4)));
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function button(text, title, press) {
  const made = element("button", "wr-button", text);
  Object.assign(made, { type: "button", title });
  made.addEventListener("click", press);
  return made;
}

function compared(a, b) {
  const missing = (v) => v === null || v === undefined;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return shown(a).localeCompare(shown(b), undefined, { numeric: true });
}
