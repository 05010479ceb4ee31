"""How the site is built: `make docs`.

The source is the whole repository, so that README.md, CONTRIBUTING.md and the pages of
experiments and benchmarks are pages as they are, and links mean the same here as in a
checkout. Nothing is fetched: MathJax is a wheel of the environment.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import byzjax  # noqa: E402

# For the notebooks: what is said of a mesh is said of several devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

project = "byzjax"
author = "The byzjax authors"
copyright = "2026, the byzjax authors; Apache-2.0"
version = release = byzjax.__version__

root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/README.md",
    "docs/**.md",
    "examples/**/README.md",
    "experiments/README.md",
    "experiments/results/**.md",
]
exclude_patterns = [".*", "build", "dist", "out", "results", "byzjax", "tests"]

extensions = [
    "linked_names",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]

# Pages.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
suppress_warnings = ["myst.header"]  # Pages may start below a first heading.
copybutton_exclude = ".linenos, .gp, .go"

# The reference. Arguments are described with shapes and units, which types do not have.
autodoc_typehints = "none"
default_role = "code"  # A single backtick of a docstring.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Reference"]
python_display_short_literal_types = True
nitpicky = True
# Names of other projects, whose inventories would have to be fetched.
nitpick_ignore_regex = [("py:.*", r"(?!byzjax).*")]

# The look.
html_theme = "sphinx_book_theme"
html_title = "byzjax"
html_static_path = ["_static"]
html_css_files = ["byzjax.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navigation_with_keys": False,
    "navbar_persistent": [],
    # Pages of wide tables have the whole width.
    "secondary_sidebar_items": {
        "**": ["page-toc"],
        "benchmarks/README": [],
        "docs/catalogue": [],
        "docs/comparison": [],
    },
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "logo": {"text": "byzjax"},
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}


def bring_mathjax(app, error):
    """Copies MathJax from its wheel to the built pages."""
    if error is None and app.builder.format == "html":
        found = importlib.util.find_spec("mathjax")
        [folder] = found.submodule_search_locations
        source = pathlib.Path(folder, "static", "mathjax", "es5", "tex-svg.js")
        target = pathlib.Path(app.outdir, "_static", mathjax_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def title_of_numbers(app, docname, source):
    """Gives the tables of results, which begin at once, a title."""
    if docname.startswith("experiments/results/"):
        *_, folder, name = docname.split("/")
        title = name if folder == name else f"{name}, {folder}"
        source[0] = f"# {title}\n\n{source[0]}"


def no_enumeration(app, what, name, obj, options, lines):
    """Lets "num_byzantine: f." be a letter and a full stop, not point f of a list."""
    lines[:] = [re.sub(r"^(\s+\w+: [A-Za-z])\.", r"\1\\.", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", no_enumeration, priority=400)
    app.connect("source-read", title_of_numbers)
    app.connect("build-finished", bring_mathjax)
