/** The plot again, for axes that were chosen and the runs that the filter leaves. */
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = DATA.frame;
const COLOURS = 8;

function vector(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high) {
  const raw = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= Math.floor(high / step + 1e-9); k++) found.push(k * step);
  return found;
}

/** The finite values' range with some room at both ends; infinite ones lie on the frame's edge, apart from the others. */
function scale(values) {
  const finite = values.filter(Number.isFinite);
  const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 0];
  const more = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1;
  const range = [low >= 0 ? Math.max(low - more, 0) : low - more, high + more];
  const part = values.includes(Infinity) ? 0.9 : 1;
  const marks = ticks(...range).map((value) => [value, String(Number(value.toPrecision(6)))]);
  if (part < 1) marks.push([Infinity, "∞"]);
  const share = (value) => (value === Infinity ? 1 : Math.min(Math.max((value - range[0]) / (range[1] - range[0]), 0), 1) * part);
  return { share, marks };
}

/** Points that no other one beats in both. */
function frontOf(points, lowX, lowY) {
  const keyed = points.map((point) => [lowX ? point.x : -point.x, lowY ? point.y : -point.y, point]);
  keyed.sort((a, b) => (a[0] > b[0]) - (a[0] < b[0]) || (a[1] > b[1]) - (a[1] < b[1]) || a[2].index - b[2].index);
  const found = [];
  let best = Infinity;
  for (const [, y, point] of keyed) {
    if (found.length && y >= best) continue;
    best = y;
    found.push(point);
  }
  return found;
}

function startPlot() {
  const svg = document.getElementById("plot-svg");
  if (!svg) return () => {};
  const keys = document.getElementById("keys");
  const numbers = COLUMNS.filter((_, i) => COLUMNS[i].number && ROWS.filter((row) => row.values[i] !== null).length > 1);
  const state = { ...DATA.plot, better: {} };
  const better = (column) => state.better[column.name] ?? (column.better || "high");

  function draw() {
    const [ix, iy, ic] = [columnNamed(state.x), columnNamed(state.y), columnNamed(state.colour)];
    const [cx, cy] = [COLUMNS[ix], COLUMNS[iy]];
    const all = ROWS.map((row, index) => ({ index, x: row.values[ix], y: row.values[iy] })).filter((p) => p.x !== null && p.y !== null);
    const points = all.filter((point) => SHOWN.has(point.index));
    const [across, up] = [scale(all.map((p) => p.x)), scale(all.map((p) => p.y))];
    const px = (value) => (LEFT + (WIDTH - LEFT - RIGHT) * across.share(value)).toFixed(1);
    const py = (value) => (HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up.share(value)).toFixed(1);
    const best = frontOf(points, better(cx) === "low", better(cy) === "low");
    const texts = ic < 0 ? [] : [...new Set(ROWS.map((row) => row.texts[ic]))];
    const colour = (index) => (ic < 0 ? 0 : texts.indexOf(ROWS[index].texts[ic]) % COLOURS);
    svg.setAttribute("aria-label", `${headOf(cy)} against ${headOf(cx)}, ${points.length} runs`);
    svg.replaceChildren();
    for (const [value, text] of across.marks) {
      svg.append(vector("line", { class: "grid", x1: px(value), x2: px(value), y1: TOP, y2: HEIGHT - BOTTOM }));
      svg.append(vector("text", { x: px(value), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, text));
    }
    for (const [value, text] of up.marks) {
      svg.append(vector("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(value), y2: py(value) }));
      svg.append(vector("text", { x: LEFT - 7, y: Number(py(value)) + 4, "text-anchor": "end" }, text));
    }
    const wish = (column) => (better(column) === "low" ? " · less is better" : " · more is better");
    svg.append(vector("text", { class: "axis", x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, headOf(cx) + wish(cx)));
    svg.append(vector("text", { class: "axis", x: LEFT, y: 15 }, headOf(cy) + wish(cy)));
    svg.append(vector("polyline", { class: "front", points: best.map((p) => `${px(p.x)},${py(p.y)}`).join(" ") }));
    for (const point of points) {
      const row = ROWS[point.index];
      const link = vector("a", { href: `#run-${point.index + 1}`, "data-row": point.index });
      const isBest = best.includes(point);
      link.append(
        vector("circle", { class: `point${isBest ? " best" : ""} c${colour(point.index)}`, cx: px(point.x), cy: py(point.y), r: isBest ? 6 : 5 }),
        vector("title", {}, `${row.label}: ${cx.title} ${row.texts[ix]} ${cx.unit}, ${cy.title} ${row.texts[iy]} ${cy.unit}`),
      );
      svg.append(link);
    }
    keys.replaceChildren(element("span", { class: "name" }, ic < 0 ? "" : COLUMNS[ic].title));
    for (const [i, text] of texts.entries()) {
      const mark = vector("svg", { viewBox: "0 0 12 12" });
      mark.append(vector("circle", { class: `point c${i % COLOURS}`, cx: 6, cy: 6, r: 4.5 }));
      keys.append(element("span", { class: "key" }, mark, text.length > 40 ? `${text.slice(0, 39)}…` : text || "–"));
    }
  }

  const axis = (label, which) => {
    const options = numbers.map((column) => [column.name, headOf(column)]);
    const flip = element("button", {
      type: "button",
      onclick: () => {
        const column = COLUMNS[columnNamed(state[which])];
        state.better[column.name] = better(column) === "low" ? "high" : "low";
        name();
        draw();
      },
    });
    const name = () => (flip.textContent = better(COLUMNS[columnNamed(state[which])]) === "low" ? "less is better" : "more is better");
    name();
    const made = choice(label, options, state[which], (chosen) => {
      state[which] = chosen;
      name();
      draw();
    });
    return [made, flip];
  };
  const colours = COLUMNS.map((column, i) => [column, new Set(ROWS.map((row) => row.texts[i])).size]);
  const coloured = colours.filter(([column, count]) => column.setting && count > 1 && count <= 12).map(([column]) => [column.name, column.title]);
  document.getElementById("plot-tools").append(
    ...axis("Across", "x"),
    ...axis("Up", "y"),
    choice("Colour", [["", "none"], ...coloured], state.colour, (chosen) => {
      state.colour = chosen;
      draw();
    }),
  );
  body.addEventListener("mouseover", (event) => near(event.target.closest("tr"), true));
  body.addEventListener("mouseout", (event) => near(event.target.closest("tr"), false));
  const near = (line, is) => line && svg.querySelector(`a[data-row="${line.dataset.row}"]`)?.classList.toggle("near", is);
  return draw;
}
