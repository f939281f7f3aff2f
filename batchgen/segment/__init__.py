"""Texts to the segments that are translated, and the answers back to texts.

pieces.py     what a text is cut into
cut.py        cuts a text, and joins the answers
blocks.py     lines that belong together and are no prose: fences, JSON, LaTeX
sentences.py  where sentences end
protect.py    spans that come back exactly: URLs, code, placeholders, markup
glossary.py   terms whose translation is given

No text is lost: the pieces of a text, joined, are the text.
"""
