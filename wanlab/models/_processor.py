"""What the attention processors of all families share."""

from __future__ import annotations

from typing import Any

from wanlab.sites import AttentionSite


class SiteProcessor:
    """A diffusers attention processor that calls a site's function; a family adds the projections around it."""

    _attention_backend: Any = None  # diffusers reads these two from every processor
    _parallel_config: Any = None

    def __init__(self, site: AttentionSite) -> None:
        self.site = site
