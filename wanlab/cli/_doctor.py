"""`wanlab doctor`: print what `wanlab.doctor` finds, section by section."""

from __future__ import annotations

from collections.abc import Sequence

from wanlab.cli._console import command, say


def run(words: Sequence[str]) -> int:
    """Print the sections as they are found; 0 if everything required works, else 1."""
    parser = command("doctor", "[options]", "Check this installation, and end with a short generation.")
    parser.add_argument("--no-generate", action="store_true", help="leave out the generation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(words)
    from wanlab.doctor import Report, sections

    found = []
    for section in sections(generate=not arguments.no_generate):
        found.append(section)
        if not arguments.json:
            say(f"{section}\n")
    report = Report(tuple(found))
    say(report.to_json() if arguments.json else report.verdict)
    return 0 if report.ok else 1
