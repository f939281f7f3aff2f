"""A page about output folders for people: one HTML file that needs nothing else, made anew of what the folders hold.

    about.py     what made a job's results, as far as it may be published
    outcome.py   an output folder as the page sees it; choice.py which of its rows are shown
    tally.py     numbers of millions of rows in little memory: how often each occurs, and a choice among rows
    cases.py     samples: a row with its prompt and answers; samples.py how they go into the page
    responses.py, translations.py, scores.py   one pass over the shards of each kind of job
    compared.py  a comparison of settings
    measured.py  outputs measured beside each other, as settings are
    svg.py       SVG; figures.py, charts.py what is drawn and said; markup.py HTML from typed parts
    page.py      the page, with page.css and page.js; make.py from folders to it

Nothing in a page depends on time: the same folders give the same bytes. All texts come from whoever wrote the input or
made the folder: they are escaped in HTML, and where the script shows them they are text and never markup.
"""
