"""The little world that wan_tiny was trained on: renderer, captions and judge."""
