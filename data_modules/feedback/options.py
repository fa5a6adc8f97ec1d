"""Options that several commands of `python -m data_modules.feedback` have."""

from __future__ import annotations

import argparse


def add_scale(parser: argparse.ArgumentParser) -> None:
    """Add `--scale LOW HIGH`, the range of the scores in a file."""
    parser.add_argument(
        "--scale",
        type=float,
        nargs=2,
        default=(0.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="range of the scores (default: 0 1)",
    )
