"""Media that go into a generation: stored once by content, found again, read and fitted for models."""

from wanlab.media._files import Kind
from wanlab.media._find import RUN_MEDIA, default_store, find, references, remember, run_files
from wanlab.media._fit import How, fit, fit_mask
from wanlab.media._given import check_serves, store_given, wanted_kind
from wanlab.media._read import MAX_BYTES, read_image, read_mask, read_video
from wanlab.media._store import MediaStore

__all__ = [
    "MAX_BYTES",
    "RUN_MEDIA",
    "How",
    "Kind",
    "MediaStore",
    "check_serves",
    "default_store",
    "find",
    "fit",
    "fit_mask",
    "read_image",
    "read_mask",
    "read_video",
    "references",
    "remember",
    "run_files",
    "store_given",
    "wanted_kind",
]
