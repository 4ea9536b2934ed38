# Copyright 2026 The hf_segformer authors.
# SPDX-License-Identifier: Apache-2.0
"""XML from others: without document types, so that no entity can grow without end or name a file."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


def parse_xml(contents: bytes) -> Element:
    """Return the root of an XML file.

    Raises:
        ValueError: It is no XML, or has a document type; the message is the reason alone.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse
    try:
        parser.Parse(contents, True)
    except (expat.ExpatError, LookupError) as error:  # an encoding that is not known
        raise ValueError(f"it is no XML file: {error}") from None
    return builder.close()


def _refuse(*_: object) -> None:
    raise ValueError("it must have no document type (<!DOCTYPE ...>), annotations need none")
