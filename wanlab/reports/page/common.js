"use strict";
/** Elements of the page. Text from runs goes through textContent alone. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLUMNS = DATA.columns;
const ROWS = DATA.rows;
for (const row of ROWS) row.values = row.values.map((value) => (value === null ? null : Number(value)));
const MOST_TICKED = 8;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A drop-down of [value, text] pairs in a label; `name` is what it is called where the label is not seen. */
function choice(label, options, chosen, onChange, name = label) {
  const select = element("select", { "aria-label": name, onchange: () => onChange(select.value) });
  for (const [value, text] of options) select.append(element("option", { value }, text));
  select.value = chosen;
  return element("label", {}, label, select);
}

/** Table line, card and plotted point of a run. */
function partsOf(index) {
  return document.querySelectorAll(`[data-row="${index}"]`);
}

function columnNamed(name) {
  return COLUMNS.findIndex((column) => column.name === name);
}

function headOf(column) {
  return column.unit ? `${column.title} (${column.unit})` : column.title;
}
