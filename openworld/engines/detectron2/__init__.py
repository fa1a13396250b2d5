"""The engine made of detectron2's parts. :mod:`.names` works without detectron2; :mod:`.parts` registers the rest."""
