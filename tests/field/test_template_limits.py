"""Templates and tokenizers that misbehave: told in one line, within seconds, in bounded memory."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest

from stc.errors import LanguageError, guarded
from stc.prompts import files
from stc.prompts.prompt import Prompt
from stc.prompts.template_process import TemplateProcess
from tests.field.prompt_cases import (
    CHATML,
    change,
    ids_of,
    prompt_of,
    spec,
    write_files,
    write_json,
)

SLOWEST_S = 240.0
"""Many times what a refusal takes on a busy machine, and less than a template that never ends."""

HOSTILE = {
    "division by zero": "{{ 1/0 }}",
    "a list of a billion": "{{ range(10**9)|list }}",
    "a string of 100 GB": '{{ "a"*10**11 }}',
    "a list by repetition": "{{ [messages] * 10**9 }}",
    "a width of 100 GB": '{{ "%99999999999d" % 1 }}',
    "a format of 100 GB": "{{ '{0:>99999999999}'.format(1) }}",
    "a centred string of 100 GB": '{{ "a"|center(10**11) }}',
    "an indent of 100 GB": "{{ [1]|tojson(indent=10**11) }}",
    "a number of 300 million digits": "{{ 10**(10**8 * 3) }}",
    "doubling": "{% set n = namespace(a='aa') %}{% for i in range(99) %}"
    "{% set n.a = n.a ~ n.a %}{% endfor %}",
    "loops without output": "{% for a in range(9999) %}{% for b in range(9999) %}"
    "{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
    "a macro without end": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "nesting without end": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "50 MB": "{% for i in range(50000) %}{{ 'x'*1000 }}{% endfor %}",
    "a loop over loops": "{% for x in messages recursive %}{{ loop([x]) }}{% endfor %}",
    "a missing attribute": "{{ messages.a.b }}",
    "a filter's own error": "{{ messages | sum }}",
    "a wrong call": "{{ raise_exception() }}",
    "a value that is no JSON": "{{ raise_exception | tojson }}",
    "a break without loop": "{% break %}",
    "a cut template": "{% if messages",
    "half a surrogate": "<video>{{ messages[0].content[1].text }}{{ '\\ud800' }}",
}


@pytest.mark.parametrize("kind", sorted(HOSTILE))
def test_templates_that_misbehave_are_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that computes for ever, asks for all memory, or raises whatever there is.

    One that ends its helper is not rendered again, to find out what it makes of text alone.
    """
    rendered: list[object] = []
    render = TemplateProcess.render

    def counted(self: TemplateProcess, template: str, variables: Mapping[str, Any]) -> str:
        rendered.append(variables)
        return render(self, template, variables)

    monkeypatch.setattr(TemplateProcess, "render", counted)
    directory = write_files(tmp_path, HOSTILE[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(LanguageError) as caught:
        prompt_of(directory)
    assert time.monotonic() - started < SLOWEST_S
    line = str(caught.value)
    assert line.isprintable() and len(line) < 1000
    if "takes more than 2 s to render" in line:
        assert len(rendered) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_helper_without_jinja2_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken" / "jinja2"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no such symbol')")
    directory = write_files(tmp_path)
    monkeypatch.syspath_prepend(str(broken.parent))
    with pytest.raises(LanguageError) as caught:
        prompt_of(directory)
    assert "jinja2, which cannot be loaded (no such symbol)" in str(caught.value)
    assert "pip install 'stc[language]'" in str(caught.value)


def test_a_question_can_be_asked_after_one_that_failed(tmp_path: Path) -> None:
    """A template that never ends for one question: the next is answered as if it had not been."""
    endless = "{% if 'loop' in messages[0].content[1].text %}" + HOSTILE["loops without output"]
    prompt = prompt_of(write_files(tmp_path, endless + "{% endif %}" + CHATML))
    expected = ids_of(prompt, "Is it?")
    with pytest.raises(LanguageError, match=r"takes more than 2 s to render|has not answered"):
        prompt.after("loop")
    assert ids_of(prompt, "Is it?") == expected


def children() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children()
    return found


def test_its_process_is_started_again_when_it_was_killed(tmp_path: Path) -> None:
    """A machine short of memory kills the helper between two questions."""
    others = children()
    prompt = prompt_of(write_files(tmp_path))
    expected = ids_of(prompt, "Is it?")
    (helper,) = [child for child in children() if child not in others]
    os.kill(helper.pid, signal.SIGKILL)
    helper.wait()
    assert ids_of(prompt, "Is it?") == expected


def test_a_process_that_cannot_be_started_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program with all its file descriptors in use, or without an interpreter beside it."""
    prompt_of(write_files(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(tmp_path / "no-python"))
        with pytest.raises(LanguageError, match=r"its process cannot be started .*No such file"):
            prompt_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    taken = [os.open("/dev/null", os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))
    try:
        with pytest.raises(LanguageError, match="its process cannot be started"):
            Prompt(files, spec(), "a checkpoint")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(taken[0])


def test_no_process_outlives_its_prompt(tmp_path: Path) -> None:
    """Streams that come and go for weeks leave no helpers and no zombies behind."""
    others = children()
    prompt = prompt_of(write_files(tmp_path))
    (helper,) = [child for child in children() if child not in others]
    del prompt
    gc.collect()
    assert not psutil.pid_exists(helper.pid)


ASKING = """
import sys
from stc.prompts.template_process import TemplateProcess
process = TemplateProcess()
process.render("", {})
print(process._child.process.pid, flush=True)
try:
    process.render(sys.argv[1], {})
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
"""A program that renders what takes two seconds of processor time to refuse."""


def rendering() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", ASKING, HOSTILE["loops without output"]],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )


def gone(pid: int) -> bool:
    """Whether the process `pid` ends within the time that it may take."""
    until = time.monotonic() + SLOWEST_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_template_that_runs_can_be_interrupted() -> None:
    """Ctrl-C of a terminal, which its whole process group gets, while a template computes."""
    with rendering() as program:
        assert program.stdout is not None
        helper = int(program.stdout.readline())
        begun = psutil.Process(helper).cpu_times().user
        while psutil.Process(helper).cpu_times().user < begun + 0.1:
            time.sleep(0.01)
        os.killpg(program.pid, signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        assert program.wait(SLOWEST_S) == 0
    assert gone(helper)


def test_a_helper_does_not_outlive_a_killed_program() -> None:
    """kill -9 while a template computes."""
    with rendering() as program:
        assert program.stdout is not None
        helper = int(program.stdout.readline())
        program.kill()
    assert gone(helper)


def test_prompts_can_be_asked_from_any_thread(tmp_path: Path) -> None:
    """Several streams of a server share nothing, several threads of a stream one helper."""
    prompt = prompt_of(write_files(tmp_path))
    asked = [f"Is it {number}?" for number in range(40)]
    expected = {question: ids_of(prompt, question) for question in asked}
    found: dict[str, list[int]] = {}

    def ask(mine: list[str]) -> None:
        for question in mine:
            found[question] = ids_of(prompt, question)

    threads = [threading.Thread(target=ask, args=(asked[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_sandbox_holds(tmp_path: Path) -> None:
    """Templates that reach for Python's insides, as published escapes do."""
    for reach in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ ('{0.__class__}' | attr('format'))(messages) }}",
        "{% set n = namespace(__class__=1) %}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ messages.clear() }}",
    ):
        with pytest.raises(LanguageError, match=r"refuses the question|puts 0 tokens"):
            prompt_of(write_files(tmp_path, reach))


def panicking(*_: Any, **__: Any) -> Any:
    """What a panic of Rust code is in Python: no Exception."""
    raise type("PanicException", (BaseException,), {})("called `Option::unwrap()`\n on None")


@pytest.mark.parametrize("part", ["encode", "get_added_tokens_decoder"])
def test_panics_of_the_tokenizer_are_one_line(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizers library panics on some files, with an exception that is no Exception."""

    class Panicking:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return panicking if name == part else getattr(self._real, name)

    class Library:
        class Tokenizer:
            @staticmethod
            def from_buffer(content: bytes) -> Any:
                return Panicking(real.Tokenizer.from_buffer(content))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real = import_module("tokenizers")
    monkeypatch.setattr(files, "import_module", lambda _: Library())
    with pytest.raises(LanguageError, match=r"\(called `Option::unwrap\(\)`\)"):
        prompt_of(write_files(tmp_path))


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_passes(raised: type[BaseException]) -> None:
    """Ctrl-C while a tokenizer works is no error of the tokenizer."""
    with pytest.raises(raised), guarded("tokenizer", "fails"):
        raise raised


def test_a_pattern_without_end_ends(tmp_path: Path) -> None:
    """tokenizer.json whose regular expression backtracks for ever."""
    directory = write_files(tmp_path)
    held = json.loads((directory / "tokenizer.json").read_bytes())
    split = held["pre_tokenizer"]["pretokenizers"][0]
    split["pattern"] = {"Regex": r"(x+x+)+y"}
    write_json(directory / "tokenizer.json", held)
    change(directory / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    prompt = prompt_of(directory)
    started = time.monotonic()
    try:
        prompt.after("x" * 5000)
    except LanguageError as error:
        assert "tokenizer: fails" in str(error)
    assert time.monotonic() - started < SLOWEST_S
