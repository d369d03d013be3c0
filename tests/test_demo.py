"""The demonstration: the same numbers however it runs, going on after a kill, and a report that
stands by itself."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from demo_plan import small_plan
from kill import run_until

from seedregistry import Ledger, SeedRegistry
from seedregistry.attribution.demo import run_demo
from seedregistry.cli import main
from seedregistry.errors import InvalidOptionError

HERE = Path(__file__).parent
FILES = [
    "ledger.jsonl",
    "ledger.tex",
    "report.html",
    "results.json",
    "scores.npz",
    "wrong_seeds.png",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    run_demo(folder, plan=small_plan)
    return folder


def figures(folder: Path) -> dict:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    del results["seconds"]
    return results


def test_it_leaves_what_it_says(out):
    """Ledger, table, scores, results and report are there, and nothing else; the ledger verifies
    and has the digest."""
    assert sorted(path.name for path in out.iterdir()) == FILES
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"seed", "digest", "lds", "baselines", "ablation", "test_accuracy", "seconds"} <= set(
        results
    )
    assert results["seed"] == 42
    ledger = Ledger.load(out / "ledger.jsonl")
    assert ledger.verify().ok
    assert ledger.digest == results["digest"]
    assert "every draw" in ledger.statement()
    with np.load(out / "scores.npz") as saved:
        assert saved["scores"].shape == (8, 300)
        assert saved["retrained_0.05"].shape == (12, 8)


def test_magic_is_above_every_baseline(out):
    """On the small digits MAGIC's score is near 1 and above every baseline's; one wrong seed
    costs most of it."""
    results = figures(out)
    for fraction, mean in results["lds"].items():
        assert mean > 0.9
        assert all(mean > baseline[fraction] for baseline in results["baselines"].values())
    assert results["ablation"]["own-init"]["0.05"] < 0.8


def test_two_processes_give_the_same(out, tmp_path):
    """With two processes every figure, score and the ledger's digest are equal."""
    sys.path.insert(0, str(HERE))
    run_demo(tmp_path / "out", plan=small_plan, workers=2)
    assert figures(tmp_path / "out") == figures(out)
    with np.load(out / "scores.npz") as one, np.load(tmp_path / "out" / "scores.npz") as two:
        assert all(np.array_equal(one[name], two[name]) for name in one.files)


@pytest.mark.moves_global_state  # Dask draws from python's generator
def test_a_cluster_of_dask_gives_the_same(out, tmp_path):
    """On a local Dask cluster every figure and the ledger's digest are equal."""
    distributed = pytest.importorskip("distributed")
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "preload": [str(HERE / "dask_preload.py")],
    }
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        run_demo(tmp_path / "out", plan=small_plan, workers=client.get_executor())
    assert figures(tmp_path / "out") == figures(out)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(5))
def test_the_digits(seed, tmp_path):
    """The demonstration's own numbers: the score is at least .985 up to 5% left out and .95 at
    20%, above every baseline."""
    results = run_demo(tmp_path / "out", seed=seed, workers=2).results()
    margins = {"influence": 0.09, "TracIn": 0.4, "gradient": 0.5, "random": 0.9}
    for fraction, least in (("0.01", 0.985), ("0.02", 0.985), ("0.05", 0.985), ("0.2", 0.95)):
        assert results["lds"][fraction] >= least
        for name, baseline in results["baselines"].items():
            assert results["lds"][fraction] - baseline[fraction] > margins[name.split()[0]]
    assert results["ablation"]["own-init"]["0.01"] < 0.3
    assert results["test_accuracy"] > 0.9
    assert sum(results["seconds"].values()) < 180


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from demo_plan import small_plan
from seedregistry.attribution.demo import run_demo
show = lambda what, done, total: print(what, done, flush=True)
run_demo(sys.argv[2], plan=small_plan, progress=show)
"""


def test_a_demo_that_was_killed_goes_on(out, tmp_path):
    """Killed with signal 9 in the backward pass and again while retraining, the job goes on and
    ends with the same numbers."""
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(HERE), str(tmp_path / "out")]
    for moment in ("attribute 30", "retrain 10", None):
        seen = run_until(command, moment)
    retrained = [line for line in seen if re.fullmatch(r"retrain \d+", line)]
    assert int(retrained[0].split()[1]) > 10
    assert figures(tmp_path / "out") == figures(out)


def test_an_ablation_that_has_nothing_beside_it_is_refused():
    """The retrainings with a wrong seed need those of the run at the same fractions: a plan
    without is refused."""
    plan = small_plan(SeedRegistry(42))
    for wrong in ((), (0.33,)):
        with pytest.raises(InvalidOptionError, match="ablation_fractions"):
            attrs.evolve(plan, ablation_fractions=wrong)


def test_a_missing_package_is_named_before_the_work(tmp_path):
    """Without matplotlib the door opens and plans are there; a demonstration is refused at once."""
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from seedregistry.attribution.demo import digits_plan, run_demo\n"
        "run_demo('out', plan=None)"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "seedregistry.attribution.demo needs matplotlib: pip install" in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_such_plan(tmp_path):
    """A plan that does not exist, or no workers, is refused before anything is written."""
    with pytest.raises(InvalidOptionError, match="digits"):
        run_demo(tmp_path / "out", plan="mnist")
    with pytest.raises(InvalidOptionError, match="workers"):
        run_demo(tmp_path / "out", plan=small_plan, workers=0)
    assert list(tmp_path.iterdir()) == []


# --- the report -----------------------------------------------------------------------------------


class Addresses(html.parser.HTMLParser):
    """Collects every address in a page, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list = []
        self.open: list = []

    def handle_starttag(self, tag, attributes) -> None:
        self.found += [
            value
            for name, value in attributes
            if name in {"src", "href", "srcset", "action", "data"}
        ]
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_report_asks_for_nothing_outside_itself(out):
    """Every address in the report is data, there is no script, and it has the figures, the
    digest and three pictures."""
    page = (out / "report.html").read_text(encoding="utf-8")
    parser = Addresses()
    parser.feed(page)
    assert parser.open == []
    assert all(address.startswith("data:") for address in parser.found)
    assert sum(address.startswith("data:image/") for address in parser.found) == 3
    assert "<script" not in page
    assert "url(" not in page
    results = figures(out)
    assert results["digest"][:12] in page
    for mean in results["lds"].values():
        assert f"{mean:.3f}" in page


def test_the_report_opens_in_a_browser(out, tmp_path):
    """Headless Chromium shows the report without an error on the console."""
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if browser is None:
        pytest.skip("no Chromium is installed")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}",
    ]
    command += [
        f"--screenshot={tmp_path / 'report.png'}",
        "--window-size=1000,2000",
        (out / "report.html").as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (tmp_path / "report.png").stat().st_size > 50_000
    assert "CONSOLE" not in run.stderr


# --- the command line -----------------------------------------------------------------------------


def test_magic_and_lds_on_the_command_line(tmp_path, monkeypatch, capsys):
    """A recipe of the user's, given as module:function, is attributed and scored; files and JSON
    are there."""
    monkeypatch.chdir(HERE)
    scores, ledger = str(tmp_path / "scores.npz"), str(tmp_path / "ledger.jsonl")
    assert (
        main(
            [
                "magic",
                "demo_plan:for_the_command_line",
                "--out",
                scores,
                "--ledger",
                ledger,
                "--json",
            ]
        )
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert (facts["targets"], facts["examples"], facts["steps"]) == (5, 60, 16)
    assert Ledger.load(ledger).digest == facts["digest"]
    with np.load(scores) as saved:
        assert saved["scores"].shape == (5, 60)
    command = [
        "lds",
        "demo_plan:for_the_command_line",
        "--scores",
        scores,
        "--fraction",
        "0.1",
        "--subsets",
        "12",
        "--json",
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lds"][0]["fraction"] == 0.1
    assert found["lds"][0]["mean"] > 0.9
    assert main([*command[:-1], "--store", str(tmp_path / "store")]) == 0
    assert "10% left out: 0.9" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "store").iterdir()) == [".json"] * 12


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("nosuch:function", "cannot be imported"),
        ("demo_plan:nosuch", "cannot be imported"),
        ("demo_plan", "module:function"),
        ("demo_plan:not_a_recipe", "must return"),
        ("demo_plan:takes_nothing", "must take a registry"),
    ],
)
def test_recipes_that_cannot_be_found(recipe, words, tmp_path, monkeypatch, capsys):
    """A module, function or result that is none is one line and exit code 2."""
    monkeypatch.chdir(HERE)
    assert main(["magic", recipe, "--out", str(tmp_path / "x.npz")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_scores_of_another_run_are_refused_on_the_command_line(tmp_path, monkeypatch, capsys):
    """Scores of another master seed or scheme are refused at once; files have the names that
    were given."""
    monkeypatch.chdir(HERE)
    scores, ledger = tmp_path / "new" / "scores", tmp_path / "ledgers" / "ledger.jsonl"
    magic = [
        "magic",
        "demo_plan:for_the_command_line",
        "--out",
        str(scores),
        "--ledger",
        str(ledger),
    ]
    assert main([*magic, "--seed", "7", "--scheme", "sha256-256"]) == 0
    assert scores.is_file()
    assert Ledger.load(ledger).verify().ok
    lds = [
        "lds",
        "demo_plan:for_the_command_line",
        "--scores",
        str(scores),
        "--fraction",
        "0.1",
        "--subsets",
        "4",
    ]
    assert (
        main([*lds, "--seed", "7", "--scheme", "sha256-256", "--at-once", "2", "--replicate", "1"])
        == 0
    )
    capsys.readouterr()
    for other in (["--seed", "8", "--scheme", "sha256-256"], ["--seed", "7"]):
        assert main([*lds, *other]) == 2
        assert "of another training" in capsys.readouterr().err


def test_scores_that_are_none(tmp_path, monkeypatch, capsys):
    """A file that holds no scores is refused, and never unpickled."""
    monkeypatch.chdir(HERE)
    np.savez(tmp_path / "x.npz", scores=np.array([{"a": 1}], dtype=object))
    (tmp_path / "y.npz").write_bytes(b"hello")
    for name in ("x.npz", "y.npz"):
        assert (
            main(["lds", "demo_plan:for_the_command_line", "--scores", str(tmp_path / name)]) == 2
        )
        assert "no file of scores" in capsys.readouterr().err


def test_the_demo_command(tmp_path, monkeypatch, capsys):
    """The command prints both tables and the ledger, shows its progress in lines, and names what
    it wrote."""
    from seedregistry.attribution.demo import run

    monkeypatch.setattr(run, "digits_plan", small_plan)
    assert main(["demo", "--out", str(tmp_path / "out"), "--seed", "7"]) == 0
    text, log = capsys.readouterr()
    assert "MAGIC" in text
    assert "own-init" in text
    assert "master seed 7" in text
    assert ", ".join(FILES) in text
    assert "attribute: 40 of 40" in log
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
