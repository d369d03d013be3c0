"""The command line: answers that scripts can use, exit codes, and a friendly line where its
packages are missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ledgers import bodies_of, every_kind, forge, ledger_of, small_ledger

from seedregistry import Ledger, SeedRegistry
from seedregistry.cli import main

LEDGER_COMMANDS = ["show", "verify", "export", "digest"]


@pytest.fixture
def file(tmp_path):
    ledger_of(every_kind()).save(tmp_path / "a.jsonl")
    return str(tmp_path / "a.jsonl")


@pytest.fixture
def forged(tmp_path, file):
    bodies = bodies_of(tmp_path / "a.jsonl")
    bodies[5]["content"]["seed"] = "7"
    forge(tmp_path / "forged.jsonl", bodies)
    return str(tmp_path / "forged.jsonl")


@pytest.fixture
def damaged(tmp_path, file):
    (tmp_path / "damaged.jsonl").write_bytes(
        (tmp_path / "a.jsonl").read_bytes().replace(b'"lr"', b'"lx"')
    )
    return str(tmp_path / "damaged.jsonl")


@pytest.mark.parametrize(
    ("words", "seed"),
    [
        (["42", "model", "training"], 1958051794),
        (["42", "optimizer", "training"], 1689976434),
        (["42", "model"], SeedRegistry(42).seed("model")),
        (["42", "model", "7"], SeedRegistry(42).seed("model", "7")),
        (
            ["42", "model", "--int", "7", "--scheme", "sha256-256"],
            SeedRegistry(42, scheme="sha256-256").seed("model", 7),
        ),
        (
            ["42", "model", "7", "--scheme", "sha256-256"],
            SeedRegistry(42, scheme="sha256-256").seed("model", "7"),
        ),
        (["42", "--int", "--", "model", "-7"], SeedRegistry(42).seed("model", -7)),
        ([str(2**127), "model"], SeedRegistry(2**127).seed("model")),
    ],
)
def test_derive(capsys, words, seed):
    """derive prints the seed alone, that of the library."""
    assert main(["derive", *words]) == 0
    assert capsys.readouterr().out == f"{seed}\n"


def test_derive_as_json(capsys):
    """With --json the words, the seed and the key are given, large integers as strings."""
    assert main(["derive", "42", "model", "training", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    stream = SeedRegistry(42).stream("model", "training")
    assert facts == {
        "master_seed": "42",
        "scheme": "sha256-31",
        "purpose": "model",
        "instance_id": {"s": "training"},
        "seed": 1958051794,
        "key": stream.key.hex(),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "model"], "'x' is not an integer"),
        (["--", "-1", "model"], "0 <= seed"),
        (["9" * 5000, "model"], "not an integer"),
        (["42", ""], "must not be empty"),
        (["42", "model", "x", "--int"], "'x' is not an integer"),
        (["42", "model", "--scheme", "md5"], "There is no scheme"),
        (["42"], "Missing argument"),
        (["42", "model", "--nosuch"], "No such option"),
    ],
)
def test_wrong_usage_is_2(capsys, words, message):
    """What cannot be answered is a line on stderr, nothing on stdout, and exit code 2."""
    assert main(["derive", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_a_sound_ledger_is_0(capsys, file):
    """show, verify, export and digest of a sound ledger print and exit with 0, in words and as
    JSON."""
    loaded = Ledger.load(file)
    for command in LEDGER_COMMANDS:
        assert main(["ledger", command, file]) == 0
        text = capsys.readouterr()
        assert text.out
        assert text.err == ""
        assert main(["ledger", command, file, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)
    assert main(["ledger", "show", file]) == 0
    assert capsys.readouterr().out == f"{loaded}\n"
    assert main(["ledger", "digest", file, "--short"]) == 0
    assert capsys.readouterr().out == f"{loaded.short_digest}\n"


def test_a_forged_ledger_is_1(capsys, forged):
    """verify exits with 1 and names the line; as JSON too."""
    assert main(["ledger", "verify", forged]) == 1
    assert "line 6: seed" in capsys.readouterr().out
    assert main(["ledger", "verify", forged, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [(fault["line"], fault["code"], fault["is_fatal"]) for fault in found["faults"]] == [
        (6, "seed", True)
    ]


def test_a_damaged_file_is_1(capsys, damaged):
    """Every command that reads a damaged file says so beside its answer and exits with 1."""
    for command in LEDGER_COMMANDS:
        assert main(["ledger", command, damaged]) == 1
        out, err = capsys.readouterr()
        assert "line 4: chain" in out + err
    assert main(["ledger", "diff", damaged, damaged]) == 1
    assert "damaged" in capsys.readouterr().err


def test_a_printed_digest(capsys, tmp_path):
    """verify --digest compares with a digest from a paper: lines lost from an open journal are
    found."""
    registry = SeedRegistry(42, journal=tmp_path / "j.jsonl")
    registry.seed("a")
    printed = registry.ledger.short_digest
    path = str(tmp_path / "j.jsonl")
    assert main(["ledger", "verify", path, "--digest", printed]) == 0
    assert "not sealed" in capsys.readouterr().out
    lines = (tmp_path / "j.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "j.jsonl").write_bytes(b"".join(lines[:-1]))
    assert main(["ledger", "verify", path]) == 0
    assert main(["ledger", "verify", path, "--digest", printed]) == 1
    assert f"not {printed}" in capsys.readouterr().out
    assert main(["ledger", "verify", path, "--digest", printed, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["ledger", "verify", path, "--digest", "abc"]) == 2


def test_diff(capsys, tmp_path, file):
    """diff exits with 0 for equal contents and 1 for others, and says what differs."""
    small_ledger().save(tmp_path / "b.jsonl")
    other = str(tmp_path / "b.jsonl")
    assert main(["ledger", "diff", file, file]) == 0
    assert "contents are equal" in capsys.readouterr().out
    assert main(["ledger", "diff", file, other]) == 1
    assert "first: model 7: removed" in capsys.readouterr().out
    assert main(["ledger", "diff", file, other, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert found["first"]["change"] == "removed"


@pytest.mark.parametrize("form", ["latex", "markdown", "csv", "json", "statement"])
def test_export(capsys, tmp_path, file, form):
    """export prints, or writes to a file, what the ledger's own method returns."""
    loaded = Ledger.load(file)
    expected = {
        "latex": loaded.to_latex(),
        "markdown": loaded.to_markdown(),
        "csv": loaded.to_csv(),
        "json": json.dumps(loaded.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "statement": loaded.statement() + "\n",
    }[form]
    assert main(["ledger", "export", file, "--to", form]) == 0
    assert capsys.readouterr().out == expected
    assert main(["ledger", "export", file, "--to", form, "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out").read_bytes().decode() == expected
    assert main(["ledger", "export", file, "--to", form, "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().out == ""


def test_every_stream(capsys, file):
    """--every-stream gives each stream a row."""
    assert main(["ledger", "export", file, "--to", "csv", "--every-stream"]) == 0
    assert capsys.readouterr().out == Ledger.load(file).to_csv(every_stream=True)
    assert main(["ledger", "show", file, "--every-stream", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["registries"][0]["rows"][0]["seed"] == "1958051794"


@pytest.mark.parametrize("command", LEDGER_COMMANDS)
@pytest.mark.parametrize("what", ["nosuch", ".", "text"])
def test_what_is_no_ledger_is_2(capsys, tmp_path, monkeypatch, command, what):
    """A file that is missing, a folder or no ledger is one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("hello\n")
    for extra in ([], ["--json"]):
        assert main(["ledger", command, what, *extra]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert len(err.splitlines()) == 1


def test_help_and_version(capsys):
    """Every command has a help text, and the version is that of the package."""
    for words in (
        [],
        ["derive"],
        ["ledger"],
        *(["ledger", command] for command in [*LEDGER_COMMANDS, "diff"]),
    ):
        assert main([*words, "--help"]) == 0
        assert "Usage: seedregistry" in capsys.readouterr().out
    assert main(["--version"]) == 0
    import seedregistry

    assert seedregistry.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(words):
    """Help and version are there at once: neither torch, NumPy nor rich's console is imported."""
    script = (
        "import sys\n"
        "from seedregistry.__main__ import main\n"
        f"sys.argv[1:] = {words!r}\n"
        "status = main()\n"
        "heavy = [name for name in ('torch', 'numpy', 'rich.console') if name in sys.modules]\n"
        "sys.exit(heavy or status)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "seedregistry" in run.stdout


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_packages_are_a_line(missing):
    """Without click or rich the console script says what to install, and exits with 2."""
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from seedregistry.__main__ import "
        "main; sys.exit(main())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, "derive"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr == f"seedregistry.cli needs {missing}: pip install 'seedregistry[cli]'\n"


def test_as_a_module(file):
    """python -m seedregistry is the console script; without a terminal there is no colour, and a
    closed pipe is no error."""
    command = [sys.executable, "-W", "ignore", "-m", "seedregistry", "ledger"]
    run = subprocess.run([*command, "show", file], capture_output=True, text=True, check=True)
    assert "\x1b" not in run.stdout
    assert run.stdout == f"{Ledger.load(file)}\n"
    first_line = subprocess.run(
        f"{' '.join(command[:3])} -m seedregistry ledger export {file} --to json | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert first_line.stdout == "{\n"
    assert first_line.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal(file):
    """On a terminal show draws a table, with names that look like markup as they are."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "seedregistry",
        "ledger",
        "show",
        "--every-stream",
        file,
    ]
    script = f"import pty, sys; sys.exit(pty.spawn({command!r}) >> 8)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, stdin=subprocess.DEVNULL
    )
    assert "─".encode() in run.stdout
    assert b"1958051794" in run.stdout
