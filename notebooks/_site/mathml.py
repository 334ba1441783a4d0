"""Formulas as MathML, made when the site is built: a page shows them without a script, a font or a network."""

import html
import re
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)
TAG = re.compile(r"\\tag\{([^}]*)\}")
SPACE = '<mspace width="0.167em" />'
FUNCTION = r"<mi>(?:log|exp|sin|cos|arcsin|max|min)</mi>"
ALIGNED = re.compile(r"\\\\|(?<!\\)&")


def convert(tex: str, node: nodes.Node, *, display: bool) -> str:
    """One formula as a `<math>` element; a warning, which fails the build, where a command is not known."""
    if display and ALIGNED.search(tex) and "\\begin" not in tex:
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    try:
        found = latex2mathml.converter.convert(tex, display="block" if display else "inline")
    except Exception as error:
        LOGGER.warning("formula %r: %r", tex, error, location=node)
        return f"<code>{html.escape(tex)}</code>"
    if unknown := re.search(r"\\[a-zA-Z]+", found):
        LOGGER.warning("formula %r: %s is not known", tex, unknown.group(), location=node)
    return spaced(found)


def spaced(formula: str) -> str:
    """Thin spaces around the names of functions, as TeX has them and MathML has not."""
    formula = re.sub(rf"((?:&#x02207;</mo>|</mi>|</msub>))({FUNCTION})", rf"\1{SPACE}\2", formula)
    return re.sub(rf"({FUNCTION})(<m(?:i|n|sub|row|frac)[ >])", rf"\1{SPACE}\2", formula)


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext(), node, display=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    tex = node.astext()
    number = "".join(f'<span class="number">({html.escape(tag)})</span>' for tag in TAG.findall(tex))
    formula = convert(TAG.sub("", tex).strip(), node, display=True)
    translator.body.append(translator.starttag(node, "div", CLASS="formula"))
    translator.body.append(f"{formula}{number}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
