"""The programming languages of MultiPL-E: how a program is compiled and run, and whether this machine can.

Commands are those of MultiPL-E's own evaluation (Cassano et al. 2023, "MultiPL-E"): a program has passed if every
command ends with exit code 0 and prints no text that its language's tests print on failure.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fusionx.contract.errors import ConfigError
from fusionx.eval.code.sandbox import SYSTEM_FOLDERS, Limits, Program, ProgramOutcome, check_sandbox, run_sandboxed
from fusionx.eval.config import CodeConfig, CodeLanguage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Language:
    """One language.

    Attributes:
        file: what the program is called.
        commands: compile and run, in the program's folder.
        sample: a program that passes where the toolchain is complete: it uses what the benchmark's tests use.
        failure: text that a program prints when a test fails, where it ends with 0 all the same.
        library: environment variable for `eval.code.libraries`, and its value around the library's path.
    """

    file: str
    commands: tuple[tuple[str, ...], ...]
    sample: str
    failure: str | None = None
    library: tuple[str, str] | None = None

    @property
    def executables(self) -> tuple[str, ...]:
        """What must be installed."""
        return tuple(command[0] for command in self.commands if "/" not in command[0])


# The JVM takes threads and memory by the size of the machine, which is not the sandbox's.
_JVM = ("-XX:+UseSerialGC", "-Xmx512m")
_JAVAC = tuple(f"-J{option}" for option in _JVM)

LANGUAGES: dict[CodeLanguage, Language] = {
    "py": Language("program.py", (("python3", "program.py"),), "import typing, collections, itertools, math\n"),
    "js": Language(
        "program.js", (("node", "program.js"),), "const assert = require('node:assert'); assert.deepEqual([1], [1]);\n"
    ),
    "ts": Language(
        "program.ts",
        (("tsc", "--target", "esnext", "program.ts"), ("node", "program.js")),
        "declare var require: any;\nconst assert = require('node:assert');\nassert.deepEqual([1], [1]);\n",
    ),
    "cpp": Language(
        "program.cpp",
        (("g++", "program.cpp", "-o", "program", "-std=c++17"), ("./program",)),
        "#include<assert.h>\n#include<bits/stdc++.h>\nint main() { assert(std::vector<long>({1}).size() == 1); }\n",
    ),
    "java": Language(
        "program.java",
        (("javac", *_JAVAC, "-encoding", "UTF8", "-d", ".", "program.java"), ("java", *_JVM, "-ea", "Problem")),
        "import java.util.*;\nimport org.javatuples.*;\nclass Problem {\n"
        "    public static void main(String[] args) { assert(new ArrayList<Long>().equals(Arrays.asList())); }\n}\n",
        library=("CLASSPATH", ".:{}"),
    ),
    "pl": Language(
        "program.pl",
        (("perl", "program.pl"),),
        "use Test::Deep;\nexit(eq_deeply([1], [1]) ? 0 : 1);\n",
        failure="ERROR",
        library=("PERL5LIB", "{}"),
    ),
    "sh": Language("program.sh", (("bash", "program.sh"),), "set -e\n[[ $(echo 1) = 1 ]]\n"),
    "rs": Language(
        "program.rs",
        (("rustc", "program.rs", "-o", "program"), ("./program",)),
        "fn main() { assert_eq!(vec![1], vec![1]); }\n",
    ),
    "go": Language(
        "program_test.go",
        (("go", "test", "program_test.go"),),
        'package sample_test\nimport ("testing"; "fmt")\nfunc TestSample(t *testing.T) { _ = fmt.Sprintf("%v", 1) }\n',
    ),
    "rb": Language(
        "program.rb",
        (("ruby", "program.rb"),),
        "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n"
        "  def test_sample\n    assert_equal([1], [1])\n  end\nend\n",
        library=("RUBYLIB", "{}"),
    ),
    "php": Language("program.php", (("php", "program.php"),), "<?php\nif ([1] !== [1]) { exit(1); }\n"),
    "lua": Language(
        "program.lua",
        (("lua", "program.lua"),),
        "lu = require('luaunit')\nfunction test_sample() lu.assertEquals({1}, {1}) end\nos.exit(lu.LuaUnit.run())\n",
        library=("LUA_PATH", "{}/?.lua;;"),
    ),
    "r": Language("program.r", (("Rscript", "program.r"),), "if (!identical(c(1), c(1))) quit('no', 1)\n"),
    "jl": Language(
        "program.jl",
        (("julia", "program.jl"),),
        "using Test\n@testset begin\n  @test [1] == [1]\nend\n",
    ),
}


@dataclass(frozen=True)
class Toolchain:
    """A language whose programs can be run here.

    Attributes:
        executables: name and path of everything that is called.
        readable: what must be seen besides the system's folders.
        library: what `eval.code.libraries` names.
    """

    language: CodeLanguage
    executables: tuple[tuple[str, str], ...]
    readable: tuple[str, ...]
    library: str | None

    def run(self, text: str, limits: Limits) -> ProgramOutcome:
        """Compiles and runs one program in the sandbox."""
        found = LANGUAGES[self.language]
        paths = dict(self.executables)
        folders = [str(Path(path).parent) for path in paths.values()]
        environment = {"PATH": ":".join([*folders, "/usr/bin", "/bin"]), "HOME": "/tmp", "LANG": "C.UTF-8"}
        # By their paths: where one cannot be started, another of the same name must not be taken for it.
        commands = [(paths.get(name, name), *arguments) for name, *arguments in found.commands]
        if found.library is not None and self.library is not None:
            name, pattern = found.library
            environment[name] = pattern.format(self.library)
        readable = [*self.readable, *([self.library] if self.library else [])]
        return run_sandboxed(Program({found.file: text}, commands, environment, readable), limits)

    def passes(self, text: str, limits: Limits) -> bool:
        """Whether a program with its tests ends without any failure."""
        outcome = self.run(text, limits)
        failure = LANGUAGES[self.language].failure
        return outcome.passed and (failure is None or failure not in outcome.output)


def usable_toolchains(config: CodeConfig) -> list[Toolchain]:
    """The toolchains of `config.languages`, or of all languages that work here, in the order of `LANGUAGES`.

    Raises:
        ConfigError: generated programs may not be run, there is no sandbox, a language asked for by name lacks an
            executable or a library, or none works.
    """
    check_allowed(config)
    check_sandbox()
    libraries = {language: _library(language, path) for language, path in config.libraries.items()}
    found = []
    for language in LANGUAGES:
        if config.languages and language not in config.languages:
            continue
        try:
            found.append(_toolchain(language, libraries.get(language), limits_of(config)))
        except ConfigError as error:
            if config.languages:
                raise
            log.warning("me: %s is left out: %s", language, error.details.get("found"))
    if not found:
        raise ConfigError("No programming language works here.", field="eval.code.languages", expected="at least one")
    return found


def check_allowed(config: CodeConfig) -> None:
    """Raises a ConfigError unless the user allows generated programs to be run."""
    if not config.run:
        raise ConfigError(
            "The benchmark me runs programs that the models write, which must be allowed.",
            field="eval.code.run",
            found="false",
            expected="true",
            remedy="give --run-generated-code (the same as --set eval.code.run=true): the programs then run on this "
            "machine in a sandbox without network, environment or anything to write, with limits on time and memory",
        )


def limits_of(config: CodeConfig) -> Limits:
    """What every program may use."""
    return Limits(config.seconds, config.memory_mib << 20)


def _toolchain(language: CodeLanguage, library: str | None, limits: Limits) -> Toolchain:
    places = {executable: _place(executable) for executable in LANGUAGES[language].executables}
    missing = [executable for executable, place in places.items() if place is None]
    if missing:
        raise ConfigError(
            f"The toolchain of the language {language} is not installed.",
            field="eval.code.languages",
            found=f"no {', '.join(missing)} on the PATH",
            expected=", ".join(places),
            remedy=f"install it, or leave {language} out",
        )
    executables = tuple((name, place[0]) for name, place in places.items() if place)
    readable = tuple(dict.fromkeys(place[1] for place in places.values() if place and place[1]))
    toolchain = Toolchain(language, executables, readable, library)
    _check_sample(toolchain, limits)
    return toolchain


def _library(language: CodeLanguage, path: str) -> str:
    field = f"eval.code.libraries.{language}"
    if LANGUAGES[language].library is None:
        raise ConfigError("The language takes no library.", field=field, found=path, remedy="leave it out")
    if not Path(path).exists():
        raise ConfigError("There is no such library.", file=path, field=field)
    return str(Path(path).resolve())


@cache
def _check_sample(toolchain: Toolchain, limits: Limits) -> None:
    language = LANGUAGES[toolchain.language]
    outcome = toolchain.run(language.sample, limits)
    if not outcome.passed:
        output = " ".join(outcome.output.split())
        library = f" (a test library: eval.code.libraries.{toolchain.language})" if language.library else ""
        raise ConfigError(
            f"The toolchain of the language {toolchain.language} does not work in the sandbox.",
            field="eval.code.languages",
            found=f"{outcome.status} ({outcome.code}): {output:.300}",
            expected="a small program with the benchmark's own kind of test passes",
            remedy=f"install what it lacks{library}, raise eval.code.seconds or memory_mib, or leave it out",
        )


def _place(executable: str) -> tuple[str, str] | None:
    """The path of an executable, and the folder of its installation where that is not the system's; None without."""
    if executable == "python3":
        path = Path(sys.base_prefix, "bin", executable)
    else:
        found = shutil.which(executable)
        if found is None:
            return None
        path = Path(_rust_compiler(found) if executable == "rustc" else found)
    if str(path).startswith(tuple(f"{folder}/" for folder in SYSTEM_FOLDERS)):
        return str(path), ""
    path = path.resolve()
    return str(path), str(_installation(path))


def _installation(path: Path) -> Path:
    """The folder that a program may see for the sake of this executable; never a home folder for its `bin`."""
    folder, private = path.parent, (Path.home(), Path.home() / ".local")
    whole = folder.name == "bin" and not any(place.is_relative_to(folder.parent) for place in private)
    return folder.parent if whole else folder


@cache
def _rust_compiler(found: str) -> str:
    """The compiler itself: what lies on the PATH is often a proxy that looks for it in the home folder."""
    done = subprocess.run([found, "--print", "sysroot"], capture_output=True, text=True, check=False)
    return str(Path(done.stdout.strip(), "bin", "rustc")) if done.returncode == 0 else found


def verdicts(toolchain: Toolchain, programs: Sequence[str], config: CodeConfig) -> list[bool]:
    """Whether each program passes; equal programs are run once."""
    from concurrent.futures import ThreadPoolExecutor

    limits = limits_of(config)
    different = list(dict.fromkeys(programs))
    with ThreadPoolExecutor(config.workers or len(os.sched_getaffinity(0))) as pool:
        passed = dict(zip(different, pool.map(lambda text: toolchain.passes(text, limits), different), strict=True))
    return [passed[text] for text in programs]
