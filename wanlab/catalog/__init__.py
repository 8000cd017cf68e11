"""Definitions of the models that wanlab knows: `defaults/<id>.json` and the user's finetunes, read on first use.

A variant of a known family is one JSON; nothing here asks which family a definition belongs to.
"""

from wanlab.catalog._choose import check_stored_as, choose
from wanlab.catalog._definition import ComponentSource, Definition, FileSource, LoraSource, WeightSource
from wanlab.catalog._disk import (
    INDEX_BYTES,
    Presence,
    candidates,
    find_component_file,
    home,
    missing_files,
    nearest_folder,
    needed,
    on_disk,
    presence,
    shards,
)
from wanlab.catalog._library import MAX_DEPTH, defined_in, find
from wanlab.catalog._merge import merged
from wanlab.catalog._source import DefinitionError
from wanlab.catalog._table import Catalogue, Row, catalogue, remedy
from wanlab.catalog._user import (
    default_spec,
    own_settings,
    read_last,
    read_user_defaults,
    save_last,
    user_defaults,
    write_user_defaults,
)

__all__ = [
    "INDEX_BYTES",
    "MAX_DEPTH",
    "Catalogue",
    "ComponentSource",
    "Definition",
    "DefinitionError",
    "FileSource",
    "LoraSource",
    "Presence",
    "Row",
    "WeightSource",
    "candidates",
    "catalogue",
    "check_stored_as",
    "choose",
    "default_spec",
    "defined_in",
    "find",
    "find_component_file",
    "home",
    "merged",
    "missing_files",
    "nearest_folder",
    "needed",
    "on_disk",
    "own_settings",
    "presence",
    "read_last",
    "read_user_defaults",
    "remedy",
    "save_last",
    "shards",
    "user_defaults",
    "write_user_defaults",
]
