"""Where a model looks: maps, overlays and scores.

maps.py       what a map is, and where it lies on a photograph
explainer.py  an open model that gives maps
cam.py        Grad-CAM of models that end with mean pooling, without a gradient
overlay.py    a map drawn over its photograph
scores.py     how far maps can be believed: pointing game, deletion, insertion
run.py        `mineral-batch explain`: the maps of many images; folder.py: the files it writes
"""
