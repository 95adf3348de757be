"""A problem in MultiPL-E's format for every language, with a right and a wrong answer; stand-ins for libraries."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionx.eval.code.languages import LANGUAGES
from fusionx.eval.config import CodeLanguage


@dataclass(frozen=True)
class Example:
    """A problem: add two numbers. `right` and `wrong` are answers up to the stop token."""

    prompt: str
    right: str
    wrong: str
    tests: str
    stop: str

    def row(self, language: str, number: int = 0) -> dict[str, Any]:
        """As a line of the data set."""
        return {
            "name": f"HumanEval_{number}_add",
            "language": language,
            "prompt": self.prompt,
            "doctests": "transform",
            "original": f"/HumanEval_{number}_add.py",
            "prompt_terminology": "reworded",
            "tests": self.tests,
            "stop_tokens": [self.stop],
        }


EXAMPLES: dict[CodeLanguage, Example] = {
    "py": Example(
        'def add(a: int, b: int) -> int:\n    """Adds."""\n',
        "    return a + b\n",
        "    return a - b\n",
        "def check(candidate):\n    assert candidate(1, 2) == 3\n\ncheck(add)\n",
        "\ndef",
    ),
    "js": Example(
        "//Adds.\nfunction add(a, b){\n",
        "    return a + b;\n}\n",
        "    return a - b;\n}\n",
        "const assert = require('node:assert');\nassert.deepEqual(add(1, 2), 3);\n",
        "\nfunction ",
    ),
    "ts": Example(
        "//Adds.\nfunction add(a: number, b: number): number {\n",
        "    return a + b;\n}\n",
        "    return a - b;\n}\n",
        "declare var require: any;\nconst assert = require('node:assert');\nassert.deepEqual(add(1, 2), 3);\n",
        "\nfunction ",
    ),
    "cpp": Example(
        "#include<assert.h>\n#include<bits/stdc++.h>\n// Adds.\nlong add(long a, long b) {\n",
        "    return a + b;",
        "    return a - b;",
        "}\nint main() {\n    auto candidate = add;\n    assert(candidate((1), (2)) == (3));\n}\n",
        "\n}",
    ),
    "java": Example(
        "import java.util.*;\nimport org.javatuples.*;\n"
        "class Problem {\n    public static long add(long a, long b) {\n",
        "        return a + b;",
        "        return a - b;",
        "    }\n    public static void main(String[] args) {\n    assert(add((1l), (2l)) == (3l));\n    }\n}\n",
        "\n    }\n",
    ),
    "pl": Example(
        "# Adds.\nsub add {\n    my($a, $b) = @_;\n",
        "    return $a + $b;\n}\n",
        "    return $a - $b;\n}\n",
        "use Test::Deep;\nsub testhumaneval {\n    my $candidate = \\&add;\n"
        '    if(eq_deeply($candidate->(1, 2),3)) {\n        print "ok!" }else{\n        print "not ok!";\n'
        "        exit 1;\n    }\n}\ntesthumaneval();\n",
        "\nsub",
    ),
    "sh": Example(
        "#!/bin/bash\n# Adds.\nadd() {\n",
        "    echo $(($1 + $2))\n",
        "    echo $(($1 - $2))\n",
        '}\n\ncandidate() {\n    add "$@"\n}\n\nset -e\n'
        'run_test() {\n    [[ $(candidate "1" "2") = "3" ]]\n}\nrun_test\n',
        "\n}",
    ),
    "rs": Example(
        "/// Adds.\nfn add(a: isize, b: isize) -> isize {\n",
        "    a + b",
        "    a - b",
        "}\n\nfn main() {\n    let candidate = add;\n    assert_eq!(candidate(1, 2), 3);\n}\n",
        "\n}",
    ),
    "go": Example(
        'package add_test\n\nimport (\n    "testing"\n    "fmt"\n)\n\nfunc add(a int, b int) int {\n',
        "    return a + b\n}\n",
        "    return a - b\n}\n",
        'func TestAdd(t *testing.T) {\n    if fmt.Sprintf("%v", add(1, 2)) != fmt.Sprintf("%v", 3) {\n'
        '        t.Errorf("wrong")\n    }\n}\n',
        "\nfunc",
    ),
    "rb": Example(
        "# Adds.\ndef add(a, b)\n",
        "  a + b\nend\n",
        "  a - b\nend\n",
        "require 'test/unit'\nclass TestHumanEval < Test::Unit::TestCase\n  def test_add\n"
        "    candidate = method(:add)\n    assert_equal(3, candidate.call(1, 2))\n  end\nend\n",
        "\nclass",
    ),
    "php": Example(
        "<?php\n// Adds.\nfunction add($a, $b) {\n",
        "    return $a + $b;\n}\n",
        "    return $a - $b;\n}\n",
        'if (add(1, 2) !== 3) { throw new Exception("Test failed!"); }\n',
        "\nfunction",
    ),
    "lua": Example(
        "-- Adds.\nlocal function add(a, b)\n",
        "  return a + b\nend\n",
        "  return a - b\nend\n",
        "lu = require('luaunit')\n\nfunction test_humaneval()\nlocal candidate = add\n"
        "    lu.assertEquals(candidate(1, 2), 3)\nend\n\nos.exit(lu.LuaUnit.run())\n",
        "\nlocal",
    ),
    "r": Example(
        "# Adds.\nadd <- function(a, b) {\n",
        "    a + b\n}\n",
        "    a - b\n}\n",
        "if(!identical(add(1, 2), 3)){quit('no', 1)}\n",
        "\n#",
    ),
    "jl": Example(
        '"""Adds."""\nfunction add(a::Int64, b::Int64)::Int64 \n',
        "    a + b\nend\n",
        "    a - b\nend\n",
        "using Test\n\n@testset begin\n    @test(add(1, 2) == 3)\nend\n",
        "\nfunction",
    ),
}

PRESENT: list[CodeLanguage] = [
    language
    for language, found in LANGUAGES.items()
    if all(shutil.which(executable) for executable in found.executables)
]
"""The languages whose toolchain is installed here, with or without the library of their tests."""

PERL_LIBRARY = """package Test::Deep;
use Exporter 'import';
use Data::Dumper;
our @EXPORT = ('eq_deeply');
sub eq_deeply { Dumper($_[0]) eq Dumper($_[1]) }
1;
"""
LUA_LIBRARY = """local found = { LuaUnit = {} }
function found.assertEquals(a, b) assert(a == b or type(a) == "table") end
function found.LuaUnit.run() for name, f in pairs(_G) do if name:find("^test") then f() end end return 0 end
return found
"""


def make_libraries(folder: Path) -> dict[str, str]:
    """As much of the tests' libraries as the examples need, for the toolchains that are here."""
    places = {language: folder / language for language in ("java", "pl", "lua") if language in PRESENT}
    sources = {
        "java": ("org/javatuples/Unit.java", "package org.javatuples;\npublic class Unit {}\n"),
        "pl": ("Test/Deep.pm", PERL_LIBRARY),
        "lua": ("luaunit.lua", LUA_LIBRARY),
    }
    for language, place in places.items():
        name, text = sources[language]
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text(text)
        if language == "java":
            subprocess.run(["javac", "-d", place, place / name], check=True)
    return {language: str(place) for language, place in places.items()}
