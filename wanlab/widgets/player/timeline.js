/** The scrubber: where the film is, and how far each clip is from the first at each frame. */
const CHART_HEIGHT = 48;

class Timeline {
  /** onLook is told the frame under the cursor, or null. */
  constructor({ facts, onSeek, onLook }) {
    this.facts = facts;
    this.last = facts.numFrames - 1;
    this.lines = facts.clips.map((clip, index) => ({ clip, index })).filter(({ clip }) => clip.distances);
    this.bar = element("div", "wl-bar");
    this.bar.tabIndex = 0;
    Object.entries({
      role: "slider",
      "aria-label": "Frame",
      "aria-valuemin": "1",
      "aria-valuemax": String(facts.numFrames),
    }).forEach(([name, value]) => this.bar.setAttribute(name, value));
    this.fill = element("div", "wl-fill");
    this.thumb = element("div", "wl-thumb");
    this.cursor = element("div", "wl-cursor");
    const track = element("div", "wl-track");
    track.append(this.fill);
    this.look = element("div", "wl-cursor wl-look");
    this.look.hidden = true;
    this.element = element("div", "wl-timeline");
    this.axis = element("div", "wl-axis");
    this.bar.append(...this.#chart(), this.look, this.cursor, track, this.thumb);
    this.element.append(this.axis, this.bar);
    const seek = (event) => onSeek(this.#frameAt(event));
    drag(this.bar, { start: seek, move: seek });
    const look = (frame) => {
      this.look.hidden = frame === null;
      this.look.style.left = this.#place(frame ?? 0);
      onLook(frame);
    };
    this.bar.addEventListener("pointermove", (event) => look(this.#frameAt(event)));
    this.bar.addEventListener("pointerleave", () => look(null));
  }

  #frameAt(event) {
    const box = this.bar.getBoundingClientRect();
    return Math.round(clamp((event.clientX - box.left) / box.width, 0, 1) * this.last);
  }

  /** PSNR per frame, a line a clip; equal frames are at the top. Nothing where no clip can be compared. */
  #chart() {
    const finite = this.lines.flatMap(({ clip }) => clip.distances.psnr.filter((value) => value !== null));
    this.axis.hidden = !this.lines.length;
    if (!this.lines.length) return [];
    const [low, high] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 0];
    const spread = Math.max(high - low, 1);
    const anyEqual = this.lines.some(({ clip }) => clip.distances.psnr.includes(null));
    const top = anyEqual ? high + spread / 4 : high;
    const y = (value) => 4 + (CHART_HEIGHT - 8) * (finite.length ? (top - (value ?? top)) / Math.max(top - low, 1) : 0);
    const svg = vector("svg", { viewBox: `0 0 ${this.last} ${CHART_HEIGHT}`, preserveAspectRatio: "none", class: "wl-chart" });
    for (const { clip, index } of this.lines) {
      const points = clip.distances.psnr.map((value, frame) => `${frame},${y(value).toFixed(2)}`).join(" ");
      svg.append(vector("polyline", { points, stroke: colour(index), "vector-effect": "non-scaling-stroke" }));
    }
    const name = element("span", "wl-axis-name", "PSNR, dB");
    const ends = [anyEqual ? "equal" : high.toFixed(1), finite.length ? low.toFixed(1) : ""];
    this.axis.append(element("span", "", ends[0]), name, element("span", "", ends[1]));
    return [svg];
  }

  #place(frame) {
    return `${(100 * frame) / Math.max(this.last, 1)}%`;
  }

  show(frame) {
    this.fill.style.width = this.thumb.style.left = this.cursor.style.left = this.#place(frame);
    this.bar.setAttribute("aria-valuenow", String(frame + 1));
    this.bar.setAttribute("aria-valuetext", `frame ${frame + 1} of ${this.last + 1}`);
  }
}
