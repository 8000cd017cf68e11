"""The few rules that the panels add to ipywidgets' own, colours are the theme's; and what stays of a widget that is
gone."""

from __future__ import annotations

import html

# In a reopened notebook JupyterLab 4.6 says "Loading widget..." or "Error displaying widget" where a widget was: an
# output of text alone, where a live one is an element. Only a trusted notebook keeps these rules.
HIDE_LOST = (
    ".jp-OutputArea-child:has(.wanlab-static) + .jp-OutputArea-child"
    ":not(:has(.jp-OutputArea-output > *)) { display: none }"
)
_HIDE_STAND_IN = (
    ".jp-OutputArea-child:has(.wanlab-stand-in):has(+ .jp-OutputArea-child .jp-OutputArea-output > *) { display: none }"
)

STYLE = """<style>
.wanlab-panel { padding: 4px 2px; }
.wanlab-panel .wanlab-quiet, .wanlab-panel .wanlab-help {
  color: var(--jp-ui-font-color2, #666); font-size: var(--jp-ui-font-size1, 13px); line-height: 1.35; }
.wanlab-panel .wanlab-help { margin: 0 8px; white-space: normal; }
.wanlab-panel .wanlab-row { margin: 3px 0; }
.wanlab-panel .wanlab-wide .wanlab-help { margin: 0 0 4px 138px; }
.wanlab-panel .wanlab-error { color: var(--jp-error-color1, #b00020); line-height: 1.35; margin: 4px 0; }
.wanlab-panel .wanlab-activity { gap: 12px; margin: 6px 0; }
.wanlab-panel .wanlab-help .jupyter-widgets-html-content, .wanlab-panel .wanlab-help .widget-html-content,
.wanlab-panel .wanlab-text .jupyter-widgets-html-content, .wanlab-panel .wanlab-text .widget-html-content,
.wanlab-panel .wanlab-help > *, .wanlab-panel .wanlab-text > * { line-height: 1.35; }
.wanlab-panel .wanlab-preview { border-radius: 4px; max-width: 100%; object-fit: contain; }
.wanlab-panel .wanlab-entry { gap: 8px; padding: 4px 0; border-bottom: 1px solid var(--jp-border-color2, #ddd); }
.wanlab-panel .wanlab-blank { background: var(--jp-layout-color3, #ccc); border-radius: 2px; }
.wanlab-panel .jupyter-widget-Collapse-header {
  color: var(--jp-ui-font-color1, #222); font-size: var(--jp-ui-font-size1, 13px); padding: 4px 8px; }
</style>"""


def stand_in(text: str) -> str:
    """HTML to display before a widget: seen only where the widget is not, as in a notebook without its kernel."""
    style = f"<style>{HIDE_LOST} {_HIDE_STAND_IN}</style>"
    return f'<div class="wanlab-static wanlab-stand-in">{style}<small>{html.escape(text)}</small></div>'
