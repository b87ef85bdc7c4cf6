"""README, CONTRIBUTING and docs/: links, commands, settings, names of the code and Python examples are right."""

import pathlib
import re
import runpy
import shlex
import sys

import jax
import pytest

import bags_jax
from bags_jax.cli.main import COMMANDS
from bags_jax.config import load_config, read_config
from bags_jax.settings import rows

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(DOCS / "_extensions"))
from find_lines import find_line

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^(?P<mark>`{3,}|:{3,})(?P<info>[^\n]*)\n(?P<body>.*?)^(?P=mark)$", re.MULTILINE | re.DOTALL)
SETTINGS = {name: default for name, default, _ in rows()}
PROGRAMS = r"(?:bags-jax|python -m experiments|make|pytest)\b"


def read(page):
    return page.read_text(encoding="utf-8")


def each_page(test):
    """Runs a test for every page."""
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))(test)


def without_code(text):
    """A page without the blocks and spans of code; tables in colon fences stay."""
    text = FENCE.sub(lambda m: "" if m["mark"].startswith("`") else m[0], text)
    return re.sub(r"`[^`]*`", "", text)


def anchors_of(page):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", read(page)), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


def links_of(page):
    """Addresses of all links and pictures of a page."""
    text = without_code(read(page))
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)


@each_page
def test_relative_links_and_anchors_exist(page):
    for address in links_of(page):
        if re.match(r"https?://", address):
            continue
        path, _, anchor = address.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {address}, which does not exist"
        if anchor:
            assert anchor in anchors_of(target), f"{page.name} links to {address}: {target.name} has no such heading"


@each_page
def test_lines_are_short(page):
    if page.name == "archive.md":
        pytest.skip("includes experiments/LOG.md")
    text = FENCE.sub(lambda m: "" if m["mark"].startswith("`") else m[0], read(page))
    assert not [line for line in text.splitlines() if len(line) > 100]


def test_readme_is_at_most_100_lines():
    lines = read(README).splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100


def test_package_index_gets_readme_without_relative_links(monkeypatch):
    found = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: found.update(options))
    runpy.run_path(str(ROOT / "setup.py"))
    text = found["long_description"]
    assert "jnp.array([[[200.0, 0, 160]" in text and "(https://arxiv.org/abs/2403.04926)" in text
    assert not re.search(r"\]\((?!https:)", text) and "CONTRIBUTING" in text


def commands_of(page):
    """Command lines in the code blocks of a page, each as one line without comments."""
    for block in FENCE.finditer(read(page)):
        if block["mark"].startswith("`") and block["info"].strip() in ("", "sh", "{code-block} sh"):
            for line in block["body"].replace("\\\n", " ").splitlines():
                for command in re.split(r"\s&&\s", line):
                    if re.match(PROGRAMS, command):
                        yield shlex.split(command, comments=True)


def flags_of(*files):
    """Names of the absl flags that Python files define."""
    return set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", "".join(map(read, files))))


def check_config(arguments):
    """Checks that the configuration of a command exists, that its settings do, and that their values are in range."""
    flags = [argument.removeprefix("--").split("=", 1) for argument in arguments if argument.startswith("--config")]
    values = {name.removeprefix("config."): value for name, value in flags}
    assert "config" in values, arguments
    config = load_config(values.pop("config").replace("SCENE", "blurball"))
    for name, value in values.items():
        set_value(config, name, value)
    read_config(config)


def set_value(config, name, value):
    """Sets a setting from the text of the command line."""
    *groups, last = name.split(".")
    assert name in SETTINGS, f"there is no setting {name}"
    default = SETTINGS[name]
    if isinstance(default, bool):
        assert value in ("True", "False")
        value = value == "True"
    elif isinstance(default, int | float):
        value = type(default)(value)
    elif isinstance(default, tuple):
        kind = float if name in ("stages.scales", "stages.stops", "data.background") else int
        value = tuple(map(kind, value.split(",")))
    for group in groups:
        config = config[group]
    config[last] = value


def check_command(words):
    """Checks the program, its flags and its settings."""
    program, arguments = words[0], words[1:]
    if program == "make":
        assert set(arguments) <= set(re.findall(r"^([\w-]+):", read(ROOT / "Makefile"), re.MULTILINE)), words
        return
    if program == "pytest":
        assert all((ROOT / word).exists() for word in arguments if word.endswith(".py")), words
        return
    if program == "bags-jax":
        name, arguments = arguments[0], arguments[1:]
        assert name in COMMANDS, words
        files = [ROOT / "bags_jax" / "cli" / f"{name}.py"]
    else:
        module, arguments = ROOT / arguments[1].replace(".", "/"), arguments[2:]
        files = [module / "__main__.py"] if module.is_dir() else [module.with_suffix(".py")]
    if "bags_jax.cli.executor" in read(files[0]):
        files.append(ROOT / "bags_jax" / "cli" / "executor.py")
    known = flags_of(*files)
    if words[:2] == ["bags-jax", "run"]:  # its first argument is a path, and it has a default configuration
        assert arguments and not arguments[0].startswith("--"), words
        arguments = ["--config=custom", *arguments[1:]] if not any("--config=" in a for a in words) else arguments[1:]
    for argument in arguments:
        flag = re.match(r"--(\w+)", argument)
        assert flag and flag[1] in {*known, "help", "version"}, f"{files[0].name} has no flag {argument}"
    if "config" in known and "--help" not in arguments:
        check_config(arguments)


@each_page
def test_commands_parse(page):
    added = re.findall(r"^\+ *(\w+): \w+ = setting\(", read(page), re.MULTILINE)  # a recipe adds this setting
    for words in commands_of(page):
        check_command([word for word in words if not re.match(rf"--config\.\w+\.({'|'.join(added) or '$'})=", word)])


@each_page
def test_settings_in_the_text_exist(page):
    """`--config.group.name=value`, and `group.name=value` with the name of a group before the point."""
    groups = "|".join({name.partition(".")[0] for name in SETTINGS if "." in name})
    text = FENCE.sub(lambda m: "" if m["mark"].startswith("`") else m[0], read(page))
    if page.name in ("archive.md", "template.md"):
        return
    for code in re.findall(r"`([^`\n]*)`", text):
        for name in re.findall(rf"--config\.([\w.]+)|\b((?:{groups})\.\w+)=", code):
            name = name[0] or name[1]
            assert name in SETTINGS or name == "NAME", f"{page.name}: {code}: there is no setting {name}"
        for name in re.findall(r"--config=([\w:,]+)(?!\S)", code):
            if name != "NAME":
                load_config(name.replace("SCENE", "garden" if "mip360" in name else "blurball"))
        for command in re.findall(r"^bags-jax ([a-z]+)", code):
            assert command in COMMANDS, f"{page.name}: {code}"


def test_shown_commands_are_found():
    """Guards the search itself: README shows the shortest way, own_photographs.md every command of it."""
    shown = {
        page: {words[1] for words in commands_of(page) if words[0] == "bags-jax"}
        for page in (README, DOCS / "own_photographs.md")
    }
    assert shown[README] >= {"demo", "run"}
    assert shown[DOCS / "own_photographs.md"] >= {"run", "sfm", "train", "evaluate", "render", "export"}


@pytest.mark.parametrize("bad", ["bags-jax trian", "bags-jax render --workdir=a --fsp=3", "make tets"])
def test_wrong_commands_are_refused(bad):
    with pytest.raises(AssertionError):
        check_command(shlex.split(bad))


@pytest.mark.parametrize("setting", ["blur.kernel_size=3", "loss.ssim=2", "num_steps=many"])
def test_wrong_settings_are_refused(setting):
    with pytest.raises((AssertionError, ValueError)):
        check_command(["bags-jax", "train", "--config=custom", "--workdir=a", f"--config.{setting}"])


@each_page
def test_named_code_exists(page):
    """The role {line}`path:name`; find_line raises LookupError for a name that is gone."""
    for target in re.findall(r"\{line\}`([^`]+)`", read(page)):
        find_line(target)


def test_lines_are_found_in_classes_and_other_languages():
    file, line = find_line("bags_jax/settings.py:Loss.ssim")
    assert read(file).splitlines()[line - 1].strip().startswith("ssim: float = setting(")
    file, line = find_line("bags_jax/ops/rasterize/cpu/rasterize.cc:include")
    assert "include" in read(file).splitlines()[line - 1]
    for gone in ("bags_jax/settings.py:Loss.gone", "bags_jax/gone.py", "bags_jax/settings.py:ssim"):
        with pytest.raises(LookupError):
            find_line(gone)


def test_python_of_readme_runs():
    (block,) = [block["body"] for block in FENCE.finditer(read(README)) if block["info"] == "python"]
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):
        exec(block, names)  # noqa: S102
    assert names["image"].shape == (1, 240, 320, 3) and names["meta"]["num_dropped"].sum() == 0


def test_python_of_tutorial_compiles():
    """`make docs` runs it; a mistake in its syntax shows here already."""
    cells = [block["body"] for block in FENCE.finditer(read(DOCS / "tutorial.md")) if "code-cell" in block["info"]]
    assert len(cells) > 5
    for cell in cells:
        compile(re.sub(r"\A---\n.*?\n---\n", "", cell, flags=re.DOTALL), "tutorial.md", "exec")


def test_architecture_names_every_file_and_folder():
    text = read(DOCS / "architecture.md")
    for path in (ROOT / "bags_jax").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in text, path.name
        elif path.is_dir() and path.name != "__pycache__":
            assert f"`{path.name}/`" in text, path.name


def test_api_page_lists_every_public_name():
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", read(DOCS / "api.md"), re.MULTILINE)
    assert sorted(listed) == sorted(bags_jax.__all__)
