"""Check data before training: splits, boxes, images, duplicates, anchors."""
