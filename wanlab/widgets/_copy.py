"""A button that puts a text into the clipboard, without asking the kernel."""

from __future__ import annotations

import anywidget
import traitlets

_ESM = """
function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "jupyter-button widget-button lm-Widget wanlab-copy";
  const icon = document.createElement("i");
  icon.className = "fa fa-copy";
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  said.className = "wanlab-copied";
  const show = () => {
    button.replaceChildren(icon, ` ${model.get("label")}`);
    button.title = model.get("hint");
    button.disabled = !model.get("text");
  };
  const byHand = (text) => {
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    area.style.opacity = "0";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  let timer = 0;
  const say = (text) => {
    said.textContent = text;
    clearTimeout(timer);
    timer = setTimeout(() => (said.textContent = ""), 4000);
  };
  button.addEventListener("click", async () => {
    const text = model.get("text");
    try {
      await navigator.clipboard.writeText(text); // only on localhost and https
      say("copied");
    } catch {
      say(byHand(text) ? "copied" : "The browser refuses: copy it from the text below.");
    }
  });
  model.on("change", show);
  show();
  el.append(button, said);
  return () => {
    clearTimeout(timer);
    model.off("change", show);
  };
}
export default { render };
"""


class CopyButton(anywidget.AnyWidget):
    """Copies `text`; says so beside the button. Disabled without a text."""

    _esm = _ESM
    _css = ".wanlab-copy { width: auto; } .wanlab-copied { margin-left: 6px; color: var(--jp-ui-font-color2, #666); }"
    label = traitlets.Unicode("Copy as code").tag(sync=True)
    hint = traitlets.Unicode("Put the code into the clipboard").tag(sync=True)
    text = traitlets.Unicode("").tag(sync=True)
