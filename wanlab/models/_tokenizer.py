"""Tokenizers, read so that a damaged file is one error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from wanlab.errors import WanlabError
from wanlab.files import read_json

_MAX_BYTES = 64 << 20  # UMT5's tokenizer.json is 17 MB
_KEYS = {"tokenizer_config.json": "tokenizer_class", "tokenizer.json": "model"}
"""Files and a key that each must have; the second may be missing where the vocabulary has another format."""
_REMEDY = "Download this file again; a git-lfs pointer needs `git lfs pull`"


def load_tokenizer(folder: Path | None, model: str) -> Any:
    """The tokenizer in `folder`, from its files alone. Raises WanlabError naming the file that cannot be read.

    None, no such folder, raises with the id of the `model` that needs it.
    """
    if folder is None:
        raise WanlabError(f"{model} has no tokenizer", remedy="Put tokenizer.json and tokenizer_config.json with it")
    for name, key in _KEYS.items():
        if name == "tokenizer_config.json" or (folder / name).is_file():
            _check(folder / name, key)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exceptions
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise WanlabError(
            f"{folder} holds no tokenizer that can be read: {type(error).__name__}: {reason}",
            remedy="Download this folder's files again; git-lfs pointers need `git lfs pull`",
        ) from error


def _check(path: Path, key: str) -> None:
    try:
        found = read_json(path, _MAX_BYTES)
    except WanlabError as error:
        raise WanlabError(error.problem, remedy=_REMEDY) from None
    if not isinstance(found, dict) or not found.get(key):
        raise WanlabError(f"{path} has no {key!r} and is no tokenizer's file", remedy=_REMEDY)


def pieces(tokenizer: Any, prompt: str) -> list[str]:
    """The prompt's tokens as text, in their order, end mark included, before anything is cut."""
    return [str(piece) for piece in tokenizer.convert_ids_to_tokens(tokenizer(prompt, verbose=False).input_ids)]


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of the whole prompt, end mark included, before anything is cut."""
    return len(tokenizer(prompt, verbose=False).input_ids)
