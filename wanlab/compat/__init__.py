"""Files of other programs, read as ours."""
