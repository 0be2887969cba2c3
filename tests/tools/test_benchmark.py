"""`tools/benchmark.py` from the command line."""

import pytest

import cli
from tools import benchmark


def status_of(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.run(benchmark.main, benchmark.arguments(), list(arguments))
    return ended.value.code


def test_merging_is_measured_three_times(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("preprocess", "--pictures", "5", "--records", "20", "--size", "32x24") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "20 records on 5 pictures of 32x24"
    assert [line.split(":")[0] for line in lines[1:]] == ["first", "unchanged", "one annotation file touched"]
    assert all("records/s, at most" in line and "MiB" in line for line in lines[1:])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((), "PART"), (("preprocess", "--size", "640"), "--size 640"), (("preprocess", "--records", "0"), "--records"), (("other",), "other")],
)
def test_wrong_arguments_end_with_2(arguments: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(*arguments) == 2
    assert named in capsys.readouterr().err
