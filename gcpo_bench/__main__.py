"""`python -m gcpo_bench` and the `gcpo-bench` command."""

from __future__ import annotations


def main() -> None:
    from gcpo_bench import stops

    try:
        stops.install()  # before anything that takes time to import
        from gcpo_bench.cli.app import run

        run()
    except stops.Stopped as stopped:
        stops.leave(stopped)


if __name__ == "__main__":
    main()
