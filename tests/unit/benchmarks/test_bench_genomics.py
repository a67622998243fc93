"""One command runs every genomics benchmark; each line is one that its program takes."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.genomics import BENCHES, Bench, command, main, run_all


class _Parsed(Exception):
    """The arguments were taken; nothing was run."""


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("bench", BENCHES, ids=lambda bench: bench.name)
def test_every_program_takes_its_line(
    bench: Bench, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = import_module(f"benchmarks.{bench.module}")
    line = command(bench, shared=Path("data"), out=Path("runs"), quick=quick, plink2="plink2")
    parse = module.argparse.ArgumentParser.parse_args

    def stop(parser: Any, *_: Any, **__: Any) -> None:
        parse(parser, line[3:])
        raise _Parsed

    monkeypatch.setattr(module.argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(_Parsed):
        module.main()
    assert ("-quick.json" in " ".join(line)) == quick


def test_one_that_fails_is_named_and_stops_no_other() -> None:
    seen: list[str] = []

    def run(line: list[str]) -> int:
        seen.append(line[0])
        return int(line[0] == "b")

    assert run_all([(name, [name]) for name in "abc"], run=run) == ["b"]
    assert seen == ["a", "b", "c"]
    assert main(["--shared", "nowhere", "--only", "no such name"]) == 1
