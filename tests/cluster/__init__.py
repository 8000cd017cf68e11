"""JupyterLab in Chromium: `make browser`. `lab.Lab` drives a notebook, `layout` finds what overlaps, is cut or pale."""
