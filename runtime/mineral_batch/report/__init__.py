"""The report: one HTML page to look at what a run found, or a folder for large runs, and plots for papers.

build.py       writes the page and its data
page.py        what the page shows, through Jinja templates/; data.py: what its script reads; warnings.py
figures.py     the charts, from the tables; charts.py: what a chart is
svg.py, worldmap.py, land.py   charts as shapes for the page; plots.py: the same charts by matplotlib
explained.py   the maps of `mineral-batch explain` that belong to the run
thumbnails.py  small copies of the photographs
script.py      the page's script, from the modules in assets/js/
"""
