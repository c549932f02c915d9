"""Reading C source as text: what check-floors and check-banned share."""

import os
import re

TOKEN = re.compile(
    r"""
    (?P<comment> /\*.*?(?:\*/|\Z) | //(?:\\\n|[^\n])* )
  | (?P<string>  "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
    """,
    re.DOTALL | re.VERBOSE,
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]*)"|<([^>\n]*)>)', re.MULTILINE)


def blank(text):
    """The same number of characters and lines, all blank."""
    return re.sub(r"[^\n]", " ", text)


def without_comments(text):
    return TOKEN.sub(lambda m: blank(m.group()) if m.group("comment") else m.group(), text)


def code_only(text):
    """Comments blank, and so is what stands between quotes. An #include's name goes too."""

    def hide(match):
        token = match.group()
        if match.group("comment"):
            return blank(token)
        return token[0] + blank(token[1:-1]) + token[-1]

    return TOKEN.sub(hide, text)


def includes(text):
    """Yields (line, name, quoted) for each #include."""
    for match in INCLUDE.finditer(without_comments(text)):
        # The directive's own line: the match may begin with blanks only, never with a newline
        yield line_of(text, match.start()), match.group(1) or match.group(2) or "", match.group(1) is not None


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def files_below(folder, suffixes):
    """All files with one of the suffixes, sorted; folders of builds and caches left out."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(d for d in folders if d[0] != "." and d not in ("node_modules", "__pycache__"))
        found += [os.path.join(where, n) for n in names if n.endswith(suffixes)]
    return sorted(found)
