"""The languages of MultiPL-E: what passes and what fails with the toolchains that are here, and what is refused."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from code_examples import EXAMPLES, PRESENT, make_libraries

import fusionx.eval.code.languages as languages_module
from fusionx.contract.errors import ConfigError
from fusionx.eval.code.languages import LANGUAGES, usable_toolchains, verdicts
from fusionx.eval.config import CodeConfig, CodeLanguage

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_libraries(tmp_path_factory.mktemp("libraries"))


def config_of(**settings: Any) -> CodeConfig:
    return CodeConfig.model_validate({"run": True, "seconds": 60, **settings})


def test_every_language_of_the_config_is_known() -> None:
    assert set(LANGUAGES) == set(EXAMPLES) == set(get_args(CodeLanguage))
    assert "py" in PRESENT


@pytest.mark.parametrize("language", PRESENT)
def test_right_programs_pass_and_wrong_ones_fail(language: CodeLanguage, libraries: dict[str, str]) -> None:
    config = config_of(languages=[language], libraries=libraries)
    (toolchain,) = usable_toolchains(config)
    example = EXAMPLES[language]
    texts = [f"{example.prompt}{answer}\n{example.tests}" for answer in (example.right, example.wrong, "((")]
    assert verdicts(toolchain, texts, config) == [True, False, False]


def test_a_program_that_prints_its_failure_has_failed(libraries: dict[str, str]) -> None:
    assert "pl" in PRESENT, "perl is part of every system this is tested on"
    (toolchain,) = usable_toolchains(config_of(languages=["pl"], libraries=libraries))
    assert verdicts(toolchain, ["print 'ok!';", "print 'ERROR';"], config_of()) == [True, False]


def test_equal_programs_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def passes(self: Any, text: str, limits: Any) -> bool:
        ran.append(text)
        return text == "a"

    monkeypatch.setattr(languages_module.Toolchain, "passes", passes)
    toolchain = languages_module.Toolchain("py", (), (), None)
    assert verdicts(toolchain, ["a", "b", "a", "b", "a"], config_of(workers=2)) == [True, False, True, False, True]
    assert sorted(ran) == ["a", "b"]


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    which = shutil.which
    monkeypatch.setattr(
        languages_module.shutil, "which", lambda name, **kwargs: None if name in names else which(name, **kwargs)
    )


def test_a_missing_toolchain_is_left_out_or_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without(monkeypatch, *(name for language in LANGUAGES.values() for name in language.executables if name != "bash"))
    with caplog.at_level(logging.WARNING):
        assert [found.language for found in usable_toolchains(config_of())] == ["py", "sh"]
    assert "rs is left out: no rustc on the PATH" in caplog.text
    with pytest.raises(ConfigError, match="no rustc") as caught:
        usable_toolchains(config_of(languages=["sh", "rs"]))
    assert caught.value.details["field"] == "eval.code.languages"
    with pytest.raises(ConfigError, match=r"no tsc, node .*") as caught:
        usable_toolchains(config_of(languages=["ts"]))


def test_a_toolchain_that_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A launcher that looks for its home, as version managers install them, finds nothing in the sandbox."""
    launcher = tmp_path / "bin" / "node"
    launcher.parent.mkdir()
    tmp_path.chmod(0o755)
    launcher.write_text("#!/bin/bash\nexec $HOME/.versions/node\n")
    launcher.chmod(0o755)
    monkeypatch.setattr(languages_module.shutil, "which", lambda name: str(launcher))
    with pytest.raises(ConfigError, match="does not work in the sandbox") as caught:
        usable_toolchains(config_of(languages=["js"]))
    assert "No such file" in caught.value.details["found"]
    assert "eval.code.libraries.js" not in caught.value.details["remedy"]
    monkeypatch.setattr(languages_module, "LANGUAGES", {"js": LANGUAGES["js"]})
    with pytest.raises(ConfigError, match="No programming language works"):
        usable_toolchains(config_of())


@pytest.mark.parametrize(
    ("executable", "shown"),
    [
        ("opt/node/bin/node", "opt/node"),
        ("opt/typescript/lib/tsc", "opt/typescript/lib"),
        ("home/bin/node", "home/bin"),
        ("home/.local/bin/node", "home/.local/bin"),
        ("home/.nvm/v20/bin/node", "home/.nvm/v20"),
        ("bin/node", "bin"),
    ],
)
def test_a_home_folder_is_never_shown(
    executable: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert languages_module._installation(tmp_path / executable) == tmp_path / shown


def test_bad_libraries_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such library") as caught:
        usable_toolchains(config_of(libraries={"java": str(tmp_path / "a.jar")}))
    assert caught.value.details["field"] == "eval.code.libraries.java"
    with pytest.raises(ConfigError, match="takes no library"):
        usable_toolchains(config_of(libraries={"py": str(tmp_path)}))


def test_nothing_runs_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages_module, "run_sandboxed", None)
    monkeypatch.setattr(languages_module, "check_sandbox", None)
    with pytest.raises(ConfigError, match="must be allowed") as caught:
        usable_toolchains(config_of(run=False))
    assert caught.value.details["field"] == "eval.code.run"
    assert "--run-generated-code" in caught.value.details["remedy"]
