"""Text that strangers wrote, as safe HTML."""

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

# No images: they could call home. No attributes but a link's address and the start of a list.
TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "blockquote"),
    *("ul", "ol", "li", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def markdown_html(text: str) -> Markup:
    """Markdown (CommonMark, tables) as HTML without anything that could run, load or style."""
    html = MARKDOWN.render(text)
    return Markup(
        nh3.clean(
            html,
            tags=TAGS,
            attributes={"a": {"href"}, "ol": {"start"}},
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )
