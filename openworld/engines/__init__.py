"""Two-stage detectors that expose their regions: Faster R-CNN made of torchvision's parts, and of detectron2's."""
