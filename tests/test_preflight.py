"""The pre-flight check: each line goes red for its own reason and says what to do, and nothing raises."""

import json
import os
import subprocess
import sys
from collections import namedtuple
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from mammomil import classroom, preflight
from mammomil.preflight import Check, Preflight

ROOT = Path(__file__).parents[1]
NAMES = [name for name, _, _ in preflight.CHECKS]
LOOK = {name: look for name, look, _ in preflight.CHECKS}


def red(name, *said):
    """The line of one check, which must be red and say these words."""
    ok, words = LOOK[name]()
    assert not ok, words
    assert words.endswith("."), words
    for part in said:
        assert part in words
    return words


def test_this_machine_is_ready_and_says_so():
    found = preflight.run()
    assert [check.name for check in found] == NAMES
    wrong = [check for check in found if not check.ok]
    assert [
        c.name for c in wrong if c.name not in ("memory", "disk", "models")
    ] == []  # those of a busy machine
    assert found.ok == (not wrong)
    words = {check.name: check.words for check in found}
    assert words["torch"].startswith(f"torch {torch.__version__}, ")
    assert words["phantoms"].startswith("160 images, 3 models")
    assert "finite numbers" in words["models"]
    lines = repr(found).splitlines()
    assert [line.split()[0] for line in lines[: len(found)]] == [
        "OK" if check.ok else "NOT" for check in found
    ]
    assert lines[-1] == found.summary


def test_another_python(monkeypatch):
    for version in ((3, 10, 2), (3, 14, 0)):
        monkeypatch.setattr(sys, "version_info", version)
        red("Python", "3.11 to 3.13")
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    assert LOOK["Python"]()[0]


def test_another_numpy(monkeypatch):
    monkeypatch.setattr("numpy.__version__", "1.26.4")
    red("numpy", "1.26.4", "pip install --upgrade numpy")


def test_a_torchvision_of_another_torch(monkeypatch):
    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    line = next(check for check in preflight.run() if check.name == "torch")
    assert not line.ok
    assert "nms does not exist. Install the pair anew" in line.words
    monkeypatch.setattr("torchvision.ops.nms", lambda *_: torch.tensor([0, 1]))
    red("torch", "do not work together")


def test_widgets_that_cannot_be_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    line = next(check for check in preflight.run() if check.name == "widgets")
    assert not line.ok
    assert "Install ipywidgets" in line.words


def test_too_little_memory_of_the_machine_or_of_its_container(monkeypatch, tmp_path):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(8e9))
    monkeypatch.setattr(preflight, "CGROUP", tmp_path)
    assert LOOK["memory"]() == (True, "8.0 GB free")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert LOOK["memory"]() == (True, "8.0 GB free")
    (tmp_path / "memory.max").write_text("4000000000\n")
    red("memory", "2.5 GB free", "4 are needed")
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory(1e9))
    red("memory", "1.0 GB free")


def test_too_little_disk_where_the_cache_will_be(monkeypatch, tmp_path):
    usage, asked = namedtuple("usage", "free"), []
    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path / "not" / "there"))
    monkeypatch.setattr("shutil.disk_usage", lambda place: asked.append(place) or usage(1.94e9))
    red("disk", "1.9 GB free", "MAMMOMIL_CACHE")
    assert asked == [tmp_path]


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path / "file"))
    red("cache", str(tmp_path / "file"), "Set MAMMOMIL_CACHE")
    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path / "new"))
    assert LOOK["cache"]()[0]
    assert list((tmp_path / "new").iterdir()) == []


def test_phantoms_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(classroom, "SHIPPED", tmp_path)
    line = next(check for check in preflight.run() if check.name == "phantoms")
    assert not line.ok
    assert "Clone the repository" in line.words


def test_a_model_whose_numbers_are_not_finite(monkeypatch):
    loaded = classroom.shipped_model("gmic-quick")
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(torch.nan)
    monkeypatch.setattr(classroom, "shipped_model", lambda name: loaded)
    line = next(check for check in preflight.run() if check.name == "models")
    assert not line.ok
    assert "not finite" in line.words


def test_times_are_those_of_the_book_scaled(monkeypatch):
    chapters = json.loads((ROOT / "mammomil" / "static" / "chapter_times.json").read_text())["chapters"]
    seconds = [chapter["run_s"] for chapter in chapters.values()]
    monkeypatch.setattr(preflight, "_seconds", lambda: 2 * preflight.FORWARD_S)
    ok, words = LOOK["models"]()
    assert ok
    assert f"all {len(seconds)} chapters in {round(sum(seconds) / 30)} minutes" in words
    assert f"the longest in {2 * max(seconds)} s" in words
    monkeypatch.setattr(preflight, "_seconds", lambda: 10 * preflight.FORWARD_S)
    red("models", "10.0 times", "slow")


def test_the_practice_set_is_looked_for_where_it_is_made(monkeypatch, tmp_path):
    from mammomil import practice

    made = []

    def draw(config, shares):
        made.append(config.work)
        (config.work / "overlaps").mkdir()
        (config.work / "overlaps" / "key.npz").write_bytes(b"")
        return config.work

    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path))
    monkeypatch.setattr(practice, "exam_index", draw)
    monkeypatch.setattr(practice, "load_regions", lambda *_: None)
    ok, words = LOOK["practice set"]()
    assert ok
    assert words.startswith("not made yet")
    practice.practice()
    assert made
    assert LOOK["practice set"]() == (True, "drawn and coded")


def test_a_gpu_is_named_and_none_is_needed(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert LOOK["GPU"]() == (True, "none, and none is needed")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Card 9000")
    assert LOOK["GPU"]() == (True, "Card 9000 (not needed)")


def test_whatever_breaks_is_a_line_with_a_fix(monkeypatch):
    def broken():
        raise OSError("libcudart.so.12:\n cannot open")

    monkeypatch.setattr(preflight, "CHECKS", [(name, broken, fix) for name, _, fix in preflight.CHECKS])
    found = preflight.run()
    assert not any(check.ok for check in found)
    for check, (_, _, fix) in zip(found, preflight.CHECKS, strict=True):
        assert check.words == f"OSError: libcudart.so.12: cannot open. {fix}"
    assert found.summary == f"NOT OK: {', '.join(NAMES)}."


def test_it_starts_where_torch_cannot_be_imported(tmp_path):
    """Nothing heavy is imported before its check, and a broken torch breaks no other line."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch is broken')\n")
    command = [sys.executable, "-m", "mammomil.preflight"]
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    lines = {line[8:20].strip(): line for line in done.stdout.splitlines()[: len(NAMES)]}
    assert list(lines) == NAMES
    assert "libtorch is broken" in lines["torch"]
    assert all(lines[name].startswith("OK") for name in ("Python", "mammomil", "widgets", "cache"))


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)

    def handle_data(self, data):
        self.text.append(data)


HOSTILE = Preflight([Check("a <b>", False, "</td><script>alert(1)</script> & co."), Check("c", True, "fine")])


def test_what_is_found_reaches_a_notebook_escaped():
    page = Elements(HOSTILE._repr_html_())
    assert page.names.count("script") == 1
    assert "b" not in page.names
    assert page.names.count("tr") == 3
    assert {"OK", "NOT OK", "a <b>", "</td><script>alert(1)</script> & co."} <= set(page.text)


def test_stored_pages_name_no_folder_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("MAMMOMIL_CACHE", str(tmp_path))
    said = [LOOK[name]()[1] for name in ("mammomil", "cache")]
    assert all(str(place) in words for place, words in zip((ROOT, tmp_path), said, strict=True))
    monkeypatch.setenv("MAMMOMIL_STATIC", "1")
    said = [LOOK[name]()[1] for name in ("mammomil", "cache")]
    assert not any("/" in words for words in said)


@pytest.mark.book
def test_the_line_on_scripts_turns_green_in_a_browser(chromium):
    text = HOSTILE._repr_html_()
    for scripts in (True, False):
        context = chromium.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.set_content(text)
        row = page.locator("tr[data-scripts]")
        assert row.locator("td").first.inner_text() == ("OK" if scripts else "NOT OK")
        assert page.locator("tr").first.locator("td").first.inner_text() == "NOT OK"
        context.close()
