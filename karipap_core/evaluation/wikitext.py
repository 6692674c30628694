"""WikiText as its papers and harnesses cut it: rows and pages of the one document that its file is."""

from karipap_core.text import HEADING, Text


def is_wikitext(text: Text) -> bool:
    """Whether a text is one document in WikiText's form: its first line is an article's heading, ` = Title = `."""
    return len(text.documents) == 1 and HEADING.match(text.documents[0]) is not None


def joined_rows(text: Text) -> str:
    """The rows of a text joined by two newlines, as papers feed it.

    Rows are documents; those of WikiText are its lines with their ends, as the hub's data set `wikitext-2-raw-v1` has
    them: a line of white space alone is an empty row.
    """
    if not is_wikitext(text):
        return "\n\n".join(text.documents)
    lines = text.documents[0].split("\n")
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)


def wikitext_pages(text: Text) -> tuple[str, ...]:
    """The articles of a WikiText, cut as `EleutherAI/wikitext_document_level` is: before each heading of first rank."""
    pages: list[str] = []
    page: list[str] = []
    for line in text.documents[0].split("\n"):
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    return tuple(page for page in [*pages, "\n".join(page)] if page.strip())
