"""A program's docstring, with its commands and printouts, as Markdown."""

import operator
import re
import textwrap


def as_markdown(docstring: str) -> str:
    """Paragraphs as they are, commands and printed lines as blocks, printed tables as tables."""
    blocks: list[str] = []
    for block in docstring.split("\n\n"):
        if "───" in block:
            blocks.append(table_of(block.split("\n")))
        elif block.startswith("    "):
            blocks.append(f"```console\n{textwrap.dedent(block)}\n```")
        elif blocks and blocks[-1].endswith(("prints:", "lines:")):
            blocks.append(f"```text\n{block}\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks)


def table_of(lines: list[str]) -> str:
    """A printed table, its header above a rule, as a table of Markdown.

    Columns are apart where every line is blank. A column without header or without body is a part
    of its neighbour: some names and headers have spaces.
    """
    rule = next(index for index, line in enumerate(lines) if set(line.strip()) == {"─"})
    rows = [line.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}") for line in lines]
    width = max(map(len, rows))
    rows = [row.ljust(width) for index, row in enumerate(rows) if index != rule]
    blank = "".join("x "[set(column) == {" "}] for column in zip(*rows, strict=True))
    spans: list[tuple[int, int]] = []

    def filled(part: list[str], span: tuple[int, int]) -> list[bool]:
        return [bool(row[slice(*span)].strip()) for row in part]

    for span in (match.span() for match in re.finditer("x+", blank)):
        if spans:
            last, header = spans[-1], rows[:rule]
            goes_on = all(map(operator.ge, filled(header, last), filled(header, span)))
            is_name = len(spans) == 1 and span[0] == last[1] + 1 and goes_on
            if (
                not any(filled(rows[rule:], last))
                or not any(filled(header, span))
                or (is_name and not any(filled(rows[rule:], span)))
            ):
                span = spans.pop()[0], span[1]
        spans.append(span)
    cells = [[row[slice(*span)].strip().replace("|", r"\|") for span in spans] for row in rows]
    header = [" ".join(filter(None, column)) for column in zip(*cells[:rule], strict=True)]
    below = [":--", *["--:"] * (len(spans) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, below, *cells[rule:]])
