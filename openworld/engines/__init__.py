"""Two-stage detectors whose regions can be seen: Faster R-CNN of torchvision's parts, and of detectron2's."""
