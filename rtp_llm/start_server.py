"""`python -m rtp_llm.start_server`: `rtp-llm serve` for who starts RTP-LLM, by its environment variables or their flags
(START_PORT, --start_port). Other flags are those of `rtp-llm serve`, and count before them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from rtp_llm import cli
from rtp_llm.errors import RtpLlmError
from rtp_llm.rtp_variables import VARIABLES, settings_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; returns the exit status, as cli.main()."""
    flags, others = _parser().parse_known_args(arguments)
    said = {name: text for name in VARIABLES if (text := os.environ.get(name)) is not None}
    said |= {name: text for name, text in vars(flags).items() if text is not None}
    try:
        settings = settings_of(said)
    except RtpLlmError as error:
        print(f"rtp-llm: {error.message}", file=sys.stderr)
        return 1
    return cli.main(["serve", *(f"--{path.replace('_', '-')}={value}" for path, value in settings.items()), *others])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rtp_llm.start_server",
        description="rtp-llm serve by RTP-LLM's environment variables, each of which is a flag as well.",
        epilog="Other flags are those of rtp-llm serve.",
        allow_abbrev=False,
    )
    for name, meaning in VARIABLES.items():
        parser.add_argument(
            f"--{name.lower()}", dest=name, metavar="VALUE", help=meaning.words.replace("`", "").replace("%", "%%")
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
