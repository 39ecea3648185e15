"""`python -m gcpo_bench` and the `gcpo-bench` command."""

from __future__ import annotations


def main() -> None:
    from gcpo_bench.cli.app import run

    run()


if __name__ == "__main__":
    main()
