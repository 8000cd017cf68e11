/** Sorting, filtering, choosing columns; the filter also decides which cards and points there are. */
const SHOWN = new Set(ROWS.keys());
const BEFORE = 2; // columns of the table before those of the data: tick and number
const table = document.getElementById("runs");
const body = table.tBodies[0];

function compareRows(column, direction) {
  const { number } = COLUMNS[column];
  const key = (index) => (number ? ROWS[index].values[column] : ROWS[index].texts[column] || null);
  return (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    const order = number ? (x > y) - (x < y) : x.localeCompare(y, undefined, { numeric: true });
    return direction * order || a - b;
  };
}

function sortable(head, order) {
  head.classList.add("sortable");
  head.tabIndex = 0;
  const sort = () => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const lines = new Map([...body.rows].map((line) => [Number(line.dataset.row), line]));
    body.append(...[...lines.keys()].sort(order(direction)).map((index) => lines.get(index)));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    sort();
  });
}

function startTable(onFilter) {
  const heads = [...table.tHead.rows[0].cells];
  sortable(heads[1], (direction) => (a, b) => direction * (a - b));
  COLUMNS.forEach((_, column) => sortable(heads[BEFORE + column], (direction) => compareRows(column, direction)));

  const wanted = new Map();
  const search = element("input", { type: "search", placeholder: "Filter", "aria-label": "Filter", oninput: () => filter() });
  const count = element("span", { class: "count", "aria-live": "polite" });
  const texts = ROWS.map((row) => [row.label, ...row.texts].join("\n").toLowerCase());

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    ROWS.forEach((row, index) => {
      const fits =
        words.every((word) => texts[index].includes(word)) &&
        [...wanted].every(([column, text]) => row.texts[column] === text);
      if (fits) SHOWN.add(index);
      else SHOWN.delete(index);
      for (const part of partsOf(index)) if (part.matches("tr, article")) part.hidden = !fits;
    });
    count.textContent = SHOWN.size === ROWS.length ? `${ROWS.length} runs` : `${SHOWN.size} of ${ROWS.length} runs`;
    onFilter();
  }

  const tools = document.getElementById("table-tools");
  tools.append(search);
  COLUMNS.forEach((column, index) => {
    const values = [...new Set(ROWS.map((row) => row.texts[index]))];
    if (!column.setting || values.length < 2 || values.length > 30) return;
    values.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const options = [["", "all"], ...values.map((text, i) => [String(i + 1), text.length > 40 ? `${text.slice(0, 39)}…` : text || "–"])];
    tools.append(
      choice(
        column.title,
        options,
        "",
        (chosen) => {
          if (chosen) wanted.set(index, values[Number(chosen) - 1]);
          else wanted.delete(index);
          filter();
        },
        `Only ${column.title}`,
      ),
    );
  });
  tools.append(count, chooser());
  filter();
}

/** Which columns the table shows. */
function chooser() {
  const boxes = COLUMNS.map((column, index) => {
    const toggle = () => {
      for (const line of table.rows) line.cells[BEFORE + index].hidden = !box.checked;
    };
    const box = element("input", { type: "checkbox", checked: true, onchange: toggle });
    return element("label", {}, box, headOf(column));
  });
  const made = element("details", { class: "chooser" }, element("summary", {}, "Columns"), element("div", {}, ...boxes));
  document.addEventListener("click", (event) => {
    if (!made.contains(event.target)) made.open = false;
  });
  return made;
}
