"""One parser, fed by atheris along the branches that its inputs take: python -m tests.fuzz.guided PARSER [OPTION of
libFuzzer | FOLDER of inputs]…

A process of its own, because atheris changes the code of what it watches, and a finding ends the process.
"""

import sys

import atheris

with atheris.instrument_imports(include=["kvstore", "tomllib"]):
    from tests.fuzz.parsers import parsers, refuses_or_reads


def main() -> None:
    _, name, *arguments = sys.argv
    (parser,) = (parser for parser in parsers() if parser.name == name)
    atheris.Setup([sys.argv[0], *arguments], lambda raw: refuses_or_reads(parser, raw))
    atheris.Fuzz()


main()
