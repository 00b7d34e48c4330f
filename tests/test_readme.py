"""README and docs say what is there: every file and folder, every knob, no flag that no script has, no dead link."""

import json
import re
import subprocess
from pathlib import Path

import pytest

import settings
from clip_finetuning.runtime import knobs

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
}
README = PAGES["README.md"]
NOTEBOOK = json.loads((ROOT / "docs" / "fine_tune_on_colab.ipynb").read_text(encoding="utf-8"))
SCRIPTS = [name for name in re.findall(r"^(\w+)\.py ", README, re.MULTILINE) if (ROOT / f"{name}.py").is_file()]
UNNAMED = {"README.md", ".gitignore"}  # what nobody looks for in the tree


KNOBS = {row.name: (row.default, row.help) for row in knobs.rows(settings)}
OF_THE_MACHINE = {"ON_COLAB", "NUM_WORKERS"}  # their defaults depend on where this runs


# -------------------------------------------------------------------------------------------------- the tree


def glossed(folder):
    """Names in the README's tree, directly in `folder` ("" or "clip_finetuning")."""
    tree = re.search(r"## Repository overview\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    names, top = {"": set(), "clip_finetuning": set()}, ""
    for indent, name in re.findall(r"^( *)(\S+) +\S", tree[1], re.MULTILINE):
        top = top if indent else name.split("/")[0]
        names[top if indent else ""].add(name.split("/")[0])
    return names[folder]


def kept(folder):
    """What git keeps directly in a folder."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, check=True).stdout
    return {line.split("/")[0] for line in listed.splitlines() if (ROOT / folder / line).exists()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git tells which files belong to the project")
def test_every_file_and_folder_has_a_gloss_and_every_gloss_is_of_one():
    assert glossed("") == kept("") - UNNAMED
    assert glossed("clip_finetuning") == {name for name in kept("clip_finetuning") if not name.endswith(".py")}


def test_every_page_is_in_the_table_of_pages():
    linked = re.findall(r"^\| \[docs/(\S+)\]\(docs/\1\) \| .+ \|$", README, re.MULTILINE)
    assert sorted(linked) == sorted(path.name for path in (ROOT / "docs").iterdir() if path.is_file())


@pytest.mark.parametrize("page", sorted(page for page in PAGES if page.startswith("docs/")))
def test_a_page_opens_with_the_question_that_it_answers(page):
    assert re.match(r"# .+\n\n\*[^*]+\?\*\n\n", PAGES[page])


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    for target, _, heading in re.findall(r"\]\(((?!https?:)[^)#]*)(#([^)]*))?\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
            assert heading in anchors, f"{target}#{heading}"


# ------------------------------------------------------------------------------------------------- the knobs


def rows():
    """{name: (default, rest of the row)} of the table of knobs."""
    found = re.findall(r"^\| `([A-Z0-9_]+)` \| (.+?) \| (.+) \|$", PAGES["docs/settings.md"], re.MULTILINE)
    return {name: (default, text) for name, default, text in found}


def test_the_table_has_the_knobs_in_the_order_of_the_page():
    assert list(rows()) == list(KNOBS)


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_the_row_of_a_knob_has_its_default_and_its_help(name):
    (shown, text), (default, help_line) = rows()[name], KNOBS[name]
    assert text.startswith(help_line)
    if name not in OF_THE_MACHINE:
        assert shown.strip("`") == default


# ---------------------------------------------------------------------------------------------- the commands


def shown_commands():
    """[(page, script, flags)] of every command in the pages' code blocks and the notebook."""
    commands = []
    for page, text in PAGES.items():
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                match = re.match(r"(?:srun |\w+=\S+ )*(?:python|torchrun)\b.*?([\w/]+)\.py\b([^#]*)", line.strip())
                commands += [(page, match[1], match[2])] if match else []
        commands += [(page, *found) for found in re.findall(r"`(?:\w+=\S+ )*python ([\w/]+)\.py([^`]*)`", text)]
    code = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
    commands += [("notebook", *found) for found in re.findall(r'python\(f?"([\w/]+)\.py(.*)"\)', code)]
    return commands


def flags_of(path):
    """The flags of a script, which may have a module for them."""
    sources = [path, *([ROOT / "clip_finetuning/retrieval/arguments.py"] if path.stem == "evaluate_clip" else [])]
    return {flag for one in sources for flag in re.findall(r'"(--[a-z0-9-]+)"', one.read_text(encoding="utf-8"))}


def test_every_flag_of_a_shown_command_exists():
    flags = {f"--{name.lower().replace('_', '-')}" for name in KNOBS}
    checked = set()
    for page, script, rest in shown_commands():
        path = ROOT / f"{script.removeprefix('/anywhere/')}.py"
        known = flags_of(path)
        known |= flags if script in SCRIPTS else set()
        used = set(re.findall(r"(?<=\s)--[a-z0-9-]+", rest))
        assert used <= known, f"{page}: {script}.py {rest}"
        checked |= {(page, script, flag) for flag in used}
    assert len(checked) > 40
    pages = {page for page, _, _ in checked} | {"docs/data.md", "docs/settings.md", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert pages == {*PAGES, "notebook"}


def test_the_flags_that_the_pages_name_belong_to_some_script():
    """Flags in the text, such as `--crop-margins`, and those of the table of presets."""
    sources = [*ROOT.glob("*.py"), *ROOT.glob("demo/*.py"), *ROOT.glob("benchmarks/*.py")]
    known = {flag for path in sources for flag in flags_of(path)}
    known |= {f"--{name.lower().replace('_', '-')}" for name in KNOBS} | {"--help"}
    others = {
        "--lr",
        "--wd",
        "--requeue",
        "--sort",
        "--data-binary",
        "--shm-size",
    }  # open_clip_train's, SLURM's, tar's, curl's, Docker's
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        codes = " ".join(code for code in re.findall(r"`([^`]+)`", prose) if "torchrun" not in code)
        assert set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9-]*", codes)) <= known | others, page
