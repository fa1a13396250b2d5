"""Annotation formats: COCO, Pascal VOC, YOLO."""
