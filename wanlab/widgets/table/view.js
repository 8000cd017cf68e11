/** One view of the table: its own filter, order, page; ticks and the open run are the model's. */
class View {
  constructor(model, store) {
    this.model = model;
    this.store = store;
    this.words = "";
    this.chosen = new Map(); // column -> the value's text
    this.sort = null; // {column, down}
    this.page = 0;
    this.asked = new Set();
    this.lines = new Map(); // id -> {line, signature}
    this.root = element("div", "wr-table");
    this.root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab's own keys would act on cells
    this.build();
  }

  build() {
    this.search = element("input", "wr-search");
    Object.assign(this.search, { type: "search", placeholder: "Filter: cache=magcache seed=3 failed" });
    this.search.setAttribute("aria-label", "Filter runs");
    this.search.title = "Rows that contain all of these words, in any setting, status, error or id";
    this.search.addEventListener("input", () => {
      this.words = this.search.value.toLowerCase();
      this.turnTo(0);
    });
    this.choices = element("span", "wr-choices");
    this.count = element("span", "wr-count");
    this.count.setAttribute("role", "status");
    this.compare = button("Compare", "Play the ticked runs side by side", () => this.act("compare", { ids: this.ticked() }));
    this.untick = button("Untick", "Tick none", () => this.tick([]));
    const bar = element("div", "wr-bar");
    bar.append(this.search, this.choices, this.compare, this.untick, this.count);
    this.head = element("tr");
    this.body = element("tbody");
    const table = element("table");
    const thead = element("thead");
    thead.append(this.head);
    table.append(thead, this.body);
    this.box = element("div", "wr-box");
    this.box.append(table);
    this.empty = element("div", "wr-empty");
    this.pager = element("div", "wr-bar wr-pager");
    this.back = button("‹ Earlier", "The page before", () => this.turnTo(this.page - 1));
    this.next = button("Later ›", "The next page", () => this.turnTo(this.page + 1));
    this.place = element("span", "wr-count");
    this.pager.append(this.back, this.place, this.next);
    this.root.append(bar, this.box, this.empty, this.pager);
    this.body.addEventListener("keydown", (event) => this.move(event));
  }

  act(type, more) {
    this.model.send({ type, ...more });
  }

  ticked() {
    return this.model.get("ticked").filter((id) => this.store.rows.has(id));
  }

  tick(ids) {
    this.model.set("ticked", ids);
    this.model.save_changes();
    this.show();
  }

  turnTo(page) {
    this.page = page;
    this.box.scrollTop = 0;
    this.show();
  }

  columns() {
    const { settings, metrics } = this.store;
    const named = (kind) => (name) => ({ key: `${kind}.${name}`, title: name, value: (row) => row[kind][name], kind });
    return [
      { key: "status", title: "status", value: (row) => row.status, kind: "status" },
      ...settings.map(named("settings")),
      { key: "seconds", title: "seconds", value: (row) => row.seconds, kind: "metrics" },
      ...metrics.map(named("metrics")),
    ];
  }

  found() {
    const words = this.words.split(/\s+/).filter(Boolean);
    const columns = this.columns();
    const wanted = columns.filter((column) => this.chosen.has(column.key));
    const rows = this.store.order
      .map((id) => this.store.rows.get(id))
      .filter((row) => row && words.every((word) => row.text.includes(word)))
      .filter((row) => wanted.every((column) => shown(column.value(row)) === this.chosen.get(column.key)));
    const column = this.sort && columns.find(({ key }) => key === this.sort.column);
    if (!column) return rows;
    const sign = this.sort.down ? -1 : 1;
    const known = rows.filter((row) => column.value(row) !== null && column.value(row) !== undefined);
    const unknown = rows.filter((row) => !known.includes(row)); // last, whichever way
    return [...known.sort((a, b) => sign * compared(column.value(a), column.value(b))), ...unknown];
  }

  show() {
    const rows = this.found();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const here = rows.slice(this.page * PAGE, (this.page + 1) * PAGE);
    this.showChoices();
    this.showHead();
    this.showBody(here);
    const all = this.store.order.length;
    this.count.textContent = rows.length === all ? `${all} ${all === 1 ? "run" : "runs"}` : `${rows.length} of ${all} runs`;
    const ticked = this.ticked().length;
    this.compare.textContent = ticked > 1 ? `Compare ${ticked}` : "Compare";
    this.compare.disabled = ticked < 2;
    this.compare.title = ticked < 2 ? "Tick two or more runs" : "Play the ticked runs side by side";
    this.untick.hidden = ticked === 0;
    this.pager.hidden = pages < 2;
    this.place.textContent = `${this.page * PAGE + 1}–${this.page * PAGE + here.length} of ${rows.length}`;
    this.back.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.box.hidden = here.length === 0;
    this.empty.hidden = here.length > 0;
    this.empty.textContent = this.emptiness(all);
    this.askForPictures(here);
    Object.assign(this.root.dataset, { ready: String(this.store.known), rows: rows.length });
  }

  emptiness(all) {
    if (!this.store.known) return "The table fills when the kernel is free.";
    return all === 0 ? "No runs here yet: they appear as soon as a sweep writes them." : "No run is like that: change the filter.";
  }

  showChoices() {
    const columns = this.columns().filter(({ kind }) => kind !== "metrics");
    const found = columns.map((column) => ({ column, values: this.valuesOf(column) }));
    const told = found.filter(({ values }) => values.length > 1 && values.length <= MOST_CHOICES);
    const signature = JSON.stringify(told.map(({ column, values }) => [column.key, values]));
    if (signature === this.choicesShown) return;
    this.choicesShown = signature;
    const kept = new Set(told.map(({ column }) => column.key));
    [...this.chosen.keys()].filter((key) => !kept.has(key)).forEach((key) => this.chosen.delete(key));
    this.choices.replaceChildren(...told.map(({ column, values }) => this.dropDown(column, values)));
  }

  valuesOf(column) {
    const counts = new Map();
    for (const row of this.store.rows.values()) {
      const text = shown(column.value(row));
      counts.set(text, (counts.get(text) ?? 0) + 1);
    }
    return [...counts].sort(([a], [b]) => compared(a, b));
  }

  dropDown(column, values) {
    const select = element("select", "wr-choice");
    select.setAttribute("aria-label", column.title);
    const option = (value, text) => Object.assign(element("option", "", text), { value });
    select.append(option("", `${column.title}: all`));
    select.append(...values.map(([text, count]) => option(`=${text}`, `${text.length > 40 ? `${text.slice(0, 39)}…` : text} (${count})`)));
    const chosen = this.chosen.get(column.key);
    if (chosen !== undefined && values.some(([text]) => text === chosen)) select.value = `=${chosen}`;
    else this.chosen.delete(column.key);
    select.title = select.selectedOptions[0].textContent;
    select.addEventListener("change", () => {
      if (select.value) this.chosen.set(column.key, select.value.slice(1));
      else this.chosen.delete(column.key);
      select.title = select.selectedOptions[0].textContent;
      this.turnTo(0);
    });
    return select;
  }

  showHead() {
    const columns = this.columns();
    const signature = JSON.stringify([columns.map(({ key }) => key), this.sort, this.store.rows.size]);
    if (signature === this.headShown) return;
    this.headShown = signature;
    const blank = ["tick", "picture"].map((name) => {
      const cell = element("th", `wr-${name}`);
      cell.setAttribute("aria-label", name);
      return cell;
    });
    this.head.replaceChildren(...blank, ...columns.map((column) => this.headCell(column)));
  }

  headCell(column) {
    const values = [...this.store.rows.values()].map(column.value).filter((value) => value !== null && value !== undefined);
    const isNumber = values.length ? values.every((value) => typeof value === "number") : column.kind === "metrics";
    const cell = element("th", isNumber ? "wr-number" : "");
    const mine = this.sort?.column === column.key ? this.sort : null;
    const mark = mine ? (mine.down ? " ↓" : " ↑") : "";
    if (mine) cell.setAttribute("aria-sort", mine.down ? "descending" : "ascending");
    const press = button(`${column.title}${mark}`, `Sort by ${column.title}`, () => {
      this.sort = !mine ? { column: column.key, down: false } : mine.down ? null : { column: column.key, down: true };
      this.turnTo(0);
    });
    press.className = "wr-sort";
    press.replaceChildren(...`${column.title}${mark}`.split(/(?<=[_.])/).flatMap((part) => [part, element("wbr")]));
    cell.append(press);
    return cell;
  }

  showBody(rows) {
    const columns = this.columns();
    const names = JSON.stringify(columns.map(({ key }) => key));
    if (names !== this.namesShown) this.lines.clear();
    this.namesShown = names;
    const earlier = this.lines;
    this.lines = new Map();
    for (const row of rows) {
      const known = earlier.get(row.id);
      const same = known?.signature === row.signature;
      this.lines.set(row.id, same ? known : { line: this.line(row, columns), signature: row.signature });
    }
    const lines = [...this.lines.values()].map(({ line }) => line);
    const shownNow = [...this.body.children];
    if (lines.length !== shownNow.length || lines.some((line, i) => line !== shownNow[i])) {
      const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
      const id = focused?.closest("tr")?.dataset.id;
      this.body.replaceChildren(...lines);
      const line = this.lines.get(id)?.line;
      if (line) (focused.tagName === "INPUT" ? line.querySelector("input") : line).focus({ preventScroll: true });
    }
    this.mark();
  }

  /** Ticks, the open run and pictures, which change without the rows. */
  mark() {
    const ticked = new Set(this.model.get("ticked"));
    const opened = this.model.get("opened");
    for (const [id, { line }] of this.lines) {
      line.querySelector("input").checked = ticked.has(id);
      line.classList.toggle("wr-opened", id === opened);
      const picture = line.querySelector("img");
      const address = this.store.pictures.get(id);
      if (picture && address && picture.getAttribute("src") !== address) picture.src = address;
    }
  }

  line(row, columns) {
    const line = element("tr");
    Object.assign(line.dataset, { id: row.id, status: row.status });
    line.tabIndex = 0;
    line.title = row.error || row.name || row.id;
    const open = () => {
      this.model.set("opened", row.id);
      this.model.save_changes();
      this.mark();
      this.act("open", { id: row.id });
    };
    line.addEventListener("click", open);
    line.addEventListener("keydown", (event) => event.key === "Enter" && event.target === line && open());
    line.append(this.tickCell(row), this.pictureCell(row), ...columns.map((column) => this.cell(row, column)));
    return line;
  }

  tickCell(row) {
    const cell = element("td", "wr-tick");
    const box = element("input");
    Object.assign(box, { type: "checkbox", disabled: !row.clip, title: row.clip ? "Compare this run" : "It has no clip" });
    box.setAttribute("aria-label", `compare ${row.name || row.id}`);
    box.addEventListener("change", () => {
      const others = this.ticked().filter((id) => id !== row.id);
      this.tick(box.checked ? [...others, row.id] : others);
    });
    cell.addEventListener("click", (event) => {
      event.stopPropagation();
      if (event.target === cell && !box.disabled) box.click();
    });
    cell.append(box);
    return cell;
  }

  pictureCell(row) {
    const cell = element("td", "wr-picture");
    if (row.clip) {
      const picture = element("img");
      picture.alt = "";
      cell.append(picture);
    } else cell.append(element("span", "wr-blank"));
    return cell;
  }

  cell(row, column) {
    const value = column.value(row);
    const isNumber = typeof value === "number";
    const cell = element("td", isNumber ? "wr-number" : "");
    if (column.kind === "status") {
      cell.append(element("span", "wr-status", STATUS_WORDS[row.status] ?? row.status));
      if (row.stale) cell.append(element("span", "wr-note", " stale"));
      if (row.error) cell.append(cut(element("div", "wr-error"), row.error, 90));
      return cell;
    }
    const text = column.kind === "metrics" ? number(value) : shown(value);
    cell.append(cut(element("div", text.length > LONG ? "wr-value wr-long" : "wr-value"), text, 120));
    return cell;
  }

  /** Arrow keys go from row to row. */
  move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const line = event.target.closest("tr");
    if (!step || !line?.[step] || event.target !== line) return;
    event.preventDefault();
    line[step].focus();
  }

  askForPictures(rows) {
    const ids = rows.filter((row) => row.clip && !this.store.pictures.has(row.id)).map(({ id }) => id);
    const missing = ids.filter((id) => !this.asked.has(id));
    if (!missing.length) return;
    this.asked = new Set(ids);
    this.act("pictures", { ids });
  }
}

/** Put a text into an element; of a long one the beginning, and all of it as the title. */
function cut(made, text, most) {
  made.textContent = text.length > most ? `${text.slice(0, most - 1)}…` : text;
  if (text.length > most) made.title = text;
  return made;
}

function render({ model, el }) {
  const store = storeOf(model);
  const view = new View(model, store);
  el.append(view.root);
  const update = (what) => (what === "pictures" ? view.mark() : view.show());
  const mark = () => view.show();
  store.views.add(update);
  model.on("change:ticked", mark);
  model.on("change:opened", mark);
  view.show();
  model.send({ type: "ready" });
  return () => {
    store.views.delete(update);
    model.off("change:ticked", mark);
    model.off("change:opened", mark);
    model.send({ type: "gone" });
  };
}

export default { initialize, render };
