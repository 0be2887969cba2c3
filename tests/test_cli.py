"""Shared behaviour of all commands: exit statuses, one-line errors, overrides before and after options."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from atomic_io import atomic_write
from config import Config
from errors import TesseraError, UsageError, command

LOADED_WITH_LIBRARIES = {"benchmark", "train_tiny_models", "make_synthetic_data", "download"}
"""Commands that are not part of everyday work."""


def status_of(main: object, arguments: list[str], takes_config: bool = False) -> int:
    parser = cli.Parser("A command.", takes_config)
    parser.add_argument("--limit", type=int)
    with pytest.raises(SystemExit) as ended:
        cli.run(main, parser, arguments)  # type: ignore[arg-type]
    assert isinstance(ended.value.code, int)
    return ended.value.code


def failing(error: BaseException) -> object:
    def main(_: argparse.Namespace) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (TesseraError("a.json: line 3"), 1, "error: a.json: line 3\n"),
        (UsageError("--limit: too small"), 2, "error: --limit: too small\n"),
        (PermissionError(13, "Permission denied", "/results"), 1, "error: /results: Permission denied\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_an_exit_status(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    assert status_of(failing(error), []) == status
    assert capsys.readouterr().err == message


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def main(_: argparse.Namespace) -> None:
        with atomic_write(tmp_path / "a.json") as temp_path:
            temp_path.touch()
            signal.raise_signal(signal.SIGTERM)

    assert status_of(main, []) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "ended by SIGTERM\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_ends_the_rank_of_a_launcher_at_once() -> None:
    program = "import cli, signal; cli.run(lambda _: signal.raise_signal(signal.SIGTERM), cli.Parser('A command.', takes_config=False), [])"
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1"}
    completed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert completed.returncode == -signal.SIGTERM


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(TesseraError):
        cli.run(failing(TesseraError("x")), cli.Parser("A command.", False), ["--debug"])  # type: ignore[arg-type]


def test_an_os_error_without_a_file_name_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="no file name"):
        cli.run(failing(OSError("no file name")), cli.Parser("A command.", False), [])  # type: ignore[arg-type]


def test_libraries_that_are_imported_later_are_silent_too() -> None:
    code = "import cli; cli.silence_libraries(); import transformers, logging; print(transformers.logging.get_verbosity() >= logging.ERROR)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout == "True\n"


def test_an_unknown_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(lambda _: 0, ["--nonsense"]) == 2
    assert capsys.readouterr().err.startswith("error: unrecognized arguments: --nonsense")


def test_an_error_about_an_old_option_gives_its_new_name() -> None:
    parser = cli.Parser("A command.", takes_config=False, renamed={"--old": "--new", "--older": "--newer"})
    with pytest.raises(UsageError, match=r"unrecognized arguments: --old 3; --old is called --new now \(--help"):
        parser.parse_args(["--old", "3"])


def test_the_return_value_of_main_is_the_exit_status() -> None:
    assert status_of(lambda _: 1, []) == 1


def test_overrides_may_come_before_and_after_options() -> None:
    seen: list[Config] = []
    main = lambda arguments: seen.append(arguments.config)  # noqa: E731
    config = str(Path("configs/reference.yaml"))
    assert (
        status_of(main, ["train.seed=4", "--config", config, "train.per_device_train_batch_size=3", "--limit", "2"], takes_config=True) == 0
    )
    assert (seen[0].name, seen[0].train.seed, seen[0].train.per_device_train_batch_size) == ("reference", 4, 3)


def test_overrides_may_stand_behind_options_that_take_several_values() -> None:
    seen: list[argparse.Namespace] = []
    parser = cli.Parser("A command.")
    parser.add_argument("--systems", nargs="+")
    parser.add_argument("--question")
    given = ["--systems", "a", "b", "train.seed=4", "--question", "data.x=1?", "rerank.tune=true"]
    with pytest.raises(SystemExit):
        cli.run(seen.append, parser, given)  # type: ignore[arg-type]
    assert (seen[0].systems, seen[0].question) == (["a", "b"], "data.x=1?")
    assert (seen[0].config.train.seed, seen[0].config.rerank.tune) == (4, True)


def test_overrides_of_a_subcommand_may_stand_anywhere() -> None:
    seen: list[argparse.Namespace] = []
    parser = cli.Parser("A command.", takes_config=False)
    parser.add_part("part", "A part.", lambda _: None, takes_config=True).add_argument("--limit", type=int)
    with pytest.raises(SystemExit):
        cli.run(seen.append, parser, ["train.seed=4", "part", "train.logging_steps=5", "--limit", "2", "train.save_steps=6"])  # type: ignore[arg-type]
    assert seen[0].overrides == ["train.seed=4", "train.logging_steps=5", "train.save_steps=6"] and seen[0].limit == 2


def test_an_override_of_a_command_without_a_configuration_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(lambda _: 0, ["train.seed=4"]) == 2
    assert "unrecognized arguments: train.seed=4" in capsys.readouterr().err


def test_help_fits_a_screen_and_help_all_has_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(lambda _: 0, ["--help"], takes_config=True) == 0
    assert len(capsys.readouterr().out.splitlines()) < 40
    assert status_of(lambda _: 0, ["--help-all"], takes_config=True) == 0
    assert "train.per_device_train_batch_size: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "train.learning_rat: unknown key; the nearest is train.learning_rate"),
        ("trian.seed=1", "trian: unknown key; the nearest is train"),
        ("seed=1", "seed: unknown key; the nearest is data.seed"),
        ("model.pool=2", "model.pool: unknown key; the nearest is model.connector.pool"),
        ("data.sources.0.anotations=x", "anotations: unknown key; the nearest is data.sources.N.annotations"),
        ("decoding.zzz=1", "decoding.zzz: unknown key (--help-all lists all)"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert status_of(lambda _: 0, [override], takes_config=True) == 2
    assert message in capsys.readouterr().err


def test_advice_repeats_the_configuration_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: argparse.Namespace) -> None:
        raise UsageError(f"nothing is here; run {command('tools/preprocess.py')} first")

    assert status_of(main, ["--config", "configs/reference.yaml", "name=mine"], takes_config=True) == 2
    assert "run python tools/preprocess.py --config configs/reference.yaml name=mine first" in capsys.readouterr().err
    assert status_of(main, [], takes_config=True) == 2
    assert "run python tools/preprocess.py first" in capsys.readouterr().err


def test_help_and_wrong_arguments_need_no_heavy_library() -> None:
    """They take more than a second to import each; torch alone several."""
    names = sorted(path.stem for path in Path("tools").glob("*.py") if path.stem not in LOADED_WITH_LIBRARIES)
    assert len(names) > 8
    code = (
        f"import importlib, sys; [importlib.import_module(name) for name in {['train', *(f'tools.{name}' for name in names)]}]\n"
        "print(*(name for name in ('torch', 'transformers', 'pyarrow', 'numpy', 'PIL', 'matplotlib') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
