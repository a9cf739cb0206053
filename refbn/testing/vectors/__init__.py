"""Golden vectors for any language: inputs and correctly rounded results of every pass, in JSON.

`table` lists the tests with their flags, `generate` computes them, `command` is ``refbn vectors DIR``, ``schema.json``
describes the files. The files hold numbers as hexadecimal text and one array on a line, so that a reader needs no JSON
library; ``validation/vectors.c`` and ``validation/vectors_reader.py`` are two. The committed set is in
``validation/vectors/``.
"""

from refbn.testing.vectors.generate import FILES, document, schema, text, write

__all__ = ["FILES", "document", "schema", "text", "write"]
